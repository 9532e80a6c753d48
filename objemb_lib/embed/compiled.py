"""ONNX Runtime runs convolutions on a processor faster than torch does, to the same numbers: by how
much, docs/speed.md says. ``OBJEMB_ENGINE=torch`` turns it off.
"""

from __future__ import annotations

import hashlib
import io
import warnings
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from threading import Lock

import numpy as np
import onnxruntime
import torch
from torch import Tensor, nn

from objemb_lib.config import DataError, setting

ENOUGH = 32  # inputs that torch sees before a module is compiled
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
        self.models: dict[Hashable, onnxruntime.InferenceSession] = {}
        self.fits: dict[tuple, bool] = {}  # by the inputs' size, too
        self.lock = Lock()  # of what is compiled

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

    Raises DataError where ``OBJEMB_ENGINE`` is neither ``onnx`` nor ``torch``.
    """
    chosen = setting("OBJEMB_ENGINE") or "onnx"
    if chosen not in ("onnx", "torch"):
        raise DataError(f"no engine {chosen!r}", "Set OBJEMB_ENGINE to onnx or torch.")
    return Engine(chosen == "onnx")


def fingerprint(name: str, state: Mapping[str, Tensor]) -> str:
    """Hash of a network's name and every weight."""
    digest = hashlib.sha256(name.encode())
    for key, tensor in sorted(state.items()):
        digest.update(key.encode() + tensor.detach().float().cpu().numpy().tobytes())
    return digest.hexdigest()


def _listed(found: Tensor | list[Tensor]) -> list[Tensor]:
    return [found] if isinstance(found, Tensor) else list(found)


def write_onnx(
    module: nn.Module,
    inputs: Mapping[str, Tensor],
    outputs: Sequence[str],
    target: str | Path | io.BytesIO,
    free: Mapping[int, str],
) -> None:
    """Write what a module does with such inputs as ONNX.

    Args:
        inputs: examples by name, of two images or more. outputs: names of what it gives.
        free: names of the inputs' dimensions, by number, that may have another size later. A
            module whose Python code looks at a size may then be wrong: compare.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tracing is deprecated, and 20 times as fast as its heir
        torch.onnx.export(
            module, tuple(inputs.values()), target, input_names=list(inputs),
            output_names=list(outputs), dynamic_axes=dict.fromkeys(inputs, dict(free)),
            dynamo=False,
        )  # fmt: skip


def _compiled(module: nn.Module, x: Tensor) -> onnxruntime.InferenceSession:
    """A module for any number and size of inputs."""
    written, example = io.BytesIO(), torch.zeros(3, *x.shape[1:])
    write_onnx(module, {"x": example}, (), written, {0: "n", 2: "height", 3: "width"})
    how = onnxruntime.SessionOptions()
    how.intra_op_num_threads = torch.get_num_threads()
    return onnxruntime.InferenceSession(written.getvalue(), how, ["CPUExecutionProvider"])


def _run(session: onnxruntime.InferenceSession, x: Tensor) -> list[Tensor]:
    """What a compiled module gives, of some inputs at a time."""
    parts = x.contiguous().split(max(1, TOGETHER // x[0].numel()))
    found = zip(*(session.run(None, {"x": part.numpy()}) for part in parts))
    return [torch.from_numpy(np.concatenate(some)) for some in found]
