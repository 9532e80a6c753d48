"""A plan to a billion objects, computed from what was measured: docs/billion_objects.md.

    python benchmarks/billion.py             the page again, from the results that there are
    python benchmarks/billion.py --measure   first how fast this machine scans codes, and their size
                                             [--vectors 30000] [--images 400]

Reads benchmarks/results/query.json (objects an image, the student's time) and student*.json (its
speed in batches; one file a device), measures into billion.json, and rewrites what stands between
the page's markers. What nobody measures, such as the memory of a node, is in ASSUMED, and on the
page.
"""

from __future__ import annotations

import json
import math
import statistics
import time
from pathlib import Path

import faiss
import numpy as np
import pandas as pd
from turns import RESULTS, arguments, write

from objemb_lib.cache import atomic_write_text

PAGE = Path(__file__).parents[1] / "docs" / "billion_objects.md"
START, END = "<!-- billion:start -->", "<!-- billion:end -->"
LISTS, KEPT = 256, 0.95  # inverted lists; the share of a full scan's recall@10 that is kept
CODES = {  # name: (what comes before the lists, what is kept of a vector in a list; "np": without
    # polysemous codes, which take minutes to train and are of no use here)
    "float32": ("", "Flat"),
    "float16": ("", "SQfp16"),
    "8 bits a number": ("", "SQ8"),
    "256 principal axes, 8 bits each": ("PCAR256,", "SQ8"),  # turned, so that all vary alike
    "64 bytes (PQ) of these": ("PCAR256,", "PQ64np"),
    "32 bytes (PQ) of these": ("PCAR256,", "PQ32np"),
}
ASSUMED = {
    "objects": 1_000_000_000,
    "node_gb": 64,  # memory of a search node
    "usable": 0.75,  # of it for codes; the rest is the system, queries, and room to grow
    "node_cores": 16,
    "replicas": 2,  # of each shard, so that one node may fail
    "days": 30,  # in which everything is to be extracted
}


def measured(images: int, n: int) -> dict:
    """Bytes a vector, codes a second and core, and the share of lists to look at, for each code."""
    from query import by_student, paths_of_battle, real_answers

    from objemb_lib.embed.whitening import l2
    from objemb_lib.search.synthetic import synthetic_vectors

    answers = real_answers(by_student(), paths_of_battle()[:images])
    real = l2(np.concatenate([vectors for _, vectors in answers]))
    grown = synthetic_vectors(real, n + 200)
    vectors, queries = grown[:n], grown[n:]
    _, truth = faiss.knn(queries, vectors, 10)
    rows = {name: of_code(*code, vectors, queries, truth) for name, code in CODES.items()}
    return {
        "data": "mini-battles/battle, objects of the student, grown", "real": len(real),
        "vectors": n, "dim": int(vectors.shape[1]), "lists": LISTS, "faiss": faiss.__version__,
        "codes": rows,
    }  # fmt: skip


def of_code(
    before: str, code: str, vectors: np.ndarray, queries: np.ndarray, truth: np.ndarray
) -> dict[str, float]:
    """What one code takes, on one thread and with one query at a time."""
    threads = faiss.omp_get_max_threads()
    one_list, _ = trained(f"{before}IVF1,{code}", vectors)
    index, size = trained(f"{before}IVF{LISTS},{code}", vectors)
    faiss.omp_set_num_threads(1)
    try:
        _, seconds = recall(one_list, queries, truth, 1)
        full, _ = recall(index, queries, truth, LISTS)
        every = range(1, LISTS + 1)
        probes = next(p for p in every if recall(index, queries, truth, p)[0] >= KEPT * full)
    finally:
        faiss.omp_set_num_threads(threads)
    found, _ = recall(index, queries, truth, probes)
    return {
        "bytes": round(size, 1),
        "codes_a_second_and_core": round(len(vectors) / seconds),
        "share_of_lists": round(probes / LISTS, 4),
        "recall_at_10": round(found, 3),
    }


def trained(factory: str, vectors: np.ndarray) -> tuple[faiss.Index, float]:
    """An index of the vectors, and the bytes that each of them added to it."""
    # By distance: the order is the cosine's, and PCA's centring keeps it, as it does no product's.
    index = faiss.index_factory(vectors.shape[1], factory)
    lists = faiss.downcast_index(faiss.extract_index_ivf(index))
    if hasattr(lists, "pq"):
        lists.pq.cp.niter = 10  # as many as the lists' own k-means; 25 find little more
    index.train(vectors)
    empty = len(faiss.serialize_index(index))
    index.add(vectors)
    return index, (len(faiss.serialize_index(index)) - empty) / len(vectors)


def recall(index: faiss.Index, queries: np.ndarray, truth: np.ndarray, probes: int) -> tuple:
    """Recall@10 of some queries, one at a time, and the median seconds of one."""
    faiss.extract_index_ivf(index).nprobe = probes
    seconds, right = [], 0
    for query, best in zip(queries, truth):
        start = time.perf_counter()
        _, found = index.search(query[None], 10)
        seconds.append(time.perf_counter() - start)
        right += len(np.intersect1d(found[0], best))
    return right / truth.size, statistics.median(seconds)


# --- the arithmetic -----------------------------------------------------------------------


def search_plan(code: dict[str, float]) -> dict[str, float]:
    """Memory, shards and queries a second of one code."""
    objects = ASSUMED["objects"]
    gigabytes = objects * code["bytes"] / 1e9
    shards = math.ceil(gigabytes / (ASSUMED["node_gb"] * ASSUMED["usable"]))
    scanned = objects / shards * code["share_of_lists"]  # codes that a query meets on a node
    a_core = code["codes_a_second_and_core"] / scanned
    return {
        "gigabytes": gigabytes,
        "shards": shards,
        "nodes": shards * ASSUMED["replicas"],
        "scanned": scanned,
        "queries": a_core * ASSUMED["node_cores"] * ASSUMED["replicas"],  # every shard answers each
        "ms": 1000 / a_core,
    }


def extraction_plan(images_per_second: float, per_image: float) -> dict:
    """Hours of one machine for all objects, and how many machines do it in time."""
    images = ASSUMED["objects"] / per_image
    hours = images / images_per_second / 3600
    return {"images": images, "hours": hours, "machines": math.ceil(hours / (24 * ASSUMED["days"]))}


def speeds(results: Path = RESULTS) -> list[tuple[str, float]]:
    """(machine, images a second) of the student in batches, one for each student*.json."""
    found = []
    for path in sorted(results.glob("student*.json")):
        known = json.loads(path.read_text())
        rows = [r for r in known.get("table", []) if r["way"] == "student" and r["objects"] == 10]
        if rows:
            where = f"{known['cores']} CPU cores" if known["device"] == "cpu" else "GPU"
            most = max(row["images_per_second"] for row in rows)
            found.append((f"{where} ({known['machine']})", most))
    return found


def short(value: float) -> str:
    """Three digits, with thousands set apart.

    >>> short(0.01234), short(3.14159), short(12345.6)
    ('0.0123', '3.14', '12,300')
    """
    if value == 0:
        return "0"
    digits = 2 - math.floor(math.log10(abs(value)))
    return f"{round(value, digits):,.{max(0, digits)}f}"


def generated(codes: dict, query: dict, machines: list[tuple[str, float]]) -> str:
    """The part of the page between its markers."""
    per_image = query["ways"]["student"]["objects_an_image"]
    about = (
        f"*From {codes['vectors']:,} vectors of {codes['dim']:,} numbers, grown from "
        f"{codes['real']:,} real ones ({codes['data']}); recall with {codes['lists']} lists, "
        f"codes a second in a single one; one thread of {codes['cores']} cores "
        f"({codes['machine']}), one query at a time, faiss "
        f"{codes['faiss']}. Assumed, not measured: nodes of {ASSUMED['node_gb']} GB, "
        f"{ASSUMED['usable']:.0%} of it for codes, and {ASSUMED['node_cores']} cores; "
        f"{ASSUMED['replicas']} copies of each shard.*"
    )
    kept, plans = [], []
    for name, code in codes["codes"].items():
        plan, name = search_plan(code), {"a vector is kept as": name}
        kept.append(name | {
            "bytes, with its id": f"{code['bytes']:,.0f}",
            "codes a second and core": short(code["codes_a_second_and_core"]),
            "lists looked at": f"{code['share_of_lists']:.1%}",
            "recall@10": f"{code['recall_at_10']:.2f}",
        })  # fmt: skip
        plans.append(name | {
            "memory": f"{short(plan['gigabytes'])} GB", "shards": f"{plan['shards']:,}",
            "nodes": f"{plan['nodes']:,}", "codes a query meets on a node": short(plan["scanned"]),
            "ms on one core": short(plan["ms"]),
            "queries a second, all nodes": short(plan["queries"]),
        })  # fmt: skip
    extraction = []
    for name, speed in machines:
        plan = extraction_plan(speed, per_image)
        extraction.append({
            "one machine": name, "images a second": short(speed), "images": short(plan["images"]),
            "hours": short(plan["hours"]),
            f"machines for {ASSUMED['days']} days": f"{plan['machines']:,}",
        })  # fmt: skip
    images = (f"Extraction, at {per_image:.2f} objects an image ({query['data']}, "
              f"{query['images']} images, at most 10 boxes of the student each):")  # fmt: skip
    objects = f"For {ASSUMED['objects']:,} objects:"
    lines = [about, table(kept), objects, table(plans), images, table(extraction)]
    if not any(name.startswith("GPU") for name, _ in machines):
        lines.append(
            "No GPU has been measured yet: `python benchmarks/student.py` on one, its result kept "
            "as `student_gpu.json`, adds its hours to the table."
        )
    return "\n\n".join(lines)


def table(rows: list[dict[str, str]]) -> str:
    """Rows as Markdown, cells as they are."""
    return pd.DataFrame(rows).to_markdown(index=False, disable_numparse=True)


def rewritten(page: str, part: str, start: str = START, end: str = END) -> str:
    """The page with another generated part. ValueError without its markers."""
    before, rest = page.split(start)
    return f"{before}{start}\n{part}\n{end}{rest.split(end)[1]}"


def read(name: str) -> dict:
    return json.loads((RESULTS / f"{name}.json").read_text())


def main() -> None:
    asked = arguments(__doc__, measure=False, vectors=30_000, images=400)
    if asked.measure:
        write("billion", measured(asked.images, asked.vectors))
    part = generated(read("billion"), read("query"), speeds())
    atomic_write_text(PAGE, rewritten(PAGE.read_text(encoding="utf-8"), part))
    print(part)


if __name__ == "__main__":
    main()
