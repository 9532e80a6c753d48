"""ONNX Runtime runs convolutions on a processor faster than torch does, to the same numbers: by how
much, docs/speed.md says. ``OBJEMB_ENGINE=torch`` turns it off.
"""

from __future__ import annotations

import hashlib
import io
import warnings
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache, lru_cache, partial
from threading import Lock

import numpy as np
import onnxruntime
import torch
from torch import Tensor, nn

from objemb_lib.config import DataError, setting

ENOUGH = 32  # images of a size that torch sees before a network is compiled for it
SIZES = 24  # that are compiled at most: each holds the weights once more
LARGE = 50_000  # numbers of an image from which it is faster
SAME = 1e-4  # of a map's largest value, by which the two may differ


class Engine:
    """Runs a network: by torch until a compiled one is there, and gives the same.

    Args:
        on: False leaves all to torch, and so does any copy: it may learn, or be sent elsewhere.
    """

    def __init__(self, on: bool = False) -> None:
        self.on = on
        self.seen: Counter = Counter()  # images, by what was asked and their size
        self.compiled: dict[tuple, Compiled | None] = {}  # None: by torch
        self.lock = Lock()  # of what is compiled

    def __reduce__(self) -> tuple:
        return Engine, ()

    def __call__(self, module: nn.Module, images: Tensor, asked: Hashable) -> list[Tensor]:
        """What ``module(images)`` gives.

        Args:
            module: takes ``(N, ...)`` and gives a list of such. asked: names what it does.
        """
        followed = torch.compiler.is_compiling() or torch.jit.is_tracing()
        if not self.on or followed or not _plain(images) or images[0].numel() < LARGE:
            return module(images)
        size = asked, images.shape[1:]
        if found := self.compiled.get(size):
            return found(images)
        parts = [module(some) for some in images.split(4)]  # more are no faster, and take memory
        result = [torch.cat(some) for some in zip(*parts)]
        self.seen[size] += len(images)
        with self.lock:
            room = size not in self.compiled and len(self.compiled) < SIZES
            if room and self.seen[size] >= ENOUGH:
                self.compiled[size] = _compiled(module, images, result)
        return result


def wanted() -> bool:
    """Whether ``OBJEMB_ENGINE`` is ``onnx``; raises DataError where it is not ``torch`` either."""
    chosen = setting("OBJEMB_ENGINE") or "onnx"
    if chosen not in ("onnx", "torch"):
        raise DataError(f"no engine {chosen!r}", "Set OBJEMB_ENGINE to onnx or torch.")
    return chosen == "onnx"


@lru_cache(8)
def engine(fingerprint: str) -> Engine:
    """The engine for a network of these weights: the same again, so that it is compiled once."""
    return Engine(wanted())


def fingerprint(name: str, state: Mapping[str, Tensor]) -> str:
    """Hash of a network's name and every weight."""
    digest = hashlib.sha256(name.encode())
    for key, tensor in sorted(state.items()):
        digest.update(key.encode() + tensor.detach().float().cpu().numpy().tobytes())
    return digest.hexdigest()


def to_onnx(
    module: nn.Module,
    inputs: Mapping[str, Tensor],
    outputs: Sequence[str],
    free: Sequence[int] = (),
) -> bytes:
    """What a module does with such inputs, as ONNX.

    Args:
        inputs: examples by name, of two images or more where their number is free.
        outputs: names of what it gives.
        free: dimensions of the inputs, by number, that may have another size later. A module whose
            Python code looks at a size may then be wrong: compare.
    """
    written = io.BytesIO()
    axes = {name: {n: f"{name}, {n}" for n in free} for name in inputs}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tracing is deprecated, and 20 times as fast as its heir
        torch.onnx.export(
            module.eval(),  # or it would be told to train afterwards
            tuple(inputs.values()), written, input_names=list(inputs),
            output_names=list(outputs), dynamic_axes=axes, dynamo=False,
        )  # fmt: skip
    return written.getvalue()


class Compiled:
    """A network for images of one size; each by a thread of its own: more overflow caches."""

    def __init__(self, module: nn.Module, images: Tensor, result: list[Tensor]) -> None:
        self.shapes = [maps.shape[1:] for maps in result]
        self.written = to_onnx(module, {"x": images[:1]}, [f"y{k}" for k in range(len(result))])
        self.sessions: dict[int, onnxruntime.InferenceSession] = {}  # by their threads

    def __call__(self, images: Tensor) -> list[Tensor]:
        n = len(images)
        maps = [torch.empty(n, *shape) for shape in self.shapes]
        run = partial(_run, self.session(1 if n > 1 else torch.get_num_threads()))
        parts = zip(*(t.split(1) for t in (images, *maps)))
        list(threads().map(run, parts) if n > 1 else map(run, parts))
        return maps

    def session(self, many: int) -> onnxruntime.InferenceSession:
        """One with so many threads of its own."""
        if many not in self.sessions:
            how = onnxruntime.SessionOptions()
            how.intra_op_num_threads = many  # which then wait, as torch's want to run
            how.add_session_config_entry("session.force_spinning_stop", "1")
            self.sessions[many] = onnxruntime.InferenceSession(
                self.written, how, ["CPUExecutionProvider"]
            )
        return self.sessions[many]


@cache
def threads() -> ThreadPoolExecutor:
    """As many as torch has."""
    return ThreadPoolExecutor(torch.get_num_threads())


def _run(session: onnxruntime.InferenceSession, tensors: Sequence[Tensor]) -> None:
    """Run a session from the first tensor into the others."""
    image, bound = tensors[0].contiguous(), session.io_binding()
    bound.bind_input("x", "cpu", 0, np.float32, image.shape, image.data_ptr())
    for k, t in enumerate(tensors[1:]):
        bound.bind_output(f"y{k}", "cpu", 0, np.float32, t.shape, t.data_ptr())
    session.run_with_iobinding(bound)


def _plain(x: Tensor) -> bool:
    return (
        x.device.type == "cpu" and x.dtype == torch.float32 and not x.requires_grad and len(x) > 0
    )


def _compiled(module: nn.Module, images: Tensor, result: list[Tensor]) -> Compiled | None:
    """A network that is compiled, if it can be and then gives the same."""
    try:
        found = Compiled(module, images, result)
        pairs = zip(found(images), result, strict=True)
        same = all(bool((a - b).abs().max() <= SAME * b.abs().max()) for a, b in pairs)
    except Exception:  # what it cannot read fails in many ways; torch can
        return None
    return found if same else None
