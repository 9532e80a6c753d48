"""How fast is extraction, against the loop that people write first?

    python benchmarks/extract.py [--images 256] [--rounds 5] [--bf16]

Bare forward passes of Lite0 at 256 px on decoded images, each change added to the one before;
then the whole pipeline from JPEG files to vectors. The variants take turns within each round,
since a machine's speed drifts; medians are compared. Needs mini-battles. Writes
benchmarks/results/extract.json.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import platform
import statistics
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torchvision.transforms import functional as transforms

from objemb_lib.cache import atomic_write_text
from objemb_lib.data.mini_battles import mini_battles
from objemb_lib.embed.extract import ExtractOptions, extract
from objemb_lib.embed.regions import WHOLE, crop, model_input
from objemb_lib.embed.trunks import Trunk, load_trunk
from objemb_lib.embed.whitening import l2
from objemb_lib.measure.intervals import paired_difference
from objemb_lib.measure.metrics import evaluate

RESULT = Path(__file__).parent / "results" / "extract.json"
CPU = torch.device("cpu")


def first_loop(trunk: Trunk, dataset) -> None:
    """Open, transform, stack 32, forward, average: what one writes first."""
    for start in range(0, len(dataset), 32):
        batch = []
        for file in dataset.files[start : start + 32]:
            image = Image.open(dataset.root / file).convert("RGB")
            tensor = transforms.to_tensor(transforms.resize(image, [256, 256]))
            batch.append(transforms.normalize(tensor, trunk.mean.flatten(), trunk.std.flatten()))
        with torch.no_grad():
            trunk(torch.stack(batch))["head"].mean(dim=(2, 3))


@torch.inference_mode()
def forward(trunk: Trunk, pixels: torch.Tensor, size: int, layout: torch.memory_format) -> None:
    """Forward passes over normalised images in batches of ``size``."""
    for batch in pixels.split(size):
        trunk(batch.contiguous(memory_format=layout))


def speeds(dataset, trunk: Trunk, rounds: int) -> dict[str, float]:
    """Median images a second of each variant."""
    stack = np.stack([model_input(dataset.image(i), 256) for i in range(len(dataset))])
    pixels = trunk.normalise(torch.from_numpy(stack).permute(0, 3, 1, 2).contiguous())
    last, first = torch.channels_last, torch.contiguous_format
    plain_last = copy.deepcopy(trunk).to(memory_format=last)
    fast, half = trunk.for_inference(CPU), trunk.for_inference(CPU, "bf16")
    pair = [("head", "gem")]
    variants = {
        "first loop, files to vectors": lambda: first_loop(trunk, dataset),
        "forward: as loaded, batch 32": lambda: forward(trunk, pixels, 32, first),
        "forward: + channels last": lambda: forward(plain_last, pixels, 32, last),
        "forward: + batch norm folded": lambda: forward(fast, pixels, 32, last),
        "forward: + batch 4 (shipped)": lambda: forward(fast, pixels, 4, last),
        "forward: + bf16 (not shipped)": lambda: forward(half, pixels.bfloat16(), 4, last),
        "extract, files to vectors": lambda: extract(
            dataset, trunk, pair, options=ExtractOptions(cache=False, progress=False)
        ),
        "extract again, from the cache": lambda: extract(
            dataset, trunk, pair, options=ExtractOptions(progress=False)
        ),
    }
    seconds = {name: [] for name in variants}
    for round_ in range(rounds + 1):  # the first one warms up
        for name, variant in variants.items():
            start = time.perf_counter()
            variant()
            if round_:
                seconds[name].append(time.perf_counter() - start)
    return {name: len(dataset) / statistics.median(s) for name, s in seconds.items()}


def bf16_costs(trunk: Trunk) -> dict[str, str]:
    """What bf16 does to R@1 on the battle split: the reason that it is not shipped."""
    battle, found = mini_battles("battle"), {}
    pairs = [("head", "spoc"), ("head", "gem")]
    for region in (WHOLE, crop(battle)):
        half, full = (
            extract(battle, trunk, pairs, region, ExtractOptions(precision=p, progress=False))
            for p in ("bf16", "fp32")
        )
        for pair in pairs:
            scores = [evaluate(l2(vectors[pair]), battle) for vectors in (half, full)]
            change = paired_difference(*scores, "R@1")
            ends = (f"{100 * v:+.2f}" for v in (change.low, change.high))
            found[f"{region.name}, {pair[1]}"] = f"{100 * change.value:+.2f} [{', '.join(ends)}]"
    return found


def main() -> None:
    """Measure, print, keep."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--bf16", action="store_true", help="also what bf16 does to R@1")
    asked = parser.parse_args()
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None  # a busy machine misleads
    trunk = load_trunk()
    dataset = mini_battles("battle").subset(range(asked.images))
    found = speeds(dataset, trunk, asked.rounds)
    slowest = found["forward: as loaded, batch 32"]
    for name, speed in found.items():
        print(f"{name:32} {speed:7.1f} images/s  {speed / slowest:5.2f} x as loaded")
    bare, whole = found["forward: + batch 4 (shipped)"], found["extract, files to vectors"]
    overhead = bare / whole - 1
    print(f"pipeline over the bare forward pass: {100 * overhead:+.0f} % time")
    key = "bf16_change_of_recall_at_1_in_points"
    earlier = json.loads(RESULT.read_text()).get(key, {}) if RESULT.exists() else {}
    bf16 = bf16_costs(trunk) if asked.bf16 else earlier
    for name, change in bf16.items():
        print(f"bf16 moves R@1, {name}: {change} points")
    report = {
        "images": asked.images,
        "rounds": asked.rounds,
        "cores": os.cpu_count(),
        "other_load": load,
        "machine": platform.machine(),
        "torch": torch.__version__,
        "images_per_second": {name: round(s, 1) for name, s in found.items()},
        "pipeline_overhead": round(overhead, 3),
        key: bf16,
    }
    RESULT.parent.mkdir(exist_ok=True)
    atomic_write_text(RESULT, json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
