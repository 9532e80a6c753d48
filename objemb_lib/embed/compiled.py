"""OpenVINO runs convolutions on a processor faster than torch does, to the same numbers.

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

import torch
from torch import Tensor, nn

from objemb_lib.config import DataError, setting

ENOUGH = 200  # inputs that torch sees before a module is compiled
PARTS = 4  # of a batch that are run at once, at most
SAME = 1e-4  # of a map's largest value, by which the two may differ


class Engine:
    """Runs modules of a network: by torch until a compiled one is there, and gives the same.

    Args:
        on: False leaves all to torch, and so does any copy: it may learn, or be sent elsewhere.
    """

    def __init__(self, on: bool = False) -> None:
        self.on = on
        self.seen: Counter = Counter()  # inputs, by what was asked, and whether they came alone
        self.models: dict[tuple, list] = {}  # requests to compiled modules
        self.fits: dict[tuple, bool] = {}  # by size

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
        kind = asked, len(x) == 1  # threads share one input, or have some each
        size = *kind, *x.shape[1:]
        if self.fits.get(size):
            return _run(self.models[kind], x)
        found = _listed(module(x))
        self.seen[kind] += len(x)
        if self.seen[kind] >= ENOUGH and size not in self.fits:
            self.fits[size] = self._fits(module, x, kind, found)
        return found

    def _fits(self, module: nn.Module, x: Tensor, kind: tuple, expected: list[Tensor]) -> bool:
        """Whether a module can be compiled, and then gives the same."""
        try:
            if kind not in self.models:
                self.models[kind] = _compiled(module, x, 1 if kind[1] else PARTS)
            found = _run(self.models[kind], x)
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


def _compiled(module: nn.Module, x: Tensor, parts: int) -> list:
    """As many requests to a module, compiled for any number and size of inputs."""
    sys.modules.setdefault("openvino_telemetry", None)  # else each import is told to its makers
    import openvino

    threads, example = torch.get_num_threads(), torch.zeros(3, *x.shape[1:])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch about its own parts
        shape = openvino.PartialShape([-1, x.shape[1], -1, -1])
        read = openvino.convert_model(module, example_input=example, input=[shape])
    parts = min(parts, threads)
    how = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads}
    model = openvino.compile_model(read, "CPU", how | {"NUM_STREAMS": parts})
    return [model.create_infer_request() for _ in range(parts)]


def _run(requests: list, x: Tensor) -> list[Tensor]:
    """What a compiled module gives, the inputs in equal parts side by side."""
    parts = x.contiguous().split(-(-len(x) // len(requests)))
    asked = requests[: len(parts)]
    for request, part in zip(asked, parts):
        request.start_async([part.numpy()], share_inputs=True)
    for request in asked:
        request.wait()
    every = zip(*[request.output_tensors for request in asked])
    return [torch.cat([torch.from_numpy(one.data) for one in some]) for some in every]
