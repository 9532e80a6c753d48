"""The whole query: photograph -> boxes -> vectors -> search -> answer by image, step by step.

    python benchmarks/query.py [--images 400] [--objects 100000] [--queries 15]

Two ways: a detector, then the trunk on its boxes; the student, in one pass. Each index holds the
way's vectors of real battle scenes (256 px), grown to --objects, and is exact. Milliseconds are
medians over queries. Needs mini-battles. Writes benchmarks/results/query.json.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torchvision.transforms.functional import pil_to_tensor
from turns import arguments, write

from objemb_lib import config
from objemb_lib.data.images import load_image
from objemb_lib.data.mini_battles import mini_battles
from objemb_lib.detect.weights import load_detector
from objemb_lib.embed.boxes import Boxes
from objemb_lib.embed.extract import Objects
from objemb_lib.embed.pooling import POOLINGS
from objemb_lib.embed.regions import cut
from objemb_lib.embed.trunks import load_trunk
from objemb_lib.embed.whitening import l2
from objemb_lib.search.objects import ObjectIndex
from objemb_lib.search.synthetic import synthetic_vectors
from objemb_lib.teach.student import load_student

PAIR, TOP, K = ("stage4", "spoc"), 10, 10
Answer = tuple[np.ndarray, np.ndarray]  # boxes (K, 4) and their vectors (K, D)
Ask = Callable[[Path, dict[str, float]], Answer]  # of a file; notes what its steps take


@contextmanager
def timed(ms: dict[str, float], step: str) -> Iterator[None]:
    """Note the milliseconds of a step."""
    start = time.perf_counter()
    yield
    ms[step] = 1000 * (time.perf_counter() - start)


def decoded(path: Path, ms: dict[str, float]) -> torch.Tensor:
    """``(3, H, W)`` pixels in 0..1."""
    with timed(ms, "decode"):
        return pil_to_tensor(load_image(path)).to(config.device()).float() / 255


def by_two_passes() -> Ask:
    """A detector says where to look; the trunk looks there."""
    device = config.device()
    detector = load_detector("faster_rcnn").for_inference(device)
    trunk = load_trunk().for_inference(device)

    @torch.inference_mode()
    def ask(path: Path, ms: dict[str, float]) -> Answer:
        image = decoded(path, ms)
        with timed(ms, "detect"):
            boxes = detector([image])[0]["boxes"][:TOP]
        with timed(ms, "embed"):
            maps = trunk(trunk.normalise(image[None]))
            vectors = POOLINGS[PAIR[1]](cut(trunk, maps, PAIR[0], [boxes])).cpu().numpy()
        return boxes.cpu().numpy(), vectors

    return ask


def by_student() -> Ask:
    """One pass gives both."""
    student = load_student().to(config.device())
    student.detector = student.detector.for_inference(config.device())

    @torch.inference_mode()
    def ask(path: Path, ms: dict[str, float]) -> Answer:
        image = decoded(path, ms)
        with timed(ms, "detect and embed"):
            (found,) = student([image])
            vectors = found["embeddings"].cpu().numpy()
        return found["boxes"][: len(vectors)].cpu().numpy(), vectors

    return ask


def paths_of_battle() -> list[Path]:
    """The battle scenes' files."""
    battle = mini_battles("battle")
    return [Path(battle.root) / file for file in battle.files]


def real_answers(ask: Ask, files: list[Path]) -> list[Answer]:
    """Boxes and vectors of the images in which a way finds something."""
    return [found for file in files if len((found := ask(file, {}))[1])]


def filled(real: list[Answer], n: int) -> ObjectIndex:
    """An index of some ``n`` objects grown from real ones; images have the real ones' boxes."""
    vectors = l2(np.concatenate([v for _, v in real]))
    images = -(-n * len(real) // len(vectors))
    where = Boxes("grown", [real[i % len(real)][0] for i in range(images)])
    objects = Objects({PAIR: synthetic_vectors(vectors, len(where.owners))}, where)
    index = ObjectIndex(vectors.shape[1])
    index.add(objects, PAIR, [f"{i}.jpg" for i in range(images)])
    return index


def measure(ask: Ask, files: list[Path], queries: list[Path], n: int) -> dict:
    """What a way's queries take among ``n`` objects."""
    real, taken = real_answers(ask, files), []
    index = filled(real, n)
    for file in queries[:1] + queries:  # the first one warms up
        _, vectors = ask(file, ms := {})
        if len(vectors):
            with timed(ms, "search"):
                index.search(vectors[0], K)
            taken.append(ms)
    return {
        "objects_an_image": round(statistics.mean(len(vectors) for _, vectors in real), 2),
        "dim": real[0][1].shape[1],
        "objects": len(index),
        "ms": pd.DataFrame(taken[1:]).median().round(3).to_dict(),
    }


def main() -> None:
    asked = arguments(__doc__, images=400, objects=100_000, queries=15)
    paths, ways = paths_of_battle(), {}
    for way, make in {"detector, then trunk": by_two_passes, "student": by_student}.items():
        queries = paths[-asked.queries :]
        ways[way] = measure(make(), paths[: asked.images], queries, asked.objects)
        print(way, ways[way], flush=True)
    write("query", {
        "data": "mini-battles/battle", "images": asked.images, "queries": asked.queries, "k": K,
        "threads": torch.get_num_threads(), "device": str(config.device()), "ways": ways,
    })  # fmt: skip


if __name__ == "__main__":
    main()
