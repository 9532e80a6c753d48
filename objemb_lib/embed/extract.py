"""Extraction: data set x trunk x region x pooling -> a table of vectors, cached by content.

One forward pass serves every (stage, pooling) that is asked for. What is cached is keyed by
everything that decides the numbers: the data set's content, the trunk's weights, region, input
size, precision, stage and pooling. A killed run goes on where it stopped; two notebooks that
want the same vectors compute them once.
"""

from __future__ import annotations

import statistics
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import numpy as np
import torch
from tqdm.auto import tqdm

from objemb_lib import config
from objemb_lib.cache import Store
from objemb_lib.config import DataError
from objemb_lib.data.dataset import ImageDataset
from objemb_lib.embed import pooling
from objemb_lib.embed.boxes import ObjectBoxes, ObjectRegion
from objemb_lib.embed.memory import until_it_fits
from objemb_lib.embed.regions import CROP, WHOLE, Looked, Region, view
from objemb_lib.embed.trunks import Trunk
from objemb_lib.embed.whitening import multiscale_mean

ROUND = 16  # boxes an image that are cut at once: hundreds would take gigabytes
PART = 256  # images a file of a half-finished run holds: what a kill can cost
VERSION = 3  # raise when the code changes the numbers

Wanted = Sequence[tuple[str, str]]
Vectors = dict[tuple[str, str], np.ndarray]
Boxes = list[list[torch.Tensor]]  # of each image, of each region: (K, 4)
View = tuple[torch.Tensor, Boxes]
Asked = tuple[Looked, tuple[str, str]]


def extract(
    dataset: ImageDataset,
    trunk: Trunk,
    wanted: Wanted = (("head", "spoc"),),
    region: Region = WHOLE,
    size: int = 256,
    batch_size: int | None = None,
    precision: str | None = None,
    cache: bool = True,
    progress: bool = True,
) -> Vectors:
    """Vectors of every image, for each wanted (stage, pooling).

    Args:
        wanted: pairs of a stage of the trunk and a key of :data:`pooling.POOLINGS`.
        region: where to look. size: side in pixels of what the trunk sees.
        batch_size: images a forward pass; default 4 on a CPU, whose caches a larger batch
            overflows (32 is half as fast), else 64. Halved, with a warning, where memory runs out.
        precision: ``fp32`` or ``bf16``; default :func:`config.precision`.
        cache: False neither reads nor writes the cache.
    Returns:
        ``{(stage, pooling): (N, C) float32}``, not normalised.
    Raises:
        KeyError: unknown stage or pooling. DataError: unknown precision. ImageError, DataError:
        an image cannot be used; what was computed before it stays cached. CacheError: the cache
        cannot be written. ObjembError: not even one image fits into memory.
    """
    options = (size, batch_size, precision, cache, progress)
    return extract_regions(dataset, trunk, wanted, [region], *options)[region.name]


def extract_regions(
    dataset: ImageDataset,
    trunk: Trunk,
    wanted: Wanted,
    regions: Sequence[Looked],
    size: int = 256,
    batch_size: int | None = None,
    precision: str | None = None,
    cache: bool = True,
    progress: bool = True,
) -> dict[str, Vectors]:
    """:func:`extract` for several regions, ``{region's name: vectors}``.

    Regions that see the same pixels (the whole image, and boxes on its map) share their forward
    passes: that is what pooling on the map is for. Arguments and errors as for :func:`extract`.
    """
    precision = precision or config.precision()
    _check(trunk, wanted, precision)
    device = config.device()
    batch_size = batch_size or (4 if device.type == "cpu" else 64)
    once = {repr(region): region for region in reversed(regions)}  # two names, the same boxes
    sharing: dict[Region, list[Looked]] = {}
    for region in reversed(once.values()):
        sharing.setdefault(region.seen, []).append(region)
    found: dict[str, Vectors] = {}
    for many in sharing.values():
        options = (size, batch_size, precision, device, progress)
        job = Job(dataset, trunk, tuple(many), *options)
        found |= _from_cache(job, wanted) if cache else _computed(job, wanted)
    return {region.name: found[once[repr(region)].name] for region in regions}


def extract_scales(
    dataset: ImageDataset,
    trunk: Trunk,
    wanted: Wanted,
    sizes: Sequence[int],
    region: Region = WHOLE,
    **options: object,
) -> Vectors:
    """:func:`extract` at several sizes, one vector an image of all of them.

    Args:
        sizes: sides in pixels, e.g. 181, 256 and 362: a factor of the square root of 2 apart.
        options: further ones of :func:`extract`.
    Returns:
        ``{(stage, pooling): (N, C) float32}``, L2-normalised, see :func:`multiscale_mean`.
    """
    each = [extract(dataset, trunk, wanted, region, size, **options) for size in sizes]
    return {pair: multiscale_mean([vectors[pair] for vectors in each]) for pair in wanted}


@dataclass(frozen=True)
class Objects:
    """The vectors of ``M`` objects of ``N`` images, the objects of the first image first.

    Args:
        vectors: ``{(stage, pooling): (M, C)}``, not normalised.
        image: ``(M,)`` image index of each object.
        boxes: ``(M, 4)`` in pixels of its image. scores: ``(M,)``, of the source of the boxes.
        where: the boxes they come from.
    """

    vectors: Vectors
    image: np.ndarray
    boxes: np.ndarray
    scores: np.ndarray
    where: ObjectBoxes

    def __len__(self) -> int:
        return len(self.image)


def extract_objects(
    dataset: ImageDataset,
    trunk: Trunk,
    wanted: Wanted,
    regions: Iterable[ObjectBoxes | ObjectRegion | Looked],
    size: int = 256,
    batch_size: int | None = None,
    precision: str | None = None,
    cache: bool = True,
    progress: bool = True,
    on: Literal["map", "pixels"] = "map",
) -> dict[str, Objects]:
    """A table of object vectors for each source of boxes, ``{region's name: objects}``.

    Args:
        regions: of ``dataset``; plain boxes stand for themselves, without context or mask; soft
            attention (:class:`attention.ClassActivation`) has one object, the whole image.
        on: ``map``: every object of an image, of every source, is cut out of the map of one
            forward pass; ``pixels``: one forward pass for each object (crop and embed).
    Raises:
        DataError: boxes of another number of images, or two regions of one name; masks on pixels;
            else as for :func:`extract`.
    """
    many = [ObjectRegion(r) if isinstance(r, ObjectBoxes) else r for r in regions]
    if len({r.name for r in many}) < len(many):
        raise DataError("two regions of the same name", "Give each source a name of its own.")
    for region in many:
        if len(region.boxes) != len(dataset):
            raise DataError(f"{region.boxes} are not of {dataset}", "Make boxes for this data set.")
    options = (size, batch_size, precision, cache, progress)
    if on == "map":
        found = extract_regions(dataset, trunk, wanted, many, *options)
    else:
        found = {r.name: _crops(dataset, trunk, wanted, r, options) for r in many}
    return {r.name: _objects(found[r.name], r.boxes) for r in many}


def _objects(vectors: Vectors, boxes: ObjectBoxes) -> Objects:
    return Objects(
        vectors, boxes.owners, np.concatenate(boxes.boxes), np.concatenate(boxes.scores), boxes
    )


def _crops(
    dataset: ImageDataset, trunk: Trunk, wanted: Wanted, region: ObjectRegion, options: tuple
) -> Vectors:
    """Crop and embed: every object with a forward pass of its own."""
    each = _one_each(dataset, region)
    return extract(each, trunk, wanted, replace(CROP, margin=region.margin), *options)


def _one_each(dataset: ImageDataset, region: ObjectRegion) -> ImageDataset:
    """A data set of one image an object, which is its main and only one."""
    if not isinstance(region, ObjectRegion) or region.masked:
        raise DataError(f"{region.name} has no crops", "Crop boxes, without masks.")
    owners = region.boxes.owners
    boxes = tuple(box[None] for box in np.concatenate(region.boxes.boxes))
    return ImageDataset(
        dataset.name, dataset.split, dataset.root, [dataset.files[i] for i in owners],
        dataset.labels[owners], boxes=boxes, content=dataset.content,
        crops=[dataset.crops[i] for i in owners] if dataset.crops else (),
    )  # fmt: skip


Way = tuple[Trunk, Wanted, ObjectRegion, int, Literal["map", "pixels"]]


@torch.inference_mode()
def benchmark_latency(
    dataset: ImageDataset, ways: Mapping[str, Way], images: int = 9
) -> dict[str, float]:
    """What an image costs in each of some ways, from its file to the vectors of its objects.

    One image at a time, median over the first ``images``; the ways take turns at each image, so
    that what else the machine does meets them alike.

    Args:
        ways: ``{name: (trunk, (stage, pooling) pairs, region, size, "map" or "pixels")}``.
    """
    device, images = config.device(), range(min(images, len(dataset)))
    fast: dict[int, Trunk] = {}
    spent: dict[str, list[float]] = {name: [] for name in ways}
    steps = {}
    for name, (trunk, wanted, region, size, on) in ways.items():
        if id(trunk) not in fast:
            fast[id(trunk)] = trunk.for_inference(device)
        data, look = (dataset, region) if on == "map" else (_one_each(dataset, region), CROP)
        job = Job(data, fast[id(trunk)], (look,), size, 1, "fp32", device, False)
        steps[name] = job, [(look, pair) for pair in wanted]
    for i in (0, *images):  # the first one warms up
        for name, (job, asked) in steps.items():
            rows = (
                [i] if ways[name][4] == "map" else np.flatnonzero(ways[name][2].boxes.owners == i)
            )
            start = time.perf_counter()
            for row in rows:
                part = range(row, row + 1)
                job._step(job.trunk, part, *job._decode(part), asked)
            spent[name].append(1000 * (time.perf_counter() - start))
    return {name: statistics.median(times[1:]) for name, times in spent.items()}


def _computed(job: Job, wanted: Wanted) -> dict[str, Vectors]:
    every = [(region, pair) for region in job.regions for pair in dict.fromkeys(wanted)]
    parts = [found for _, found in job.run({part: every for part in job.parts()})]
    return {
        region.name: {
            pair: np.concatenate([found[region, pair] for found in parts])
            for pair in dict.fromkeys(wanted)
        }
        for region in job.regions
    }


def _from_cache(job: Job, wanted: Wanted) -> dict[str, Vectors]:
    """The cached vectors, after whatever is missing of them was computed."""
    root, parts = config.cache_root() / "embeddings", job.parts()
    stores = {region: Store(root, job.key(region), region.rows) for region in job.regions}
    with ExitStack() as locks:
        for store in sorted(stores.values(), key=lambda s: s.folder):  # always in one order
            locks.enter_context(store.lock())
        absent = [
            (region, pair)
            for region, store in stores.items()
            for pair in dict.fromkeys(wanted)
            if not store.has(pair)
        ]
        todo = {part: [(r, p) for r, p in absent if not stores[r].has(p, part)] for part in parts}
        for part, found in job.run({part: some for part, some in todo.items() if some}):
            for (region, pair), vectors in found.items():
                stores[region].write(vectors, pair, part)
        for region, pair in absent:
            stores[region].merge(pair, parts)
    return {r.name: {pair: store.read(pair) for pair in wanted} for r, store in stores.items()}


def _check(trunk: Trunk, wanted: Wanted, precision: str) -> None:
    if precision not in ("fp32", "bf16"):
        raise DataError(f"no precision {precision!r}", "Set OBJEMB_PRECISION to fp32 or bf16.")
    for stage, name in wanted:
        if stage not in trunk.stages:
            raise KeyError(f"{trunk.name} has no stage {stage!r}; it has {list(trunk.stages)}")
        if name not in pooling.POOLINGS:
            raise KeyError(f"no pooling {name!r}; there are {list(pooling.POOLINGS)}")


@dataclass(frozen=True)
class Job:
    """What to run: everything that :func:`extract` was told, bar what is wanted of it."""

    dataset: ImageDataset
    trunk: Trunk
    regions: tuple[Looked, ...]
    size: int
    batch_size: int
    precision: str
    device: torch.device
    progress: bool

    def parts(self) -> list[range]:
        """The images in the portions that are cached one by one."""
        every = range(len(self.dataset))
        return [every[i : i + PART] for i in range(0, len(every), PART)]

    def key(self, region: Looked) -> dict[str, str]:
        """Everything that decides a region's numbers, as text."""
        return {
            "version": str(VERSION),
            "data": self.dataset.fingerprint,
            "trunk": self.trunk.fingerprint(),
            "region": repr(region),
            "size": str(self.size),
            "precision": f"{self.device.type} {self.precision}",
        }

    @torch.inference_mode()
    def run(self, todo: dict[range, list[Asked]]) -> Iterator[tuple[range, dict]]:
        """Vectors of each part of the images in turn; one forward pass for all that is asked."""
        if not todo:
            return
        trunk = self.trunk.for_inference(self.device, self.precision)
        names = " and ".join(region.name for region in self.regions)
        what = f"{self.dataset.name}/{self.dataset.split}, {names}, {self.size} px"
        batches = [
            (part, part[i : i + self.batch_size])
            for part in todo
            for i in range(0, len(part), self.batch_size)
        ]
        views = self._read([images for _, images in batches])
        found: list[dict[Asked, np.ndarray]] = []
        fits = self.batch_size
        with tqdm(None, what, sum(map(len, todo)), unit="image", disable=not self.progress) as bar:
            for (part, images), (pixels, boxes) in zip(batches, views):
                step = partial(self._pieces, trunk, images, pixels, boxes, todo[part])
                some, fits = until_it_fits(step, fits)
                found += some
                bar.update(len(images))
                if images[-1] == part[-1]:
                    yield part, {a: np.concatenate([f[a] for f in found]) for a in todo[part]}
                    found = []

    def _read(self, batches: list[range]) -> Iterator[View]:
        """``(B, 3, size, size)`` uint8 batches, channels last, with each image's boxes.

        An accelerator computes while threads decode the next batches. A CPU decodes in this
        thread and computes then: decoding threads beside torch's own make both wait, and that
        costs several times what they save.
        """
        decode = (self._decode(images) for images in batches)
        return decode if self.device.type == "cpu" else self._read_ahead(batches)

    def _pieces(
        self,
        trunk: Trunk,
        images: range,
        pixels: torch.Tensor,
        boxes: Boxes,
        every: list[Asked],
        size: int,
    ) -> list[dict[Asked, np.ndarray]]:
        """A batch in steps of at most ``size`` images."""
        parts = [slice(i, i + size) for i in range(0, len(images), size)]
        return [self._step(trunk, images[p], pixels[p], boxes[p], every) for p in parts]

    def _step(
        self,
        trunk: Trunk,
        images: range,
        pixels: torch.Tensor,
        boxes: Boxes,
        every: list[Asked],
    ) -> dict[Asked, np.ndarray]:
        """All that is asked of one batch; a region cuts a stage's map once for every pooling."""
        maps = trunk(trunk.normalise(pixels.to(self.device)))
        found: dict[Asked, np.ndarray] = {}
        for region in dict.fromkeys(region for region, _ in every):
            place, pairs = self.regions.index(region), [p for r, p in every if r == region]
            mine = [many[place] for many in boxes]
            weights = [region.weights(self.dataset, i) for i in images]
            some = [_pool_round(region, trunk, maps, pairs, *r) for r in _rounds(mine, weights)]
            owners = [i for r, _ in _rounds(mine, weights) for i, b in enumerate(r) for _ in b]
            order = np.argsort(owners, kind="stable")  # each image's boxes together again
            for pair in pairs:
                found[region, pair] = np.concatenate([part[pair] for part in some])[order]
        return found

    def _decode(self, images: range) -> View:
        views = [view(self.regions, self.dataset, i, self.size) for i in images]
        pixels = torch.from_numpy(np.stack([pixels for pixels, _ in views]))
        boxes = [[torch.from_numpy(some) for some in many] for _, many in views]
        return pixels.permute(0, 3, 1, 2), boxes  # a view

    def _read_ahead(self, batches: list[range], ahead: int = 4) -> Iterator[View]:
        with ThreadPoolExecutor(max(1, config.workers())) as threads:
            queue: deque[Future] = deque()
            try:
                for images in batches:
                    queue.append(threads.submit(self._decode, images))
                    if len(queue) > ahead:
                        yield queue.popleft().result()
                while queue:
                    yield queue.popleft().result()
            finally:
                for future in queue:
                    future.cancel()


Weights = list[torch.Tensor | None]


def _rounds(boxes: list[torch.Tensor], weights: Weights) -> Iterator[tuple[list, Weights]]:
    """At most :data:`ROUND` boxes of each image at a time, with their weights."""
    for start in range(0, max(map(len, boxes)), ROUND):
        part = slice(start, start + ROUND)
        yield [b[part] for b in boxes], [None if w is None else w[part] for w in weights]


def _pool_round(
    region: Looked,
    trunk: Trunk,
    maps: dict[str, torch.Tensor],
    pairs: list[tuple[str, str]],
    boxes: list[torch.Tensor],
    weights: Weights,
) -> Vectors:
    """Vectors of some boxes: each stage is cut once."""
    cuts = {}
    for stage in dict.fromkeys(stage for stage, _ in pairs):
        cuts[stage] = region.features(trunk, maps, stage, boxes)
        if weights[0] is not None:
            share = torch.cat(weights).to(cuts[stage])[:, None]
            if share.shape[-2:] != cuts[stage].shape[-2:]:
                raise DataError(f"{stage} has no place for a mask", "Mask a stage that is a map.")
            cuts[stage] = cuts[stage] * share
    return {p: pooling.POOLINGS[p[1]](cuts[p[0]]).float().cpu().numpy() for p in pairs}
