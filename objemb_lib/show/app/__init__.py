"""The search as an app, without code: ``python -m objemb_lib.show.app``, or ``make app``.

Voilà serves the notebook ``search.ipynb`` of this folder. Each visitor has a kernel of their own;
the indexes are made once, before the first one comes, and read from the cache.
"""

from __future__ import annotations

import functools
import hashlib
import os
import sys
from collections.abc import Callable
from pathlib import Path

from objemb_lib import config
from objemb_lib.attend import attention
from objemb_lib.data.catalogue import load_splits
from objemb_lib.data.dataset import ImageDataset
from objemb_lib.data.folder import folder
from objemb_lib.detect.detectors import Detector
from objemb_lib.detect.weights import read_card
from objemb_lib.embed.boxes import ObjectBoxes, ObjectRegion, true_boxes
from objemb_lib.embed.trunks import Trunk, load_trunk
from objemb_lib.search.objects import ObjectIndex
from objemb_lib.search.retriever import Pairs, Retriever, build, embedder
from objemb_lib.teach.student import StudentTrunk, load_student

HERE = Path(__file__).parent
PHOTOS = "OBJEMB_PHOTOS"  # names the folder for the kernels
TOP = 5  # boxes of an image; notebook 04 chose ten, but here somebody has to tell them apart
SIZE = 256
# Notebook 04 chose these on training objects: (stage, pooling), and context.
STUDENT = [("student", "spoc")], -0.2
TEACHER = [("stage4", "spoc")], -0.3


def gallery() -> ImageDataset:
    """The photographs of the folder that ``OBJEMB_PHOTOS`` names, else scenes of mini-battles."""
    if place := os.environ.get(PHOTOS):
        return folder(place, progress=False)
    return load_splits("mini-battles").tests["battle"].first_of_each(3)


def ways(dataset: ImageDataset, progress: bool = False) -> list[Retriever]:
    """Student and classification network, by the student's own boxes and, if any, the true ones.

    Indexes are read from the cache, or made and written there.
    """
    student, trunk = load_student(), load_trunk("efficientnet_lite0")
    detector = student.detector.for_inference(config.device())  # once, not for each photograph
    networks = {"student": (StudentTrunk(student), *STUDENT), trunk.name: (trunk, *TEACHER)}

    @functools.cache  # both networks look at the same boxes
    def find(data: ImageDataset) -> ObjectBoxes:
        return own_boxes(data, detector, progress)

    places = {"detected": find}
    if any(map(len, dataset.boxes)):
        places["true boxes"] = true_boxes
    found = []
    for name, (network, pairs, context) in networks.items():
        embed = embedder(network, pairs, SIZE, context)
        for boxes, place in places.items():
            what = (dataset, network, pairs, context)
            index = _index(*what, boxes, lambda place=place: place(dataset), progress)
            found.append(Retriever(dataset, index, name, boxes, embed, find))
    return found


def _index(
    dataset: ImageDataset,
    network: Trunk,
    pairs: Pairs,
    context: float,
    boxes: str,
    where: Callable[[], ObjectBoxes],
    progress: bool,
) -> ObjectIndex:
    key = (dataset.fingerprint, network.fingerprint(), pairs, context, boxes, SIZE,
           read_card("student")["sha256"])  # fmt: skip
    path = config.cache_root() / "app" / f"{hashlib.sha256(repr(key).encode()).hexdigest()}.index"
    if not path.exists():
        region = ObjectRegion(where(), context)
        build(dataset, network, pairs, region, SIZE, progress=progress).index.save(path)
    return ObjectIndex.load(path)


def own_boxes(data: ImageDataset, detector: Detector, progress: bool = False) -> ObjectBoxes:
    """The boxes that a detector is surest of; the whole image where it finds nothing."""
    seen = attention.run_detector(data, detector, progress=progress)
    return attention.detector_boxes(data, detector, seen).top(TOP)


def command(port: int, browser: bool = False) -> list[str]:
    """What serves the app on loopback; give it :func:`environment`."""
    return [
        sys.executable, "-m", "voila", str(HERE / "search.ipynb"), "--template=offline",
        f"--port={port}", "--Voila.ip=127.0.0.1", "--show_tracebacks=True",
        *([] if browser else ["--no-browser"]),
    ]  # fmt: skip


def environment(photos: str = "") -> dict[str, str]:
    """The environment of :func:`command`: our page template, and the folder to be searched."""
    paths = [str(HERE), os.environ.get("JUPYTER_PATH", "")]
    given = {"JUPYTER_PATH": os.pathsep.join(filter(None, paths))}
    return dict(os.environ) | given | ({PHOTOS: str(Path(photos).resolve())} if photos else {})
