"""Training in two processes under `torchrun`, against one: the same weights, written once."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import two_processes as both

from objemb_lib.config import TrainingError
from objemb_lib.teach import distributed
from objemb_lib.teach.training import read_log, train


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    """What the two processes found; the folder of their run is in it."""
    folder, place = (tmp_path_factory.mktemp(name) for name in ("run", "told"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OBJEMB_DEVICE", "cpu")
        patch.setenv("OMP_NUM_THREADS", "1")
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        command += ["--nproc-per-node", "2", both.__file__, str(folder), str(place)]
        subprocess.run(command, check=True, capture_output=True, timeout=300)
    found = [json.loads((place / f"{rank}.json").read_text()) for rank in (0, 1)]
    return [one | {"folder": folder} for one in found]


def test_gradients_are_those_of_one_process(told: list[dict]) -> None:
    assert [one["equal"] for one in told] == [True, True]


def test_a_killed_run_of_two_ends_as_an_unbroken_one_of_one(
    told: list[dict], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OBJEMB_DEVICE", "cpu")
    model = both.Model()
    train(model, model.trunk, both.batch, both.losses, both.SCHEDULE, tmp_path, progress=False)
    first, second = (one["state"] for one in told)
    assert first == second
    for key, value in model.state_dict().items():
        assert torch.allclose(torch.tensor(first[key]), value, atol=1e-4), key
    start = both.Model().state_dict()
    assert not torch.allclose(start["head.weight"], model.head.weight, atol=1e-2)


def test_the_first_process_alone_writes(told: list[dict]) -> None:
    first, second = (one["wrote"] for one in told)
    assert second == []
    assert {"_log", "_checkpoint", "_snapshot"} <= set(first)
    assert [line["step"] for line in read_log(told[0]["folder"])] == [10, 12]


def test_a_student_learns_the_same_in_both(told: list[dict]) -> None:
    """Each saw other photographs, and sampled other anchors."""
    first, second = (one["student"] for one in told)
    assert first == second
    assert [line["step"] for line in read_log(told[0]["folder"] / "student")] == [2]


def test_a_batch_that_cannot_be_shared_is_refused(
    told: list[dict], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "multiple of 2" in told[0]["refused"]
    monkeypatch.setenv("WORLD_SIZE", "3")
    monkeypatch.setenv("RANK", "1")
    assert distributed.share(range(6)) == range(1, 6, 3)
    with pytest.raises(TrainingError, match="8 images for 3 processes"):
        distributed.share(range(8))
