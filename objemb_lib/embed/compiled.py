"""OpenVINO runs convolutions on some processors faster than torch does, to the same numbers: by how
much, docs/speed.md says.

It is used where it is installed (``pip install "objemb[fast]"``); ``OBJEMB_ENGINE=torch`` turns it
off. To compile takes as long as some hundred images, so that torch sees those.
"""

from __future__ import annotations

import hashlib
import sys
import warnings
from collections import Counter
from collections.abc import Hashable, Mapping
from functools import lru_cache
from importlib.util import find_spec
from threading import Lock
from typing import Any

import torch
from torch import Tensor, nn

from objemb_lib.config import DataError, setting

ENOUGH = 200  # inputs that torch sees before a module is compiled
TOGETHER = 4 * 3 * 256 * 256  # numbers of the inputs that are run at a time: more take memory only
SAME = 1e-4  # of a map's largest value, by which the two may differ


class Engine:
    """Runs modules of a network: by torch until a compiled one is there, and gives the same.

    Args:
        on: False leaves all to torch, and so does any copy: it may learn, or be sent elsewhere.
    """

    def __init__(self, on: bool = False) -> None:
        self.on = on
        self.seen: Counter = Counter()  # inputs, by what was asked
        self.models: dict[Hashable, Any] = {}
        self.fits: dict[tuple, bool] = {}  # by the inputs' size, too
        self.lock = Lock()  # a compiled module does one thing at a time

    def __reduce__(self) -> tuple:
        return Engine, ()

    def __call__(self, module: nn.Module, x: Tensor, asked: Hashable) -> list[Tensor]:
        """What ``module(x)`` gives.

        Args:
            module: takes ``(N, C, H, W)``, gives a tensor or several. asked: names what it does
                among the network's modules.
        """
        followed = torch.compiler.is_compiling() or torch.jit.is_tracing()
        plain = x.device.type == "cpu" and x.dtype == torch.float32 and not x.requires_grad
        if not self.on or followed or not plain or not len(x):
            return _listed(module(x))
        size = asked, *x.shape[1:]
        if self.fits.get(size):
            with self.lock:
                return _run(self.models[asked], x)
        found = _listed(module(x))
        self.seen[asked] += len(x)
        with self.lock:
            if self.seen[asked] >= ENOUGH and size not in self.fits:
                self.fits[size] = self._fits(module, x, asked, found)
        return found

    def _fits(self, module: nn.Module, x: Tensor, asked: Hashable, expected: list[Tensor]) -> bool:
        """Whether a module can be compiled, and then gives the same."""
        try:
            if asked not in self.models:
                self.models[asked] = _compiled(module, x)
            found = _run(self.models[asked], x)
        except Exception:  # what it cannot read fails in many ways; torch can
            return False
        return len(found) == len(expected) and all(
            a.shape == b.shape and bool((a - b).abs().max() <= SAME * b.abs().max())
            for a, b in zip(found, expected)
        )


@lru_cache(8)
def engine(fingerprint: str) -> Engine:
    """The engine for a network of these weights: the same one again, so that it is compiled once.

    Raises DataError where ``OBJEMB_ENGINE`` is neither ``openvino`` nor ``torch``.
    """
    chosen = setting("OBJEMB_ENGINE") or "openvino"
    if chosen not in ("openvino", "torch"):
        raise DataError(f"no engine {chosen!r}", "Set OBJEMB_ENGINE to openvino or torch.")
    return Engine(chosen == "openvino" and find_spec("openvino") is not None)


def fingerprint(name: str, state: Mapping[str, Tensor]) -> str:
    """Hash of a network's name and every weight."""
    digest = hashlib.sha256(name.encode())
    for key, tensor in sorted(state.items()):
        digest.update(key.encode() + tensor.detach().float().cpu().numpy().tobytes())
    return digest.hexdigest()


def _listed(found: Tensor | list[Tensor]) -> list[Tensor]:
    return [found] if isinstance(found, Tensor) else list(found)


def _compiled(module: nn.Module, x: Tensor) -> Any:
    """OpenVINO's request to a module, compiled for any number and size of inputs."""
    sys.modules.setdefault("openvino_telemetry", None)  # else each import is told to its makers
    import openvino

    example = torch.zeros(3, *x.shape[1:])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch about its own parts
        shape = openvino.PartialShape([-1, x.shape[1], -1, -1])
        read = openvino.convert_model(module, example_input=example, input=[shape])
    how = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": torch.get_num_threads()}
    return openvino.compile_model(read, "CPU", how | {"NUM_STREAMS": 1}).create_infer_request()


def _run(request: Any, x: Tensor) -> list[Tensor]:
    """What a compiled module gives, of some inputs at a time."""
    found = []
    for part in x.contiguous().split(max(1, TOGETHER // x[0].numel())):
        request.infer([part.numpy()], share_inputs=True)
        found.append([torch.from_numpy(one.data.copy()) for one in request.output_tensors])
    return [torch.cat(some) for some in zip(*found)]
