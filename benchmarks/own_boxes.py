"""Train a detector on your own annotated photographs, and score it on others.

    python benchmarks/own_boxes.py PHOTOS BOXES.json OTHERS OTHERS.json [--steps 300]

The boxes are COCO files whose `file_name` are relative to their folder, with the same categories
in both. The trunk starts from its ImageNet weights, the schedule is that of `make train` with
fewer steps. Prints COCO AP and the recall of main objects on the others. Checkpoints go to
runs/train/: started again after a kill, it goes on where it stopped.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from objemb_lib import config
from objemb_lib.course.train import SCHEDULE, train_detector
from objemb_lib.data.folder import folder
from objemb_lib.detect.detectors import KINDS
from objemb_lib.detect.metrics import score_detector
from objemb_lib.embed.trunks import load_trunk
from objemb_lib.teach.training import read_log


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name in ("photos", "boxes", "others", "others_boxes"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--kind", choices=KINDS, default="faster_rcnn")
    parser.add_argument("--steps", type=int, default=300)
    asked = parser.parse_args()
    data = folder(asked.photos, asked.boxes)
    others = folder(asked.others, asked.others_boxes)
    place = f"{asked.kind}-{data.fingerprint[:12]}-{asked.steps}"
    run = config.PROJECT / "runs" / "train" / place
    schedule = replace(SCHEDULE, steps=asked.steps, snapshots=(0,))
    detector = train_detector(asked.kind, data, load_trunk(), run, schedule)
    log = read_log(run)
    for line in (log[0], log[-1]):
        losses = {key: value for key, value in line.items() if key not in ("step", "seconds")}
        print(f"step {line['step']:4}, {line['seconds'] / 60:.1f} minutes: loss", end=" ")
        print(f"{sum(losses.values()):.3f}", losses)
    for told in (data, others):
        print(f"{told}, categories: {len(told.category_names)}")
        for metric, value in score_detector(detector, told).items():
            print(f"  {metric:32} {value:.3f}")


if __name__ == "__main__":
    main()
