"""What does it gain that freed memory stays with the process (``config.tune_process``)?

    python benchmarks/allocator.py [--images 160] [--rounds 3]

Vectors of real battle scenes, whole image and object on the map, by each of two networks; in turns
by processes that keep freed memory and by ones that leave it to glibc. Seconds, the processor's
time in the system, pages that it had to clear, and the largest memory, as medians. Needs
mini-battles, and Linux. Writes benchmarks/results/allocator.json.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time

import pandas as pd
from turns import arguments, write

from objemb_lib import config
from objemb_lib.data.catalogue import load_splits
from objemb_lib.detect.features import DetectorTrunk
from objemb_lib.detect.weights import load_detector
from objemb_lib.embed.extract import ExtractOptions, extract_regions
from objemb_lib.embed.regions import WHOLE, roi
from objemb_lib.embed.trunks import load_trunk

WAYS = {"as glibc does": {"MALLOC_CHECK_": "0"}, "kept": {}}  # any such name keeps ours away
PAIRS = [("stage4", "spoc"), ("stage4", "rmac"), ("head", "crow")]


def once(images: int) -> dict[str, float]:
    """One extraction in this process; what it cost."""
    config.tune_process()
    data = load_splits("mini-battles").tests["battle"].subset(range(images))
    networks = load_trunk("efficientnet_lite0"), DetectorTrunk(load_detector("faster_rcnn"))
    before, start = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    options = ExtractOptions(cache=False, progress=False)
    for network in networks:
        extract_regions(data, network, PAIRS, {"whole": WHOLE, "RoI": roi(data)}, options)
    after = resource.getrusage(resource.RUSAGE_SELF)
    return {"seconds": time.perf_counter() - start,
            "system_seconds": after.ru_stime - before.ru_stime,
            "pages": after.ru_minflt - before.ru_minflt,
            "memory_mb": after.ru_maxrss / 1024}  # fmt: skip


def main() -> None:
    """The command line."""
    asked = arguments(__doc__, images=160, rounds=3, once=False)
    if asked.once:  # in the processes that it starts
        return print(json.dumps(once(asked.images)))
    command = [sys.executable, __file__, "--once", "--images", str(asked.images)]
    plain = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_")}
    rows = []
    for _ in range(asked.rounds):
        for way, setting in WAYS.items():
            ran = subprocess.run(command, env=plain | setting, capture_output=True, check=True)
            rows.append({"way": way} | json.loads(ran.stdout))
    costs = pd.DataFrame(rows)
    medians = costs.groupby("way", sort=False).median().round(2)
    before, kept = (costs.loc[costs["way"] == way, "seconds"].to_numpy() for way in WAYS)
    faster = round(float(pd.Series(before / kept).median()), 2)
    write("allocator", {"images": asked.images, "rounds": asked.rounds,
                        "ways": medians.to_dict("index"), "faster": faster})  # fmt: skip
    print(medians.to_markdown(), f"\nkept is {faster} x as fast")


if __name__ == "__main__":
    main()
