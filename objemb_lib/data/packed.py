"""A built data set as one file, so that a classroom's mirror can serve everyone.

``pack`` writes ``<name>.tar`` and a line in ``SHA256SUMS`` beside it; ``unpack_from`` takes it
from a folder or URL, checks the hash, and unpacks it beside the data set's place. What is inside
is then verified pixel by pixel by the data set itself.
"""

from __future__ import annotations

import re
import tarfile
from pathlib import Path

import requests

from objemb_lib.cache import atomic_path, atomic_write_text
from objemb_lib.config import DownloadError
from objemb_lib.data import download

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
    sums = _parse((dest / SUMS).read_text()) if (dest / SUMS).exists() else {}
    sums[archive.name] = download.sha256_file(archive)
    lines = [f"{digest}  {name}\n" for name, digest in sorted(sums.items())]
    atomic_write_text(dest / SUMS, "".join(lines))
    return archive


def unpack_from(mirror: str, name: str, work: Path) -> Path | None:
    """The data set ``name`` of a mirror, unpacked in ``work``; None if the mirror has none.

    Raises:
        DownloadError: the mirror cannot be read, or its file has other bytes than it says.
    """
    digest = _sums(mirror).get(f"{name}.tar")
    if digest is None:
        return None
    archive = download.fetch([], work / f"{name}.tar", digest, mirror=mirror)
    download.unpack(archive, work / "unpacked")
    return work / "unpacked" / name


def _sums(mirror: str) -> dict[str, str]:
    """``{file: sha256}`` of a mirror; empty where it has no list."""
    if "://" not in mirror:
        folder = Path(mirror).expanduser()  # from OBJEMB_MIRROR, where no shell did it
        listing = folder / SUMS
        if not folder.is_dir():
            raise DownloadError(f"the mirror {mirror} is not a folder", "Check --mirror.")
        return _parse(listing.read_text(errors="replace")) if listing.exists() else {}
    try:
        answer = requests.get(f"{mirror.rstrip('/')}/{SUMS}", timeout=download.TIMEOUT)
    except requests.RequestException as error:
        raise DownloadError(
            f"the mirror {mirror} does not answer: {type(error).__name__}",
            "Check the address, or build without --mirror and OBJEMB_MIRROR.",
        ) from error
    return _parse(answer.text) if answer.ok else {}


def _parse(text: str) -> dict[str, str]:
    """The lines that ``sha256sum`` writes; a login page in their place has none."""
    lines = re.findall(r"^([0-9a-f]{64}) [ *](.+?)\s*$", text, re.MULTILINE)
    return {name: digest for digest, name in lines}
