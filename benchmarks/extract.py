"""How fast is extraction, against the loop that people write first?

    python benchmarks/extract.py [--images 256] [--rounds 5] [--bf16]

Bare forward passes of Lite0 at 256 px on decoded images, each change added to the one before; the
engines that run the same network; then the whole pipeline from JPEG files to vectors, as medians.
On every split, the vectors by the shipped engine are compared with torch's, and what they find.
``--bf16`` also says what bf16 does to R@1 on the battle split: why nobody gets it without asking.
Needs mini-battles and, for torch.compile, a C++ compiler. Writes benchmarks/results/extract.json;
exits with 1 if an engine changes vectors by more than 1e-4, or what is found.
"""

from __future__ import annotations

import copy
import json
import os
import shutil
import statistics
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from unittest.mock import patch

import numpy as np
import onnxruntime
import pandas as pd
import torch
from PIL import Image
from torchvision.transforms import functional as transforms
from turns import RESULTS, arguments, in_turns, write

from objemb_lib.data.catalogue import load_splits
from objemb_lib.data.mini_battles import mini_battles
from objemb_lib.embed.compiled import engine, to_onnx
from objemb_lib.embed.extract import ExtractOptions, extract
from objemb_lib.embed.regions import WHOLE, crop, model_input
from objemb_lib.embed.trunks import Maps, Trunk, load_trunk
from objemb_lib.embed.whitening import l2
from objemb_lib.measure.intervals import paired_difference
from objemb_lib.measure.metrics import evaluate

CPU, SIDE = torch.device("cpu"), 256
KEPT = {"vectors": 1e-4, "R@1": 1e-9, "mAP": 1e-4}  # how far the engine may be from torch
PAIRS = [("head", "spoc"), ("head", "gem")]
Network = Callable[[torch.Tensor], object]
BF16 = "bf16_change_of_recall_at_1_in_points"
FIRST, LOOP, OURS = (
    "forward: as loaded, batch 32", "first loop, files to vectors", "extract, files to vectors",
)  # fmt: skip


def first_loop(trunk: Trunk, dataset) -> None:
    """Open, transform, stack 32, forward, average: what one writes first."""
    for start in range(0, len(dataset), 32):
        batch = []
        for file in dataset.files[start : start + 32]:
            image = Image.open(dataset.root / file).convert("RGB")
            tensor = transforms.to_tensor(transforms.resize(image, [SIDE, SIDE]))
            batch.append(transforms.normalize(tensor, trunk.mean.flatten(), trunk.std.flatten()))
        with torch.no_grad():
            trunk(torch.stack(batch))["head"].mean(dim=(2, 3))


@torch.inference_mode()
def forward(network: Network, pixels: torch.Tensor, size: int, layout: torch.memory_format) -> None:
    """Forward passes over normalised images in batches of ``size``."""
    for batch in pixels.split(size):
        network(batch.contiguous(memory_format=layout))


def engines(fast: Trunk) -> dict[str, Network]:
    """The same network, all maps of it, by each engine that is there; batches of 4."""
    every = Maps(fast.network, 0).eval()
    written = to_onnx(every, {"x": torch.zeros(2, 3, SIDE, SIDE)}, (), (0,))
    how = onnxruntime.SessionOptions()
    how.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(written, how, ["CPUExecutionProvider"])
    found = {"ONNX Runtime, as one exports it": lambda x: session.run(None, {"x": x.numpy()})}
    if shutil.which("c++"):
        found["torch.compile"] = torch.compile(every)
    return found


def speeds(dataset, trunk: Trunk, rounds: int) -> dict[str, float]:
    """Median images a second of each variant."""
    stack = np.stack([model_input(dataset.image(i), SIDE) for i in range(len(dataset))])
    pixels = trunk.normalise(torch.from_numpy(stack).permute(0, 3, 1, 2).contiguous())
    plain, last, pair = torch.contiguous_format, torch.channels_last, [("head", "gem")]
    plain_last = copy.deepcopy(trunk).to(memory_format=last)
    shipped, half = trunk.for_inference(CPU), trunk.for_inference(CPU, "bf16")
    with by("torch"):
        fast = trunk.for_inference(CPU)
    fresh, cached = (ExtractOptions(cache=cache, progress=False) for cache in (False, True))
    variants = {
        LOOP: lambda: first_loop(trunk, dataset),
        FIRST: partial(forward, trunk, pixels, 32, plain),
        "forward: + channels last": partial(forward, plain_last, pixels, 32, last),
        "forward: + batch norm folded": partial(forward, fast, pixels, 32, last),
        "forward: + batch 4 (torch's best)": partial(forward, fast, pixels, 4, last),
        **{f"forward: {name}": partial(forward, network, pixels, 4, plain)
           for name, network in engines(fast).items()},
        "forward: ONNX Runtime, image by image (shipped)":
            partial(forward, shipped, pixels, 16, plain),
        "forward: + bf16 (not shipped)": lambda: forward(half, pixels.bfloat16(), 4, last),
        OURS: lambda: extract(dataset, trunk, pair, options=fresh),
        "extract again, from the cache": lambda: extract(dataset, trunk, pair, options=cached),
    }  # fmt: skip
    seconds = in_turns(variants, rounds)
    return {name: len(dataset) / statistics.median(s) for name, s in seconds.items()}


@contextmanager
def by(name: str) -> Iterator[None]:
    """With another engine than the environment says."""
    with patch.dict(os.environ, OBJEMB_ENGINE=name):
        engine.cache_clear()
        yield
    engine.cache_clear()


def agreement(trunk: Trunk) -> dict[str, dict[str, float]]:
    """The largest difference of L2-normalised vectors by ONNX Runtime from torch's, and of what is
    found by them, for each split of mini-battles."""
    found, (train, tests) = {}, load_splits("mini-battles")
    how = ExtractOptions(cache=False, progress=False)
    for name, data in {"train": train, **tests}.items():
        vectors = []
        for which in ("onnx", "torch"):
            with by(which):
                vectors.append(extract(data, trunk, PAIRS, options=how))
        pairs = [[l2(every[pair]) for every in vectors] for pair in PAIRS]
        scores = [[evaluate(x, data) for x in some] for some in pairs]
        found[name] = {"vectors": max(float(np.abs(a - b).max()) for a, b in pairs)}
        for metric in ("R@1", "mAP"):
            found[name][metric] = max(abs(a.mean(metric) - b.mean(metric)) for a, b in scores)
    return found


def bf16_costs(trunk: Trunk) -> dict[str, str]:
    """Points of R@1 on the battle split that bf16 adds, with their intervals."""
    battle, found = mini_battles("battle"), {}
    for region in (WHOLE, crop(battle)):
        half, full = (
            extract(battle, trunk, PAIRS, region, ExtractOptions(precision=p, progress=False))
            for p in ("bf16", "fp32")
        )
        for pair in PAIRS:
            scores = [evaluate(l2(vectors[pair]), battle) for vectors in (half, full)]
            change = paired_difference(*scores, "R@1")
            ends = (f"{100 * v:+.2f}" for v in (change.low, change.high))
            found[f"{region.name}, {pair[1]}"] = f"{100 * change.value:+.2f} [{', '.join(ends)}]"
    return found


def main() -> int:
    asked = arguments(__doc__, images=256, rounds=5, bf16=False)
    trunk, dataset = load_trunk(), mini_battles("battle").subset(range(asked.images))
    found = pd.Series(speeds(dataset, trunk, asked.rounds))
    print(pd.DataFrame({"images/s": found, "x as loaded": found / found[FIRST]}).round(2))
    best = found.filter(like="forward").drop("forward: + bf16 (not shipped)").max()
    ours = found[OURS] / pd.Series({"of_the_best_forward": best, "x_the_first_loop": found[LOOP]})
    print(f"files to vectors: {ours.round(3).to_dict()}")
    same = agreement(trunk)
    print(pd.DataFrame(same).T)
    earlier = RESULTS / "extract.json"
    bf16 = json.loads(earlier.read_text()).get(BF16, {}) if earlier.exists() else {}
    if asked.bf16:
        bf16 = bf16_costs(trunk)
        print(f"bf16 moves R@1: {bf16}")
    write("extract", {
        "images": asked.images, "rounds": asked.rounds,
        "images_per_second": found.round(1).to_dict(),
        "files_to_vectors": ours.round(3).to_dict(),
        "largest_difference_from_torch": same, BF16: bf16,
    })  # fmt: skip
    return int(any(one[what] > most for one in same.values() for what, most in KEPT.items()))


if __name__ == "__main__":
    sys.exit(main())
