"""A proposer: where to look on a real photograph, said by the frozen trunk's own maps.

The course's detectors have only seen cut-outs on backgrounds, and find little else. A trunk has
seen a million photographs: what a small head must learn is only how an object stands out on its
maps, and a few hundred annotated photographs teach that. PCA keeps some channels of three stages;
small networks side by side then draw a box from each cell of a 16 x 16 grid, and say how well it
fits the main object, the largest. It costs a part of the forward pass that embedding needs anyway.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.decomposition import PCA
from torch import Tensor, nn
from torchvision.ops import generalized_box_iou_loss, nms
from tqdm.auto import tqdm

from objemb_lib import config
from objemb_lib.config import DataError
from objemb_lib.data.dataset import ImageDataset
from objemb_lib.detect.weights import load_network, read_card
from objemb_lib.embed.boxes import Boxes, or_whole
from objemb_lib.embed.extract import ExtractOptions
from objemb_lib.embed.regions import model_input
from objemb_lib.embed.trunks import Trunk, load_trunk

KEPT = {"head": 96, "stage5": 64, "stage4": 32}  # channels of each stage
GRID = 16  # cells a side, which draw boxes: those of stage4 at 256 pixels
WIDTH, DILATIONS = 48, (1, 2, 4)  # of a network: its channels, and how far its layers look
SCALES = (1.0, 0.75, 4 / 3)  # of each box: its place is surer than its size
DOUBT = 0.7  # what a box of another size than the drawn one is worth
OVERLAP = 0.55  # (IoU) from which two boxes are the same guess
FEW = 400  # photographs whose maps the PCA sees
OTHERS = 0.3  # weight of the boxes of objects that are not the main one


class Proposer(nn.Module):
    """All that follows the trunk: its maps reduced, and networks that draw boxes on them.

    Args:
        channels: of the trunk's stages, see :data:`KEPT`.
        members: networks side by side, whose answers are averaged.
    """

    def __init__(self, channels: Mapping[str, int], members: int = 3) -> None:
        super().__init__()
        self.channels, self.members = {stage: channels[stage] for stage in KEPT}, members
        self.reduce = nn.ModuleDict({s: nn.Conv2d(self.channels[s], k, 1) for s, k in KEPT.items()})
        wide = members * WIDTH
        self.enter = nn.Conv2d(members * sum(KEPT.values()), wide, 1, groups=members)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.GroupNorm(members, wide),
                nn.GELU(),
                nn.Conv2d(wide, wide, 3, padding=d, dilation=d, groups=members),
            )
            for d in DILATIONS
        )
        self.leave = nn.Conv2d(wide, 6 * members, 1, groups=members)

    def reduced(self, maps: Mapping[str, Tensor]) -> Tensor:
        """``(N, 192, GRID, GRID)``: the kept channels of all stages, on one grid."""
        found = [conv(maps[stage].float()) for stage, conv in self.reduce.items()]
        return torch.cat([F.interpolate(x, (GRID, GRID), mode="bilinear") for x in found], dim=1)

    def cells(self, reduced: Tensor) -> tuple[Tensor, Tensor]:
        """What each network says of each cell.

        Args:
            reduced: ``(N, 192, h, w)``.
        Returns:
            logits ``(N, members, 2, h w)``: is there an object, and how well does the box fit the
            main one (IoU); boxes ``(N, members, h w, 4)``, in parts of the image's sides.
        """
        x = F.dropout2d(reduced.repeat(1, self.members, 1, 1), 0.3, self.training)
        x = self.enter(x)
        for block in self.blocks:
            x = x + block(x)
        height, width = x.shape[-2:]
        x = self.leave(F.gelu(x)).unflatten(1, (self.members, 6)).flatten(3)
        centre = centres(height, width).to(x)
        sides = 0.15 * x[:, :, 2:].clamp(-5, 4).exp().transpose(2, 3)  # at first of 0.3 x 0.3
        boxes = torch.cat([centre - sides[..., :2], centre + sides[..., 2:]], dim=-1)
        return x[:, :, :2], boxes

    def forward(self, maps: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Guesses of where the main object is: every cell's box in three sizes.

        Args:
            maps: of ``N`` images, as a trunk gives them.
        Returns:
            boxes ``(N, 3 h w, 4)``, x0, y0, x1, y1 in parts of the image's sides; scores
            ``(N, 3 h w)`` in 0..1. Many of them mean the same: see :meth:`best`.
        """
        logits, boxes = self.cells(self.reduced(maps))
        scores, boxes = logits[:, :, 1].sigmoid().mean(1), boxes.mean(1)
        middle = (boxes[..., :2] + boxes[..., 2:]).repeat(1, 1, 2) / 2
        sized = [middle + scale * (boxes - middle) for scale in SCALES]
        worth = [scores * (1 if scale == 1 else DOUBT) for scale in SCALES]
        return torch.cat(sized, dim=1).clamp(0, 1), torch.cat(worth, dim=1)

    def about(self) -> dict:
        """What a card must say so that the proposer can be built again."""
        return {"kind": "proposer", "channels": self.channels, "members": self.members}

    @torch.inference_mode()
    def best(self, maps: Mapping[str, Tensor], top: int = 5) -> list[tuple[Tensor, Tensor]]:
        """The ``top`` guesses of each image that are not the same, best first.

        Returns:
            for each image boxes ``(K, 4)`` in parts of its sides, and scores ``(K,)``.
        """
        keep = [(b, s, nms(b, s, OVERLAP)[:top]) for b, s in zip(*self(maps))]
        return [(boxes[k], scores[k]) for boxes, scores, k in keep]


def centres(height: int, width: int) -> Tensor:
    """``(height * width, 2)``: x, y of the cells' centres, in parts of the sides.

    >>> centres(1, 2).tolist()
    [[0.25, 0.5], [0.75, 0.5]]
    """
    y, x = (torch.arange(height) + 0.5) / height, (torch.arange(width) + 0.5) / width
    return torch.stack([x.repeat(height), y.repeat_interleave(width)], dim=1)


def propose(
    dataset: ImageDataset,
    proposer: Proposer | None = None,
    trunk: Trunk | None = None,
    top: int = 5,
    options: ExtractOptions | None = None,
) -> Boxes:
    """Boxes of every image, best first, by one forward pass.

    Args:
        proposer: default the shipped one. trunk: its own; default EfficientNet-Lite0.
        options: how the trunk sees the images; 256 pixels, as the shipped one learned.
    Raises:
        ImageError, DataError: an image cannot be used, or the trunk lacks a stage.
    """
    trunk = trunk or _usual_trunk(config.device())
    proposer = (proposer or load_proposer()).to(config.device())
    _check_stages(trunk)
    boxes, scores, sizes = [], [], dataset.sizes()
    for maps in _maps(dataset, trunk, options or ExtractOptions()):
        for some, sure in proposer.best(maps, top):
            boxes.append(some.cpu().numpy() * np.tile(sizes[len(boxes)], 2))
            scores.append(sure.cpu().numpy())
    return or_whole("proposer", dataset, boxes, scores, source="proposer")


def warn_if_learned(dataset: ImageDataset) -> None:
    """Warn where the shipped proposer learned from these photographs: on others it is worse."""
    learned = read_card("proposer")["photographs"].values()
    known = {f"{one:012d}" for ids in learned for one in ids}
    if count := sum(Path(file).stem in known for file in dataset.files):
        note = f"the proposer learned from {count} of these {len(dataset)} photographs"
        warnings.warn(f"{note}: on others its boxes are worse", stacklevel=3)


@functools.cache
def _usual_trunk(device: torch.device) -> Trunk:
    return load_trunk().for_inference(device)


def _check_stages(trunk: Trunk) -> None:
    if absent := KEPT.keys() - trunk.stages.keys():
        problem = f"{trunk.name} has no {', '.join(sorted(absent))}, which a proposer looks at"
        raise DataError(problem, "Use a convolutional network, such as efficientnet_lite0.")


@torch.inference_mode()
def _maps(
    dataset: ImageDataset, trunk: Trunk, options: ExtractOptions, mirrored: bool = False
) -> Iterator[dict[str, Tensor]]:
    """The trunk's maps of the images, some images at a time."""
    fast = trunk.for_inference(config.device(), options.precision)
    starts = range(0, len(dataset), options.batch_size)
    for start in tqdm(starts, "proposing", unit="batch", disable=not options.progress):
        some = range(start, min(start + options.batch_size, len(dataset)))
        seen = np.stack([model_input(dataset.image(i), options.size) for i in some])
        pixels = torch.from_numpy(seen).permute(0, 3, 1, 2).to(config.device())
        yield fast(fast.normalise(pixels.flip(3) if mirrored else pixels))


# --- training ---------------------------------------------------------------------------------


def train_proposer(
    datasets: Sequence[ImageDataset],
    trunk: Trunk | None = None,
    seed: int = config.SEED,
    epochs: int = 26,
    members: int = 3,
    options: ExtractOptions | None = None,
) -> Proposer:
    """A proposer that learned from photographs with boxes, each as it is and mirrored.

    The trunk sees each twice, once for all epochs; what follows takes seconds.

    Args:
        datasets: their first boxes are the main objects; photographs without a box are left out.
        trunk: is not changed; default EfficientNet-Lite0.
    Raises:
        DataError: no photograph has a box, or the trunk lacks a stage.
    """
    trunk, options = trunk or load_trunk(), options or ExtractOptions()
    _check_stages(trunk)
    boxed = [data.subset(np.array([len(boxes) > 0 for boxes in data.boxes]))
             for data in datasets if any(map(len, data.boxes))]  # fmt: skip
    if not boxed:
        raise DataError("nothing to learn from: no photograph has a box", "Annotate some.")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        channels = {stage.name: stage.channels for stage in trunk.stages.values()}
        proposer = Proposer(channels, members)
        views = [_view(boxed, trunk, options, mirrored) for mirrored in (False, True)]
        _fit_reduction(proposer, views[0][0])
        with torch.no_grad():
            reduced = torch.stack([proposer.reduced(maps) for maps, _ in views], dim=1)
        truth = torch.stack([truth for _, truth in views], dim=1)
        _learn(proposer, reduced, truth, epochs, options.progress)
    return proposer.eval().requires_grad_(False)


def _view(
    datasets: Sequence[ImageDataset], trunk: Trunk, options: ExtractOptions, mirrored: bool
) -> tuple[dict[str, Tensor], Tensor]:
    """Maps of all photographs, as they are or mirrored, and their :func:`targets`."""
    maps, truth = [], []
    for dataset in datasets:
        some = _maps(dataset, trunk, options, mirrored)
        maps += [{stage: one[stage].half().cpu() for stage in KEPT} for one in some]
        for size, boxes in zip(dataset.sizes(), dataset.boxes):
            x0, y0, x1, y1 = torch.from_numpy(boxes / np.tile(size, 2)).float().unbind(1)
            ends = (1 - x1, y0, 1 - x0, y1) if mirrored else (x0, y0, x1, y1)
            truth.append(targets(torch.stack(ends, dim=1), GRID, GRID))
    return {stage: torch.cat([one[stage] for one in maps]) for stage in KEPT}, torch.stack(truth)


@torch.no_grad()
def _fit_reduction(proposer: Proposer, maps: Mapping[str, Tensor]) -> None:
    """Each stage's PCA as a 1 x 1 convolution; the first component has a deviation of 3."""
    for stage, conv in proposer.reduce.items():
        some = maps[stage][:: -(-len(maps[stage]) // FEW)]
        cells = some.float().permute(0, 2, 3, 1).flatten(0, 2).numpy()
        pca = PCA(KEPT[stage], svd_solver="covariance_eigh").fit(cells)
        weight = 3 * pca.components_ / np.sqrt(pca.explained_variance_[0])
        conv.weight.copy_(torch.from_numpy(weight)[:, :, None, None])
        conv.bias.copy_(torch.from_numpy(-weight @ pca.mean_))


def targets(boxes: Tensor, height: int, width: int) -> Tensor:
    """What a proposer should say of each cell.

    Args:
        boxes: ``(K, 4)`` in parts of the image's sides, the main object's first.
    Returns:
        ``(height * width, 6)``: 1 in an object, 1 in the main object, and the box: the main
        object's, elsewhere that of the smallest object there.
    """
    cells = centres(height, width)
    inside = ((cells > boxes[:, None, :2]) & (cells < boxes[:, None, 2:])).all(dim=2)
    nearest = torch.cdist((boxes[:, :2] + boxes[:, 2:]) / 2, cells).argmin(dim=1)
    inside[torch.arange(len(boxes)), nearest] |= ~inside.any(dim=1)  # between all centres
    size = (boxes[:, 2:] - boxes[:, :2]).prod(dim=1)
    size[0] = -1
    owner = torch.where(inside, size[:, None], torch.inf).argmin(dim=0)
    return torch.cat([inside.any(dim=0)[:, None], inside[0][:, None], boxes[owner]], dim=1)


def _learn(proposer: Proposer, reduced: Tensor, truth: Tensor, epochs: int, progress: bool) -> None:
    """Train the networks: ``(N, 2, 192, h, w)`` views and ``(N, 2, h w, 6)`` targets."""
    learns = [p for name, p in proposer.named_parameters() if not name.startswith("reduce")]
    optimiser, batch = torch.optim.AdamW(learns, weight_decay=0.05), 16
    steps = epochs * -(-len(reduced) // batch)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimiser, 3e-3, steps, pct_start=0.15)
    proposer.train()
    for _ in tqdm(range(epochs), "training", unit="epoch", disable=not progress):
        for images in torch.randperm(len(reduced)).split(batch):
            view = torch.randint(2, (len(images),))
            loss = _loss(*proposer.cells(reduced[images, view]), truth[images, view])
            optimiser.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(learns, 5.0)
            optimiser.step()
            rate.step()


def _loss(logits: Tensor, boxes: Tensor, truth: Tensor) -> Tensor:
    """Of :meth:`Proposer.cells`: where objects are, what their boxes are, how well these fit.

    A box that fits badly teaches its cell to say so: the score is of the box, not of the place.

    Source: Zhang et al., VarifocalNet, 2021 (IoU as the target of the score).
    """
    thing, main, box = truth[:, None].expand(-1, logits.shape[1], -1, -1).split((1, 1, 4), dim=3)
    thing, main = thing[..., 0], main[..., 0]
    off = generalized_box_iou_loss(boxes, box)
    weight = torch.where(main > 0, 1.0, OTHERS * thing)
    fit = main * (1 - off.detach()).clamp(min=0)
    judge = F.binary_cross_entropy_with_logits
    drawn = (weight * off).sum() / weight.sum()
    return drawn + 0.5 * judge(logits[:, :, 0], thing) + judge(logits[:, :, 1], fit)


def cross_fitted(
    folds: Sequence[Sequence[ImageDataset]], also: Sequence[ImageDataset] = (), top: int = 5, **how
) -> list[Boxes]:
    """Boxes of each fold's data sets by a proposer that learned from the other folds alone.

    Args:
        also: what every proposer learns from as well. top: boxes an image.
        how: of :func:`train_proposer`.
    """
    found, seen = [], {"trunk": how.get("trunk"), "options": how.get("options")}
    for fold in folds:
        others = [data for other in folds if other is not fold for data in other]
        proposer = train_proposer([*others, *also], **how)
        found += [propose(data, proposer, top=top, **seen) for data in fold]
    return found


@functools.cache  # an app proposes for one photograph after another
def load_proposer(name: str = "proposer", root: Path | None = None) -> Proposer:
    """A proposer by name; ``proposer`` comes with the course.

    Raises:
        DataError: no such file, one that is damaged, or no proposer.
    """
    if read_card(name, root).get("kind") != "proposer":
        raise DataError(f"{name} is no proposer", "Use load_detector for it.")
    build = lambda card: Proposer(card["channels"], card["members"])  # noqa: E731
    return load_network(name, root, build).requires_grad_(False)
