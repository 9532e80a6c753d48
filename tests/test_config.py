"""Environment variables: each is read in one place, which says what it may be."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from objemb_lib import config
from objemb_lib.config import DataError

FOLDERS = {"OBJEMB_DATA": config.data_root, "OBJEMB_CACHE": config.cache_root}


@pytest.mark.parametrize("name", [*FOLDERS, "OBJEMB_MIRROR"])
def test_folders_may_start_at_home_and_be_relative(name, tmp_path: Path, monkeypatch) -> None:
    """astral-sh/uv#9326: a folder called ~ appeared."""
    read = FOLDERS.get(name, config.mirror)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for value in ("~/x", "x", " x ", "./x", str(tmp_path / "x")):
        monkeypatch.setenv(name, value)
        assert str(read()) == str(tmp_path / "x"), value
    monkeypatch.setenv(name, "~nobody-of-this-name/x")
    with pytest.raises(DataError, match=f"{name} is '~nobody"):
        read()


@pytest.mark.parametrize("value", ["", "  "])
def test_an_empty_variable_is_as_one_that_is_not_set(value, monkeypatch) -> None:
    names = ("DATA", "CACHE", "MIRROR", "DEVICE", "PRECISION", "WORKERS")
    readers = (config.data_root, config.cache_root, config.mirror, config.device,
               config.precision, config.workers)  # fmt: skip
    for name in names:
        monkeypatch.delenv(f"OBJEMB_{name}", raising=False)
    usual = [read() for read in readers]
    for name in names:
        monkeypatch.setenv(f"OBJEMB_{name}", value)
    assert [read() for read in readers] == usual


def test_an_address_is_no_folder(monkeypatch) -> None:
    monkeypatch.setenv("OBJEMB_CACHE", "https://example.org/x")
    with pytest.raises(DataError, match="OBJEMB_CACHE is 'https.*: an address"):
        config.cache_root()


def test_a_mirror_may_be_an_address(monkeypatch) -> None:
    monkeypatch.setenv("OBJEMB_MIRROR", "https://example.org/~me/x")
    assert config.mirror() == "https://example.org/~me/x"


@pytest.mark.parametrize(
    ("name", "read", "values", "allowed"),
    [
        ("DEVICE", config.device, "gpu CUDA cuda cuda:7 mps 0 -1 cpu:1 cuda:x", "cpu"),
        ("PRECISION", config.precision, "fp16 FP32 half 32", "fp32 or bf16"),
        ("WORKERS", config.workers, "auto -1 1.5 two ² 1e3", "0 or more"),
    ],
)
def test_a_wrong_value_is_named_with_its_variable(name, read, values, allowed, monkeypatch) -> None:
    """jeffheaton/app_deep_learning#6: "gpu" for "cuda"; on a machine without any."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    for value in values.split():
        monkeypatch.setenv(f"OBJEMB_{name}", value)
        with pytest.raises(DataError) as caught:
            read()
        assert value in caught.value.problem and f"OBJEMB_{name}" in str(caught.value)
        assert allowed in caught.value.remedy


def test_the_devices_there_are_may_be_named(monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for value in ("cpu", "cuda", "cuda:1"):
        monkeypatch.setenv("OBJEMB_DEVICE", value)
        assert config.device() == torch.device(value)
    monkeypatch.setenv("OBJEMB_DEVICE", "cuda:2")
    with pytest.raises(DataError, match="cpu, cuda, cuda:0, cuda:1"):
        config.device()


def test_what_is_started_later_spins_less_unless_somebody_said_how_long(monkeypatch) -> None:
    for name in ("GOMP_SPINCOUNT", "OPENBLAS_THREAD_TIMEOUT"):
        monkeypatch.setenv(name, "7")
    monkeypatch.delenv("OPENBLAS_THREAD_TIMEOUT")
    config.tune_process()
    assert os.environ["GOMP_SPINCOUNT"] == "7" and os.environ["OPENBLAS_THREAD_TIMEOUT"] == "4"
