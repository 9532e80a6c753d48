"""Batches that shrink until they fit, and the device and helpers that are chosen."""

from __future__ import annotations

import os
import warnings
import weakref

import pytest
import torch

from objemb_lib import config
from objemb_lib.config import ObjembError
from objemb_lib.embed.memory import until_it_fits


@pytest.mark.parametrize(
    ("room", "tried", "said"),
    [
        (8, [8], "CUDA out of memory. Tried 2 GiB"),
        (7, [8, 4], "CUDA out of memory. Tried 2 GiB"),
        (3, [8, 4, 2], "MPS backend out of memory (MPS allocated: 9 GB)"),
        (2, [8, 4, 2], "cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        (1, [8, 4, 2, 1], "DefaultCPUAllocator: can't allocate memory: you tried to allocate"),
    ],
)
def test_the_size_is_halved_until_it_fits(room: int, tried: list, said: str) -> None:
    sizes = []

    def attempt(size: int) -> str:
        sizes.append(size)
        if size > room:
            raise (torch.OutOfMemoryError if "CUDA" in said else RuntimeError)(said)
        return f"done with {size}"

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert until_it_fits(attempt, 8) == (f"done with {tried[-1]}", tried[-1])
        assert sizes == tried and len(caught) == len(tried) - 1
        room = 0
        with pytest.raises(ObjembError, match="(?s)not even one image.*OBJEMB_DEVICE=cpu"):
            until_it_fits(attempt, 4)


@pytest.mark.parametrize("error", [RuntimeError("shapes differ"), ValueError("out of memory")])
def test_other_errors_are_not_tried_again(error: Exception) -> None:
    tried = []

    def attempt(size: int) -> None:
        tried.append(size)
        raise error

    with pytest.raises(type(error), match=str(error)):
        until_it_fits(attempt, 8)
    assert tried == [8]


def test_what_a_failed_attempt_held_is_free_before_the_next() -> None:
    """Or the second attempt would find the memory full of the first."""
    held: list[weakref.ref] = []

    def attempt(size: int) -> None:
        assert not held or held[0]() is None
        large = torch.zeros(4)
        if not held:
            held.append(weakref.ref(large))
            raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.warns(UserWarning, match="out of memory"):
        until_it_fits(attempt, 2)


def test_processes_have_a_device_each_and_share_the_cores(monkeypatch) -> None:
    """On a machine that says that it has GPUs, and 12 cores."""
    for name in ("OBJEMB_DEVICE", "OBJEMB_WORKERS", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(os, "cpu_count", lambda: 12)
    assert config.device() == torch.device("cuda")
    monkeypatch.setenv("LOCAL_RANK", "2")
    assert config.device() == torch.device("cuda:2")
    assert config.workers() == 8
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert config.workers() == 3
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "16")
    assert config.workers() == 1
    monkeypatch.setenv("OBJEMB_WORKERS", "0")
    assert config.workers() == 0
    monkeypatch.delenv("OBJEMB_WORKERS")
    monkeypatch.setenv("OBJEMB_DEVICE", "cpu")
    assert config.device() == torch.device("cpu")
    assert config.workers() == 0  # it reads by itself
