"""Packages that the course does without: imported where they are used, asked for where missing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from objemb_lib.errors import DataError


@contextmanager
def needs(extra: str) -> Iterator[None]:
    """Around an import: says which extra of pyproject.toml brings a missing package.

    Raises:
        DataError: instead of ImportError.

    >>> with needs("scale"):
    ...     import no_such_package
    Traceback (most recent call last):
    objemb_lib.errors.DataError: no_such_package is not installed
      What to do: Run `make extras`, or `pip install "objemb[scale]"`.
    """
    try:
        yield
    except ImportError as error:
        raise DataError(
            f"{error.name or error} is not installed",
            f'Run `make extras`, or `pip install "objemb[{extra}]"`.',
        ) from error
