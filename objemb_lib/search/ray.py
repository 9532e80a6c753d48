"""Extraction on Ray: images in, object vectors out as Parquet and straight into an index.

The images are cut into parts. A worker, which loads its networks once, makes the vectors of a part
as :func:`extract.extract_objects` does; this process puts them into the index, then writes the
part's file. So a file that is there says that its part is done: a run that was killed goes on with
the others. Ray starts lost workers anew and repeats what they had in hand. A worker begins a part
when its last one is kept, so that a slow index does not fill the memory.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from objemb_lib.cache import atomic_path
from objemb_lib.config import DataError, ImageError, needs
from objemb_lib.data.dataset import ImageDataset
from objemb_lib.data.images import measure_images
from objemb_lib.embed.boxes import Boxes
from objemb_lib.embed.extract import ExtractOptions, Objects, extract_objects
from objemb_lib.embed.regions import Region
from objemb_lib.embed.trunks import Trunk
from objemb_lib.search.milvus import MilvusIndex

PART = 256  # images a file: what a lost worker costs
TRIES = 3  # more, of a part whose worker was lost
SHARED = 256 << 20  # bytes that Ray's processes on this machine share

Look = Callable[[ImageDataset], Region]
Load = Callable[[], tuple[Trunk, Look]]


def ray_extract(
    dataset: ImageDataset,
    load: Load,
    pair: tuple[str, str],
    folder: str | Path,
    index: MilvusIndex | None = None,
    size: int = 256,
    part: int = PART,
    workers: int | None = None,
    gpus: float = 0,
) -> list[Path]:
    """The objects of a data set, by several processes on one machine or on many.

    They run where Ray does: on this machine, or on the cluster that ``ray.init(address)`` joined.

    Args:
        load: called once in each worker; gives the trunk, and what finds the boxes of some images.
        pair: (stage, pooling). folder: of the Parquet files. index: takes the vectors, too.
        size: as for :func:`extract.extract_objects`. part: images a file.
        workers: default one a CPU, or as many as the GPUs allow. gpus: for each worker.
    Returns:
        the files, in the order of the images; see :func:`read_parts`.
    Raises:
        DataError: Ray is not installed; the folder holds vectors of other settings; the index
            failed. What was done before stays done.
    Warns:
        UserWarning: images that cannot be used are left out; :func:`read_parts` names them.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing goes to outside hosts
    with needs("scale"):
        import pyarrow.parquet  # noqa: F401
        import ray.util
    folder, done = Path(folder), _parts(Path(folder))
    key = {"data": dataset.fingerprint, "stage": pair[0], "pooling": pair[1],
           "size": str(size), "part": str(part)}  # fmt: skip
    if done:
        key = _agreed(folder, _read(done[min(done)]).attrs["key"], key)
    todo = [start for start in range(0, len(dataset), part) if start not in done]
    here = {"num_cpus": workers, "include_dashboard": False, "object_store_memory": SHARED,
            "log_to_driver": False, "logging_level": "warning"}  # fmt: skip
    broken = 0
    with nullcontext() if ray.is_initialized() or not todo else ray.init("local", **here):
        for start, table in _tables([dataset, load, key], todo, workers, gpus) if todo else ():
            key, found = _agreed(folder, key, table.attrs["key"]), _extracted([table])
            if index is not None and found.files:
                index.add(found.objects, pair, found.files, numbers=found.numbers)
            with atomic_path(folder / f"part-{start:012d}.parquet") as path:
                table.to_parquet(path)
            broken += len(found.broken)
    if broken:
        warnings.warn(f"{broken} images cannot be used: see read_parts", stacklevel=2)
    return list(_parts(folder).values())


def _tables(
    worker: list, todo: list[int], workers: int | None, gpus: float
) -> Iterator[tuple[int, pd.DataFrame]]:
    """What workers, each a :class:`_Worker` of these arguments, make of parts, as they get done."""
    import ray.util

    there = ray.cluster_resources()
    many = workers or int(there.get("GPU", 0) / gpus if gpus else there["CPU"])
    how = {"num_cpus": 1, "num_gpus": gpus, "max_restarts": -1, "max_task_retries": TRIES}
    actors = [ray.remote(**how)(_Worker).remote(*worker) for _ in range(min(many, len(todo)) or 1)]
    pool = ray.util.ActorPool(actors)
    return pool.map_unordered(lambda one, start: one.part.remote(start), todo)


class _Worker:
    """Makes the tables of parts."""

    def __init__(self, dataset: ImageDataset, load: Load, key: dict[str, str]) -> None:
        self.dataset, self.key = dataset, key
        self.trunk, self.look = load()

    def part(self, first: int) -> tuple[int, pd.DataFrame]:
        """The table of the part that begins with image ``first``."""
        data = self.dataset
        images = range(first, min(first + int(self.key["part"]), len(data)))
        broken: dict[str, str] = {}
        try:
            table = self._table(images)
        except ImageError:  # which, is only asked when there is one
            paths = [Path(data.root) / data.files[i] for i in images]
            found = dict(zip(images, measure_images(paths, progress=False)))
            broken = {data.files[i]: str(e) for i, e in found.items() if isinstance(e, ImageError)}
            table = self._table([i for i in images if data.files[i] not in broken])
        table.attrs["broken"] = broken
        return first, table

    def _table(self, images: Sequence[int]) -> pd.DataFrame:
        """A row an object of some images; what decided the numbers in ``attrs``."""
        key, columns = {**self.key, "trunk": self.trunk.fingerprint()}, {}
        if len(images):
            some, pair = self.dataset.subset(images), (key["stage"], key["pooling"])
            region = self.look(some)
            options = ExtractOptions(int(key["size"]), cache=False, progress=False)
            objects = extract_objects(some, self.trunk, [pair], {"": region}, options)[""]
            key["region"] = region.name
            columns = {"image": np.array(images)[objects.image],
                       "file": [some.names[i] for i in objects.image],
                       "box": list(objects.boxes), "score": objects.scores,
                       "vector": list(objects.vectors[pair])}  # fmt: skip
        table = pd.DataFrame(columns)
        table.attrs["key"] = key
        return table


# --- the files ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Extracted:
    """What Parquet files hold.

    Args:
        objects: of the usable images, numbered anew, in their order. files: one an image.
        numbers: of these images in their data set. broken: file -> why it cannot be used.
    """

    objects: Objects
    files: list[str]
    numbers: np.ndarray
    broken: dict[str, str]


def read_parts(folder: str | Path) -> Extracted:
    """All that :func:`ray_extract` wrote into a folder, as one table in memory.

    Raises:
        DataError: no files, one that is damaged, or files of different settings.
    """
    tables = [_read(path) for path in _parts(Path(folder)).values()]
    if not tables:
        raise DataError(f"{folder} has no part-*.parquet", "Run ray_extract with this folder.")
    for table in tables:
        _agreed(folder, tables[0].attrs["key"], table.attrs["key"])
    return _extracted(tables)


def _extracted(tables: list[pd.DataFrame]) -> Extracted:
    broken = {file: why for table in tables for file, why in table.attrs["broken"].items()}
    full = [table for table in tables if len(table)]
    if not full:
        return Extracted(Objects({}, Boxes("", [])), [], np.zeros(0, int), broken)
    key, table = full[0].attrs["key"], pd.concat(full)
    numbers, first = np.unique(table["image"], return_index=True)
    boxes, vectors = np.stack(table["box"]), np.stack(table["vector"])
    scores, cuts = table["score"].to_numpy(), first[1:]
    where = Boxes(key["region"], np.split(boxes, cuts), np.split(scores, cuts))
    objects = Objects({(key["stage"], key["pooling"]): vectors}, where)
    return Extracted(objects, table["file"].iloc[first].tolist(), numbers, broken)


def _parts(folder: Path) -> dict[int, Path]:
    """First image -> file, in their order. Names are zero-padded, so that every tool has it."""
    paths = sorted(folder.glob("part-*.parquet"))
    return {int(path.stem.partition("-")[2]): path for path in paths}


def _read(path: Path) -> pd.DataFrame:
    try:
        table = pd.read_parquet(path)
        _ = table.attrs["key"], table.attrs["broken"]
    except (ValueError, OSError, KeyError) as error:  # pyarrow's are ValueErrors
        remedy = "Delete it and run again: only it is made anew."
        raise DataError(f"{path} is damaged, or not ray_extract's ({error})", remedy) from error
    return table


def _agreed(folder: str | Path, there: Mapping[str, str], asked: Mapping[str, str]) -> dict:
    """What both say together; DataError unless they agree, as far as both say."""
    if other := sorted(k for k in there.keys() & asked.keys() if there[k] != asked[k]):
        problem = f"{folder} holds vectors of another {', '.join(other)}"
        raise DataError(problem, "Take another folder, or the settings of this one.")
    return {**there, **asked}
