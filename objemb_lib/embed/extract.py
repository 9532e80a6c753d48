"""Extraction: data set x trunk x region x pooling -> a table of vectors, cached by content.

One forward pass serves every (stage, pooling) that is asked for, and every region of one map. The
cache is keyed by everything that decides the numbers. A killed run goes on where it stopped; two
notebooks that want the same vectors compute them once.
"""

from __future__ import annotations

import statistics
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from tqdm.auto import tqdm

from objemb_lib import config
from objemb_lib.cache import Store
from objemb_lib.config import DataError
from objemb_lib.data.dataset import ImageDataset
from objemb_lib.embed.boxes import Boxes, whole_image
from objemb_lib.embed.compiled import wanted
from objemb_lib.embed.memory import until_it_fits
from objemb_lib.embed.pooling import POOLINGS
from objemb_lib.embed.regions import WHOLE, Region, model_input
from objemb_lib.embed.trunks import Trunk

ROUND = 16  # boxes an image that are cut at once: hundreds would take gigabytes
PART = 256  # images a file of a half-finished run holds: what a kill can cost
VERSION = 4  # raise when the code changes the numbers

Pair = tuple[str, str]  # a stage of the trunk, a key of POOLINGS
Vectors = dict[Pair, np.ndarray]


@dataclass(frozen=True)
class ExtractOptions:
    """How vectors are extracted.

    Args:
        size: side in pixels of what the trunk sees.
        batch_size: images at once; default 64, on a CPU 16, and 4 by torch, which a larger batch
            makes slower there. Halved, with a warning, where memory runs out.
        precision: ``fp32`` or ``bf16``; default :func:`config.precision`.
        cache: False neither reads nor writes the cache.
    """

    size: int = 256
    batch_size: int | None = None
    precision: str | None = None
    cache: bool = True
    progress: bool = True

    def __post_init__(self) -> None:
        usual = 64 if config.device().type != "cpu" else 16 if wanted() else 4
        object.__setattr__(self, "precision", config.precision(self.precision))
        object.__setattr__(self, "batch_size", self.batch_size or usual)


@dataclass(frozen=True, eq=False)
class Objects:
    """The vectors of ``M`` objects of ``N`` images, the objects of the first image first.

    Args:
        vectors: ``{(stage, pooling): (M, C)}``, not normalised. where: the boxes they come from.
        made_by: what an index that knows its maker compares: trunk, weights and size.
    """

    vectors: Vectors
    where: Boxes
    made_by: Mapping[str, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.image)

    @property
    def image(self) -> np.ndarray:
        """``(M,)``: image index of each object."""
        return self.where.owners

    @property
    def boxes(self) -> np.ndarray:
        """``(M, 4)`` in pixels of its image."""
        return np.concatenate(self.where.boxes)

    @property
    def scores(self) -> np.ndarray:
        """``(M,)``, of the source of the boxes."""
        return np.concatenate(self.where.scores)


def extract(
    dataset: ImageDataset,
    trunk: Trunk,
    wanted: Sequence[Pair] = (("head", "spoc"),),
    region: Region = WHOLE,
    options: ExtractOptions | None = None,
) -> Vectors:
    """Vectors of every image, or of every box of a region, for each wanted (stage, pooling).

    Returns:
        ``{(stage, pooling): (M, C) float32}``, not normalised; M = N for the whole images, else
        the boxes of the first image first.
    Raises:
        KeyError: unknown stage or pooling. DataError: boxes of another number of images.
        ImageError: an image cannot be used; what was computed before it stays cached.
    """
    return extract_regions(dataset, trunk, wanted, {"": region}, options)[""]


def extract_objects(
    dataset: ImageDataset,
    trunk: Trunk,
    wanted: Sequence[Pair],
    regions: Mapping[str, Region],
    options: ExtractOptions | None = None,
) -> dict[str, Objects]:
    """:func:`extract_regions` with the image and the box of each vector: ``{name: objects}``."""
    options = options or ExtractOptions()
    found = extract_regions(dataset, trunk, wanted, regions, options)
    made_by = {"trunk": trunk.name, "weights": trunk.fingerprint(), "size": str(options.size)}
    return {
        name: Objects(found[name], region.boxes or whole_image(dataset), made_by)
        for name, region in regions.items()
    }


def extract_regions(
    dataset: ImageDataset,
    trunk: Trunk,
    wanted: Sequence[Pair],
    regions: Mapping[str, Region],
    options: ExtractOptions | None = None,
) -> dict[str, Vectors]:
    """:func:`extract` for several regions, ``{name: vectors}``; those on the map share a pass."""
    for pair in wanted:
        for name, known in zip(pair, (trunk.stages, POOLINGS)):
            if name not in known:
                raise KeyError(f"no {name!r} of {trunk.name}; there are {list(known)}")
    for region in regions.values():
        if region.boxes is not None and len(region.boxes) != len(dataset):
            raise DataError(f"{region.boxes} are not of {dataset}", "Make boxes for this data set.")
    options, wanted = options or ExtractOptions(), list(dict.fromkeys(wanted))
    once = {region.key: region for region in regions.values()}  # two names, the same boxes
    on_map = tuple(region for region in once.values() if region.on == "map")
    on_pixels = [(region,) for region in once.values() if region.on == "pixels"]
    found: dict[str, Vectors] = {}
    for together in ([on_map] if on_map else []) + on_pixels:
        run = Extraction(dataset, trunk, together, options)
        vectors = run.cached(wanted) if options.cache else run.computed(wanted)
        found |= {region.key: vectors[k] for k, region in enumerate(together)}
    return {name: {p: found[region.key][p] for p in wanted} for name, region in regions.items()}


Wanted = list[tuple[int, Pair]]  # number of a region, what is pooled of it
Batch = tuple[torch.Tensor, list[list[torch.Tensor]], list[list[torch.Tensor | None]]]


@dataclass(frozen=True, eq=False)
class Extraction:
    """A run of a trunk over a data set, for regions that see the same pixels."""

    dataset: ImageDataset
    trunk: Trunk
    regions: tuple[Region, ...]
    options: ExtractOptions

    def __post_init__(self) -> None:
        object.__setattr__(self, "views", self.regions[0].views(self.dataset))

    def computed(self, pairs: list[Pair]) -> list[Vectors]:
        """The vectors of each region, without a cache."""
        numbers = range(len(self.regions))
        every = [(k, pair) for k in numbers for pair in pairs]
        [(_, found)] = self.run({range(len(self.views)): every})
        return [{pair: found[k, pair] for pair in pairs} for k in numbers]

    def cached(self, pairs: list[Pair]) -> list[Vectors]:
        """The same from the cache, after whatever is missing of them was computed."""
        root, views = config.cache_root() / "embeddings", range(len(self.views))
        parts = [views[i : i + PART] for i in range(0, len(views), PART)]
        stores = [Store(root, self.key(region), region.rows) for region in self.regions]
        with ExitStack() as locks:
            for store in sorted(stores, key=lambda s: s.folder):  # always in one order
                locks.enter_context(store.lock())
            every = [{pair: store.get(pair) for pair in pairs} for store in stores]
            absent = [(k, p) for k, some in enumerate(every) for p in pairs if some[p] is None]
            todo = {part: [(k, p) for k, p in absent if stores[k].get(p, part) is None]
                    for part in parts}  # fmt: skip
            for part, found in self.run({part: some for part, some in todo.items() if some}):
                for (k, pair), vectors in found.items():
                    stores[k].write(vectors, pair, part)
            for k, pair in absent:
                every[k][pair] = stores[k].merge(pair, parts)
        return every

    def key(self, region: Region) -> dict[str, str]:
        """Everything that decides a region's numbers, as text."""
        return {
            "version": str(VERSION),
            "data": self.dataset.fingerprint,
            "trunk": self.trunk.fingerprint(),
            "region": region.key,
            "size": str(self.options.size),
            "precision": f"{config.device().type} {self.options.precision}",
        }

    @torch.inference_mode()
    def run(self, todo: dict[range, Wanted]) -> Iterator[tuple[range, dict]]:
        """Vectors of each part of the views in turn; one forward pass for all that is asked."""
        if not todo:
            return
        trunk = self.trunk.for_inference(config.device(), self.options.precision)
        names = " and ".join(region.name for region in self.regions)
        what = f"{self.dataset.name}/{self.dataset.split}, {names}, {self.options.size} px"
        size, hide = self.options.batch_size, not self.options.progress
        batches = [(p, p[i : i + size]) for p in todo for i in range(0, len(p), size)]
        found: list[dict] = []
        with tqdm(desc=what, total=sum(map(len, todo)), unit="image", disable=hide) as bar:
            for (part, views), batch in zip(batches, self.read([v for _, v in batches])):
                step = partial(self.pool, trunk, batch, todo[part])
                some, size = until_it_fits(step, size)
                found += some
                bar.update(len(views))
                if views[-1] == part[-1]:
                    yield part, {w: np.concatenate([f[w] for f in found]) for w in todo[part]}
                    found = []

    def read(self, batches: list[range], ahead: int = 4) -> Iterator[Batch]:
        """Batches of pixels, boxes and masks.

        Threads decode the next batches meanwhile; not beside torch on a CPU: its own threads and
        they would wait for each other, which costs several times what they save.
        """
        if config.device().type == "cpu" and not wanted():
            yield from map(self.decode, batches)
            return
        with ThreadPoolExecutor(max(1, config.workers())) as threads:
            queue: deque[Future] = deque()
            for views in batches:
                queue.append(threads.submit(self.decode, views))
                if len(queue) > ahead:
                    yield queue.popleft().result()
            yield from (future.result() for future in queue)

    def decode(self, views: range) -> Batch:
        """``(B, 3, size, size)`` uint8, channels last; of each view, of each region, its boxes
        ``(K, 4)`` and the shares of their masks ``(K, 7, 7)``, or None."""
        size, seen, boxes, masks = self.options.size, [], [], []
        for i, box in (self.views[v] for v in views):
            image = self.dataset.image(i)
            seen.append(model_input(image, size, box, self.regions[0].context))
            some = [region.input_boxes(i, image.size, size) for region in self.regions]
            boxes.append([torch.from_numpy(many) for many in some])
            masks.append([region.mask_shares(i, image.size) for region in self.regions])
        return torch.from_numpy(np.stack(seen)).permute(0, 3, 1, 2), boxes, masks

    def pool(self, trunk: Trunk, batch: Batch, wanted: Wanted, size: int) -> list[dict]:
        """All that is wanted of a batch, in steps of at most ``size`` images."""
        found, weighted = [], any(self.regions[k].weights for k, _ in wanted)
        last = "head" if weighted else trunk.deepest(stage for _, (stage, _) in wanted)
        for i in range(0, len(batch[0]), size):
            pixels, boxes, masks = (part[i : i + size] for part in batch)
            maps = trunk(trunk.normalise(pixels.to(config.device())), last)
            found.append({})
            for k in dict.fromkeys(k for k, _ in wanted):
                pairs = [pair for number, pair in wanted if number == k]
                cut = [b[k] for b in boxes], [m[k] for m in masks]
                vectors = _pooled(self.regions[k], trunk, maps, pairs, *cut)
                found[-1] |= {(k, pair): x for pair, x in vectors.items()}
        return found


def _pooled(
    region: Region,
    trunk: Trunk,
    maps: dict[str, torch.Tensor],
    pairs: list[Pair],
    boxes: list[torch.Tensor],
    masks: list[torch.Tensor | None],
) -> Vectors:
    """Vectors of all boxes of some images, at most :data:`ROUND` of each image at a time."""
    owners: list[int] = []
    found: dict[Pair, list[np.ndarray]] = {pair: [] for pair in pairs}
    for start in range(0, max(map(len, boxes)), ROUND):
        some = [b[start : start + ROUND] for b in boxes]
        owners += [i for i, many in enumerate(some) for _ in many]
        for stage in dict.fromkeys(stage for stage, _ in pairs):
            cells = region.cells(trunk, maps, stage, some)
            if region.masked:
                share = torch.cat([m[start : start + ROUND] for m in masks]).to(cells)[:, None]
                if share.shape[-2:] != cells.shape[-2:]:
                    raise DataError(f"{stage} has no place for a mask", "Mask a stage with a map.")
                cells = cells * share
            for pair in pairs:
                if pair[0] == stage:
                    found[pair].append(POOLINGS[pair[1]](cells).float().cpu().numpy())
    order = np.argsort(owners, kind="stable")  # each image's boxes together again
    return {pair: np.concatenate(parts)[order] for pair, parts in found.items()}


@torch.inference_mode()
def benchmark_latency(
    dataset: ImageDataset,
    ways: Mapping[str, tuple[Trunk, Sequence[Pair], Region, int]],
    images: int = 9,
) -> dict[str, float]:
    """Milliseconds an image costs in each of some ways, from its file to its objects' vectors.

    Median over the first ``images``; the ways take turns, so that what else the machine does meets
    them alike.

    Args:
        ways: ``{name: (trunk, (stage, pooling) pairs, region, size)}``.
    """
    every = {id(trunk): trunk for trunk, *_ in ways.values()}
    fast = {key: trunk.for_inference(config.device()) for key, trunk in every.items()}
    spent: dict[str, list[float]] = {name: [] for name in ways}
    for i in (0, *range(min(images, len(dataset)))):  # the first one warms up
        for name, (trunk, pairs, region, size) in ways.items():
            run = Extraction(dataset, trunk, (region,), ExtractOptions(size, 1))
            views = [v for v, (image, _) in enumerate(run.views) if image == i]
            start = time.perf_counter()
            for view in views:
                batch = run.decode(range(view, view + 1))
                run.pool(fast[id(trunk)], batch, [(0, pair) for pair in pairs], 1)
            spent[name].append(1000 * (time.perf_counter() - start))
    return {name: statistics.median(times[1:]) for name, times in spent.items()}
