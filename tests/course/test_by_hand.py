"""Each mechanism is built once by hand in its notebook, and is equal to what the library gives.

A cell tagged `by-hand` builds it with torch or numpy alone; the next, tagged `same-as-library`,
asserts that the library does the same. Here both run on tensors of our own, once as they are and
once with the library made wrong: then the assertion must fail.
"""

from __future__ import annotations

import ast
import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import faiss
import nbformat
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pycocotools import mask as coco_mask
from tiny_scenes import QUIET, scenes, small
from torchvision.ops import roi_align

from objemb_lib.attend.objects import retrieval_scores
from objemb_lib.data.dataset import ImageDataset
from objemb_lib.detect.features import DetectorTrunk
from objemb_lib.detect.metrics import main_recall
from objemb_lib.embed import regions
from objemb_lib.embed.boxes import Boxes
from objemb_lib.embed.extract import Objects, extract
from objemb_lib.embed.pooling import POOLINGS
from objemb_lib.embed.regions import model_input, roi
from objemb_lib.embed.trunks import Stage
from objemb_lib.embed.whitening import l2
from objemb_lib.measure.analysis import linear_cka
from objemb_lib.measure.intervals import Evaluation
from objemb_lib.measure.metrics import evaluate_scores, truth
from objemb_lib.teach.distillation import cosine, relational
from objemb_lib.teach.student import EmbeddingHead, adaptive_cells

NOTEBOOKS = Path(__file__).resolve().parents[2] / "notebooks"


def wrong(part: object) -> object:
    """A library's function, or table or object of functions, that gives something else."""
    if isinstance(part, dict):
        return {name: wrong(one) for name, one in part.items()}
    if isinstance(part, SimpleNamespace):
        return SimpleNamespace(**wrong(vars(part)))
    if isinstance(part, Evaluation):
        return replace(part, values=wrong(part.values))
    if isinstance(part, tuple):
        return tuple(map(wrong, part))
    if callable(part):
        return lambda *given, **how: wrong(part(*given, **how))
    return part * 1.1 + 0.1


# notebook -> what its cells find there (made anew for each run), and what of it is the library's
Given = Callable[[], tuple[dict, list[str]]]
GIVEN: dict[str, Given] = {}


def toy(**known: object) -> ImageDataset:
    """Twelve images of four objects."""
    files = [f"{n}.jpg" for n in range(12)]
    return ImageDataset("toy", "battle", Path(), files, np.arange(12) % 4, content="toy", **known)


def welcome() -> tuple[dict, list[str]]:
    """Notebook 00: two scenes show the query's object beside another one, a third twice."""
    labels = [np.array([n % 4, *[1] * (n in (2, 3, 9))]) for n in range(12)]
    battle = toy(boxes=[np.zeros((len(many), 4)) for many in labels], box_labels=labels)
    return {"battle": battle, "query": 5, "truth": truth}, ["truth"]


def embedding() -> tuple[dict, list[str]]:
    """Notebook 01: a small network of five blocks, and a vector of each image."""
    torch.manual_seed(0)
    blocks = [torch.nn.Conv2d(4, 4, 1) for _ in range(5)]
    network = torch.nn.Module()
    network.blocks = torch.nn.Sequential(*blocks)
    for name in ("global_pool", "classifier"):
        setattr(network, name, torch.nn.Identity())

    def lite0(pixels):
        stage4 = network.blocks(pixels)
        return {"stage4": stage4, "head": stage4}

    vectors = l2(np.random.default_rng(0).normal(size=(12, 8)))
    given = {"network": network, "lite0": lite0, "pixels": torch.rand(1, 4, 6, 5), "battle": toy()}
    given |= {"whole": vectors, "query": 5, "POOLINGS": POOLINGS}
    return given | {"evaluate_scores": evaluate_scores}, ["lite0", "POOLINGS", "evaluate_scores"]


GIVEN |= {"00_welcome_and_data": welcome, "01_embedding_extraction": embedding}


def detection() -> tuple[dict, list[str]]:
    """Notebook 02: a random detector, a small scene, and twelve vectors of two networks."""
    detector, one = small("faster_rcnn"), scenes(Path(tempfile.mkdtemp())).subset([1])
    inside, random = DetectorTrunk(detector), np.random.default_rng(0)
    pixels = torch.from_numpy(model_input(one.image(0), 64).copy()).permute(2, 0, 1)[None]
    box = torch.from_numpy(roi(one).input_boxes(0, one.image(0).size, 64))
    bodies, head = dict.fromkeys(("crop", "body")), ("head", "spoc")
    maps_of = {name: {head: random.normal(size=(12, 8))} for name in bodies}
    given = {"detector": detector, "one": one, "pixels": inside.normalise(pixels), "box": box}
    given |= {"inside": inside, "options": QUIET, "roi": roi, "roi_align": roi_align}
    given |= {"bodies": bodies, "maps_of": maps_of, "head": head}
    given |= {"extract": extract, "linear_cka": linear_cka}
    return given, ["inside", "extract", "linear_cka"]


GIVEN["02_detection_vs_classification"] = detection


def lesson() -> tuple[dict, list[str]]:
    """Notebook 04: a body of three small layers, boxes on two images, a teacher's vectors."""
    torch.manual_seed(0)
    layers = [torch.nn.Conv2d(4, 4, 3, padding=1), torch.nn.ReLU(), torch.nn.Conv2d(4, 4, 1)]
    stages = {name: Stage(name, 4, 16) for name in ("stage4", "head")}
    body = SimpleNamespace(stages=stages, after=lambda stage: layers)
    branch = EmbeddingHead(body, leave_out=(1,), dim=4)
    maps, boxes = {"stage4": torch.rand(2, 4, 8, 8)}, [torch.tensor([[10.0, 20, 90, 70]])] * 2
    given = {"branch": branch, "layers": layers[::2], "project": branch.project}
    given |= {"maps": maps, "stage4": maps["stage4"], "boxes": boxes}
    given |= {"vectors": torch.rand(5, 4), "goals": torch.rand(5, 4), "roi_align": roi_align}
    library = {"embed_boxes": partial(branch, body), "cosine": cosine, "relational": relational}
    return given | library, list(library)


GIVEN["04_student_teacher"] = lesson


def quantiser() -> tuple[dict, list[str]]:
    """Notebook 05: 300 vectors of 32 numbers, and faiss's codes of 16 bytes for them."""
    few = np.random.default_rng(0).normal(size=(300, 32)).astype(np.float32)
    pq = faiss.ProductQuantizer(32, 16, 8)
    pq.train(few)
    books = faiss.vector_to_array(pq.centroids).reshape(16, 256, -1)
    theirs = SimpleNamespace(compute_codes=pq.compute_codes, decode=pq.decode)
    return {"few": few, "asked": few[0], "books": books, "pq": theirs}, ["pq"]


GIVEN["05_search_at_scale"] = quantiser


def attention() -> tuple[dict, list[str]]:
    """Notebook 03: a map with a box and a mask in it; five boxes of three images."""
    torch.manual_seed(0)
    fmap, box, pair = torch.rand(1, 4, 8, 8), torch.tensor([20.0, 40, 150, 200]), ("head", "spoc")
    mask = np.asfortranarray(np.tri(256, 256, dtype=np.uint8))
    boxes = Boxes("toy", [box[None].numpy()], masks=[[coco_mask.encode(mask)]])

    def extract(battle, trunk, pairs, region, options):
        bins = regions.roi_align(fmap, [box[None]], 7, 1 / 32)
        bins = bins * region.mask_shares(0, (256, 256)) if region.masked else bins
        return {pair: bins.mean((2, 3)).numpy()}

    vectors = l2(np.random.default_rng(0).normal(size=(5, 8)))
    where = Boxes("toy", [np.tile(box, (count, 1)) for count in (2, 1, 2)])
    objects, roles = Objects({pair: vectors}, where), np.array([0, 2])
    given = {"fmap": fmap, "box": box, "stride": 32, "boxes": boxes, "shown": 0, "PAIR": pair}
    given |= {"Region": regions.Region, "image": SimpleNamespace(size=(256, 256))}
    given |= {"battle": SimpleNamespace(queries=roles, gallery=roles), "trunk": None}
    given |= {"objects": objects, "vectors": vectors, "owners": objects.image, "at_size": None}
    given |= {"clicked": np.array([1, 2, 3]), "extract": extract, "roi_align": roi_align}
    given["attend"] = SimpleNamespace(retrieval_scores=retrieval_scores)
    return given, ["extract", "roi_align", "attend"]


GIVEN["03_hard_attention_object_embeddings"] = attention


def outside() -> tuple[dict, list[str]]:
    """Notebook 06: a box that meets the main object of one image, and one that misses another's."""
    true = [np.array([box], np.float32) for box in ([10, 10, 50, 40], [0, 0, 20, 20])]
    few = toy(boxes=true * 6, box_labels=[np.array([n % 4]) for n in range(12)])
    source = Boxes("toy", [np.array([[12, 8, 50, 41], [1, 1, 9, 9]], np.float32)] * 12)
    given = {"found": {"toy": source}, "few": few, "main_recall": main_recall}
    return given | {"adaptive_cells": adaptive_cells}, ["main_recall", "adaptive_cells"]


GIVEN["06_outside_our_world"] = outside


def cells(notebook: str, tag: str) -> list[str]:
    nb = nbformat.read(NOTEBOOKS / f"{notebook}.ipynb", as_version=4)
    return [c.source for c in nb.cells if tag in c.metadata.get("tags", [])]


def run(notebook: str, given: dict) -> None:
    both = nbformat.read(NOTEBOOKS / f"{notebook}.ipynb", as_version=4).cells
    space = {"torch": torch, "F": F, "np": np} | given
    for cell in both:
        if {"by-hand", "same-as-library"} & set(cell.metadata.get("tags", [])):
            exec(cell.source, space)


def test_every_lesson_builds_something_by_hand() -> None:
    assert set(GIVEN) == {path.stem for path in NOTEBOOKS.glob("0*.ipynb")}


@pytest.mark.parametrize("notebook", GIVEN)
def test_what_is_built_by_hand_is_what_the_library_gives(notebook: str) -> None:
    given, library = GIVEN[notebook]()
    run(notebook, given)
    for name in library:
        given, _ = GIVEN[notebook]()
        with pytest.raises(AssertionError):
            run(notebook, given | {name: wrong(given[name])})


@pytest.mark.parametrize("notebook", GIVEN)
def test_what_is_built_by_hand_is_short_and_takes_nothing_of_ours(notebook: str) -> None:
    built = cells(notebook, "by-hand")
    assert built and len(built) == len(cells(notebook, "same-as-library"))
    _, library = GIVEN[notebook]()
    for source in built:
        names = {node.id for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Name)}
        assert not names & set(library) and "objemb" not in source
        assert len([line for line in source.splitlines() if line.strip()]) <= 12
