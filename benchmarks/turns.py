"""What benchmarks of speed share.

Variants take turns within each round, since a machine's speed drifts and others use it: what else
it does meets all alike. A first round warms up, and is not counted.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Callable, Mapping
from importlib.metadata import distributions
from pathlib import Path

from objemb_lib import config
from objemb_lib.cache import atomic_write_text

RESULTS = Path(__file__).parent / "results"
PEERS = ("numpy", "torch", "torchvision", "faiss-cpu", "scikit-learn", "chroma-hnswlib", "usearch",
         "onnxruntime")  # fmt: skip


def arguments(doc: str, **defaults: int | bool) -> argparse.Namespace:
    """The command line: an option for each default; False makes a switch of it."""
    parser = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, value in defaults.items():
        how = {"action": "store_true"} if value is False else {"type": int, "default": value}
        parser.add_argument(f"--{name}", **how)
    config.tune_process()  # as the course's entry points do
    return parser.parse_args()


def in_turns(variants: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each variant in each round."""
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for round_ in range(rounds + 1):
        for name, variant in variants.items():
            start = time.perf_counter()
            variant()
            if round_:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def write(name: str, report: dict) -> None:
    """Write ``results/<name>.json``, with the machine and what is measured with which versions;
    the machine's load is told, since it misleads."""
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    machine = {"cores": os.cpu_count(), "other_load": load, "machine": platform.machine()}
    there = {found.name: found.version for found in distributions() if found.name in PEERS}
    whole = machine | {"versions": dict(sorted(there.items()))} | report
    atomic_write_text(RESULTS / f"{name}.json", json.dumps(whole, indent=1) + "\n")
