"""What a page needs to look at photographs by itself: networks as ONNX, and what runs them.

``front/engine.js`` opens it, in a worker. The numbers are those of Python, from a file's bytes on.
"""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import torch
from torch import nn

from objemb_lib.attend.detections import TOP
from objemb_lib.attend.proposer import OVERLAP, load_proposer
from objemb_lib.cache import atomic_write_bytes
from objemb_lib.config import DataError
from objemb_lib.embed.regions import CELLS
from objemb_lib.embed.trunks import PIP_WEIGHTS, load_trunk
from objemb_lib.search.retriever import SAME_BOX, Embedder, embedder
from objemb_lib.show import front
from objemb_lib.teach import export
from objemb_lib.teach.student import ADAPTIVE

RUNTIME = Path(__file__).parent / "node_modules" / "onnxruntime-web" / "dist"  # `make web`
FILES = {"ort": "ort.wasm.bundle.min.mjs", "wasm": "ort-wasm-simd-threaded.wasm"}
POOLINGS = ("spoc", "rmac")  # of front/network.js


def write_engine(folder: str | Path) -> dict:
    """Write what runs networks in a page, and what proposes boxes to it.

    Returns:
        what ``open`` of ``front/engine.js`` takes: names of the files in ``folder``, and numbers.
    Raises:
        DataError: onnxruntime-web is not installed.
    """
    if absent := [name for name in FILES.values() if not (RUNTIME / name).is_file()]:
        raise DataError(f"onnxruntime-web is not installed: no {absent[0]}", "Run make web.")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for file in FILES.values():
        shutil.copy(RUNTIME / file, folder)
    (folder / "worker.js").write_text(front.module("worker"), "utf-8")
    looks = write_network(folder, embedder(load_trunk(), [("head", "spoc")]))
    model = _kept(folder, "proposer", export.proposer(load_proposer()))
    proposes = {"looks": looks, "model": model, "top": TOP, "overlap": OVERLAP, "same": SAME_BOX}
    return FILES | {"worker": "worker.js", "proposes": proposes}


def write_network(folder: str | Path, by: Embedder) -> dict:
    """Write a network's two parts, for vectors like those of ``by``.

    Returns:
        what ``look`` of ``front/engine.js`` takes: names of the files in ``folder``, the ``map``
        that boxes are cut from, into how many ``cells`` (None: see ``adaptive_cells``) of so many
        ``samples``, whether that is ``before`` the tail, and what else decides the vectors.
    Raises:
        DataError: no page can make such vectors.
    """
    trunk, (stage, pooling), *more = by.trunk.for_inference(torch.device("cpu")), *by.pairs
    branch = trunk.embedding if stage == "student" else None
    if branch:
        known = branch.stage.name == export.CUT and isinstance(branch.project, nn.Identity)
        cells, samples = None if branch.cells == ADAPTIVE else branch.cells, 1
        stage, pooling = export.CUT, branch.pooling
    else:
        known = trunk.name in PIP_WEIGHTS and stage in (export.CUT, "head")
        cells, samples = (1, 2 * CELLS) if pooling == "spoc" else (CELLS, 2)  # a mean of means
    if more or not known or pooling not in POOLINGS:
        problem = f"a page cannot make vectors of {trunk.name}, {stage}, {pooling}"
        remedy = "Use the spoc of stage4 or head of efficientnet_lite0, or a student."
        raise DataError(problem, remedy)
    cut = {"map": stage, "cells": cells, "samples": samples, "before": bool(branch)}
    parts = {"body": export.body(trunk), "tail": export.tail(trunk, branch)}
    files = {part: _kept(Path(folder), part, content) for part, content in parts.items()}
    return files | cut | {"pooling": pooling, "size": by.size, "context": by.context}


def _kept(folder: Path, name: str, content: bytes) -> str:
    """The name of a file that has this content: networks share what is the same in them."""
    file = f"{name}-{hashlib.sha256(content).hexdigest()[:16]}.onnx"
    atomic_write_bytes(folder / file, content)
    return file
