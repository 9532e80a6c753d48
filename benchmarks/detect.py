"""What does a photograph cost by a detector, and by one that gives embeddings, and where?

    python benchmarks/detect.py [--images 16] [--rounds 5]

One battle scene at a time: the shipped detectors, the student, and Faster R-CNN with the trunk's
vectors of its ten best boxes; each by torch alone and by the engine that ``for_inference`` takes,
in turns, as medians. Of each, the parts: the trunk, the pyramid with the heads on it, proposals
(decoding and NMS), and what looks at single boxes (RoIAlign, heads, NMS, masks). In the same run
the two are compared box by box. Needs mini-battles, and the engine (``make extras``). Writes
benchmarks/results/detect.json; exits with 1 if a box or score is another.
"""

from __future__ import annotations

import copy
import sys
import time
from collections import defaultdict
from functools import partial

import numpy as np
import pandas as pd
import torch
from torch import nn
from torchvision.ops import box_iou
from turns import arguments, in_turns, write

from objemb_lib.data.mini_battles import mini_battles
from objemb_lib.detect.weights import load_detector
from objemb_lib.embed.compiled import ENOUGH
from objemb_lib.embed.pooling import POOLINGS
from objemb_lib.embed.regions import cut
from objemb_lib.embed.trunks import Trunk, load_trunk
from objemb_lib.teach.student import load_student

CPU, TOP = torch.device("cpu"), 10
OVERLAP, APART = 0.99, 1e-3  # boxes that are the same, and how far their scores may be apart
DETECTORS = ("faster_rcnn", "mask_rcnn", "fcos")


class TwoPasses(nn.Module):
    """A detector, and the trunk on its best boxes."""

    def __init__(self, detector: nn.Module, trunk: Trunk) -> None:
        super().__init__()
        self.detector, self.trunk = detector, trunk

    def forward(self, images: list[torch.Tensor]) -> list[dict]:
        found = self.detector(images)
        boxes = [one["boxes"][:TOP] for one in found]
        maps = self.trunk(self.trunk.normalise(torch.stack(images)), "stage4")
        POOLINGS["spoc"](cut(self.trunk, maps, "stage4", boxes))
        return found


def networks() -> dict[str, nn.Module]:
    """By the engine, as ``for_inference`` makes them."""
    found = {name: load_detector(name).for_inference(CPU) for name in DETECTORS}
    found["student"] = load_student()
    found["student"].detector = found["student"].detector.for_inference(CPU)
    two = TwoPasses(found["faster_rcnn"], load_trunk().for_inference(CPU))
    for trunk in (part for one in (*found.values(), two) for part in one.modules()):
        if isinstance(trunk, Trunk):  # a single photograph, at each depth and of a few boxes
            trunk.engine.seen = defaultdict(lambda: ENOUGH)
    return found | {"faster_rcnn, then the trunk": two}


def parts(network: nn.Module) -> dict[str, list[nn.Module]]:
    """A network's parts by what they do; the proposals' contain their heads."""
    inside = getattr(network, "detector", network).network
    heads = [inside.backbone.fpn]
    if not hasattr(inside, "roi_heads"):
        return {"trunk": [inside.backbone.body], "pyramid, heads": [*heads, inside.head]}
    heads.append(inside.rpn.head)
    return {"trunk": [inside.backbone.body], "pyramid, heads": heads,
            "proposals": [inside.rpn], "boxes": [inside.roi_heads]}  # fmt: skip


def clocked(network: nn.Module) -> dict[str, float]:
    """Seconds of a network's parts, which grow with every pass."""
    spent, began = defaultdict(float), {}

    def begin(module: nn.Module, _: object) -> None:
        began[module] = time.perf_counter()

    def end(module: nn.Module, *_: object, part: str) -> None:
        spent[part] += time.perf_counter() - began[module]

    for part, modules in parts(network).items():
        for module in modules:
            module.register_forward_pre_hook(begin)
            module.register_forward_hook(partial(end, part=part))
    return spent


def same(a: list[dict], b: list[dict]) -> dict[str, float]:
    """The least overlap of boxes with their partners, and the largest difference of scores."""
    overlaps, apart = [1.0], [0.0]
    for one, other in zip(a, b):
        if len(one["boxes"]) != len(other["boxes"]):
            return {"least_iou": 0.0, "largest_difference_of_scores": 1.0}
        if len(one["boxes"]):
            best = box_iou(one["boxes"], other["boxes"]).max(dim=1)
            overlaps.append(float(best.values.min()))
            apart.append(float((one["scores"] - other["scores"]).abs().max()))
    return {"least_iou": min(overlaps), "largest_difference_of_scores": max(apart)}


@torch.inference_mode()
def compare(fast: nn.Module, images: list[torch.Tensor], rounds: int) -> dict:
    """Milliseconds an image by torch and by the engine, of which its parts; and whether both find
    the same."""
    by = {"torch": copy.deepcopy(fast), "engine": fast}  # a copy has no engine
    passes = {
        name: lambda run=run: [run([image])[0] for image in images] for name, run in by.items()
    }
    found = {name: run() for name, run in passes.items()}
    spent = {name: clocked(network) for name, network in by.items()}
    seconds = in_turns(passes, rounds)
    ms = {name: 1000 * float(np.median(some)) / len(images) for name, some in seconds.items()}
    once = 1000 / len(images) / (rounds + 1)
    report = {"ms": {name: round(value, 2) for name, value in ms.items()}}
    report["engine_over_torch"] = round(ms["engine"] / ms["torch"], 3)
    report["parts_ms"] = {name: {part: round(once * s, 2) for part, s in some.items()}
                          for name, some in spent.items()}  # fmt: skip
    return report | same(found["engine"], found["torch"])


def main() -> int:
    """Measure, print, keep."""
    asked = arguments(__doc__, images=16, rounds=5)
    battle = mini_battles("battle")
    pixels = [torch.from_numpy(np.array(battle.image(i))) for i in range(asked.images)]
    images = [p.permute(2, 0, 1).float() / 255 for p in pixels]
    report = {name: compare(one, images, asked.rounds) for name, one in networks().items()}
    print(pd.json_normalize(list(report.values())).set_index([list(report)]).T.to_string())
    write("detect", {"images": asked.images, "rounds": asked.rounds,
                     "threads": torch.get_num_threads(), "ways": report})  # fmt: skip
    kept = [one["least_iou"] >= OVERLAP and one["largest_difference_of_scores"] <= APART
            for one in report.values()]  # fmt: skip
    return 0 if all(kept) else 1


if __name__ == "__main__":
    sys.exit(main())
