"""Errors that a user of the course can act on: each names the file and says what to do."""

from __future__ import annotations


class ObjembError(Exception):
    """Base of every error this library raises on purpose.

    Args:
        problem: what is wrong, naming the file or the setting.
        remedy: what the reader can do about it, as an imperative sentence.
    """

    def __init__(self, problem: str, remedy: str = "") -> None:
        self.problem, self.remedy = problem, remedy
        super().__init__(f"{problem}\n  What to do: {remedy}" if remedy else problem)

    def __reduce__(self) -> tuple:  # keeps both parts across worker processes
        return type(self), (self.problem, self.remedy)


class ImageError(ObjembError):
    """A file that cannot be used as an image."""


class DownloadError(ObjembError):
    """A file that could not be fetched, or arrived with the wrong bytes."""


class DataError(ObjembError):
    """A data set that is absent, damaged or inconsistent."""


class CacheError(ObjembError):
    """A cache that cannot be written or does not hold what its key says."""


class ReproduceError(ObjembError):
    """A run that failed, or numbers that left their tolerance."""


class TrainingError(ObjembError):
    """A training run that cannot go on."""
