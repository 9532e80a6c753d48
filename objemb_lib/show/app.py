"""The search as an app, without code: ``python -m objemb_lib.show.app``, or ``make app``.

Indexes are made first; then files are served, and every visitor's browser searches them itself.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from objemb_lib import config
from objemb_lib.attend.detections import PROPOSER, boxes_from, source_name
from objemb_lib.attend.sources import detector_boxes
from objemb_lib.config import DataError, ObjembError
from objemb_lib.data.catalogue import load_splits
from objemb_lib.data.dataset import ImageDataset
from objemb_lib.data.folder import ANNOTATIONS, folder
from objemb_lib.detect.detectors import Detector
from objemb_lib.detect.metrics import detect
from objemb_lib.detect.weights import read_card
from objemb_lib.embed.boxes import Boxes, true_boxes
from objemb_lib.embed.regions import Region
from objemb_lib.embed.trunks import load_trunk
from objemb_lib.search.calibration import made_of, shipped
from objemb_lib.search.objects import ObjectIndex
from objemb_lib.search.retriever import SAME_BOX, Retriever, embedder
from objemb_lib.show import front
from objemb_lib.show.pages import Index, index_of, program, write_folder, write_one_file
from objemb_lib.show.serve import Server
from objemb_lib.show.widgets import ObjectSearch
from objemb_lib.teach.student import StudentTrunk, load_student

PHOTOS = "OBJEMB_PHOTOS"  # names the folder
BOXES = "OBJEMB_BOXES"  # and what says where to look: a COCO file, or a detector
TRUNK = "OBJEMB_TRUNK"  # the classification network, for load_trunk
TOP = 5  # boxes of an image; notebook 04 chose ten, but here somebody has to tell them apart
# (stage, pooling), context, size of a student and of the trunk. Notebook 04 chose the first line on
# pasted scenes; notebook 06 says that on photographs a context is a habit of such scenes.
SCENES = {"student": ([("student", "spoc")], -0.2, 256), "": ([("stage4", "spoc")], -0.3, 256)}
PHOTOGRAPHS = {"fork": ([("student", "spoc")], 0.0, 384), "": ([("head", "spoc")], 0.0, 384)}


def gallery() -> ImageDataset:
    """The photographs of the folder that ``OBJEMB_PHOTOS`` names, else scenes of mini-battles."""
    if place := config.place(PHOTOS):
        truth = place / ANNOTATIONS
        return folder(place, truth if truth.is_file() else None, progress=False)
    return load_splits("mini-battles").tests["battle"].first_of_each(3)


def ways(dataset: ImageDataset, progress: bool = False) -> list[Retriever]:
    """Student and classification network, each by several sources of boxes.

    Those of the student's own detector, those of the file or detector that ``OBJEMB_BOXES`` names
    (for photographs of one's own: the proposer) and, if there are any, the true ones. Indexes are
    read from the cache, or made and written there.
    """
    taken = PHOTOGRAPHS if config.setting(PHOTOS) else SCENES
    (name, how), (_, plain) = taken.items()
    student, trunk = load_student(name), load_trunk(config.setting(TRUNK) or "efficientnet_lite0")
    made_by = read_card(name)["sha256"]
    detector = student.detector.for_inference(config.device())  # once, not for each photograph
    networks = {name: (StudentTrunk(student), *how), trunk.name: (trunk, *plain)}
    if config.setting(PHOTOS):  # there the plain network's first answer is more often right
        networks = dict(reversed(networks.items()))

    @functools.cache  # both networks look at the same boxes
    def find(data: ImageDataset) -> Boxes:
        return own_boxes(data, detector, progress)

    given = config.setting(BOXES) or (PROPOSER if config.setting(PHOTOS) else "")
    file = Path(given).suffix == ".json"
    files = sorted(Path(given).parent.glob(Path(given).name)) if file else []
    contents = [path.read_bytes() for path in files]
    places = {"detected": (find, find)}  # boxes of the gallery, of a photograph that comes
    if given:
        brought = functools.cache(lambda data: boxes_from(given, data, progress).top(TOP))
        places = {source_name(given): (brought, find if file else brought)} | places
    if any(map(len, dataset.boxes)):
        places["true boxes"] = true_boxes, find
    found = []
    for name, (network, pairs, context, size) in networks.items():
        embed = embedder(network, pairs, size, context)
        for boxes, (place, of_photograph) in places.items():
            made = made_of(network, pairs, context, size, boxes)
            told = (dataset.fingerprint, made, contents, made_by, SAME_BOX)
            key = hashlib.sha256(repr(told).encode()).hexdigest()
            path = config.cache_root() / "app" / f"{key}.index"
            if not path.exists():
                region = Region(place(dataset), context=context)
                way = Retriever.build(dataset, network, pairs, region, size, progress=progress)
                way.index.save(path)
            index = ObjectIndex.load(path)
            known = shipped(made)
            found.append(Retriever(dataset, index, name, boxes, embed, of_photograph, known))
    return found


def own_boxes(data: ImageDataset, detector: Detector, progress: bool = False) -> Boxes:
    """The boxes that a detector is surest of; the whole image where it finds nothing."""
    seen = detect(detector, data, progress=progress, masks=False)
    return detector_boxes(data, detector, seen).top(TOP)


def search_of(ways: Sequence[Retriever]) -> ObjectSearch:
    """What is shown: on photographs the whole counts, too; on scenes it is a background."""
    return ObjectSearch(ways, kind="both" if config.setting(PHOTOS) else "box")


def index_folder(ways: Sequence[Retriever]) -> tuple[Index, Path]:
    """The index of some ways as a page reads it, and the folder of the cache that it lies in."""
    index = index_of(search_of(ways), engine=config.cache_root() / "app" / "engine")
    told = (index.dataset.fingerprint, index.about, program(), front.module("worker"))
    key = hashlib.sha256(repr(told).encode())
    for part in index.parts.values():
        key.update(part)
    folder = config.cache_root() / "app" / key.hexdigest()[:20]
    write_folder(index, folder)
    return index, folder


def export(path: Path, sure: bool) -> None:
    """Write the search by the first way as one file, if that is meant.

    Raises:
        DataError: nobody can be asked.
    """
    dataset = gallery()
    print(f"{path} will hold small pictures of {len(dataset)} photographs, and their names, for "
          "everybody who gets the file.")  # fmt: skip
    try:
        meant = sure or input("Write it? [y/N] ").strip().lower() in ("y", "yes")
    except EOFError as error:
        raise DataError("nobody said whether that is meant", "Say so with --yes.") from error
    if not meant:
        print("Nothing was written.")
        return
    write_one_file(index_of(search_of(ways(dataset, progress=True)[:1])), path)
    print(f"Written: {path} ({path.stat().st_size / 1e6:.1f} MB).")


def main() -> int:
    """Make the indexes, then serve the app, or write it to one file."""
    config.tune_process()
    parser = argparse.ArgumentParser(prog="python -m objemb_lib.show.app", description=__doc__)
    parser.add_argument("--photos", help="folder to search (default: mini-battles)")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--boxes", help="COCO results or annotations beside them: where to look")
    where.add_argument("--detector", help="what looks: proposer (default), mask_rcnn, "
                       "ssdlite320_mobilenet_v3_large, torchvision/MODEL, ...")  # fmt: skip
    parser.add_argument("--trunk", help="the network beside the student (efficientnet_lite0), "
                        "such as vit_small_patch14_dinov2.lvd142m")  # fmt: skip
    parser.add_argument("--host", default="127.0.0.1", help="address of this machine that others "
                        "may reach; 0.0.0.0: all (default: nobody else)")  # fmt: skip
    parser.add_argument("--port", type=int, default=8866, help="of this machine; 0: any free one")
    parser.add_argument("--export", type=Path, help="write the search to this file, serve nothing")
    parser.add_argument("--yes", action="store_true", help="do not ask before that")
    parser.add_argument("--no-browser", action="store_true", help="only print the address")
    asked = parser.parse_args()
    if asked.photos:
        os.environ[PHOTOS] = os.path.realpath(os.path.expanduser(asked.photos))
    if asked.boxes or asked.detector:
        file = os.path.realpath(os.path.expanduser(asked.boxes or ""))
        os.environ[BOXES] = file if asked.boxes else asked.detector
    if asked.trunk:
        os.environ[TRUNK] = asked.trunk
    try:
        config.fix_places()
        if asked.export:
            export(asked.export.expanduser(), asked.yes)
            return 0
        with Server(asked.host, asked.port) as probe:  # before hours of work
            port = probe.server_address[1]
        index, folder = index_folder(ways(gallery(), progress=True))
    except ObjembError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if index.about["missing"]:
        print(f"Only known objects can be searched. {index.about['missing']}")
    command = [sys.executable, "-m", "objemb_lib.show.serve", str(folder),
               f"--host={asked.host}", f"--port={port}"]  # fmt: skip
    command += ["--no-browser"] if asked.no_browser else []
    return os.execv(sys.executable, command)  # a process without networks: a tenth of the memory


if __name__ == "__main__":
    sys.exit(main())
