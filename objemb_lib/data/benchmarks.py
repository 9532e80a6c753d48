"""Benchmarks that come as archives: from a user's folder, a mirror, or their own address.

Their files are in ``registry.csv``; where addresses and digests are from, ``data/README.md`` says.
"""

from __future__ import annotations

import json
import shutil
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path

from objemb_lib import config
from objemb_lib.config import DataError, ImageError
from objemb_lib.data import fetch, landmarks
from objemb_lib.data.archives import MANIFEST, build_folder, unpack, write_manifest
from objemb_lib.data.folder import list_images
from objemb_lib.data.images import measure_images


def build(name: str, root: Path | None = None, **places: object) -> Path:
    """Fetch, check and unpack a benchmark: its folder appears whole or not at all.

    Args:
        name: a data set of the registry. root: folder of data sets.
        places: ``source`` and ``mirror`` that may have its files, as of :func:`fetch.fetch`.
    Raises:
        DownloadError: an archive cannot be had, or has other bytes.
        DataError: images are missing in it; or a folder of the data set's name is there that
            was not built here.
    """
    root = Path(root or config.data_root())
    if (root / name).exists() and not (root / name / MANIFEST).exists():
        remedy = f"Use it as it is, as {name}:{root / name}; or move it away and build again."
        raise DataError(f"{root / name} is there already, but was not built here", remedy)
    remotes = fetch.registry(name)

    def make(made: Path, downloads: Path) -> None:
        fetch.require_space(root, sum(r.size or 0 for r in remotes))  # photographs hardly shrink
        for remote in remotes:
            truth = remote.file.endswith(".pkl")  # it has no digest, so it is read
            file = fetch.fetch(remote, downloads, landmarks.read_truth if truth else None, **places)
            if file.suffix in (".tgz", ".zip"):
                unpack(file, made / remote.into, partial(_chosen, remote.members))
            else:
                shutil.copyfile(file, made / file.name)
        if name in landmarks.TOTAL:
            _keep_listed(name, made)
        known = {r.file: r.digest for r in remotes}
        write_manifest(made, {"files": len(list_images(made)), "archives": known})

    return build_folder(root, name, make)


def _chosen(pattern: str, member: str) -> bool:
    return fnmatchcase(member, pattern) and "/._" not in member  # what macOS adds


def _keep_listed(name: str, made: Path) -> None:
    """Bring the landmarks that the truth lists into ``jpg/``: others in Paris are damaged."""
    truth = landmarks.read_truth(made / f"gnd_{name}.pkl")
    found = {file.stem: file for file in (made / "unpacked").rglob("*.jpg")}
    listed = [*truth.images, *truth.queries]
    (made / "jpg").mkdir()
    if missing := [one for one in listed if one not in found]:
        problem = f"{name}: {len(missing)} images are not in its archives, as {missing[0]}"
        raise DataError(problem, "Get the archives again.")
    for one in listed:
        found[one].replace(made / "jpg" / f"{one}.jpg")
    shutil.rmtree(made / "unpacked")


def verify(name: str, root: Path | None = None) -> list[str]:
    """Decode every image of the built data set ``name`` and count them.

    Returns nothing: there is no other build to differ from. Raises DataError: not built, or an
    image is missing or damaged, naming the first.
    """
    folder, command = Path(root or config.data_root()) / name, f"data/download.py build {name}"
    if not (folder / MANIFEST).is_file():
        raise DataError(f"{folder}: {name} is not built", f"python {command}")
    stated, files = json.loads((folder / MANIFEST).read_text())["files"], list_images(folder)
    found = measure_images([folder / file for file in files])
    broken = [one.problem for one in found if isinstance(one, ImageError)]
    if (good := len(files) - len(broken)) != stated:
        first = broken[0] if broken else f"{stated - good:,} are missing"
        problem = f"{folder}: {good:,} of {stated:,} images can be read; {first}"
        raise DataError(problem, f"python {command} --force")
    return []
