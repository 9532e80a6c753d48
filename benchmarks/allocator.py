"""What does it gain that freed memory stays with the process (see objemb_lib/__init__.py)?

    python benchmarks/allocator.py [--images 160] [--rounds 3]

Vectors of real battle scenes, whole image and object on the map, by each of two networks; in turns
by processes that keep freed memory and by ones that leave it to glibc, as without objemb. Seconds,
the processor's time in the system, pages that it had to clear, and the largest memory, as medians.
Needs mini-battles, and Linux. Writes benchmarks/results/allocator.json.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

from objemb_lib.cache import atomic_write_text
from objemb_lib.data.catalogue import load_splits
from objemb_lib.detect.features import DetectorTrunk
from objemb_lib.detect.weights import load_detector
from objemb_lib.embed.extract import ExtractOptions, extract_regions
from objemb_lib.embed.regions import WHOLE, roi
from objemb_lib.embed.trunks import load_trunk

RESULT = Path(__file__).parent / "results" / "allocator.json"
WAYS = {"as glibc does": {"MALLOC_CHECK_": "0"}, "kept": {}}  # any such name keeps ours away
OPTIONS = ExtractOptions(cache=False, progress=False)
PAIRS = [("stage4", "spoc"), ("stage4", "rmac"), ("head", "crow")]


def once(images: int) -> dict[str, float]:
    """One extraction in this process; what it cost."""
    data = load_splits("mini-battles").tests["battle"].subset(range(images))
    networks = load_trunk("efficientnet_lite0"), DetectorTrunk(load_detector("faster_rcnn"))
    before, start = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    for network in networks:
        extract_regions(data, network, PAIRS, {"whole": WHOLE, "RoI": roi(data)}, OPTIONS)
    after = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "seconds": time.perf_counter() - start,
        "system_seconds": after.ru_stime - before.ru_stime,
        "pages": after.ru_minflt - before.ru_minflt,
        "memory_mb": after.ru_maxrss / 1024,
    }


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=160)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--once", action="store_true", help="for the processes it starts")
    asked = parser.parse_args()
    if asked.once:
        return print(json.dumps(once(asked.images)))
    costs: dict[str, list[dict[str, float]]] = {name: [] for name in WAYS}
    command = [sys.executable, __file__, "--once", "--images", str(asked.images)]
    plain = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_")}
    for _ in range(asked.rounds):
        for name, setting in WAYS.items():
            ran = subprocess.run(command, env=plain | setting, capture_output=True, check=True)
            costs[name].append(json.loads(ran.stdout))
    found = {
        name: {what: round(statistics.median(c[what] for c in some), 2) for what in some[0]}
        for name, some in costs.items()
    }
    pairs = zip(costs["as glibc does"], costs["kept"])
    ratio = round(statistics.median(a["seconds"] / b["seconds"] for a, b in pairs), 2)
    said = {"images": asked.images, "rounds": asked.rounds, "ways": found, "faster": ratio}
    atomic_write_text(RESULT, json.dumps(said, indent=1) + "\n")
    for name, cost in found.items():
        print(f"{name:14}", ", ".join(f"{what} {value:,}" for what, value in cost.items()))
    print(f"kept is {ratio} x as fast")


if __name__ == "__main__":
    main()
