"""Every benchmark of speed and memory, one after the other, and one picture of what they found.

    python benchmarks/all.py            half an hour on two idle cores
    python benchmarks/all.py --quick    a few minutes, smaller: to see that they run
    python benchmarks/all.py --plot     only the picture, from the results that there are

Each script compares its variants within one run, in turns, and writes its own file in
benchmarks/results/. Here their ratios are gathered in all.json, drawn in all.png, and listed in
docs/speed.md. Exits with 1 if a script fails, after the others have run.
"""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import time
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
from billion import rewritten
from turns import RESULTS, arguments

from objemb_lib.cache import atomic_path, atomic_write_text

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "speed.md"
MARKS = "<!-- speed:start -->", "<!-- speed:end -->"
SCRIPTS = (  # script, arguments, arguments when quick (None: left out)
    ("extract", [], ["--images", "32", "--rounds", "1"]),
    ("detect", [], ["--images", "2", "--rounds", "1"]),
    ("objects", [], ["--images", "4", "--rounds", "1"]),
    ("search", [], ["--vectors", "10000", "--queries", "100", "--repeats", "1"]),
    ("search", ["--million", "--repeats", "2"], None),
    ("student", [], ["--images", "2", "--rounds", "1"]),
    ("query", [], ["--images", "40", "--objects", "10000", "--queries", "4"]),
    ("billion", ["--measure"], ["--measure", "--images", "60", "--vectors", "12000"]),
    ("app", [], ["--quick"]),
)


def run(quick: bool) -> None:
    """Run each script; raises SystemExit, naming those that failed, after the last."""
    failed = []
    for script, *given in SCRIPTS:
        if (chosen := given[quick]) is None:
            continue
        print("\n==", script, *chosen, flush=True)
        start = time.perf_counter()
        if subprocess.run([sys.executable, str(HERE / f"{script}.py"), *chosen]).returncode:
            failed.append(script)
        print(f"== {time.perf_counter() - start:.0f} s", flush=True)
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}; what they printed is above")


def ratios() -> dict[str, dict[str, float]]:
    """What is compared with what, above 1 where the first is faster, from the files there are."""
    read = {p.stem: json.loads(p.read_text()) for p in RESULTS.glob("*.json")}
    found: dict[str, dict[str, float]] = {}
    if speed := read.get("extract", {}).get("images_per_second"):
        base = speed["first loop, files to vectors"]
        found["extraction, x the plain loop"] = {n: s / base for n, s in speed.items()
                                                 if "cache" not in n}  # fmt: skip
    if detected := read.get("detect", {}).get("ways"):
        for way, time_ in (("as loaded", "time as loaded"), ("torch", "torch's best time")):
            found[f"detection: {time_}, x the engine's"] = {
                f"{name}, {at_once}": 1 / one[at_once][f"engine_over_{way}"]
                for at_once in ("1 at once", "4 at once") for name, one in detected.items()
            }  # fmt: skip
    if cost := read.get("objects", {}).get("cost_in_whole_images"):
        found["objects, in passes of a whole image"] = cost
    for size in ("search", "search_million"):
        for many, known in read.get(size, {}).get("exact", {}).items():
            ours, others = known["seconds"].pop("Index"), known["seconds"].values()
            bars = found.setdefault("exact search: ours, x the best other", {})
            bars[many] = min(others) / ours
    if reached := read.get("search", {}).get("graphs", {}).get("recall 0.95"):
        found["graphs at recall 0.95, x hnswlib"] = {n: speed / reached["hnswlib"]
                                                     for n, speed in reached.items()}  # fmt: skip
    for way, known in read.get("query", {}).get("ways", {}).items():
        found[f"ms of a query by {way}"] = known["ms"]
    return {t: {name: round(v, 3) for name, v in bars.items()} for t, bars in found.items()}


def lines(found: dict[str, dict[str, float]]) -> str:
    """The page's part: versions, and every ratio."""
    known = json.loads((RESULTS / "extract.json").read_text()).get("versions", {})
    versions = ", ".join(f"{name} {version}" for name, version in known.items())
    rows = [{"compared": title, "what": name, "": f"{value:.2f}"}
            for title, bars in found.items() for name, value in bars.items()]  # fmt: skip
    table = pd.DataFrame(rows).to_markdown(index=False, disable_numparse=True)
    return f"With {versions}.\n\n{table}"


def plot(found: dict[str, dict[str, float]], path: Path) -> None:
    """A panel of bars for each table."""
    rows = -(-len(found) // 2)
    figure, axes = plt.subplots(rows, 2, figsize=(11, 2.8 * rows), layout="constrained")
    for ax, title in itertools.zip_longest(axes.flat, found):
        if title is None:
            ax.set_axis_off()
            continue
        pd.Series(found[title])[::-1].plot.barh(ax=ax, title=title, fontsize=8)
        ax.bar_label(ax.containers[0], fmt="%.2f", padding=2, fontsize=8)
        ax.margins(x=0.15)
    with atomic_path(path) as part:
        figure.savefig(part, format="png", dpi=120)
    plt.close(figure)


def main() -> None:
    asked = arguments(__doc__, quick=False, plot=False)
    try:
        if not asked.plot:
            run(asked.quick)
    finally:
        found = ratios()
        atomic_write_text(RESULTS / "all.json", json.dumps(found, indent=1) + "\n")
        plot(found, RESULTS / "all.png")
        atomic_write_text(PAGE, rewritten(PAGE.read_text("utf-8"), lines(found), *MARKS))


if __name__ == "__main__":
    main()
