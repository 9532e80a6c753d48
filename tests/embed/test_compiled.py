"""The engine beside torch: the same maps once it has taken over, and torch's where it cannot."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

from objemb_lib.config import DataError
from objemb_lib.embed import compiled as room
from objemb_lib.embed.trunks import load_trunk

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def soon(monkeypatch, torch_alone):
    monkeypatch.setattr(room, "ENOUGH", 4)
    monkeypatch.setattr(room, "LARGE", 3 * 49 * 64)
    monkeypatch.delenv("OBJEMB_ENGINE")
    room.engine.cache_clear()
    yield
    room.engine.cache_clear()


def images(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


@torch.inference_mode()
def test_maps_are_the_same_at_every_size_number_and_depth_once_it_has_taken_over():
    plain, fast = load_trunk(), load_trunk().for_inference(CPU)
    for last, size in (("head", (64, 96)), ("stage3", (49, 71)), ("head", (48, 64))):
        for n in (5, 3, 1, 5):  # the first one compiles
            given = images(n, 3, *size)
            for (name, a), b in zip(fast(given, last).items(), plain(given, last).values()):
                torch.testing.assert_close(a, b, rtol=0, atol=1e-4 * float(b.abs().max()), msg=name)
    assert len(fast.engine.compiled) == 2 and all(fast.engine.compiled.values())  # small: by torch


def test_a_second_trunk_of_the_same_weights_is_not_compiled_again_and_a_copy_may_learn():
    first, second = (load_trunk().for_inference(CPU) for _ in range(2))
    assert first.engine is second.engine and first.engine.on
    assert first.for_inference(CPU) is first is not first.for_inference(CPU, "bf16")
    assert not copy.deepcopy(first).engine.on and not pickle.loads(pickle.dumps(first)).engine.on


class Counts(nn.Module):
    """Takes for a number how many there are, and so does a trace of it."""

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        return [x * len(x)]


@torch.inference_mode()
def test_what_it_would_get_wrong_or_cannot_follow_stays_with_torch():
    own, given = room.Engine(on=True), images(4, 3, 64, 64)
    for _ in range(3):
        for some in (given, given.half()):
            torch.testing.assert_close(own(Counts(), some, str(some.dtype)), [some * 4])
    assert list(own.compiled.values()) == [None]


def test_gradients_pass_through_torch():
    own, given = room.Engine(on=True), images(4, 3, 64, 64).requires_grad_()
    for _ in range(3):
        (found,) = own(Counts(), given, "counts")
    found.sum().backward()
    assert not own.compiled and float(given.grad.min()) == 4


def test_a_variable_turns_it_off(monkeypatch):
    monkeypatch.setenv("OBJEMB_ENGINE", "torch")
    assert not load_trunk().for_inference(CPU).engine.on
    monkeypatch.setenv("OBJEMB_ENGINE", "abacus")
    with pytest.raises(DataError, match="no engine 'abacus'"):
        room.engine("other weights")
