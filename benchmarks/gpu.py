"""What an accelerator gives: the same numbers as a processor, and how many images a second.

    python benchmarks/gpu.py pack FOLDER     where mini-battles is: some photographs, and what this
                                             machine makes of them (7 MB to take along)
    python benchmarks/gpu.py FOLDER          there: the same numbers again, and speeds
    python benchmarks/gpu.py FOLDER --quick  small settings, to see that it runs, on any machine;
                                             writes nothing

Needs the library, torch, torchvision, timm and the weights of Lite0 alone: no faiss, papermill or
pooch, no network. Takes some minutes on a GPU. Writes benchmarks/results/gpu.json:

- ``numbers``: of notebooks 01 to 04 on the packed scenes: here, as packed, their difference;
- ``speeds``: images a second of Lite0 at 256 px and ResNet-50 (random weights) at 448 px, at each
  precision and memory layout, and the most memory that was held;
- ``training``: milliseconds of a step of the student's distillation, its precision, memory.

Exits with 1 if a number is further off than its tolerance in the course's results, 0.01.
"""

from __future__ import annotations

import json
import pickle
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd
import torch
from torch.utils.benchmark import Timer
from turns import write

from objemb_lib import config
from objemb_lib.data.dataset import ImageDataset
from objemb_lib.detect.features import DetectorTrunk
from objemb_lib.detect.metrics import detect, main_recall
from objemb_lib.detect.weights import load_detector
from objemb_lib.embed.extract import ExtractOptions, extract
from objemb_lib.embed.regions import WHOLE, Region, crop, roi
from objemb_lib.embed.trunks import Trunk, load_trunk
from objemb_lib.embed.whitening import l2
from objemb_lib.measure.metrics import evaluate
from objemb_lib.teach.distillation import DistillationModule, DistillConfig
from objemb_lib.teach.student import StudentTrunk, Teacher, load_student
from objemb_lib.teach.targets import example

SCENES, PACK, TOLERANCE = 600, "scenes.pickle", 0.01  # 600: 7 MB
FEW = 40  # scenes for --quick
PAIRS = (("head", "spoc"), ("head", "gem"), ("stage4", "spoc"))


def pack(folder: Path) -> None:
    """Scenes of the battle split with their truth, and this machine's numbers."""
    from objemb_lib.data.mini_battles import mini_battles

    scenes = mini_battles("battle").limit(SCENES)
    for file in scenes.files:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(scenes.root / file, folder / file)
    known = {"scenes": scenes, "numbers": numbers(scenes), "few": numbers(scenes.limit(FEW))}
    (folder / PACK).write_bytes(pickle.dumps(known))


def numbers(scenes: ImageDataset) -> dict[str, float]:
    """Of each notebook from 01 to 04 some, on these scenes."""
    options = ExtractOptions(cache=False, progress=False)
    trunk, found = load_trunk(), {}

    def score(name: str, network: Trunk, pairs: Sequence, region: Region) -> None:
        for pair, vectors in extract(scenes, network, pairs, region, options).items():
            said = evaluate(l2(vectors), scenes)
            found.update({f"{name}, {' '.join(pair)}, {m}": said.mean(m) for m in ("mAP", "R@1")})

    score("01 whole image", trunk, PAIRS[:2], WHOLE)
    score("01 crop", trunk, PAIRS[:2], crop(scenes))
    detector = load_detector("faster_rcnn").to(config.device())
    boxes = detect(detector, scenes, progress=False)
    found["02 recall of main objects"] = float(main_recall(boxes, scenes).mean())
    score("02 box head", DetectorTrunk(detector), [("box_head", "spoc")], roi(scenes))
    score("03 object on the map", trunk, PAIRS[2:], roi(scenes))
    score("04 student", StudentTrunk(load_student()), [("student", "spoc")], roi(scenes))
    return {name: round(float(value), 4) for name, value in found.items()}


# --- speed --------------------------------------------------------------------------------


def cost(work: Callable[[], object], times: int) -> tuple[float, dict]:
    """Mean seconds of several times, after one that warms up; and the most memory held, in GB."""
    on_gpu = config.device().type == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    seconds = Timer("work()", globals={"work": work}).timeit(times).mean  # waits for the GPU
    held = round(torch.cuda.max_memory_allocated() / 1e9, 2) if on_gpu else None
    return seconds, {"memory_gb": held}


@torch.inference_mode()
def speeds(trunk: Trunk, side: int, batch: int, times: int) -> dict[str, dict]:
    """Images a second at each precision and layout, pixels on the device already."""
    rows, device = {}, config.device()
    pixels = torch.randn(batch, 3, side, side, device=device)
    plain, last = torch.contiguous_format, torch.channels_last

    def measure(name: str, network: Trunk, given: torch.Tensor) -> None:
        took, memory = cost(lambda: network(given), times)
        rows[name] = {"images_per_second": round(batch / took, 1), **memory}

    for name, half, layout in (
        ("fp32", None, plain), ("fp32, channels last", None, last),
        ("AMP fp16", torch.float16, plain), ("AMP fp16, channels last", torch.float16, last),
        ("AMP bf16, channels last", torch.bfloat16, last),
    ):  # fmt: skip
        if half == torch.float16 and device.type == "cpu":
            continue  # which imitates it
        with torch.autocast(device.type, half or torch.bfloat16, enabled=half is not None):
            given = pixels.to(memory_format=layout)
            measure(name, trunk.to(device, memory_format=layout), given)
    measure("for_inference", trunk.for_inference(device), pixels.to(memory_format=last))
    return rows


def training(scenes: ImageDataset, batch: int, times: int) -> dict[str, dict]:
    """A step of the student's distillation: forward, backward, update."""
    device, found = config.device(), {}
    pairs = [example(scenes, i) for i in range(batch)]
    images = [image.as_subclass(torch.Tensor).to(device).float() / 255 for image, _ in pairs]
    targets = [{k: v.as_subclass(torch.Tensor).to(device) for k, v in t.items()} for _, t in pairs]
    for name, half in (("fp32", False), ("AMP bf16", True)):
        student = load_student().to(device, memory_format=torch.channels_last).train()
        module = DistillationModule(student, Teacher(load_trunk()), DistillConfig())
        optimiser = torch.optim.AdamW([p for p in student.parameters() if p.requires_grad], 1e-5)

        def step(module=module, optimiser=optimiser, half=half) -> None:
            optimiser.zero_grad(set_to_none=True)
            with torch.autocast(device.type, torch.bfloat16, enabled=half):
                loss = sum(module(images, targets).values())
            loss.backward()
            optimiser.step()

        took, memory = cost(step, times)
        found[name] = {"ms": round(1000 * took, 1), "images": batch, **memory}
    return found


def main() -> int:
    if sys.argv[1:2] == ["pack"] and len(sys.argv) == 3:
        pack(Path(sys.argv[2]))
        return 0
    if len(sys.argv) < 2 or sys.argv[1].startswith("-"):
        print(__doc__)
        return 0 if {"-h", "--help"} & set(sys.argv) else 2
    folder, quick = Path(sys.argv[1]), "--quick" in sys.argv
    known = pickle.loads((folder / PACK).read_bytes())  # of one's own making
    scenes, packed = replace(known["scenes"], root=folder), known["numbers"]
    if quick:
        scenes, packed = scenes.limit(FEW), known["few"]
    here = numbers(scenes)
    table = pd.DataFrame({"here": here, "as packed": packed})
    table["apart"] = (table["here"] - table["as packed"]).round(4)
    batch, times = (2, 1) if quick else (64, 20)
    resnet = load_trunk("torchvision/resnet50", pretrained=False)
    costs = {
        "speeds": {
            "efficientnet_lite0, 256 px": speeds(load_trunk(), 256, batch, times),
            "resnet50, 448 px": speeds(resnet, 448, batch, times),
        },
        "training": training(scenes, 2 if quick else 16, times),
    }
    print(table.to_string())
    print(json.dumps(costs, indent=1))
    if not quick:
        gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
        about = {"device": str(config.device()), "gpu": gpu, "images": len(scenes)}
        write("gpu", about | {"numbers": table.to_dict("index")} | costs)
    return 0 if (table["apart"].abs() <= TOLERANCE).all() else 1


if __name__ == "__main__":
    sys.exit(main())
