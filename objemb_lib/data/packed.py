"""A built data set as one file, so that a classroom's mirror can serve everyone.

What is inside is verified pixel by pixel by the data set itself.
"""

from __future__ import annotations

import re
import tarfile
from pathlib import Path

from objemb_lib.cache import atomic_path, atomic_write_text
from objemb_lib.config import DownloadError
from objemb_lib.data.archives import sha256_file, unpack

SUMS = "SHA256SUMS"


def pack(folder: Path, dest: Path) -> Path:
    """Write ``dest/<folder's name>.tar`` and its hash into ``dest/SHA256SUMS``.

    Files keep neither owner, rights nor time: two packs of the same data are the same bytes.
    """

    def anonymous(info: tarfile.TarInfo) -> tarfile.TarInfo:
        info.uid = info.gid = info.mtime = 0
        info.uname = info.gname = ""
        info.mode = 0o755 if info.isdir() else 0o644
        return info

    dest.mkdir(parents=True, exist_ok=True)
    archive = dest / f"{folder.name}.tar"
    with atomic_path(archive) as temporary, tarfile.open(temporary, "w") as tar:
        for file in sorted(folder.rglob("*")):
            tar.add(file, Path(folder.name) / file.relative_to(folder), False, filter=anonymous)
    atomic_write_text(dest / SUMS, f"{sha256_file(archive)}  {archive.name}\n")
    return archive


def unpack_from(mirror: str, name: str, work: Path) -> Path | None:
    """The data set ``name`` of a mirror (a folder or URL), unpacked in the folder ``work``.

    Returns:
        its folder; None if the mirror has none.
    Raises:
        DownloadError: the mirror cannot be read, or its file has other bytes than it says.
    """
    from objemb_lib.data import fetch  # here: it loads what downloads

    sums = work / SUMS
    work.mkdir(exist_ok=True)
    try:
        fetch.Downloader(sums, progress=False)(f"{mirror.rstrip('/')}/{SUMS}", sums)
    except fetch.Gone:
        return None
    except fetch.GiveUp as error:
        problem = f"the mirror {mirror} cannot be read: {error}"
        raise DownloadError(problem, "Check --mirror and OBJEMB_MIRROR.") from error
    line = rf"^([0-9a-f]{{64}}) [ *]{re.escape(name)}\.tar\s*$"  # a login page has no such line
    if (found := re.search(line, sums.read_text(errors="replace"), re.M)) is None:
        return None
    archive = fetch.fetch(fetch.Remote(f"{name}.tar", digest=found[1]), work, mirror=mirror)
    return unpack(archive, work / "unpacked") / name
