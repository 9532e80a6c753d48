"""Files that appear whole or not at all, and tables of vectors kept by what decides them."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import stat
import uuid
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import safetensors
from filelock import FileLock, Timeout
from safetensors.numpy import save_file
from tqdm.auto import tqdm

from objemb_lib.config import CacheError, ObjembError

SUM = "crc32"  # what a table's checksum is called among what is stated of it
DISK_FULL = {errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)}  # Windows has no quota's


@contextmanager
def atomic_path(path: str | os.PathLike[str], durable: bool = True) -> Iterator[Path]:
    """A temporary path to write to, renamed to ``path`` on success and removed on failure.

    It lies in the same folder, which is made (a rename across disks is a copy), and ends with the
    same name (``np.savez`` and Pillow go by the suffix). Whoever may read any new file there may
    read it: a classroom shares its folders.

    Args:
        durable: wait until the disk has the file: a power cut could leave the new name on an empty
            one. False is for what its reader checks and can make again.
    Raises:
        ObjembError: the disk is full.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temp = path.with_name(f".tmp-{uuid.uuid4().hex[:12]}-{path.name}")
    try:
        # A new file's permissions: 0666 less the umask, which to read is to change for all threads.
        temp.touch()
        mode = stat.S_IMODE(temp.stat().st_mode)
        temp.unlink()  # what writes nothing must not leave an empty file under the final name
        yield temp
        os.chmod(temp, mode)  # some writers (safetensors) make files for their owner alone
        if durable:
            with open(temp, "rb+") as file:
                os.fsync(file.fileno())
        os.replace(temp, path)
    except (OSError, RuntimeError, safetensors.SafetensorError) as error:
        if getattr(error, "errno", None) not in DISK_FULL and not _is_full(temp):
            raise
        problem = f"{path}: not written, the disk is full ({os.strerror(errno.ENOSPC)})"
        raise ObjembError(problem, "Free some space, then run again.") from error
    finally:
        temp.unlink(missing_ok=True)


def _is_full(part: Path) -> bool:
    """Whether no more can be written to a file: torch, faiss and safetensors may not say why."""
    try:
        with part.open("ab") as file:
            file.write(bytes(1 << 16))
        return False
    except OSError as error:
        return error.errno in DISK_FULL


def atomic_write_bytes(path: str | os.PathLike[str], data: bytes) -> None:
    """Write ``data`` to ``path``, whole or not at all. Raises as :func:`atomic_path`."""
    with atomic_path(path) as temp, open(temp, "wb") as file:
        file.write(data)


def atomic_write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write ``text`` as UTF-8, line ends as they are. Raises as :func:`atomic_path`."""
    atomic_write_bytes(path, text.encode("utf-8"))


class Store:
    """The cached vectors of one key, a file each (stage, pooling), and parts of unfinished ones.

    Args:
        key: what decides the numbers; also written into every file, so that one of other settings
            is never taken for ours.
        rows: how many vectors some images have.
    """

    def __init__(self, root: Path, key: dict[str, str], rows: Callable[[range], int] = len) -> None:
        self.key, self.rows = key, rows
        self.folder = root / hashlib.sha256(json.dumps(key).encode()).hexdigest()[:20]

    @contextmanager
    def lock(self) -> Iterator[None]:
        """One process at a time; the others wait, saying so."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.folder / "lock")
            try:
                lock.acquire(timeout=0)
            except Timeout:
                tqdm.write("Another notebook is computing these vectors; waiting for it.")
                lock.acquire()
        except OSError as error:
            problem = f"{self.folder} cannot be written: {error.strerror or error}"
            raise CacheError(problem, "Free some space, or set OBJEMB_CACHE.") from error
        try:
            yield
        finally:
            lock.release()

    def path(self, pair: tuple[str, str], part: range | None = None) -> Path:
        tail = "" if part is None else f".part-{part[0]:07d}"
        return self.folder / f"{'-'.join(pair)}{tail}.safetensors"

    def get(self, pair: tuple[str, str], part: range | None = None) -> np.ndarray | None:
        """The vectors, if the file is there and whole; a damaged one is removed, with a warning.

        A table from before there were checksums is believed.
        """
        path = self.path(pair, part)
        if not path.exists():
            return None
        try:
            with safetensors.safe_open(path, "numpy") as file:
                stated, vectors = file.metadata() or {}, file.get_tensor("vectors")
            known = stated.pop(SUM, None)
            renamed = stated.keys() > self.key.keys()  # the name of the checksum is damaged
            if renamed or known not in (None, checksum(vectors, stated)):
                raise OSError("its checksum is another")
        except (safetensors.SafetensorError, OSError) as error:
            warnings.warn(f"{path} is damaged ({error}): computing it again", stacklevel=3)
            path.unlink()
            return None
        if stated != self.key or (part is not None and len(vectors) != self.rows(part)):
            problem = f"{path} holds vectors of other settings than its folder says"
            raise CacheError(problem, f"Delete {self.folder}: it will be computed again.")
        return vectors

    def write(self, vectors: np.ndarray, pair: tuple[str, str], part: range | None = None) -> None:
        path = self.path(pair, part)
        try:
            # What a power cut leaves half-written is noticed when it is read, and made again.
            with atomic_path(path, durable=False) as temporary:
                told = self.key | {SUM: checksum(vectors, self.key)}
                save_file({"vectors": vectors}, temporary, metadata=told)
        except (OSError, ObjembError, safetensors.SafetensorError) as error:
            problem = f"{path} cannot be written: {getattr(error, 'problem', error)}"
            raise CacheError(problem, "Free some space, or set OBJEMB_CACHE.") from error

    def merge(self, pair: tuple[str, str], parts: list[range]) -> np.ndarray:
        """Make one table of its parts, which must be there; returns it."""
        vectors = np.concatenate([self.get(pair, part) for part in parts])
        self.write(vectors, pair)
        for part in parts:
            self.path(pair, part).unlink()
        return vectors


def checksum(vectors: np.ndarray, stated: dict[str, str]) -> str:
    """CRC-32 of vectors and what is stated of them: finds every flipped byte, in little time."""
    about = [sorted(stated.items()), str(vectors.dtype), vectors.shape]
    return str(zlib.crc32(np.ascontiguousarray(vectors), zlib.crc32(json.dumps(about).encode())))
