"""What does a photograph cost by a detector, and by one that gives embeddings, and where?

    python benchmarks/detect.py [--images 16] [--rounds 5]

Battle scenes one by one, and four at once: the shipped detectors, the student, and Faster R-CNN
with the trunk's vectors of its ten best boxes; each as loaded, by torch as ``for_inference``
prepares it, and by the engine, in turns, as medians. Of each, the parts: the trunk, the pyramid
with the heads on it, proposals (decoding and NMS), and what looks at single boxes (RoIAlign, heads,
NMS, masks), of which RoIAlign. In the same run torch and the engine are compared box by box, and by
their AP on the whole split. Needs mini-battles. Writes benchmarks/results/detect.json; exits with 1
if a box, score or AP is another.
"""

from __future__ import annotations

import os
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from functools import partial

import numpy as np
import pandas as pd
import torch
from torch import nn
from torchvision.ops import box_iou
from turns import arguments, in_turns, write

from objemb_lib.data.dataset import ImageDataset
from objemb_lib.data.mini_battles import mini_battles
from objemb_lib.detect.metrics import coco_ap, detect
from objemb_lib.detect.weights import load_detector
from objemb_lib.embed import compiled
from objemb_lib.embed.compiled import engine
from objemb_lib.embed.pooling import POOLINGS
from objemb_lib.embed.regions import cut
from objemb_lib.embed.trunks import Trunk, load_trunk
from objemb_lib.teach.student import load_student

CPU, TOP = torch.device("cpu"), 10
OVERLAP, APART, AP = 0.99, 1e-3, 2e-3  # boxes that are the same; how far may scores and AP be apart
WAYS = ("as loaded", "torch", "onnx")
SEVERAL = 4  # images that a detector is given at once in extraction
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


def networks(way: str) -> dict[str, nn.Module]:
    """``as loaded``, or by ``torch`` or ``onnx``, as ``for_inference`` makes them."""
    ready = way != "as loaded"
    os.environ["OBJEMB_ENGINE"] = way if ready else "torch"
    engine.cache_clear()
    found = {name: load_detector(name) for name in DETECTORS}
    student, trunk = load_student(), load_trunk()
    if ready:
        found = {name: one.for_inference(CPU) for name, one in found.items()}
        student.detector = student.detector.for_inference(CPU)
        trunk = trunk.for_inference(CPU)
    found["student"] = student
    found["faster_rcnn, then the trunk"] = TwoPasses(found["faster_rcnn"], trunk)
    for part in (part for one in found.values() for part in one.modules()):
        if hasattr(part, "engine"):  # a single photograph, at each depth and of a few boxes
            part.engine.seen = defaultdict(lambda: compiled.ENOUGH)
    return found


def parts(network: nn.Module) -> dict[str, list[nn.Module]]:
    """A network's parts by what they do; the proposals' contain their heads."""
    inside = getattr(network, "detector", network).network
    heads = [inside.backbone.fpn]
    if not hasattr(inside, "roi_heads"):
        return {"trunk": [inside.backbone.body], "pyramid, heads": [*heads, inside.head]}
    heads.append(inside.rpn.head)
    pools = [inside.roi_heads.box_roi_pool, inside.roi_heads.mask_roi_pool]
    return {"trunk": [inside.backbone.body], "pyramid, heads": heads, "proposals": [inside.rpn],
            "boxes": [inside.roi_heads], "RoIAlign": [p for p in pools if p]}  # fmt: skip


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
def compare(ways: dict[str, nn.Module], images: list[torch.Tensor], rounds: int) -> dict:
    """Milliseconds an image in each way, by itself (of which its parts) and of several at once; and
    whether two find the same."""

    def passes(at_once: int) -> dict[str, Callable[[], list[dict]]]:
        batches = [images[i : i + at_once] for i in range(0, len(images), at_once)]
        return {way: lambda run=run: [one for some in batches for one in run(some)]
                for way, run in ways.items()}  # fmt: skip

    found = {way: run() for way, run in passes(1).items()}
    report = same(found["onnx"], found["torch"])
    spent = {way: clocked(network) for way, network in ways.items()}
    for at_once in (1, SEVERAL):
        seconds = in_turns(passes(at_once), rounds)
        ms = {way: 1000 * float(np.median(some)) / len(images) for way, some in seconds.items()}
        told = {"ms": {way: round(value, 2) for way, value in ms.items()}}
        told |= {f"engine_over_{way}": round(ms["onnx"] / ms[way], 3) for way in WAYS[:2]}
        if at_once == 1:
            once = 1000 / len(images) / (rounds + 1)
            told["parts_ms"] = {way: {part: round(once * s, 2) for part, s in some.items()}
                                for way, some in spent.items()}  # fmt: skip
        report[f"{at_once} at once"] = told
    return report


def precision(network: nn.Module, data: ImageDataset) -> float:
    """AP over a data set."""
    return coco_ap(detect(network, data, progress=False, masks=False), data)["AP"]


def main() -> int:
    asked = arguments(__doc__, images=16, rounds=5)
    battle, made = mini_battles("battle"), {way: networks(way) for way in WAYS}
    pixels = [torch.from_numpy(np.array(battle.image(i))) for i in range(asked.images)]
    images = [p.permute(2, 0, 1).float() / 255 for p in pixels]
    report = {}
    for name in made["onnx"]:
        ways = {way: every[name] for way, every in made.items()}
        report[name] = compare(ways, images, asked.rounds)
        if name in DETECTORS:
            apart = precision(ways["onnx"], battle) - precision(ways["torch"], battle)
            report[name]["difference_of_AP"] = abs(apart)
    print(pd.json_normalize(list(report.values())).set_index([list(report)]).T.to_string())
    write("detect", {"images": asked.images, "rounds": asked.rounds,
                     "threads": torch.get_num_threads(), "ways": report})  # fmt: skip
    kept = [one["least_iou"] >= OVERLAP and one["largest_difference_of_scores"] <= APART
            and one.get("difference_of_AP", 0) <= AP for one in report.values()]  # fmt: skip
    return 0 if all(kept) else 1


if __name__ == "__main__":
    sys.exit(main())
