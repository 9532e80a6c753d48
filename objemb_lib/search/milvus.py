"""Objects in Milvus: an :class:`objects.ObjectStore` for collections that outgrow one machine.

By default Milvus Lite, a local file served inside this process; by address a cluster, with the
same code. Each object is a row, whose key is computed from its data set, file and box: to add an
object again, after a crash or from a second process, changes nothing.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from objemb_lib.cache import atomic_write_text
from objemb_lib.config import DataError, needs
from objemb_lib.embed.extract import Objects
from objemb_lib.embed.whitening import l2
from objemb_lib.search.index import checked, require
from objemb_lib.search.objects import Hits, Match, best_images, check_added

BATCH = 1000  # rows a request: a few MB, far below what a server takes
MOST = 16_384  # rows that Milvus gives for one query
META = "objemb.meta"
FIELDS = ["data_set", "file", "image", "box", "vector"]  # of a hit
QUIET = {"grpc.keepalive_time_ms": 600_000}  # Milvus Lite drops whoever idles and pings oftener


class MilvusIndex:
    """Objects of images in a Milvus collection, answered by image as by ``ObjectIndex``.

    Args:
        dim: of the vectors.
        uri: a local file that ends in ``.db`` (Milvus Lite: one process at a time), or the
            address of a server, such as ``http://host:19530``.
        collection: its name there; is made if absent.
        meta: strings to keep, see :func:`index.provenance`. A collection of others is refused.
        data_set: whose images this index adds, numbers, removes and finds; those of others may lie
            in the same collection.
        index: how a new collection is searched; default ``{"index_type": "FLAT"}``, exact. See
            Milvus's index types for others, and for their parameters here and in ``ask``, of a
            search.
        token: for a server that asks for one. timeout: seconds for each request.
    Raises:
        DataError: pymilvus is not installed; the server cannot be reached, or another process has
            the file; the collection holds vectors of another dimension or model.
    """

    def __init__(
        self,
        dim: int,
        uri: str | Path = "objects.db",
        collection: str = "objects",
        meta: Mapping[str, str] | None = None,
        data_set: str = "",
        index: Mapping[str, Any] | None = None,
        ask: Mapping[str, Any] | None = None,
        token: str = "",
        timeout: float = 30,
    ) -> None:
        with needs("scale"):
            from pymilvus import MilvusClient
        for name in ("milvus_lite.server_manager", "pymilvus.client.iterator.query_iterator"):
            logging.getLogger(name).setLevel(logging.CRITICAL)  # what is wrong is raised here
        self.uri = str(uri) if "://" in str(uri) else str(Path(uri).resolve())
        self.dim, self.collection, self.data_set = dim, collection, data_set
        self.ask, self.timeout = dict(ask or {}), timeout
        self._numbers: dict[str, int] | None = None  # of the data set's files, once asked for
        options = {} if "://" in self.uri else QUIET
        self.client = self._request(MilvusClient, self.uri, token=token, grpc_options=options)
        if not self._call("has_collection"):
            self._create(dict(meta or {}), dict(index or {"index_type": "FLAT"}))
        found = self._call("describe_collection")
        if META not in found.get("properties", {}):
            raise DataError(f"{self} was not made here", "Choose another name for the collection.")
        self.meta = json.loads(found["properties"][META])
        fields = {field["name"]: field["params"] for field in found["fields"]}
        own = self.meta | {"dimensions": str(fields["vector"]["dim"])}
        require(self, own, {**(meta or {}), "dimensions": str(dim)})
        self._call("load_collection")

    def _create(self, meta: dict[str, str], index: dict[str, Any]) -> None:
        """Rows of a data set lie together, so that a filter reads only them."""
        from pymilvus import DataType

        schema = self.client.create_schema(auto_id=False, enable_dynamic_field=False)
        schema.add_field("id", DataType.VARCHAR, is_primary=True, max_length=32)
        schema.add_field("data_set", DataType.VARCHAR, max_length=256, is_partition_key=True)
        schema.add_field("file", DataType.VARCHAR, max_length=1024)
        schema.add_field("image", DataType.INT64)  # its number in the data set
        schema.add_field("place", DataType.INT64)  # of the object in its image
        schema.add_field("category", DataType.VARCHAR, max_length=256)
        schema.add_field("box", DataType.ARRAY, element_type=DataType.FLOAT, max_capacity=4)
        schema.add_field("vector", DataType.FLOAT_VECTOR, dim=self.dim)
        kind = index.pop("index_type")
        searched = self.client.prepare_index_params()
        searched.add_index("vector", index_type=kind, metric_type="IP", params=index)
        self._call("create_collection", schema=schema, index_params=searched,
                   consistency_level="Strong", properties={META: json.dumps(meta)})  # fmt: skip

    def _call(self, name: str, **asked: Any) -> Any:
        """One request about the collection."""
        return self._request(getattr(self.client, name), self.collection, **asked)

    def _request(self, do: Callable, *what: Any, **asked: Any) -> Any:
        """Milvus's errors, with what to do."""
        from pymilvus.exceptions import MilvusException

        try:
            return do(*what, timeout=self.timeout, **asked)
        except MilvusException as error:
            remedy = "Check that the server runs, its address, token and log."
            if "://" not in self.uri:
                remedy = "Check its path; Milvus Lite serves one process: close any other."
            raise DataError(f"{self} failed: {error.message}", remedy) from error

    def __repr__(self) -> str:
        return f"MilvusIndex({self.collection!r} at {self.uri})"

    def __len__(self) -> int:
        (found,) = self._call("query", filter=self._where(), output_fields=["count(*)"])
        return int(found["count(*)"])

    @property
    def files(self) -> list[str]:
        """As of :class:`objects.ObjectStore`, from the server: a pass over the data set's rows."""
        self._numbers = {}
        rows = self._call("query_iterator", batch_size=BATCH, filter=self._where(),
                          output_fields=["file", "image"])  # fmt: skip
        while batch := rows.next():
            self._numbers |= {row["file"]: row["image"] for row in batch}
        found = [""] * (1 + max(self._numbers.values(), default=-1))
        for file, number in self._numbers.items():
            found[number] = file
        return found

    def add(
        self,
        objects: Objects,
        pair: tuple[str, str],
        files: Sequence[str],
        categories: Sequence[str] | None = None,
        numbers: Sequence[int] | None = None,
    ) -> None:
        """As :meth:`objects.ObjectStore.add`, in batches; objects that are there already stay.

        Args:
            categories: ``M``, one an object, to filter by.
            numbers: ``N``, each image's number in the data set; where several processes add, they
                must say. Default: after the highest, and of images that are there, their own.
        Raises:
            DataError: also if Milvus failed, and then some batches may be there: add all again.
        """
        check_added(objects, pair, files, self.meta)
        vectors = l2(checked(objects.vectors[pair], self.dim))
        numbers = self._next_numbers(files) if numbers is None else numbers
        rows: dict[str, dict] = {}  # a box that is there twice is one row
        owners, boxes = objects.image, objects.boxes.astype(np.float32)
        places = np.arange(len(owners)) - np.searchsorted(owners, owners)  # within their images
        for row, image in enumerate(owners.tolist()):
            name = _key(self.data_set, files[image], boxes[row])
            rows[name] = {"id": name, "data_set": self.data_set, "file": files[image],
                          "image": int(numbers[image]), "place": int(places[row]),
                          "category": categories[row] if categories else "",
                          "box": boxes[row].tolist(), "vector": vectors[row]}  # fmt: skip
        for batch in _batches(list(rows.values())):
            self._call("upsert", data=batch)

    def _next_numbers(self, files: Sequence[str]) -> list[int]:
        if self._numbers is None:
            _ = self.files
        first = 1 + max(self._numbers.values(), default=-1)
        new = [file for file in files if file not in self._numbers]
        self._numbers |= {file: first + n for n, file in enumerate(new)}
        return [self._numbers[file] for file in files]

    def remove(self, files: Collection[str]) -> None:
        """As :meth:`objects.ObjectStore.remove`."""
        if absent := set(files) - set(self.files) | set(files) & {""}:
            raise DataError(f"{min(absent)!r} is not in {self}", "Name files it holds.")
        for batch in _batches(sorted(set(files))):
            self._call("delete", filter=self._where(f"file in {_quoted(batch)}"))
        self._numbers = None

    def of_images(self, images: Sequence[int]) -> list[tuple[np.ndarray, np.ndarray]]:
        """As :meth:`objects.ObjectStore.of_images`, in one request; at most 16,384 objects."""
        rows = self._call("query", filter=self._where(f"image in {list(map(int, images))}"),
                          output_fields=["image", "place", "box", "vector"])  # fmt: skip
        rows = sorted(rows, key=lambda row: row["place"])  # sort() would tear rows from vectors
        found: dict[int, list[dict]] = {int(image): [] for image in images}
        for row in rows:
            found[row["image"]].append(row)
        if absent := [image for image, some in found.items() if not some]:
            raise DataError(f"no image {absent[0]} in {self}", "Name one it holds.")
        return [tuple(np.array([row[field] for row in found[int(image)]], np.float32)
                      for field in ("box", "vector")) for image in images]  # fmt: skip

    def search(
        self,
        vector: np.ndarray,
        k: int,
        without: Collection[str] = (),
        category: str | None = None,
        everywhere: bool = False,
    ) -> list[Match]:
        """As :meth:`objects.ObjectStore.search`; at most 16,384 images.

        Args:
            category: search only among objects of this one.
            everywhere: in all data sets of the collection; each match says in which it is.
        """
        (asked,) = l2(checked(np.asarray(vector)[None], self.dim))
        some = [] if category is None else [f"category == {_quoted(category)}"]
        some += [f"file not in {_quoted(sorted(without))}"] if without else []
        where = " and ".join(some) if everywhere else self._where(*some)

        def hits(wanted: int) -> Hits:
            how = {"search_params": {"metric_type": "IP", "params": self.ask}, "limit": wanted}
            (found,) = self._call("search", data=[asked], filter=where, output_fields=FIELDS, **how)
            found = sorted(found, key=lambda hit: -hit["distance"])
            rows = [hit["entity"] | {"score": hit["distance"]} for hit in found]
            matches = [Match(row["image"], row["file"], row["score"], tuple(row["box"]),
                             row["data_set"]) for row in rows]  # fmt: skip
            return matches, lambda places: np.array([rows[n]["vector"] for n in places], np.float32)

        found = best_images(hits, k, MOST)
        if not found and not len(self):
            raise DataError(f"{self} is empty", "Add objects before searching.")
        return found

    def _where(self, *more: str) -> str:
        """A filter in Milvus's language: of this data set, and more."""
        return " and ".join([f"data_set == {_quoted(self.data_set)}", *more])

    def save(self, path: str | Path) -> None:
        """Write where the objects lie: the collection keeps them itself. No token is written."""
        known = ("dim", "uri", "collection", "meta", "data_set", "ask")
        atomic_write_text(path, json.dumps({name: getattr(self, name) for name in known}))

    @classmethod
    def load(
        cls, path: str | Path, meta: Mapping[str, str] | None = None, **options: Any
    ) -> MilvusIndex:
        """Open what ``save`` wrote of. ``options``: token and timeout."""
        try:
            known = json.loads(Path(path).read_text(encoding="utf-8"))
            return cls(**known | {"meta": known["meta"] if meta is None else meta} | options)
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise DataError(f"{path} names no collection ({error})", "Save it again.") from error


def _key(data_set: str, file: str, box: np.ndarray) -> str:
    """128 bits that name an object: with 64, two of a billion would meet by chance one time in 37.

    >>> len(_key("birds", "a.jpg", np.zeros(4, np.float32)))
    32
    """
    content = json.dumps([data_set, file, [round(float(x), 3) for x in box]])
    return hashlib.sha256(content.encode()).hexdigest()[:32]


def _batches(rows: list) -> Iterator[list]:
    return (rows[start : start + BATCH] for start in range(0, len(rows), BATCH))


def _quoted(value: str | list[str]) -> str:
    return json.dumps(value, ensure_ascii=False)
