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
from torch.utils._pytree import PyTree, TreeSpec, tree_flatten, tree_unflatten

from objemb_lib.config import DataError, setting

ENOUGH = 32  # inputs of a size that torch sees before a module is compiled for it
SIZES = 24  # that are compiled at most: each holds the weights once more
LARGE = 50_000  # numbers of an input from which it is faster: photographs, not parts of a map
SAME = 1e-4  # of a map's largest value, by which the two may differ


class Engine:
    """Runs modules of a network: by torch until a compiled one is there, and gives the same.

    Args:
        on: False leaves all to torch, and so does any copy: it may learn, or be sent elsewhere.
    """

    def __init__(self, on: bool = False) -> None:
        self.on = on
        self.seen: Counter = Counter()  # inputs, by what was asked and their size
        self.compiled: dict[tuple, Compiled | None] = {}  # None: by torch
        self.lock = Lock()  # of what is compiled

    def __reduce__(self) -> tuple:
        return Engine, ()

    def __call__(self, module: nn.Module, x: PyTree, asked: Hashable) -> PyTree:
        """What ``module(x)`` gives.

        Args:
            module: takes tensors ``(N, ...)``, one or in lists and dicts, and gives such.
            asked: names what it does among the network's modules.
        """
        inputs = tree_flatten(x)[0]
        followed = torch.compiler.is_compiling() or torch.jit.is_tracing()
        if not self.on or followed or not all(map(_plain, inputs)):
            return module(x)
        if sum(t[0].numel() for t in inputs) < LARGE:
            return module(x)
        size = asked, *(t.shape[1:] for t in inputs)
        if found := self.compiled.get(size):
            return found(inputs)
        result = _by_torch(module, x)
        self.seen[size] += len(inputs[0])
        with self.lock:
            room = size not in self.compiled and len(self.compiled) < SIZES
            if room and self.seen[size] >= ENOUGH:
                self.compiled[size] = _compiled(module, x, result)
        return result


def wanted() -> bool:
    """Whether ``OBJEMB_ENGINE`` is ``onnx``; raises DataError where it is not ``torch`` either."""
    chosen = setting("OBJEMB_ENGINE") or "onnx"
    if chosen not in ("onnx", "torch"):
        raise DataError(f"no engine {chosen!r}", "Set OBJEMB_ENGINE to onnx or torch.")
    return chosen == "onnx"


class ByEngine(nn.Module):
    """A part of a network, by an engine; ``asked`` as :class:`Engine` takes it."""

    def __init__(self, part: nn.Module, engine: Engine, asked: str) -> None:
        super().__init__()
        self.part, self.engine, self.asked = part, engine, asked

    def forward(self, x: PyTree) -> PyTree:
        return self.engine(self.part, x, self.asked)


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


class Flat(nn.Module):
    """A module that takes and gives single tensors, where it had lists and dicts of them."""

    def __init__(self, module: nn.Module, form: TreeSpec) -> None:
        super().__init__()
        self.module, self.form = module, form

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        return tuple(tree_flatten(self.module(tree_unflatten(inputs, self.form)))[0])


class Compiled:
    """A module for inputs of one size; each by a thread of its own: more overflow caches."""

    def __init__(self, module: nn.Module, x: PyTree, result: PyTree) -> None:
        inputs, form = tree_flatten(x)
        outputs, self.form = tree_flatten(result)
        self.shapes = [t.shape[1:] for t in outputs]
        examples = {f"x{k}": t[:1] for k, t in enumerate(inputs)}
        names = [f"y{k}" for k in range(len(outputs))]
        self.written = to_onnx(Flat(module, form), examples, names)
        self.sessions: dict[int, onnxruntime.InferenceSession] = {}  # by their threads

    def __call__(self, inputs: Sequence[Tensor]) -> PyTree:
        n = len(inputs[0])
        outputs = [torch.empty(n, *shape) for shape in self.shapes]
        parts = zip(*(t.split(1) for t in (*inputs, *outputs)))
        run = partial(_run, self.session(1 if n > 1 else torch.get_num_threads()), len(inputs))
        list(threads().map(run, parts) if n > 1 else map(run, parts))
        return tree_unflatten(outputs, self.form)

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


def _run(session: onnxruntime.InferenceSession, given: int, tensors: Sequence[Tensor]) -> None:
    """Run a session from the first tensors into the others."""
    bound, inputs = session.io_binding(), [t.contiguous() for t in tensors[:given]]
    for k, t in enumerate(inputs):
        bound.bind_input(f"x{k}", "cpu", 0, np.float32, t.shape, t.data_ptr())
    for k, t in enumerate(tensors[given:]):
        bound.bind_output(f"y{k}", "cpu", 0, np.float32, t.shape, t.data_ptr())
    session.run_with_iobinding(bound)


def _by_torch(module: nn.Module, x: PyTree) -> PyTree:
    """Four inputs at a time: more are no faster, and their maps are large."""
    inputs, form = tree_flatten(x)
    found = [tree_flatten(module(tree_unflatten(part, form)))
             for part in zip(*(t.split(4) for t in inputs))]  # fmt: skip
    return tree_unflatten([torch.cat(some) for some in zip(*(y for y, _ in found))], found[0][1])


def _plain(x: Tensor) -> bool:
    return (
        x.device.type == "cpu" and x.dtype == torch.float32 and not x.requires_grad and len(x) > 0
    )


def _compiled(module: nn.Module, x: PyTree, result: PyTree) -> Compiled | None:
    """A module that is compiled, if it can be and then gives the same."""
    try:
        found = Compiled(module, x, result)
        pairs = zip(*(tree_flatten(r)[0] for r in (found(tree_flatten(x)[0]), result)), strict=True)
        same = all(
            a.shape == b.shape and bool((a - b).abs().max() <= SAME * b.abs().max())
            for a, b in pairs
        )
    except Exception:  # what it cannot read fails in many ways; torch can
        return None
    return found if same else None
