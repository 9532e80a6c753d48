"""Student and teacher: a detector that gives embeddings, too, in its one pass, and who it imitates.

The *teacher* is a frozen classification trunk that looks at crops, one forward pass a region. The
*student* is a detector with one more branch, :class:`EmbeddingHead`, that looks at regions of the
maps it has computed anyway.

Source: Chen, Davis, Lim, An Analysis of Object Embeddings for Image Retrieval, 2019.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import roi_align

from objemb_lib import config
from objemb_lib.config import DataError
from objemb_lib.detect.detectors import Detector, Target
from objemb_lib.detect.features import DetectorTrunk
from objemb_lib.detect.weights import build_from, load_network, read_card
from objemb_lib.embed.pooling import POOLINGS
from objemb_lib.embed.trunks import Stage, Trunk, load_trunk, per_image

Boxes = Sequence[Tensor]

ADAPTIVE, CELL = "adaptive", 18  # and what a cell then spans, about, in input pixels
TOGETHER = 128  # boxes: more are no faster, and their maps are large
LEFT_OUT = (1, 2)  # of EfficientNet-Lite's layers after stage4: two of four alike


class Teacher(nn.Module):
    """A frozen trunk that embeds crops: what the student is to imitate.

    Args:
        stage, pooling: of its vectors, chosen on training images.
        size: side in pixels that a crop is resized to.
    """

    def __init__(
        self, trunk: Trunk, stage: str = "head", pooling: str = "rmac", size: int = 224
    ) -> None:
        super().__init__()
        self.trunk = trunk.for_inference(config.device())
        self.stage, self.pooling, self.size = stage, pooling, size
        self.dim = trunk.stages[stage].channels

    def __repr__(self) -> str:
        how = f"{self.stage}, {self.pooling}, crops of {self.size} px"
        return f"{type(self).__name__}({self.trunk.name}, {how})"

    def fingerprint(self) -> str:
        """Hash of everything that decides its vectors."""
        return hashlib.sha256(f"{self.trunk.fingerprint()} {self!r}".encode()).hexdigest()

    @torch.no_grad()
    def forward(self, images: Tensor, boxes: Boxes) -> Tensor:
        """``(M, dim)`` L2-normalised vectors of regions: ``N`` times ``(K_i, 4)`` in pixels.

        Args:
            images: ``(N, 3, H, W)`` float pixels in 0..1.
        """
        if not sum(map(len, boxes)):
            return images.new_zeros(0, self.dim)
        crops = roi_align(images, list(boxes), self.size, aligned=True)
        together = 4 if images.device.type == "cpu" else 64
        parts = [self.maps(some)[self.stage] for some in crops.split(together)]
        return F.normalize(torch.cat([POOLINGS[self.pooling](part) for part in parts]), dim=1)

    def maps(self, images: Tensor) -> dict[str, Tensor]:
        """The trunk's maps of whole images."""
        pixels = self.trunk.normalise(images)
        return self.trunk(pixels.contiguous(memory_format=torch.channels_last))


class EmbeddingHead(nn.Module):
    """A region's vector: the body's last layers, run once more on each region alone.

    On a map of stride 32 an object of 90 pixels is three cells wide. Cut from a finer stage
    instead, it goes through the layers that follow like a small image. They are the body's own, or
    those of another trunk that share its maps up to ``stage``: the branch has no weights but those
    of ``project``.

    Args:
        body: the detector's trunk; is looked at, not kept.
        stage: whose map is cut. cells: side of what RoIAlign cuts out of it; :data:`ADAPTIVE` gives
            a large box more, see :func:`adaptive_cells`.
        leave_out: of the layers that follow, those (by number) that keep the map's shape and are
            left out: the branch runs once a box, and must be cheap.
        dim: of the vectors, which are then projected: the teacher's space is another than the
            body's. None: as many as ``head`` has channels.
        tail: name of a trunk whose layers, as ImageNet left them, follow; "" for the body's own.
        pooling: of the cells that come out.
    Source: the head on a cut map is that of Ren et al., Faster R-CNN, 2015, on ResNets ("C4" in
    He et al., Mask R-CNN, 2017, section 3).
    """

    def __init__(
        self,
        body: Trunk,
        stage: str = "stage4",
        cells: int | Literal["adaptive"] = 6,
        leave_out: Sequence[int] = LEFT_OUT,
        dim: int | None = None,
        tail: str = "",
        pooling: str = "spoc",
    ) -> None:
        super().__init__()
        self.stage, self.cells, self.leave_out = body.stages[stage], cells, tuple(leave_out)
        self.tail, self.pooling = tail, pooling
        # In a list: its weights came with pip, and are not saved once more.
        self._trunk = [load_trunk(tail).for_inference(config.device())] if tail else []
        width = body.stages["head"].channels
        self.dim = dim or width
        self.project = nn.Linear(width, dim) if dim else nn.Identity()
        if dim == width:
            nn.init.eye_(self.project.weight)
        elif dim:
            nn.init.orthogonal_(self.project.weight)

    def _apply(self, fn: Callable, recurse: bool = True) -> EmbeddingHead:
        for trunk in self._trunk:  # goes where the branch goes
            trunk._apply(fn)
        return super()._apply(fn, recurse)

    def extra_repr(self) -> str:
        """What a cache must know, too."""
        cells = f"{self.cells} cells" + (f" of about {CELL} px" if self.cells == ADAPTIVE else "")
        said = f"{self.stage.name}, {cells}, without {list(self.leave_out)}, {self.pooling}"
        return f"{said}, tail {self._trunk[0].fingerprint()}" if self.tail else said

    def layers(self, body: Trunk) -> nn.Sequential:
        """What a region that was cut out goes through."""
        every = enumerate((self._trunk[0] if self._trunk else body).after(self.stage.name))
        return nn.Sequential(*(x for n, x in every if n not in self.leave_out))

    def forward(self, body: Trunk, maps: dict[str, Tensor], boxes: Boxes) -> Tensor:
        """``(M, dim)`` vectors, not normalised, of ``N`` times ``(K_i, 4)`` boxes in input pixels.

        Args:
            body: whose layers are run. maps: of ``N`` images, as it gives them.
        """
        boxes = per_image(boxes, maps[self.stage.name].device)
        if not sum(map(len, boxes)):  # not every layer takes an empty batch
            return maps[self.stage.name].new_zeros(0, self.dim)
        return self.project(F.normalize(self._cut(self.layers(body), maps, boxes), dim=1))

    def _cut(self, run: nn.Sequential, maps: dict[str, Tensor], boxes: Boxes) -> Tensor:
        """``(M, C)``: boxes that are cut to the same number of cells go through together."""
        every = torch.cat(list(boxes))
        fixed = self.cells != ADAPTIVE
        cells = torch.full((len(every),), self.cells) if fixed else adaptive_cells(every)
        found, order = [], []
        maps = {self.stage.name: maps[self.stage.name].contiguous()}  # once, not for each count
        for count in cells.unique().tolist():
            some = [b[c == count] for b, c in zip(boxes, cells.split([len(b) for b in boxes]))]
            x = cut_regions(maps, self.stage, some, count)
            parts = x.contiguous(memory_format=torch.channels_last).split(TOGETHER)
            found += [POOLINGS[self.pooling](run(part)) for part in parts]
            order.append((cells == count).nonzero()[:, 0])
        return torch.cat(found)[torch.cat(order).argsort()]


def adaptive_cells(boxes: Tensor) -> Tensor:
    """``(M,)`` sides in cells for boxes ``(M, 4)`` in input pixels: 8, 12 or 16, whichever comes
    nearest to cells of :data:`CELL` pixels. Few different sizes run in larger batches.

    >>> adaptive_cells(torch.tensor([[0.0, 0, 30, 30], [0, 0, 200, 180], [0, 0, 384, 384]]))
    tensor([ 8, 12, 16])
    """
    side = (boxes[:, 2:] - boxes[:, :2]).prod(dim=1).sqrt()
    return (side / CELL / 4).round().mul(4).clamp(8, 16).long().cpu()


def cut_regions(maps: dict[str, Tensor], stage: Stage, boxes: Boxes, cells: int) -> Tensor:
    """``(M, C, cells, cells)``: RoIAlign with one sample a cell: a coarse map has few to an object.

    Args:
        boxes: ``N`` tensors ``(K_i, 4)`` in pixels of the maps' input.
    """
    x = maps[stage.name]
    each = per_image(boxes, x.device)
    # Not in half precision: RoIAlign lacks it on CPUs, and it would move boxes by pixels.
    cut = roi_align(x.float(), each, cells, 1 / stage.stride, sampling_ratio=1, aligned=True)
    return cut.to(x.dtype)


class BranchedTrunk(Trunk):
    """A trunk whose last stage, per box, is that of an :class:`EmbeddingHead`."""

    def join(self, stage: str, branch: EmbeddingHead) -> None:
        """The branch becomes a stage of that name."""
        self.embedding = branch
        self.stages[stage] = Stage(stage, branch.dim, 0, per_box=True)
        self.eval()

    def deepest(self, stages: Iterable[str]) -> str:
        """As of any trunk; the branch needs no more than the map that it cuts."""
        own, branch = self.embedding.stage.name, list(self.stages)[-1]
        return super().deepest([own if stage == branch else stage for stage in stages])

    def box_features(self, maps: dict[str, Tensor], stage: str, boxes: Boxes) -> Tensor:
        """Also of the branch, see :meth:`Trunk.box_features`."""
        if stage != list(self.stages)[-1]:
            return super().box_features(maps, stage, boxes)
        return self.embedding(self, maps, boxes)[:, :, None, None]

    def fingerprint(self) -> str:
        """As of any trunk, and of how the branch cuts the map."""
        return hashlib.sha256((super().fingerprint() + repr(self.embedding)).encode()).hexdigest()


class CutTrunk(BranchedTrunk):
    """A copy of a classification trunk with an :class:`EmbeddingHead`: the stage ``cut`` per box.

    Args:
        branch: options of :class:`EmbeddingHead`.
    """

    def __init__(self, trunk: Trunk, **branch: object) -> None:
        stages = list(trunk.stages.values())
        normalisation = (part.flatten().tolist() for part in (trunk.mean, trunk.std))
        network = copy.deepcopy(trunk.network)
        super().__init__(trunk.name, network, stages, *normalisation, trunk.weights)
        self.join("cut", EmbeddingHead(self, **branch))


class Student(nn.Module):
    """A two-stage detector with an :class:`EmbeddingHead`: boxes and embeddings in one pass.

    Args:
        detector: Faster or Mask R-CNN, ours or torchvision's; is copied.
        top: boxes of an image that get an embedding, those of the highest scores.
        branch: options of :class:`EmbeddingHead`.
    """

    def __init__(self, detector: Detector, top: int = 10, **branch: object) -> None:
        super().__init__()
        if not detector.two_stage:
            raise DataError(f"{detector.kind} has no RoI head", "Use faster_rcnn or mask_rcnn.")
        self.detector, self.top = copy.deepcopy(detector), top
        self.embedding = EmbeddingHead(self.detector.trunk, **branch)

    def __repr__(self) -> str:
        return f"Student({self.detector!r}, embedding from {self.embedding.stage.name})"

    def about(self) -> dict:
        """What a card must say so that the student can be built again."""
        branch = self.embedding
        shape = {"stage": branch.stage.name, "cells": branch.cells, "leave_out": branch.leave_out}
        shape |= {"tail": branch.tail, "pooling": branch.pooling}
        shape["dim"] = None if isinstance(branch.project, nn.Identity) else branch.dim
        return self.detector.about() | {"student": shape}

    def embed(self, maps: dict[str, Tensor], boxes: Boxes) -> Tensor:
        """``(M, dim)`` vectors of boxes, not normalised; see :meth:`EmbeddingHead.forward`."""
        return self.embedding(self.detector.trunk, maps, boxes)

    def forward(self, images: list[Tensor]) -> list[Target]:
        """Detections, best first, as :class:`Detector` gives them, with ``embeddings``
        ``(min(K, top), C)`` of the first boxes, L2-normalised.

        Args:
            images: ``(3, H, W)`` float pixels in 0..1 each, not normalised.
        """
        found, maps, inside = self.detector.with_maps(images)
        boxes = [some[: self.top] for some in inside]
        vectors = F.normalize(self.embed(maps, boxes), dim=1).split([len(b) for b in boxes])
        return [one | {"embeddings": some} for one, some in zip(found, vectors)]


class StudentTrunk(BranchedTrunk, DetectorTrunk):
    """A copy of a student as :class:`DetectorTrunk`, and the stage ``student`` per box."""

    def __init__(self, student: Student) -> None:
        super().__init__(student.detector)
        self.name = f"student on {self.name}"
        self.join("student", copy.deepcopy(student.embedding).requires_grad_(False))


def load_student(name: str = "student", root: Path | None = None) -> Student:
    """A student by name, see :func:`load_network`: ``student`` is shipped with the course."""
    if "student" not in read_card(name, root):
        raise DataError(f"{name} is a detector without embeddings", "Use load_detector for it.")
    return load_network(name, root, lambda card: Student(build_from(card), **card["student"]))
