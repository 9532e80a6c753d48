"""Guided distillation: a student learns to give its teacher's vectors, at regions of objects.

The detection losses go on. No label of an object is used; regions without annotation teach as well.

Source: Chen, Davis, Lim, An Analysis of Object Embeddings for Image Retrieval, 2019.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import box_iou

from objemb_lib.data.dataset import ImageDataset
from objemb_lib.detect.detectors import KINDS, Detector, Losses, Target
from objemb_lib.detect.features import DetectorTrunk
from objemb_lib.teach.student import Boxes, Student, Teacher
from objemb_lib.teach.targets import augmentation, draw_batches, in_categories
from objemb_lib.teach.training import Schedule, train

SCHEDULE = Schedule(steps=300, warmup=20)


@dataclass(frozen=True)
class DistillConfig:
    """How a student is taught. The default is guided; what departs from it is an ablation.

    Args:
        regions: what is embedded: ``objects`` (true boxes, jittered, and proposals that match
            them), ``proposals`` (all alike, whatever they show), or none but those of ``free``.
        free: regions anywhere, without any annotation, of each image.
        losses: of :data:`LOSSES`, added up.
        detection: keep the detection losses.
        jitter: how far a box's sides move, as a part of them.
    """

    regions: Literal["objects", "proposals", "none"] = "objects"
    free: int = 3
    losses: tuple[str, ...] = ("cosine", "relational")
    detection: bool = True
    jitter: float = 0.05


def cosine(vectors: Tensor, targets: Tensor) -> Tensor:
    """Mean of ``1 - cos(v, t)``.

    >>> cosine(torch.tensor([[2.0, 0.0], [0.0, 1.0]]), torch.tensor([[1.0, 0.0], [1.0, 0.0]]))
    tensor(0.5000)
    """
    return (1 - F.cosine_similarity(vectors, targets)).mean()


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
LOSSES = {"cosine": (cosine, 5.0), "relational": (relational, 50.0)}


def choose_regions(
    targets: list[Target], proposals: Boxes, config: DistillConfig, size: int
) -> tuple[list[Tensor], list[Tensor]]:
    """The regions of a batch that are embedded; random as torch is seeded.

    Args:
        targets: with ``boxes`` ``(K, 4)``. proposals: the detector's own, ``(P_i, 4)`` an image.
        size: side of the images in pixels.
    Returns:
        where the student looks, and of which crop the teacher tells: ``(K_i, 4)`` an image each.
    """
    looked, aimed = [], []
    for target, offered in zip(targets, proposals):
        free = random_boxes(config.free, size).to(offered.device)
        pairs = [(free, free)]
        if config.regions == "objects":
            pairs += _at_objects(target["boxes"], offered, config.jitter, size)
        elif config.regions == "proposals":  # as many as there would be of objects
            some = offered[torch.randperm(len(offered))[: 2 * len(target["boxes"])]]
            pairs.append((some, some))
        looked.append(torch.cat([seen for seen, _ in pairs]))
        aimed.append(torch.cat([meant for _, meant in pairs]))
    return looked, aimed


def _at_objects(
    true: Tensor, offered: Tensor, jitter: float, size: int
) -> list[tuple[Tensor, Tensor]]:
    """Each true box jittered, and a proposal that matches it: both mean the true box."""
    sides = (true[:, 2:] - true[:, :2]).repeat(1, 2)
    moved = (true + (2 * torch.rand_like(true) - 1) * jitter * sides).clamp(0, size)
    overlap = box_iou(true, offered)
    chances = torch.where(overlap >= 0.5, torch.rand_like(overlap), overlap.new_zeros(()))
    if not chances.numel():
        return [(moved, true)]
    best, which = chances.max(dim=1)
    matched = best > 0
    return [(moved, true), (offered[which[matched]], true[matched])]


def random_boxes(count: int, size: int) -> Tensor:
    """``(count, 4)`` boxes anywhere, of sides from 0.2 to 0.65 of the image's."""
    sides = (0.2 + 0.45 * torch.rand(count, 2)) * size
    corners = torch.rand(count, 2) * (size - sides)
    return torch.cat([corners, corners + sides], dim=1)


class DistillationModule(nn.Module):
    """A student in training: what its teacher says of a batch, turned into losses."""

    def __init__(self, student: Student, teacher: Teacher, config: DistillConfig) -> None:
        super().__init__()
        self.student, self.config = student, config
        self.teacher = [teacher]  # in a list: neither saved nor trained

    def forward(self, images: list[Tensor], targets: list[Target]) -> Losses:
        """Named losses of a batch: of detection, where it is kept, and of distillation."""
        network, config = self.student.detector.network, self.config
        batch, inside = network.transform(images, targets)
        maps = network.backbone.body(batch.tensors)
        levels = network.backbone.pyramid(maps)
        proposals, losses = network.rpn(batch, levels, inside)
        if config.detection:
            losses |= network.roi_heads(levels, proposals, batch.image_sizes, inside)[1]
        else:
            losses = {}
        return losses | self.distil(maps, torch.stack(images), inside, proposals)

    def distil(
        self, maps: dict[str, Tensor], images: Tensor, targets: list[Target], proposals: Boxes
    ) -> Losses:
        """Named losses between the student's vectors of regions and the teacher's."""
        looked, aimed = choose_regions(targets, proposals, self.config, images.shape[-1])
        if not sum(map(len, looked)):
            return {}
        vectors, goals = self.student.embed(maps, looked).float(), self.teacher[0](images, aimed)
        weighted = {name: LOSSES[name] for name in self.config.losses}
        return {name: weight * loss(vectors, goals) for name, (loss, weight) in weighted.items()}


def train_student(
    detector: Detector,
    dataset: ImageDataset,
    teacher: Teacher,
    folder: Path,
    config: DistillConfig = DistillConfig(),
    schedule: Schedule = SCHEDULE,
    projected: bool = False,
    progress: bool = True,
    watch: Callable[[Student, int, dict[str, float]], None] | None = None,
    module: type[DistillationModule] = DistillationModule,
    **branch: object,
) -> Student:
    """A student taught on the images of a data set, or the rest of such a training.

    Args:
        detector: what it begins as; is not changed. dataset: with boxes and their categories, of
            which the detector knows some, unless there are no detection losses.
        projected: into a space of the teacher's own, see :class:`EmbeddingHead`; done anyway
            where the teacher has other dimensions.
        watch: called with the student, the step and its losses whenever they are logged.
        module: what turns a batch into losses. branch: options of :class:`EmbeddingHead`.
    Raises:
        DataError: nothing to learn from. TrainingError: see :func:`training.train`.
    """
    if config.detection:
        dataset = in_categories(dataset, detector.categories)
    # torchvision's detectors see photographs in their own shape, ours a square.
    augment = augmentation(detector.size, keep_shape=detector.kind not in KINDS)
    draw = draw_batches(dataset, schedule.batch_size, augment)
    torch.manual_seed(schedule.seed)  # of the new layers
    projected |= teacher.dim != detector.trunk.stages["head"].channels
    student = Student(detector, dim=teacher.dim if projected else None, **branch)
    student = student.to(memory_format=torch.channels_last)
    begins = DetectorTrunk(detector).fingerprint(), teacher.fingerprint(), projected
    about = f"{dataset.fingerprint} {dataset.category_names} {begins} {config!r}"
    train(
        module(student, teacher, config), student.detector, draw, schedule, folder, progress,
        watch=watch and (lambda step, values: watch(student, step, values)), about=about,
    )  # fmt: skip
    return student.eval()
