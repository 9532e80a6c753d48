"""What do objects cost? One pass for all of an image's objects, against one pass for each.

    python benchmarks/objects.py [--images 16] [--rounds 7] [--size 256]

Lite0 on decoded images: the whole image alone; k boxes cut out of the map of the same pass, of
stage4 (112 channels, the stage that notebook 03 finds worth it), of head (1,280) or of three
stages, with masks; on the fork's adaptive cut, also at 384 pixels; the proposer, which says where
they are; k crops, each a pass of its own. Each is compared with the whole image of its own round;
medians. Needs mini-battles. Writes benchmarks/results/objects.json.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from pycocotools import mask as coco_mask
from turns import arguments, in_turns, write

from objemb_lib.attend.proposer import load_proposer
from objemb_lib.data.mini_battles import mini_battles
from objemb_lib.embed.boxes import Boxes
from objemb_lib.embed.extract import ExtractOptions
from objemb_lib.embed.pooling import POOLINGS
from objemb_lib.embed.regions import Region, cut, model_input
from objemb_lib.embed.trunks import Trunk, load_trunk
from objemb_lib.teach.student import CutTrunk

COUNTS = (1, 3, 10)
LARGE = 384  # pixels where others see 256
ONE, THREE = ["stage4"], ["stage4", "stage5", "head"]
CUT = {"cells": "adaptive", "leave_out": (), "pooling": "rmac"}  # the fork's


def boxes_of(n: int, k: int, size: int) -> list[torch.Tensor]:
    """``n`` times ``(k, 4)`` boxes of an eighth to three quarters of the image, inside it."""
    rng = np.random.default_rng(0)
    sides = rng.uniform(size / 8, size * 3 / 4, (n, k, 2))
    low = rng.uniform(size=(n, k, 2)) * (size - sides)
    return list(torch.from_numpy(np.concatenate([low, low + sides], 2)).float())


def objects_pass(
    trunk: Trunk, batches: list[torch.Tensor], boxes: list, stages: list[str], masks=None
) -> None:
    """One pass an image, every box cut out of the maps of the given stages; ``masks(i)`` gives the
    weights of image ``i``."""
    start = 0
    for pixels in batches:
        here = range(start, start := start + len(pixels))
        maps = trunk(pixels, trunk.deepest(stages))
        shares = torch.cat([masks(i) for i in here])[:, None] if masks else 1
        for stage in stages:
            POOLINGS["spoc"](cut(trunk, maps, stage, [boxes[i] for i in here]) * shares)


def crops_pass(trunk: Trunk, batches: list[torch.Tensor], boxes: list, size: int) -> None:
    """One pass a box, cut out of the pixels and brought to the size of an image; without boxes, one
    pass an image."""
    rest = iter(boxes)
    for pixels in batches:
        crops = [
            F.interpolate(image[None, :, int(y0) : int(y1), int(x0) : int(x1)], (size, size))
            for image, some in zip(pixels, rest)
            for x0, y0, x1, y1 in some.tolist()
        ]
        for part in torch.cat(crops or [pixels]).split(len(pixels)):
            POOLINGS["spoc"](trunk(part.contiguous(memory_format=torch.channels_last))["head"])


def cut_pass(network: CutTrunk, batches: list[torch.Tensor], boxes: list) -> None:
    """One pass an image, the last layers once more on every box."""
    rest = iter(boxes)
    for pixels in batches:
        maps = network(pixels, network.deepest(["cut"]))
        network.embedding(network, maps, list(islice(rest, len(pixels))))


def discs(boxes: list[torch.Tensor], size: int) -> Callable[[int], torch.Tensor]:
    """``masks`` of :func:`objects_pass`: discs in the boxes, stored as COCO stores masks."""
    y, x = np.mgrid[:size, :size] + 0.5
    runs = []
    for x0, y0, x1, y1 in (some.T.numpy() for some in boxes):
        across = (2 * x[..., None] - x0 - x1) / (x1 - x0)
        down = (2 * y[..., None] - y0 - y1) / (y1 - y0)
        inside = np.asfortranarray(across**2 + down**2 < 1, np.uint8)
        runs.append([run | {"counts": run["counts"].decode()} for run in coco_mask.encode(inside)])
    region = Region(Boxes("discs", [b.numpy() for b in boxes], masks=runs), masked=True)
    return lambda i: region.mask_shares(i, (size, size))


def variants(dataset, trunk: Trunk, size: int) -> dict[str, Callable[[], None]]:
    """Ways from decoded pixels to vectors."""
    fast = trunk.for_inference(torch.device("cpu"))

    def decoded(side: int) -> list[torch.Tensor]:
        stack = np.stack([model_input(dataset.image(i), side) for i in range(len(dataset))])
        pixels = fast.normalise(torch.from_numpy(stack).permute(0, 3, 1, 2))
        batch = ExtractOptions(side).batch_size  # images a forward pass
        return list(pixels.contiguous(memory_format=torch.channels_last).split(batch))

    batches = decoded(size)
    many = {k: boxes_of(len(dataset), k, size) for k in COUNTS}
    masks = discs(many[10], size)
    found = {"whole image": lambda: crops_pass(fast, batches, [], size)}
    for k in COUNTS:
        found[f"{k} boxes"] = lambda k=k: objects_pass(fast, batches, many[k], ONE)
    found["10 boxes, masked"] = lambda: objects_pass(fast, batches, many[10], ONE, masks)
    found["10 boxes, head"] = lambda: objects_pass(fast, batches, many[10], ["head"])
    found["10 boxes, three stages"] = lambda: objects_pass(fast, batches, many[10], THREE)
    cutting = CutTrunk(trunk, tail=trunk.name, **CUT).for_inference(torch.device("cpu"))
    proposer, large = load_proposer(), LARGE * size // 256
    wide, pixels = [b * large / size for b in many[10]], decoded(large)
    found["10 boxes, adaptive cut"] = lambda: cut_pass(cutting, batches, many[10])
    found["10 boxes, adaptive cut, larger"] = lambda: cut_pass(cutting, pixels, wide)
    found["proposer"] = lambda: [proposer.best(fast(pixels)) for pixels in batches]
    for k in COUNTS:
        found[f"{k} crops"] = lambda k=k: crops_pass(fast, batches, many[k], size)
    return found


@torch.inference_mode()
def main() -> None:
    asked = arguments(__doc__, images=16, rounds=7, size=256)
    dataset = mini_battles("battle").subset(range(asked.images))
    seconds = pd.DataFrame(in_turns(variants(dataset, load_trunk(), asked.size), asked.rounds))
    cost = seconds.div(seconds["whole image"], axis=0).median().round(2)
    speed = asked.images / seconds.median()
    print(pd.DataFrame({"images/s": speed.round(1), "x the whole image": cost}))
    more = 1000 * (seconds["proposer"] - seconds["whole image"]).median() / asked.images
    part = cost["10 boxes, adaptive cut, larger"] / cost["10 crops"]
    print(f"the fork's ten boxes: {part:.2f} of ten crops; the proposer: {more:.1f} ms an image")
    report = {name: getattr(asked, name) for name in ("images", "rounds", "size")}
    write("objects", report | {"cost_in_whole_images": cost.to_dict()})


if __name__ == "__main__":
    main()
