"""Guided student-teacher training: a detector that gives embeddings, too, in its one pass.

The *teacher* is a frozen classification trunk that looks at crops, one forward pass a region. The
*student* is a detector with one more branch, :class:`EmbeddingHead`, that looks at regions of the
maps it has computed anyway. It learns to give the teacher's vectors, *guided* to the regions of
objects, while the detection losses go on. No label of an object is used, and regions without any
annotation teach as well.

Source: Chen, Davis, Lim, An Analysis of Object Embeddings for Image Retrieval, 2019.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import box_iou, roi_align

from objemb_lib import config
from objemb_lib.config import DataError
from objemb_lib.data.dataset import ImageDataset
from objemb_lib.detect import weights
from objemb_lib.detect.detectors import KINDS, Detector, Losses, Target
from objemb_lib.detect.features import DetectorTrunk
from objemb_lib.embed.pooling import POOLINGS
from objemb_lib.embed.regions import CELLS
from objemb_lib.embed.trunks import Stage, Trunk, fold_batch_norm, per_image
from objemb_lib.embed.whitening import PCAWhitening
from objemb_lib.teach.targets import augmentation, drawn, in_categories, usable
from objemb_lib.teach.training import Schedule, train

Boxes = Sequence[Tensor]

SCHEDULE = Schedule(steps=300, warmup=20)
LEFT_OUT = (1, 2)  # of EfficientNet-Lite's layers after stage4: two of four alike


class Teacher(nn.Module):
    """A frozen trunk that embeds crops: what the student is to imitate.

    Args:
        trunk: a classification network; is copied.
        stage, pooling: of its vectors, chosen on training images.
        size: side in pixels that a crop is resized to.
        from_map: cut the regions out of the map of the whole image instead: a teacher that is
            as blind for small things as its student.
        whitening: of its vectors, fitted on training regions.
    """

    def __init__(
        self,
        trunk: Trunk,
        stage: str = "head",
        pooling: str = "rmac",
        size: int = 224,
        from_map: bool = False,
        whitening: PCAWhitening | None = None,
    ) -> None:
        super().__init__()
        self.trunk = trunk.for_inference(config.device())
        self.stage, self.pooling, self.size, self.from_map = stage, pooling, size, from_map
        self.whitening = whitening
        self.dim = len(whitening.scale) if whitening else trunk.stages[stage].channels

    def __repr__(self) -> str:
        where = "map of the whole image" if self.from_map else f"crops of {self.size} px"
        white = f", whitened to {self.dim}" if self.whitening else ""
        return f"Teacher({self.trunk.name}, {self.stage}, {self.pooling}, {where}{white})"

    def fingerprint(self) -> str:
        """Hash of everything that decides its vectors."""
        digest = hashlib.sha256(f"{self.trunk.fingerprint()} {self!r}".encode())
        if self.whitening:
            for part in (self.whitening.mean, self.whitening.axes, self.whitening.scale):
                digest.update(part.tobytes())
        return digest.hexdigest()

    @torch.no_grad()
    def forward(self, images: Tensor, boxes: Boxes, batch_size: int | None = None) -> Tensor:
        """``(M, dim)`` L2-normalised vectors of regions, in the order of the boxes.

        Args:
            images: ``(N, 3, H, W)`` float pixels in 0..1.
            boxes: ``N`` tensors ``(K_i, 4)``, x0, y0, x1, y1 in pixels; M is the sum of K_i.
            batch_size: crops a forward pass; default 4 on a CPU, else 64.
        """
        batch_size = batch_size or (4 if images.device.type == "cpu" else 64)
        if not sum(map(len, boxes)):
            return images.new_zeros(0, self.dim)
        if self.from_map:
            parts = [_cut(self.maps(images), self.trunk.stages[self.stage], boxes, CELLS)]
        else:
            crops = roi_align(images, list(boxes), self.size, aligned=True)
            parts = [self.maps(some) for some in crops.split(batch_size)]
            parts = [maps[self.stage] for maps in parts]
        vectors = F.normalize(torch.cat([POOLINGS[self.pooling](part) for part in parts]), dim=1)
        if self.whitening is None:
            return vectors
        return torch.from_numpy(self.whitening(vectors.float().cpu().numpy())).to(images.device)

    def maps(self, images: Tensor) -> dict[str, Tensor]:
        """The trunk's maps of whole images."""
        pixels = self.trunk.normalise(images)
        return self.trunk(pixels.contiguous(memory_format=torch.channels_last))


class EmbeddingHead(nn.Module):
    """A region's vector: the body's last layers, run once more on each region alone.

    What is lost when a map of stride 32 is cut is place: an object of 90 pixels is three cells
    wide there. Cut from a finer stage instead, and brought to a fixed size, it goes through the
    layers that follow like a small image. The layers are the body's own, so that the branch has
    no weights but those of ``project``.

    Args:
        body: the detector's trunk; is looked at, not kept.
        stage: whose map is cut. cells: side of what RoIAlign cuts out of it.
        leave_out: of the layers that follow, those (by number) that keep the map's shape and are
            left out: the branch runs once a box, and must be cheap.
        dim: of the vectors; None: as many as ``head`` has channels. With a number, even the same
            one, they are projected: the teacher's space is another than the body's.
    Source: the head on a cut map is that of Ren et al., Faster R-CNN, 2015, on ResNets ("C4" in
    He et al., Mask R-CNN, 2017, section 3).
    """

    def __init__(
        self,
        body: Trunk,
        stage: str = "stage4",
        cells: int = 6,
        leave_out: Sequence[int] = LEFT_OUT,
        dim: int | None = None,
    ) -> None:
        super().__init__()
        _check_left_out(body, stage, leave_out)
        self.stage, self.cells, self.leave_out = body.stages[stage], cells, tuple(leave_out)
        width = body.stages["head"].channels
        self.dim = dim or width
        self.project = nn.Linear(width, dim) if dim else nn.Identity()
        if dim == width:
            nn.init.eye_(self.project.weight)
        elif dim:
            nn.init.orthogonal_(self.project.weight)

    def extra_repr(self) -> str:
        """What a cache must know, too."""
        return f"{self.stage.name}, {self.cells} cells, without {list(self.leave_out)}"

    def forward(self, body: Trunk, maps: dict[str, Tensor], boxes: Boxes) -> Tensor:
        """``(M, dim)`` vectors, not normalised.

        Args:
            body: whose layers are run. maps: of ``N`` images, as it gives them.
            boxes: ``N`` tensors ``(K_i, 4)``, x0, y0, x1, y1 in pixels of the body's input.
        """
        x = _cut(maps, self.stage, boxes, self.cells)
        if len(x):
            x = x.contiguous(memory_format=torch.channels_last)
            for number, layer in enumerate(body.after(self.stage.name, check=False)):
                if number not in self.leave_out:
                    x = layer(x)
        else:  # not every layer takes an empty batch
            x = x.new_zeros(0, body.stages["head"].channels, 1, 1)
        return self.project(F.normalize(x.mean(dim=(2, 3)), dim=1))


@torch.no_grad()
def _check_left_out(body: Trunk, stage: str, leave_out: Sequence[int]) -> None:
    """Raise DataError unless every layer that is to be left out is there, and keeps the shape."""
    x, layers, idle = torch.zeros(1, body.stages[stage].channels, 8, 8), body.after(stage), []
    for number, layer in enumerate(layers):
        before, x = x.shape, layer(x.to(body.mean))
        idle += [number] if x.shape == before else []
    if wrong := set(leave_out) - set(idle):
        raise DataError(
            f"{body.name} cannot leave out its layers {sorted(wrong)} after {stage}",
            f"There are {len(layers)}; those that keep the map's shape are {idle}.",
        )


def _cut(maps: dict[str, Tensor], stage: Stage, boxes: Boxes, cells: int) -> Tensor:
    """RoIAlign with one sample a cell: objects span few cells of a coarse map."""
    x = maps[stage.name]
    each = per_image(boxes, x.device)
    # Not in half precision: RoIAlign lacks it on CPUs, and it would move boxes by pixels.
    cut = roi_align(x.float(), each, cells, 1 / stage.stride, sampling_ratio=1, aligned=True)
    return cut.to(x.dtype)


class Student(nn.Module):
    """A two-stage detector with an :class:`EmbeddingHead`: boxes and embeddings in one pass.

    Args:
        detector: Faster or Mask R-CNN, ours or torchvision's; is copied.
        top: boxes of an image that get an embedding, those of the highest scores.
        branch: options of :class:`EmbeddingHead`.
    Raises:
        DataError: a one-stage detector, which has no RoI head to go with.
    """

    def __init__(self, detector: Detector, top: int = 10, **branch: object) -> None:
        super().__init__()
        if not hasattr(detector.network, "roi_heads"):
            raise DataError(f"{detector.kind} has no RoI head", "Use faster_rcnn or mask_rcnn.")
        self.detector, self.top = copy.deepcopy(detector), top
        self.embedding = EmbeddingHead(self.detector.trunk, **branch)

    def __repr__(self) -> str:
        return f"Student({self.detector!r}, embedding from {self.embedding.stage.name})"

    def embed(self, maps: dict[str, Tensor], boxes: Boxes) -> Tensor:
        """``(M, dim)`` vectors of boxes, not normalised; see :meth:`EmbeddingHead.forward`."""
        return self.embedding(self.detector.trunk, maps, boxes)

    def for_inference(self, device: torch.device) -> Student:
        """A copy as :meth:`Trunk.for_inference` makes one: the same numbers, sooner."""
        made = copy.deepcopy(self).eval().requires_grad_(False)
        fold_batch_norm(made.detector.trunk.network)
        return made.to(device=device, memory_format=torch.channels_last)

    def forward(self, images: list[Tensor]) -> list[Target]:
        """Detections, best first, as :class:`Detector` gives them, with ``embeddings``.

        Args:
            images: ``(3, H, W)`` float pixels in 0..1 each, not normalised.
        Returns:
            for each image ``boxes``, ``labels``, ``scores``, masks of a Mask R-CNN, and
            ``embeddings`` ``(min(K, top), C)``, L2-normalised, of the first boxes.
        """
        network = self.detector.network
        batch, _ = network.transform(images)
        maps = network.backbone.body(batch.tensors)
        levels = network.backbone.pyramid(maps)
        proposals, _ = network.rpn(batch, levels)
        found, _ = network.roi_heads(levels, proposals, batch.image_sizes)
        boxes = [one["boxes"][: self.top] for one in found]
        vectors = F.normalize(self.embed(maps, boxes), dim=1).split([len(b) for b in boxes])
        sizes = [tuple(image.shape[-2:]) for image in images]
        found = network.transform.postprocess(found, batch.image_sizes, sizes)
        return [one | {"embeddings": some} for one, some in zip(found, vectors)]


class StudentTrunk(DetectorTrunk):
    """A student as a trunk: what :class:`DetectorTrunk` gives, and the stage ``student`` per box.

    Args:
        student: is copied; later training does not reach the copy.
    """

    def __init__(self, student: Student) -> None:
        super().__init__(student.detector)
        self.name = f"student on {self.name}"
        self.embedding = copy.deepcopy(student.embedding).requires_grad_(False)
        self.stages["student"] = Stage("student", self.embedding.dim, 0, per_box=True)
        self.eval()

    def box_features(self, maps: dict[str, Tensor], stage: str, boxes: Boxes) -> Tensor:
        """Also of ``student``, see :meth:`Trunk.box_features`."""
        if stage != "student":
            return super().box_features(maps, stage, boxes)
        return self.embedding(self, maps, boxes)[:, :, None, None]

    def fingerprint(self) -> str:
        """As of any detector's trunk, and of how the branch cuts the map."""
        return hashlib.sha256((super().fingerprint() + repr(self.embedding)).encode()).hexdigest()


# --- shipped files ------------------------------------------------------------------------


def save_student(
    student: Student, card: dict, name: str, root: Path | None = None, limit: int | None = None
) -> Path:
    """Write a student and its card, see :func:`detectors.weights.save_state`."""
    branch = student.embedding
    shape = {"stage": branch.stage.name, "cells": branch.cells, "leave_out": branch.leave_out}
    shape["dim"] = None if isinstance(branch.project, nn.Identity) else branch.dim
    card = card | weights.about(student.detector) | {"student": shape}
    return weights.save_state(student, card, name, root, limit)


def load_student(name: str = "student", root: Path | None = None) -> Student:
    """A student by name: ``student`` is shipped with the course.

    Raises:
        DataError: no such student, or a file that is damaged or of another network.
    """
    card, state, path = weights.read_weights(name, root)
    if "student" not in card:
        raise DataError(f"{name} is a detector without embeddings", "Use load_detector for it.")
    student = Student(weights.build_from(card, path), **card["student"])
    return weights.load_state(student, state, path)


# --- what it learns from ------------------------------------------------------------------


@dataclass(frozen=True)
class DistillConfig:
    """How a student is taught. The default is guided; what departs from it is an ablation.

    Args:
        regions: what is embedded: ``objects`` (true boxes, jittered, and proposals that match
            them), ``proposals`` (all alike, whatever they show), or none but those of ``free``.
        free: regions anywhere, without any annotation, of each image.
        losses: of :data:`LOSSES`, added up; ``hint`` also needs no regions.
        detection: keep the detection losses. frozen: only the embedding head learns.
        jitter: how far a box's sides move, as a part of them.
    """

    regions: Literal["objects", "proposals", "none"] = "objects"
    free: int = 3
    losses: tuple[str, ...] = ("cosine", "relational")
    detection: bool = True
    frozen: bool = False
    jitter: float = 0.05

    def __post_init__(self) -> None:
        object.__setattr__(self, "losses", tuple(self.losses))  # a card's are a list
        if unknown := set(self.losses) - {*LOSSES, "hint", "labels"}:
            raise DataError(f"no loss called {', '.join(unknown)}", f"Use {', '.join(LOSSES)}.")


def cosine(vectors: Tensor, targets: Tensor) -> Tensor:
    """Mean of ``1 - cos(v, t)``.

    >>> cosine(torch.tensor([[2.0, 0.0], [0.0, 1.0]]), torch.tensor([[1.0, 0.0], [1.0, 0.0]]))
    tensor(0.5000)
    """
    return (1 - F.cosine_similarity(vectors, targets)).mean()


def squared(vectors: Tensor, targets: Tensor) -> Tensor:
    """Mean of ``|v - t|^2``: the length counts, too.

    >>> squared(torch.tensor([[2.0, 0.0]]), torch.tensor([[1.0, 0.0]]))
    tensor(1.)
    """
    return (vectors - targets).square().sum(dim=1).mean()


def relational(vectors: Tensor, targets: Tensor) -> Tensor:
    """Mean squared difference of all pairs' cosine similarities.

    ``1/M^2 sum_ij (cos(v_i, v_j) - cos(t_i, t_j))^2``: who is like whom, wherever they lie.
    Source: Tung and Mori, Similarity-Preserving Knowledge Distillation, 2019, in its simplest form.

    >>> v, t = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    >>> relational(v, t)
    tensor(0.5000)
    """
    v, t = F.normalize(vectors, dim=1), F.normalize(targets, dim=1)
    return (v @ v.T - t @ t.T).square().mean()


# Each with its weight, which brings it to the order of the detection losses beside it.
LOSSES = {"cosine": (cosine, 5.0), "squared": (squared, 2.5), "relational": (relational, 50.0)}


def hint(maps: Tensor, targets: Tensor) -> Tensor:
    """Mean over all cells of ``1 - cos``: the teacher's whole map, objects and background alike.

    Args:
        maps, targets: ``(N, C, H, W)`` of the same images.
    Source: Romero et al., FitNets: Hints for Thin Deep Nets, 2015, eq. 3, with the cosine in place
    of the squared difference, so that bright cells do not decide alone.
    """
    return (1 - F.cosine_similarity(maps, targets, dim=1)).mean()


@dataclass
class Regions:
    """Regions of a batch: where the student looks, and which crop the teacher gives for it.

    Args:
        looked, aimed: a ``(K_i, 4)`` tensor an image each, the same number on both sides.
        objects: ``(K_1 + ...,)`` the object in each region, -1 where none is stated.
    """

    looked: list[Tensor]
    aimed: list[Tensor]
    objects: Tensor


def choose_regions(
    targets: list[Target], proposals: Boxes, recipe: DistillConfig, size: int
) -> Regions:
    """The regions of a batch that a recipe asks for; random as torch is seeded.

    Args:
        targets: with ``boxes`` ``(K, 4)`` and ``objects`` ``(K,)``.
        proposals: the detector's own, ``(P_i, 4)`` an image.
        size: side of the images in pixels.
    """
    looked, aimed, objects = [], [], []
    for target, offered in zip(targets, proposals):
        free = random_boxes(recipe.free, size).to(offered.device)
        pairs = [(free, free, torch.full((len(free),), -1, device=offered.device))]
        if recipe.regions == "objects":
            pairs.append(_at_objects(target, offered, recipe.jitter, size))
        elif recipe.regions == "proposals":  # as many as there would be of objects
            some = offered[torch.randperm(len(offered))[: 2 * len(target["boxes"])]]
            pairs.append((some, some, torch.full((len(some),), -1, device=offered.device)))
        for many, part in zip((looked, aimed, objects), zip(*pairs)):
            many.append(torch.cat(part))
    return Regions(looked, aimed, torch.cat(objects))


def _at_objects(
    target: Target, offered: Tensor, jitter: float, size: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Each true box jittered, and a proposal that matches it: both mean the true box."""
    true, objects = target["boxes"], target["objects"]
    sides = (true[:, 2:] - true[:, :2]).repeat(1, 2)
    moved = (true + (2 * torch.rand_like(true) - 1) * jitter * sides).clamp(0, size)
    overlap = box_iou(true, offered)
    chances = torch.where(overlap >= 0.5, torch.rand_like(overlap), overlap.new_zeros(()))
    if not chances.numel():
        return moved, true, objects
    best, which = chances.max(dim=1)
    matched = best > 0
    return (
        torch.cat([moved, offered[which[matched]]]),
        torch.cat([true, true[matched]]),
        torch.cat([objects, objects[matched]]),
    )


def random_boxes(count: int, size: int, smallest: float = 0.2, largest: float = 0.65) -> Tensor:
    """``(count, 4)`` boxes anywhere, of sides from ``smallest`` to ``largest`` of the image's."""
    sides = (smallest + (largest - smallest) * torch.rand(count, 2)) * size
    corners = torch.rand(count, 2) * (size - sides)
    return torch.cat([corners, corners + sides], dim=1)


class DistillationModule(nn.Module):
    """A student in training: with the teacher's lesson turned into losses.

    Args:
        student: learns. teacher: is not among the parameters.
        objects: number of labelled objects, for the loss ``labels`` alone.
    """

    def __init__(
        self, student: Student, teacher: Teacher, recipe: DistillConfig, objects: int
    ) -> None:
        super().__init__()
        self.student, self.recipe = student, recipe
        self.teacher = [teacher]  # in a list: neither saved nor trained
        self.labels = None
        if "labels" in recipe.losses:
            from pytorch_metric_learning.losses import ProxyNCALoss

            self.labels = ProxyNCALoss(objects, student.embedding.dim, softmax_scale=10)
        if recipe.frozen:
            student.detector.requires_grad_(False)
        if not any(p.requires_grad for p in student.parameters()):
            raise DataError(
                "nothing can learn: the detector is frozen, the branch has no weights of its own",
                "Pass projected=True.",
            )

    def losses(self, examples: tuple[list[Tensor], list[Target]]) -> Losses:
        """Named losses of a batch: of detection, where the recipe keeps it, and of the lesson."""
        images, targets = examples
        network, recipe = self.student.detector.network, self.recipe
        batch, inside = network.transform(images, targets)
        maps = network.backbone.body(batch.tensors)
        levels = network.backbone.pyramid(maps)
        proposals, found = network.rpn(batch, levels, inside)
        if recipe.detection and not recipe.frozen:
            found |= network.roi_heads(levels, proposals, batch.image_sizes, inside)[1]
        else:
            found = {}
        stacked, (teacher,) = torch.stack(images), self.teacher
        if "hint" in recipe.losses:
            whole = teacher.maps(stacked)["head"].float()
            found["hint"] = 5 * hint(maps["head"].float(), whole)
        regions = choose_regions(inside, proposals, recipe, stacked.shape[-1])
        found |= self._lesson(maps, stacked, regions)
        # A sum of no losses has no gradient: one of 0 that has.
        return found or {"nothing": 0.0 * sum(m.float().sum() for m in maps.values())}

    def _lesson(self, maps: dict[str, Tensor], images: Tensor, regions: Regions) -> Losses:
        wanted = [name for name in self.recipe.losses if name in LOSSES]
        if not len(regions.objects) or not (wanted or self.labels):
            return {}
        vectors, found = self.student.embed(maps, regions.looked).float(), {}
        if wanted:
            targets = self.teacher[0](images, regions.aimed)
            found = {n: LOSSES[n][1] * LOSSES[n][0](vectors, targets) for n in wanted}
        known = regions.objects >= 0
        if self.labels and known.any():
            found["labels"] = self.labels(vectors[known], regions.objects[known])
        return found


def train_student(
    detector: Detector,
    dataset: ImageDataset,
    teacher: Teacher,
    folder: Path,
    recipe: DistillConfig = DistillConfig(),
    schedule: Schedule = SCHEDULE,
    projected: bool = False,
    leave_out: Sequence[int] = LEFT_OUT,
    cells: int = 6,
    progress: bool = True,
    watch: Callable[[Student, int, dict[str, float]], None] | None = None,
) -> Student:
    """A student taught on the images of a data set, or the rest of such a training.

    Args:
        detector: what it begins as; is not changed. dataset: with boxes and their categories, of
            which the detector knows some, unless the recipe has no detection losses.
        folder: of the run, see :mod:`training`.
        projected: into a space of the teacher's own, see :class:`EmbeddingHead`.
        leave_out, cells: of the branch, see there.
        watch: called with the student, the step and its losses whenever they are logged.
    Raises:
        DataError: nothing to learn from, a one-stage detector, or a teacher of another dimension
            without ``projected``. TrainingError: see :func:`training.train`.
    """
    if recipe.detection and not recipe.frozen:
        dataset = in_categories(dataset, detector.categories)
    images, coded = usable(dataset), _with_objects(dataset)
    torch.manual_seed(schedule.seed)  # of the new layers
    branch = {"dim": teacher.dim if projected else None, "leave_out": leave_out, "cells": cells}
    student = Student(detector, **branch)
    student = student.to(memory_format=torch.channels_last)
    if student.embedding.dim != teacher.dim:
        raise DataError(
            f"{teacher} gives vectors of {teacher.dim} dimensions, the student of "
            f"{student.embedding.dim}",
            "Pass projected=True.",
        )
    # torchvision's detectors see photographs in their own shape, ours a square.
    augment = augmentation(detector.size, keep_shape=detector.kind not in KINDS)
    kinds = len(dataset.category_names)

    def batch(generator: torch.Generator, step: int) -> tuple[list[Tensor], list[Target]]:
        pixels, targets = drawn(coded, images, schedule.batch_size, generator, augment)
        return pixels, [_decoded(target, kinds) for target in targets]

    begins = DetectorTrunk(detector).fingerprint(), teacher.fingerprint(), projected
    about = f"{dataset.fingerprint} {dataset.category_names} {begins} {recipe!r}"
    pupil = DistillationModule(student, teacher, recipe, len(dataset.label_names))
    watching = watch and (lambda step, values: watch(student, step, values))
    train(
        pupil, student.detector, batch, lambda model, b: model.losses(b), schedule, folder,
        progress, watch=watching, about=about,
    )  # fmt: skip
    return student.eval()


def _with_objects(dataset: ImageDataset) -> ImageDataset:
    """The data set with category and object of a box in one number: augmentation drops boxes, and
    what is said of them must go with them."""
    kinds = len(dataset.category_names)
    codes = [
        np.where(np.asarray(c) >= 0, np.asarray(c) + kinds * (np.asarray(b) + 1), -1)
        for c, b in zip(dataset.box_categories, dataset.box_labels)
    ]
    return replace(dataset, box_categories=tuple(codes))


def _decoded(target: Target, kinds: int) -> Target:
    """A target of :func:`_with_objects` with ``labels`` from 1 and ``objects`` from 0, or -1."""
    codes = target["labels"] - 1
    return dict(target) | {"labels": codes % kinds + 1, "objects": codes // kinds - 1}
