"""What a page needs to look at photographs by itself: the network as ONNX, and what runs it.

``front/engine.js`` opens it, in a worker. The numbers are those of Python, from a file's bytes on.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path

from objemb_lib import config
from objemb_lib.attend.detections import TOP
from objemb_lib.attend.proposer import OVERLAP, load_proposer
from objemb_lib.attend.sources import fingerprint
from objemb_lib.config import DataError
from objemb_lib.embed.trunks import Trunk, load_trunk
from objemb_lib.search.retriever import SAME_BOX
from objemb_lib.show import front
from objemb_lib.teach.export import MAPS, SearchNetwork, export_onnx

RUNTIME = Path(__file__).parent / "node_modules" / "onnxruntime-web" / "dist"  # `make web`
FILES = {"ort": "ort.wasm.bundle.min.mjs", "wasm": "ort-wasm-simd-threaded.wasm"}


def write_engine(
    folder: str | Path,
    trunk: Trunk | None = None,
    pair: tuple[str, str] = ("head", "spoc"),
    context: float = 0.0,
    size: int = 256,
) -> dict:
    """Write the files of an engine for a page; the ONNX is made once, then cached.

    Args:
        trunk, pair, context, size: of the gallery's vectors, as :func:`retriever.embedder` takes
            them; the trunk is EfficientNet-Lite0, at whose maps the shipped proposer looks.
    Returns:
        what ``open`` of ``front/engine.js`` takes: names of the files in ``folder``, and numbers.
    Raises:
        DataError: onnxruntime-web is not installed, or no page can make such vectors.
    """
    (stage, pooling), trunk = pair, trunk or load_trunk()
    channels = {s: trunk.stages[s].channels for s in load_proposer().channels if s in trunk.stages}
    if stage not in MAPS or pooling != "spoc" or channels != load_proposer().channels:
        problem = f"a page cannot make vectors of {trunk.name}, {stage}, {pooling}"
        raise DataError(problem, f"Use the spoc of {' or '.join(MAPS)} of efficientnet_lite0.")
    if absent := [name for name in FILES.values() if not (RUNTIME / name).is_file()]:
        raise DataError(f"onnxruntime-web is not installed: no {absent[0]}", "Run make web.")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    network = SearchNetwork(trunk, load_proposer(), size)
    told = ("3", trunk.fingerprint(), fingerprint(load_proposer()), size)
    name = f"network-{hashlib.sha256(repr(told).encode()).hexdigest()[:16]}.onnx"
    kept = config.cache_root() / "onnx" / name
    if not kept.exists():
        kept.parent.mkdir(parents=True, exist_ok=True)
        unfinished = kept.with_suffix(f".{os.getpid()}")
        export_onnx(network, unfinished).replace(kept)
    shutil.copy(kept, folder)
    for file in FILES.values():
        shutil.copy(RUNTIME / file, folder)
    (folder / "worker.js").write_text(front.module("worker"), "utf-8")
    about = {"network": trunk.name, "inputs": network.inputs, "stage": stage, "context": context,
             "top": TOP, "overlap": OVERLAP, "same": SAME_BOX}  # fmt: skip
    return FILES | {"model": name, "worker": "worker.js", "about": about}
