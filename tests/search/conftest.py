"""What holds objects: in memory, and in Milvus Lite, a local file. Tests run on both."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count

import pytest

from objemb_lib.search.milvus import MilvusIndex
from objemb_lib.search.objects import ObjectIndex, ObjectStore


@pytest.fixture(scope="session")
def milvus(tmp_path_factory) -> Callable[..., MilvusIndex]:
    """Makes empty collections in one file: to open another takes a second."""
    pytest.importorskip("pymilvus", reason="`make extras` brings it")
    pytest.importorskip("milvus_lite", reason="`make extras` brings it")
    place, number = tmp_path_factory.mktemp("milvus") / "objects.db", count()
    return lambda dim, **options: MilvusIndex(dim, place, f"c{next(number)}", **options)


@pytest.fixture(params=["memory", "milvus"])
def store(request) -> Callable[..., ObjectStore]:
    return ObjectIndex if request.param == "memory" else request.getfixturevalue("milvus")
