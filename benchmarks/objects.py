"""What do objects cost? One pass for all of an image's objects, against one pass for each.

    python benchmarks/objects.py [--images 16] [--rounds 7] [--size 256]

Lite0 on decoded images: the whole image alone; k boxes cut out of the map of the same pass, of
stage4 (112 channels, the stage that notebook 03 finds worth it), of head (1,280) or of three
stages, with masks; k crops, each a pass of its own. The variants take turns within each round, and
each is compared with the whole image of its own round, so that other load meets all alike; medians.
Needs mini-battles. Writes benchmarks/results/objects.json; exits with 1 if 10 boxes of stage4 cost
1.3 whole images or more, or 10 crops less than 5 times the boxes.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from pycocotools import mask as coco_mask

from objemb_lib.cache import atomic_write_text
from objemb_lib.data.mini_battles import mini_battles
from objemb_lib.embed.boxes import Boxes
from objemb_lib.embed.pooling import POOLINGS
from objemb_lib.embed.regions import Region, cut, model_input
from objemb_lib.embed.trunks import Trunk, load_trunk

RESULT = Path(__file__).parent / "results" / "objects.json"
CPU = torch.device("cpu")
BATCH = 4  # images a forward pass, as extract takes them on a CPU
COUNTS = (1, 3, 10)
ONE, HEAD, THREE = ("stage4",), ("head",), ("stage4", "stage5", "head")
MOST, LEAST = 1.3, 5.0  # what is asked of 10 objects


def boxes_of(n: int, k: int, size: int, seed: int = 0) -> list[torch.Tensor]:
    """``n`` times ``(k, 4)`` boxes of an eighth to three quarters of the image, inside it."""
    rng, found = np.random.default_rng(seed), []
    for _ in range(n):
        sides = rng.uniform(size / 8, size * 3 / 4, (k, 2))
        low = rng.uniform(size=(k, 2)) * (size - sides)
        found.append(torch.from_numpy(np.concatenate([low, low + sides], 1)).float())
    return found


@torch.inference_mode()
def whole_pass(trunk: Trunk, batches: list[torch.Tensor]) -> None:
    for pixels in batches:
        POOLINGS["spoc"](trunk(pixels)["head"])


@torch.inference_mode()
def objects_pass(
    trunk: Trunk, batches: list[torch.Tensor], boxes: list, stages: tuple, masks=None
) -> None:
    """One pass an image, every box cut out of the maps of the given stages.

    ``masks(i)`` gives the weights of image ``i``, read from run lengths as extraction does it.
    """
    for n, pixels in enumerate(batches):
        maps, here = trunk(pixels), range(n * BATCH, n * BATCH + len(pixels))
        shares = torch.cat([masks(i) for i in here])[:, None] if masks else 1
        for stage in stages:
            features = cut(trunk, maps, stage, [boxes[i] for i in here])
            POOLINGS["spoc"](features * shares)


@torch.inference_mode()
def crops_pass(trunk: Trunk, batches: list[torch.Tensor], boxes: list, size: int) -> None:
    """One pass a box: cut out of the pixels and brought to the size of an image."""
    for n, pixels in enumerate(batches):
        crops = [
            F.interpolate(image[None, :, int(y0) : int(y1), int(x0) : int(x1)], (size, size))
            for image, some in zip(pixels, boxes[n * BATCH : (n + 1) * BATCH])
            for x0, y0, x1, y1 in some.tolist()
        ]
        for part in torch.cat(crops).split(BATCH):
            POOLINGS["spoc"](trunk(part.contiguous(memory_format=torch.channels_last))["head"])


def weights_of(dataset, boxes: list[torch.Tensor], size: int) -> Callable[[int], torch.Tensor]:
    """``masks`` of :func:`objects_pass`: discs in the boxes, stored as COCO stores masks."""
    y, x = np.mgrid[:size, :size] + 0.5
    runs = []
    for some in boxes:
        discs = [
            ((2 * x - x0 - x1) / (x1 - x0)) ** 2 + ((2 * y - y0 - y1) / (y1 - y0)) ** 2 < 1
            for x0, y0, x1, y1 in some.tolist()
        ]
        runs.append(coco_mask.encode(np.asfortranarray(np.stack(discs, 2).astype(np.uint8))))
    for mask in (mask for many in runs for mask in many):
        mask["counts"] = mask["counts"].decode()
    found = Boxes("discs", [b.numpy() for b in boxes], masks=runs)
    region = Region(found, masked=True)
    return lambda i: region.mask_shares(i, (size, size))


def bare(dataset, trunk: Trunk, size: int) -> dict[str, Callable[[], None]]:
    """Variants from decoded pixels to vectors."""
    fast = trunk.for_inference(CPU)
    stack = np.stack([model_input(dataset.image(i), size) for i in range(len(dataset))])
    pixels = fast.normalise(torch.from_numpy(stack).permute(0, 3, 1, 2))
    batches = list(pixels.contiguous(memory_format=torch.channels_last).split(BATCH))
    many = {k: boxes_of(len(dataset), k, size) for k in COUNTS}
    found = {"whole image": lambda: whole_pass(fast, batches)}
    for k in COUNTS:
        found[f"{k} boxes"] = lambda k=k: objects_pass(fast, batches, many[k], ONE)
    masks = weights_of(dataset, many[10], size)
    found["10 boxes, masked"] = lambda: objects_pass(fast, batches, many[10], ONE, masks)
    found["10 boxes, head"] = lambda: objects_pass(fast, batches, many[10], HEAD)
    found["10 boxes, three stages"] = lambda: objects_pass(fast, batches, many[10], THREE)
    for k in COUNTS:
        found[f"{k} crops"] = lambda k=k: crops_pass(fast, batches, many[k], size)
    return found


def measure(variants: dict[str, Callable[[], None]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each variant in each round; a first round warms up."""
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for round_ in range(rounds + 1):
        for name, variant in variants.items():
            start = time.perf_counter()
            variant()
            if round_:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def ratio(seconds: dict[str, list[float]], a: str, b: str) -> float:
    """Median over the rounds of what ``a`` took in units of ``b``."""
    return round(statistics.median(x / y for x, y in zip(seconds[a], seconds[b])), 2)


def main() -> int:
    """Measure, print, keep."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--size", type=int, default=256)
    asked = parser.parse_args()
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None  # a busy machine misleads
    trunk, dataset = load_trunk(), mini_battles("battle").subset(range(asked.images))
    seconds = measure(bare(dataset, trunk, asked.size), asked.rounds)
    cost = {name: ratio(seconds, name, "whole image") for name in seconds}
    for name, times in seconds.items():
        speed = asked.images / statistics.median(times)
        print(f"{name:26} {speed:7.1f} images/s  {cost[name]:6.2f} x the whole image")
    gain = ratio(seconds, "10 crops", "10 boxes")
    print(f"10 crops cost {gain} x 10 boxes of one pass")
    report = {
        "images": asked.images,
        "rounds": asked.rounds,
        "size": asked.size,
        "cores": os.cpu_count(),
        "other_load": load,
        "machine": platform.machine(),
        "torch": torch.__version__,
        "cost_in_whole_images": cost,
        "ten_crops_over_ten_boxes": gain,
    }
    RESULT.parent.mkdir(exist_ok=True)
    atomic_write_text(RESULT, json.dumps(report, indent=1) + "\n")
    return 0 if cost["10 boxes"] < MOST and gain >= LEAST else 1


if __name__ == "__main__":
    sys.exit(main())
