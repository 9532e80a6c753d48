"""Files that appear whole or not at all: a temporary file beside, then one rename."""

from __future__ import annotations

import errno
import os
import stat
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from objemb_lib.config import ObjembError

# Windows has no quota errno.
DISK_FULL = {errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)}


@contextmanager
def atomic_path(path: str | os.PathLike[str], durable: bool = True) -> Iterator[Path]:
    """A temporary path to write to, renamed to ``path`` on success and removed on failure.

    The temporary file lies in the same folder (a rename across disks is a copy) and ends with
    the same name (``np.savez`` and Pillow go by the suffix). Missing folders are made. The file
    may be read by whoever may read any new file there: a classroom shares its folders.

    Args:
        durable: wait until the disk has the file, so that a power cut cannot leave the new name
            on an empty one. False is for what its reader checks and can make again.
    Raises:
        ObjembError: the disk is full; what was at ``path`` before is untouched.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temp = path.with_name(f".tmp-{uuid.uuid4().hex[:12]}-{path.name}")
    try:
        mode = _usual_mode(temp)
        yield temp
        os.chmod(temp, mode)  # some writers (safetensors) make files for their owner alone
        if durable:
            with open(temp, "rb+") as file:
                os.fsync(file.fileno())
        os.replace(temp, path)
    except OSError as error:
        if error.errno not in DISK_FULL:
            raise
        raise ObjembError(
            f"{path}: not written, the disk is full ({error.strerror})",
            "Free some space, then run again; the earlier file, if any, is untouched.",
        ) from error
    finally:
        temp.unlink(missing_ok=True)


def _usual_mode(temp: Path) -> int:
    """Permissions of a new file beside ``temp``: 0666 less the umask.

    Asked by making one: to read the umask is to change it, for every thread.
    """
    temp.touch()
    mode = temp.stat().st_mode
    temp.unlink()  # what writes nothing must not leave an empty file under the final name
    return stat.S_IMODE(mode)


def atomic_write_bytes(path: str | os.PathLike[str], data: bytes) -> Path:
    """Write ``data`` to ``path``, whole or not at all. Raises as :func:`atomic_path`."""
    with atomic_path(path) as temp, open(temp, "wb") as file:
        file.write(data)
    return Path(path)


def atomic_write_text(path: str | os.PathLike[str], text: str) -> Path:
    """Write ``text`` as UTF-8, line ends as they are. Raises as :func:`atomic_path`."""
    return atomic_write_bytes(path, text.encode("utf-8"))
