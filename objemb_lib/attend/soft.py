"""Soft attention, the contrast to boxes: everything on the map is kept, some of it counts more."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from objemb_lib.config import DataError
from objemb_lib.data.dataset import ImageDataset
from objemb_lib.embed.boxes import whole_image, widen
from objemb_lib.embed.regions import Region, model_input
from objemb_lib.embed.trunks import Trunk, imagenet_classifier


def activity(features: Tensor) -> Tensor:
    """CroW's spatial weights, ``(N, H, W)`` in 0..1: where many channels are active at once.

    Source: Kalantidis et al., Cross-dimensional Weighting, 2016, section 3.
    """
    total = features.float().clamp(min=0).sum(dim=1)
    norm = total.flatten(1).norm(dim=1)[:, None, None].clamp(min=1e-6)
    return (total / norm).sqrt()


def class_activation(features: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Class activation maps: where a classifier sees the class that it would name.

    Args:
        features: ``(N, C, H, W)``, the map before global average pooling.
        weight, bias: of the classifier, ``(classes, C)`` and ``(classes,)``.
    Returns:
        ``(N, H, W)`` between 0 and 1; all 1 where no cell speaks for the class.
    Source: Zhou et al., Learning Deep Features for Discriminative Localization, 2016, eq. 2.
    """
    named = F.linear(features.mean(dim=(2, 3)), weight, bias).argmax(dim=1)
    heat = torch.einsum("nchw,nc->nhw", features, weight[named]).clamp(min=0)
    most = heat.amax(dim=(1, 2), keepdim=True)
    return torch.where(most > 0, heat / most.clamp(min=1e-12), torch.ones_like(heat))


def class_activation_region(dataset: ImageDataset, trunk: Trunk) -> Region:
    """The whole images of a data set, their cells weighted by :func:`class_activation` of the
    trunk's own ImageNet classifier."""
    weight, bias = imagenet_classifier(trunk.name)

    def heat(maps: dict[str, Tensor]) -> Tensor:
        head = maps["head"].float()
        return class_activation(head, weight.to(head.device), bias.to(head.device))

    content = weight.numpy().tobytes() + bias.numpy().tobytes()
    heat.key = f"class activation {hashlib.sha256(content).hexdigest()}"
    return Region(whole_image(dataset), weights=heat, called="CAM")


def similarity(features: Tensor, vector: Tensor) -> Tensor:
    """``(H, W)``: the cosine of each cell of a ``(C, H, W)`` map with a ``(C,)`` vector."""
    cells = F.normalize(features.float(), dim=0)
    return torch.einsum("chw,c->hw", cells, F.normalize(vector.float(), dim=0))


def inside(dataset: ImageDataset, i: int, region: Region) -> np.ndarray:
    """``(H, W)`` in 0..1: 1 where image ``i`` lies in one of its boxes (and in its mask)."""
    width, height = dataset.sizes()[i]
    seen = np.zeros((height, width), bool)
    boxes = widen(region.boxes.boxes[i], region.context, dataset.sizes()[i])
    masked = region.masked and region.boxes.masks is not None
    for k, (x0, y0, x1, y1) in enumerate(boxes):
        here = np.zeros_like(seen)
        here[int(y0) : int(np.ceil(y1)), int(x0) : int(np.ceil(x1))] = True
        seen |= here & region.boxes.mask(i, k) if masked else here
    return seen.astype(np.float32)


@torch.inference_mode()
def overlays(
    dataset: ImageDataset,
    i: int,
    trunk: Trunk,
    stage: str,
    region: Region,
    vector: np.ndarray | None = None,
    size: int = 256,
) -> dict[str, np.ndarray]:
    """What is pooled of an image, as maps in 0..1 of any resolution.

    ``boxes`` (RoIAlign) and, where the region has any, ``masks``: 1 inside. ``CroW``:
    :func:`activity` by its largest value. ``similarity``: that of each cell to a ``(C,)`` vector of
    the same stage (else DataError), where negative 0.
    """
    seen = torch.from_numpy(model_input(dataset.image(i), size).copy()).permute(2, 0, 1)[None]
    features = trunk(trunk.normalise(seen.to(trunk.mean.device)))[stage].float().cpu()
    found = {"boxes": inside(dataset, i, replace(region, masked=False))}
    if region.boxes.masks is not None:
        found["masks"] = inside(dataset, i, replace(region, masked=True))
    weights = activity(features)[0].numpy()
    found["CroW"] = weights / max(float(weights.max()), 1e-12)
    if vector is not None:
        if len(vector) != features.shape[1]:
            problem = f"a vector of {len(vector)} numbers for {stage} of {features.shape[1]}"
            raise DataError(problem, "Pool the query at the same stage.")
        alike = similarity(features[0], torch.from_numpy(np.asarray(vector, np.float32)))
        found["similarity"] = alike.clamp(min=0).numpy()
    return found
