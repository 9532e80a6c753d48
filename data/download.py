#!/usr/bin/env python3
"""Get, check and share the course's data sets and the field's benchmarks.

    python data/download.py list                       what there is, how big, which licence
    python data/download.py build mini-battles         make it (a minute; fetches 223 MB once)
    python data/download.py verify mini-battles        decode and compare every image
    python data/download.py pack mini-battles DIR      a copy for the classroom's mirror

With photographs that you have already in DIR, unpacked; and again, though it is there:

    python data/download.py build mini-battles --source DIR
    python data/download.py build mini-battles --force

Benchmarks (cub, cars, sop, ps-battles, roxford5k, rparis6k, coco, open-images) have terms, which
`build` shows; a cut download resumes; an archive that you have is checked and used:

    python data/download.py build cub --accept-licence
    python data/download.py build cars --accept-licence --source DIR
    python data/download.py build ps-battles --accept-licence --retry-dead

A copy that lies unpacked on your disk needs no build: name it where a data set is asked for, as
in cars:/path/to/stanford_cars.

A classroom on bad Wi-Fi: build once, `pack` into a folder, share the folder (a USB stick, a
network drive, or `python -m http.server` in it), and let everyone run

    python data/download.py build mini-battles --mirror DIR_OR_URL

or set OBJEMB_MIRROR=DIR_OR_URL, which `make` passes on. A mirror may hold the benchmarks' archives
too. Data sets go to data/ beside this file; OBJEMB_DATA names another folder.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from objemb_lib import config
from objemb_lib.config import DataError, ObjembError
from objemb_lib.data import catalogue, mini_battles


def parser() -> argparse.ArgumentParser:
    """The command line."""
    as_written = argparse.RawDescriptionHelpFormatter
    top = argparse.ArgumentParser(description=__doc__, formatter_class=as_written)
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    commands.add_parser("list", help="every data set with size, licence and state")
    build = commands.add_parser("build", help="make a data set, unless it is there")
    held = "a folder that has the photographs, or the benchmark's archives, already"
    build.add_argument("--source", type=Path, help=held)
    build.add_argument("--mirror", help="a classroom's copy, folder or URL, tried first")
    build.add_argument("--force", action="store_true", help="build again even if it is there")
    build.add_argument("--accept-licence", action="store_true", help="you accept its terms")
    retried = "ask again the links that were dead in an earlier run"
    build.add_argument("--retry-dead", action="store_true", help=retried)
    verify = commands.add_parser(
        "verify",
        help="decode every image and compare with the manifest",
        epilog="exit status: 0 as in the reference build; 1 absent or damaged; 2 intact, but "
        "not pixel for pixel the reference (another image library): numbers may move a little",
    )
    pack = commands.add_parser("pack", help="write a copy for a mirror")
    for command in (build, verify, pack):
        command.add_argument("name", help="a data set, as in `list`")
    pack.add_argument("dest", type=Path, help="folder for the copy")
    return top


def list_all() -> int:
    """Print every data set."""
    print(f"{'name':14} {'state':10} {'size':24} licence")
    for entry in catalogue.DATASETS.values():
        state = "built" if entry.built() else "not built"
        print(f"{entry.name:14} {state:10} {entry.size:24} {entry.licence}")
        print(f"{'':14} {entry.about}\n{'':14} tried here: {entry.tried}")
    print(f"\nin {config.data_root()}; licences in full: data/README.md")
    return 0


def build(entry: catalogue.Entry, arguments: argparse.Namespace) -> int:
    """Build unless it is there."""
    if entry.built() and not (arguments.force or arguments.retry_dead):
        again = "asks those again that did not answer" if entry.links else "rebuilds"
        print(f"{entry.name} is already in {entry.folder()}: nothing to do (--force {again})")
        return 0
    if entry.terms and not arguments.accept_licence:
        remedy = "Read them, and add --accept-licence if you accept them."
        raise DataError(f"{entry.name} has terms: {entry.terms}", remedy)
    if arguments.retry_dead and not entry.links:
        raise DataError(f"{entry.name} has no links of its own", "Leave --retry-dead out.")
    options = {"retry_dead": arguments.retry_dead} if entry.links else {}
    mirror = arguments.mirror or config.mirror()
    for option, place in (("--source", arguments.source), ("--mirror", mirror)):
        if place and "://" not in str(place) and not Path(place).expanduser().is_dir():
            # A typing error must not start a long download.
            raise DataError(f"{place} is not a folder", f"Check {option}.")
    print(f"{entry.name} is in {entry.build(source=arguments.source, mirror=mirror, **options)}")
    return 0


def verify(entry: catalogue.Entry) -> int:
    """Check every image; see the epilog for the exit status."""
    if others := entry.verify():
        print(f"{entry.name}: intact, but {', '.join(others)} differ from the reference build")
        return 2
    course = entry.name == catalogue.COURSE
    found = "and annotation is as in the reference build" if course else "is there and can be read"
    print(f"{entry.name}: every image {found}")
    return 0


def pack(entry: catalogue.Entry, dest: Path) -> int:
    """Write a copy for a mirror, of what may be passed on."""
    if entry.name != catalogue.COURSE:
        remedy = "Put its archives, as they were published, into the mirror's folder."
        raise DataError(f"{entry.name} is not ours to pass on", remedy)
    print(f"wrote {mini_battles.pack(dest)}")
    return 0


def main(arguments: list[str] | None = None) -> int:
    """Run one command; errors are printed as sentences, not as tracebacks."""
    asked = parser().parse_args(arguments)
    try:
        if asked.command == "list":
            return list_all()
        entry = catalogue.entry(asked.name)
        if asked.command == "build":
            return build(entry, asked)
        if asked.command == "verify":
            return verify(entry)
        return pack(entry, asked.dest)
    except ObjembError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        remedy = "Free some space, or set OBJEMB_DATA to another folder, then run again."
        print(f"error: {error}\n  What to do: {remedy}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; what was built before is untouched", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
