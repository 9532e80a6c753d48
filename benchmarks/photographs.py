"""Claim 1 on your own photographs: one sub-folder per object, model or species.

    python benchmarks/photographs.py FOLDER [FOLDER ...] [--classes 20]

The classification network against the bodies and box heads of the course's detectors, which have
never seen such photographs: whole images, the stage and pooling that notebook 02's train objects
choose. Prints each paired difference with its 95 % interval and its verdict.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from objemb_lib import claims
from objemb_lib.comparison import candidates, choose, few_scenes
from objemb_lib.datasets.folder import folder
from objemb_lib.datasets.mini_battles import mini_battles
from objemb_lib.detectors import KINDS, DetectorTrunk, load_detector
from objemb_lib.evaluate import evaluate
from objemb_lib.extract import extract
from objemb_lib.postprocess import l2
from objemb_lib.regions import CROP, WHOLE
from objemb_lib.trunks import load_trunk

STAGES = ("head", "stage5", "box_head")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER")
    parser.add_argument("--classes", type=int, help="only so many sub-folders of each")
    asked = parser.parse_args()
    networks = {"classification": load_trunk()}
    networks |= {kind: DetectorTrunk(load_detector(kind)) for kind in KINDS}
    train = few_scenes(mini_battles("train"), 3)
    chosen = {}
    for name, network in networks.items():
        pairs = [pair for pair in candidates(network) if pair[0] in STAGES]
        chosen[name] = choose(extract(train, network, pairs, CROP), train)
    differences = []
    for place in asked.folders:
        data = folder(place)
        if asked.classes:
            data = data.subset(np.isin(data.labels, np.unique(data.labels)[: asked.classes]))
        differences += compare(data, networks, chosen)
    print(claims.table(differences))
    print(claims.summary(differences))


def compare(data, networks, chosen) -> list[claims.Difference]:
    """Classification minus each detector: the same stage and pooling, and its box head."""
    usual, found = chosen["classification"]["body"], []
    ours = evaluate(l2(extract(data, networks["classification"], [usual])[usual]), data)
    print(f"{data}: classification {usual}, mAP {ours.interval('mAP')}")
    for name in KINDS:
        for way, pair in (("same stage", usual), ("box head", chosen[name]["box head"])):
            vectors = extract(data, networks[name], [pair], WHOLE)[pair]
            sides = ("classification", ours, name, evaluate(l2(vectors), data))
            found.append(claims.difference(1, f"whole image, {way}", *sides))
    return found


if __name__ == "__main__":
    main()
