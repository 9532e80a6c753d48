"""A control beside the detectors: their trunk, trained on their scenes to classify, not to find.

What such a network has in common with a detector is practice on these scenes; what it lacks is
detection: it never learns where an object is.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from objemb_lib.data.dataset import ImageDataset
from objemb_lib.detect.detectors import FrozenNorm, Losses, Target, freeze
from objemb_lib.detect.weights import load_network, read_card
from objemb_lib.embed.extract import ExtractOptions, extract
from objemb_lib.embed.trunks import Trunk, load_trunk
from objemb_lib.measure.metrics import average_precision

CLASSIFIER = "classifier"  # of its file, and of the training that makes it


class Classifier(FrozenNorm):
    """A trunk, average pooling and one linear layer that tells which categories are on an image.

    What is frozen in a detector's trunk is frozen here.

    Args:
        trunk: is copied. categories: names. size: side in pixels of what it sees.
    """

    def __init__(self, trunk: Trunk, categories: Sequence[str], size: int) -> None:
        super().__init__()
        self.trunk, self.categories, self.size = copy.deepcopy(trunk), tuple(categories), size
        self.linear = nn.Linear(trunk.stages["head"].channels, len(categories))
        freeze(self.trunk)

    def about(self) -> dict:
        """What a card must say so that the network can be built again."""
        return {"trunk": self.trunk.name, "categories": list(self.categories), "size": self.size}

    def forward(self, images: list[Tensor], targets: list[Target]) -> Losses:
        """Mean binary cross-entropy of all images and categories.

        Args:
            images: ``(3, size, size)`` float pixels in 0..1 each. targets: their ``labels``
                ``(K,)`` from 1 count, each once; boxes do not.
        """
        maps = self.trunk(self.trunk.normalise(torch.stack(images)))
        logits = self.linear(maps["head"].mean(dim=(2, 3)))
        truth = torch.zeros_like(logits)
        for row, target in zip(truth, targets):
            row[target["labels"] - 1] = 1
        return {"loss_labels": F.binary_cross_entropy_with_logits(logits, truth)}


def load_classifier(name: str = CLASSIFIER, root: Path | None = None) -> Classifier:
    """The shipped classifier, see :func:`load_network`."""

    def build(card: dict) -> Classifier:
        return Classifier(load_trunk(card["trunk"], False), card["categories"], card["size"])

    return load_network(name, root, build)


def score_classifier(learnt: Classifier, dataset: ImageDataset) -> dict:
    """Average precision of the images ranked for a category, mean over categories, and by chance:
    the mean share of images that hold one."""
    options = ExtractOptions(learnt.size, cache=False, progress=False)
    pair = ("head", "spoc")  # what the linear layer sees
    pooled = extract(dataset, learnt.trunk, [pair], options=options)[pair]
    with torch.inference_mode():
        logits = learnt.linear(torch.from_numpy(pooled).float()).numpy()
    kinds = range(len(learnt.categories))
    there = np.array([np.isin(kinds, some) for some in dataset.box_categories])
    known = there.any(axis=0)
    ranked = np.take_along_axis(there, (-logits).argsort(axis=0, kind="stable"), axis=0)[:, known]
    found = {"image labels, mAP": np.mean([average_precision(column) for column in ranked.T])}
    found["the same, by chance"] = there[:, known].mean()
    return {name: round(float(value), 4) for name, value in found.items()}


def practised(trunk: str) -> dict[str, Trunk]:
    """The control of a trunk by what tables call it; nothing where none was trained."""
    if read_card(CLASSIFIER)["trunk"] != trunk:
        return {}
    control = load_classifier().trunk.requires_grad_(False)
    control.name, control.weights = f"{trunk} trained on scenes", "image labels of pasted scenes"
    return {"practised classifier": control}
