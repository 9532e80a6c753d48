"""Objects in Milvus: an :class:`objects.ObjectIndex` for collections that outgrow one machine.

By default Milvus Lite, a local file served inside this process; by address a cluster, with the
same code. What is in the collection is described in :meth:`MilvusIndex._create`.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Callable, Collection, Hashable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from objemb_lib.config import DataError, needs
from objemb_lib.embed.extract import Objects
from objemb_lib.embed.whitening import l2
from objemb_lib.search.objects import Match

if TYPE_CHECKING:
    from pymilvus import MilvusClient

BATCH = 1000  # rows a request: a few MB, far below what a server takes
MOST = 16_384  # rows that Milvus gives for one query
META = "objemb.meta"
HELD = "Close whatever else has this file open: Milvus Lite serves one process."
OPENED = "Check that the server runs, and its address, token and log; of a local file, its path."
FAILED = "failed: "  # in the message of an error that another try may not have
NAME, PATH = 256, 1024  # the longest data set or category, and file


class MilvusIndex:
    """Objects of images in a Milvus collection, answered by image as by ``ObjectIndex``.

    Each object is a row of its own, whose key is computed from its data set, file and box: to add
    an object again, after a crash or from a second worker, changes nothing.

    Args:
        dim: of the vectors.
        uri: a local file that ends in ``.db`` (Milvus Lite: one process at a time), or the
            address of a server, such as ``http://host:19530``.
        collection: its name there; is made if absent.
        meta: strings to keep, e.g. trunk, stage and pooling. A collection of other ones is refused.
        index: how it is searched, where the collection is new: ``FLAT`` is exact; see Milvus's
            index types for others and their parameters.
        ask: their parameters when searching, e.g. ``{"ef": 128}`` of ``HNSW``.
        token: for a server that asks for one.
        timeout: seconds for each request, and until another process lets go of a local file.
    Raises:
        DataError: pymilvus is not installed; the server cannot be reached, or another process has
            the file; the collection holds vectors of another dimension or model.
    """

    def __init__(
        self,
        dim: int,
        uri: str = "objects.db",
        collection: str = "objects",
        meta: dict[str, str] | None = None,
        index: dict[str, Any] | None = None,
        ask: dict[str, Any] | None = None,
        token: str = "",
        timeout: float = 30,
    ) -> None:
        with needs("scale"):
            from pymilvus import MilvusClient
        self.dim, self.uri, self.collection = dim, str(uri), collection
        self.ask, self.timeout = dict(ask or {}), timeout
        client = partial(MilvusClient, self.uri, token=token, timeout=timeout)
        with self._said():
            self.client = self._opened(client)
            if not self.client.has_collection(collection, timeout=timeout):
                self._create(dict(meta or {}), dict(index or {"index_type": "FLAT"}))
            found = self.client.describe_collection(collection, timeout=timeout)
            self.client.load_collection(collection, timeout=timeout)
        self.meta = self._agreed(found, meta)

    def _opened(self, client: Callable[[], MilvusClient]) -> MilvusClient:
        """A process that is ending, as Ray's are after an extraction, may still have the file.

        Why a file cannot be opened, Milvus Lite tells its log alone.
        """
        from pymilvus.exceptions import ConnectionConfigException

        causes: list[BaseException] = []

        def note(record: logging.LogRecord) -> bool:
            causes.extend(filter(None, (record.exc_info or ())[1:2]))
            return not record.exc_info

        until, logs = (
            time.monotonic() + self.timeout,
            logging.getLogger("milvus_lite.server_manager"),
        )
        logs.addFilter(note)
        try:
            while True:
                try:
                    return client()
                except ConnectionConfigException as error:
                    why = causes[-1] if causes else error
                    held = type(why).__name__ == "DataDirLockedError"
                    if not held or time.monotonic() > until:
                        raise DataError(
                            f"{self} {FAILED}{why}", HELD if held else OPENED
                        ) from error
                    time.sleep(0.2)
        finally:
            logs.removeFilter(note)

    def _create(self, meta: dict[str, str], index: dict[str, Any]) -> None:
        """One row an object; rows of a data set lie together, so that a filter reads only them."""
        from pymilvus import DataType

        schema = self.client.create_schema(auto_id=False, enable_dynamic_field=False)
        schema.add_field("id", DataType.VARCHAR, is_primary=True, max_length=32)
        schema.add_field("data_set", DataType.VARCHAR, max_length=NAME, is_partition_key=True)
        schema.add_field("file", DataType.VARCHAR, max_length=PATH)
        schema.add_field("image", DataType.INT64)
        schema.add_field("category", DataType.VARCHAR, max_length=NAME)
        schema.add_field("box", DataType.ARRAY, element_type=DataType.FLOAT, max_capacity=4)
        schema.add_field("vector", DataType.FLOAT_VECTOR, dim=self.dim)
        kind = index.pop("index_type")
        searched = self.client.prepare_index_params()
        searched.add_index("vector", index_type=kind, metric_type="IP", params=index)
        self.client.create_collection(
            self.collection, schema=schema, index_params=searched, consistency_level="Strong",
            properties={META: json.dumps(meta)}, timeout=self.timeout,
        )  # fmt: skip

    def _agreed(self, found: dict, meta: dict[str, str] | None) -> dict[str, str]:
        """What the collection says of itself, if that is what was asked for."""
        fields = {field["name"]: field["params"] for field in found["fields"]}
        kept = found.get("properties", {}).get(META)
        if kept is None or "vector" not in fields:
            raise DataError(f"{self} was not made here", "Choose another name for the collection.")
        kept, dim = json.loads(kept), int(fields["vector"]["dim"])
        if dim != self.dim or (meta is not None and meta != kept):
            raise DataError(
                f"{self} holds vectors of {dim} dimensions of {kept}, not {self.dim} of {meta}",
                "Ask with the model that filled it, or choose another name for the collection.",
            )
        return kept

    @contextmanager
    def _said(self) -> Iterator[None]:
        """Milvus's errors, with what to do."""
        from pymilvus.exceptions import MilvusException

        try:
            yield
        except MilvusException as error:
            raise DataError(f"{self} {FAILED}{error.message}", OPENED) from error

    def __len__(self) -> int:
        with self._said():
            found = self.client.query(self.collection, filter="", output_fields=["count(*)"],
                                      timeout=self.timeout)  # fmt: skip
        return int(found[0]["count(*)"])

    def __repr__(self) -> str:
        return f"MilvusIndex({self.collection!r} at {self.uri})"

    def add(
        self,
        objects: Objects,
        pair: tuple[str, str],
        files: Sequence[str],
        data_set: str = "",
        categories: Sequence[str] | None = None,
        numbers: Sequence[int] | None = None,
    ) -> None:
        """Put the objects of images there, in batches; those that are there already stay.

        Args:
            files: ``N``, one an image, each once. data_set: what they are part of.
            categories: ``M``, one an object, to filter by.
            numbers: ``N``, each image's number in its data set; default 0 .. N - 1.
        Raises:
            DataError: lengths that do not agree; vectors of another dimension, not finite or zero,
                and then nothing is added; Milvus failed, and then some batches may be there: add
                all again.
        """
        files, count = list(files), len(objects)
        numbers = range(len(files)) if numbers is None else numbers
        categories = [""] * count if categories is None else categories
        if len(set(files)) != len(objects.where) or len(files) != len(numbers):
            raise DataError(
                f"{len(files)} files for {len(objects.where)} images", "Name each image once."
            )
        if len(categories) != count:
            raise DataError(f"{len(categories)} categories for {count} objects", "One each.")
        vectors = self._checked(objects.vectors[pair])
        rows: dict[str, dict] = {}  # a box that is there twice is one row
        for row, image in enumerate(objects.image.tolist()):
            box = objects.boxes[row].astype(np.float32)
            name = _key(data_set, files[image], box)
            rows[name] = {"id": name, "data_set": data_set, "file": files[image],
                          "image": int(numbers[image]), "category": categories[row],
                          "box": box.tolist(), "vector": vectors[row]}  # fmt: skip
        every = list(rows.values())
        with self._said():
            for start in range(0, len(every), BATCH):
                batch = every[start : start + BATCH]
                self.client.upsert(self.collection, batch, timeout=self.timeout)

    def remove(self, files: Sequence[str], data_set: str = "") -> None:
        """Take out all objects of some images: before adding them with other boxes."""
        with self._said():
            for start in range(0, len(files), BATCH):
                some = _equal(data_set=data_set, file=list(files[start : start + BATCH]))
                self.client.delete(self.collection, filter=some, timeout=self.timeout)

    def search(
        self,
        vector: np.ndarray,
        k: int,
        without: Collection[str] = (),
        data_set: str | None = None,
        category: str | None = None,
    ) -> list[Match]:
        """The ``k`` images with the object most like a ``(D,)`` vector, best first.

        As :meth:`objects.ObjectIndex.search`: each image once, copies of it left out.

        Args:
            without: files that are not to be found, such as the query's own.
            data_set, category: search only among these; None: everywhere.
        Raises:
            DataError: an empty collection, k < 1 or over 16,384, a vector as in :meth:`add`, or
                Milvus failed.
        """
        if not 1 <= k <= MOST:
            raise DataError(f"search for {k} images", f"Use k from 1 to {MOST:,}.")
        asked = self._checked(np.asarray(vector)[None])[0]
        where = {"data_set": data_set, "category": category}
        some = _equal(**{name: value for name, value in where.items() if value is not None})
        if without:
            some += (" and " if some else "") + f"file not in {_quoted(sorted(without))}"
        wanted = min(4 * k, MOST)  # objects, of which several may be of one image
        found = _matches(hits := self._hits(asked, wanted, some))
        while len(found) < k and len(hits) == wanted < MOST:
            wanted = min(2 * wanted, MOST)
            found = _matches(hits := self._hits(asked, wanted, some))
        if not found and not len(self):
            raise DataError(f"{self} is empty", "Add objects before searching.")
        return found[:k]

    def _hits(self, vector: np.ndarray, wanted: int, some: str) -> list[dict]:
        with self._said():
            (hits,) = self.client.search(
                self.collection, data=[vector], limit=wanted, filter=some, timeout=self.timeout,
                search_params={"metric_type": "IP", "params": self.ask},
                output_fields=["data_set", "file", "image", "box", "vector"],
            )  # fmt: skip
        return sorted(hits, key=lambda hit: -hit["distance"])

    def _checked(self, vectors: np.ndarray) -> np.ndarray:
        """L2-normalised; Milvus would take a NaN without a word."""
        vectors = np.asarray(vectors, np.float32)
        if vectors.ndim != 2 or vectors.shape[1] != self.dim:
            raise DataError(
                f"vectors of shape {vectors.shape} for {self} of {self.dim} dimensions",
                f"Pass shape (n, {self.dim}), from the same model and pooling.",
            )
        lengths = np.linalg.norm(vectors, axis=1)
        if not np.isfinite(lengths).all() or not lengths.all():
            bad = np.flatnonzero(~np.isfinite(lengths) | (lengths == 0))
            raise DataError(
                f"vectors {bad[:3].tolist()} are zero or not finite",
                "Find the images that they come from.",
            )
        return l2(vectors)

    def close(self) -> None:
        """Let go of the connection; of a local file when the process ends."""
        self.client.close()


def _key(data_set: str, file: str, box: np.ndarray) -> str:
    """128 bits that name an object: with 64, two of a billion would meet by chance one time in 37.

    >>> len(_key("birds", "a.jpg", np.zeros(4, np.float32)))
    32
    """
    content = json.dumps([data_set, file, [round(float(x), 3) for x in box]])
    return hashlib.sha256(content.encode()).hexdigest()[:32]


def _equal(**fields: str | list[str]) -> str:
    """A filter in Milvus's language.

    >>> _equal(data_set='my "birds"', file=["a.jpg", "b.jpg"])
    'data_set == "my \\\\"birds\\\\"" and file in ["a.jpg", "b.jpg"]'
    """
    signs = {name: "in" if isinstance(value, list) else "==" for name, value in fields.items()}
    return " and ".join(f"{n} {signs[n]} {_quoted(value)}" for n, value in fields.items())


def _quoted(value: str | list[str]) -> str:
    return json.dumps(value, ensure_ascii=False)


def _matches(hits: list[dict]) -> list[Match]:
    rows = [hit["entity"] for hit in hits]
    boxes = np.array([row["box"] for row in rows], np.float32).reshape(-1, 4)
    vectors = np.array([row["vector"] for row in rows], np.float32)
    kept = _one_an_image([(row["data_set"], row["file"]) for row in rows], boxes, vectors)
    return [
        Match(rows[i]["image"], rows[i]["file"], hits[i]["distance"], tuple(boxes[i].tolist()))
        for i in kept
    ]


def _one_an_image(images: Sequence[Hashable], boxes: np.ndarray, vectors: np.ndarray) -> list[int]:
    """Places of the hits that stand for their image: the first of each, no copies of another.

    Args:
        images: ``M``, of each hit, best first. boxes: ``(M, 4)``. vectors: ``(M, D)``; the same
            box with the same vector in another image is a copy of that photograph.

    >>> _one_an_image(["a", "b", "a"], np.arange(12).reshape(3, 4), np.eye(3))
    [0, 1]
    >>> _one_an_image(["a", "b", "c"], np.ones((3, 4)), np.array([[1, 0], [1, 0], [0, 1]]))
    [0, 2]
    """
    seen: set[Hashable] = set()
    kept: list[int] = []
    for i, image in enumerate(images):
        if image in seen:
            continue
        seen.add(image)
        same_box = [j for j in kept if np.array_equal(boxes[i], boxes[j])]
        if not any(np.allclose(vectors[i], vectors[j], atol=1e-5) for j in same_box):
            kept.append(i)
    return kept
