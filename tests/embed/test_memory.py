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


class Device:
    """Room for so many images; what is tried, in order."""

    def __init__(self, room: int, message: str = "CUDA out of memory. Tried 2 GiB") -> None:
        self.room, self.message, self.tried = room, message, []

    def __call__(self, size: int) -> str:
        self.tried.append(size)
        if size > self.room:
            raise (torch.OutOfMemoryError if "CUDA" in self.message else RuntimeError)(self.message)
        return f"done with {size}"


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
    device = Device(room, said)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert until_it_fits(device, 8) == (f"done with {tried[-1]}", tried[-1])
    assert device.tried == tried
    assert [str(w.message)[:23] for w in caught] == [
        f"out of memory: {n} images" for n in tried[1:]
    ]


def test_one_image_that_does_not_fit_is_said_with_the_way_out() -> None:
    with (
        pytest.warns(UserWarning, match="out of memory"),
        pytest.raises(ObjembError, match="not even one image") as caught,
    ):
        until_it_fits(Device(0), 4)
    assert "OBJEMB_DEVICE=cpu" in caught.value.remedy


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


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A machine that says that it has GPUs, and 12 cores."""
    for name in ("OBJEMB_DEVICE", "OBJEMB_WORKERS", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(os, "cpu_count", lambda: 12)
    return monkeypatch


def test_each_process_has_a_device_of_its_own(gpus: pytest.MonkeyPatch) -> None:
    assert config.device() == torch.device("cuda")
    gpus.setenv("LOCAL_RANK", "2")
    assert config.device() == torch.device("cuda:2")
    gpus.setenv("OBJEMB_DEVICE", "cpu")
    assert config.device() == torch.device("cpu")


def test_processes_share_the_cores(gpus: pytest.MonkeyPatch) -> None:
    assert config.workers() == 8
    gpus.setenv("LOCAL_WORLD_SIZE", "4")
    assert config.workers() == 3
    gpus.setenv("LOCAL_WORLD_SIZE", "16")
    assert config.workers() == 1
    gpus.setenv("OBJEMB_WORKERS", "0")
    assert config.workers() == 0
    gpus.delenv("OBJEMB_WORKERS")
    gpus.setenv("OBJEMB_DEVICE", "cpu")
    assert config.workers() == 0  # it reads by itself
