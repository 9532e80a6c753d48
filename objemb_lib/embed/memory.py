"""Batches that shrink until they fit into memory, instead of a run that fails."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import TypeVar

import torch

from objemb_lib.config import ObjembError

Result = TypeVar("Result")
# What CUDA's libraries, Apple's MPS and the CPU say where they raise a plain RuntimeError.
SAID = ("out of memory", "CUDNN_STATUS_ALLOC_FAILED", "CUBLAS_STATUS_ALLOC_FAILED",
        "can't allocate memory", "not enough memory")  # fmt: skip


def until_it_fits(attempt: Callable[[int], Result], size: int) -> tuple[Result, int]:
    """``attempt(size)``, again with half the size for as long as memory runs out.

    Args:
        attempt: does the whole work, ``size`` images at once; must be free to start anew.
        size: images at once, at least 1.
    Returns:
        its result, and the size that fitted.
    Raises:
        ObjembError: not even one image fits. Whatever else ``attempt`` raises.
    """
    while True:
        try:
            return attempt(size), size
        except RuntimeError as error:
            # torch.OutOfMemoryError says so, too
            if not any(words in str(error) for words in SAID):
                raise
            if size == 1:
                problem = f"not even one image fits into memory ({str(error).partition('.')[0]})"
                remedy = "Use smaller images, close other programs, or set OBJEMB_DEVICE=cpu."
                raise ObjembError(problem, remedy) from error
        # Not before: until the error is gone, it keeps what was computed alive.
        size //= 2
        warnings.warn(f"out of memory: {size} images at once from here on", stacklevel=2)
        torch.cuda.empty_cache()
