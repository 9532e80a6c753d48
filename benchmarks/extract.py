"""How fast is extraction, against the loop that people write first?

    python benchmarks/extract.py [--images 256] [--rounds 5] [--bf16]

Bare forward passes of Lite0 at 256 px on decoded images, each change added to the one before;
then the whole pipeline from JPEG files to vectors, as medians. ``--bf16`` also says what bf16 does
to R@1 on the battle split: why nobody gets it without asking. Needs mini-battles. Writes
benchmarks/results/extract.json.
"""

from __future__ import annotations

import copy
import json
import statistics

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torchvision.transforms import functional as transforms
from turns import RESULTS, arguments, in_turns, write

from objemb_lib.data.mini_battles import mini_battles
from objemb_lib.embed.extract import ExtractOptions, extract
from objemb_lib.embed.regions import WHOLE, crop, model_input
from objemb_lib.embed.trunks import Trunk, load_trunk
from objemb_lib.embed.whitening import l2
from objemb_lib.measure.intervals import paired_difference
from objemb_lib.measure.metrics import evaluate

CPU = torch.device("cpu")
BF16 = "bf16_change_of_recall_at_1_in_points"
FIRST, BARE, LOOP, OURS = (
    "forward: as loaded, batch 32", "forward: + batch 4 (shipped)",
    "first loop, files to vectors", "extract, files to vectors",
)  # fmt: skip


def first_loop(trunk: Trunk, dataset) -> None:
    """Open, transform, stack 32, forward, average: what one writes first."""
    for start in range(0, len(dataset), 32):
        batch = []
        for file in dataset.files[start : start + 32]:
            image = Image.open(dataset.root / file).convert("RGB")
            tensor = transforms.to_tensor(transforms.resize(image, [256, 256]))
            batch.append(transforms.normalize(tensor, trunk.mean.flatten(), trunk.std.flatten()))
        with torch.no_grad():
            trunk(torch.stack(batch))["head"].mean(dim=(2, 3))


@torch.inference_mode()
def forward(trunk: Trunk, pixels: torch.Tensor, size: int, layout: torch.memory_format) -> None:
    """Forward passes over normalised images in batches of ``size``."""
    for batch in pixels.split(size):
        trunk(batch.contiguous(memory_format=layout))


def speeds(dataset, trunk: Trunk, rounds: int) -> dict[str, float]:
    """Median images a second of each variant."""
    stack = np.stack([model_input(dataset.image(i), 256) for i in range(len(dataset))])
    pixels = trunk.normalise(torch.from_numpy(stack).permute(0, 3, 1, 2).contiguous())
    last, pair = torch.channels_last, [("head", "gem")]
    plain_last = copy.deepcopy(trunk).to(memory_format=last)
    fast, half = trunk.for_inference(CPU), trunk.for_inference(CPU, "bf16")
    fresh, cached = (ExtractOptions(cache=cache, progress=False) for cache in (False, True))
    variants = {
        LOOP: lambda: first_loop(trunk, dataset),
        FIRST: lambda: forward(trunk, pixels, 32, torch.contiguous_format),
        "forward: + channels last": lambda: forward(plain_last, pixels, 32, last),
        "forward: + batch norm folded": lambda: forward(fast, pixels, 32, last),
        BARE: lambda: forward(fast, pixels, 4, last),
        "forward: + bf16 (not shipped)": lambda: forward(half, pixels.bfloat16(), 4, last),
        OURS: lambda: extract(dataset, trunk, pair, options=fresh),
        "extract again, from the cache": lambda: extract(dataset, trunk, pair, options=cached),
    }
    seconds = in_turns(variants, rounds)
    return {name: len(dataset) / statistics.median(s) for name, s in seconds.items()}


def bf16_costs(trunk: Trunk) -> dict[str, str]:
    """Points of R@1 on the battle split that bf16 adds, with their intervals."""
    battle, found = mini_battles("battle"), {}
    pairs = [("head", "spoc"), ("head", "gem")]
    for region in (WHOLE, crop(battle)):
        half, full = (
            extract(battle, trunk, pairs, region, ExtractOptions(precision=p, progress=False))
            for p in ("bf16", "fp32")
        )
        for pair in pairs:
            scores = [evaluate(l2(vectors[pair]), battle) for vectors in (half, full)]
            change = paired_difference(*scores, "R@1")
            ends = (f"{100 * v:+.2f}" for v in (change.low, change.high))
            found[f"{region.name}, {pair[1]}"] = f"{100 * change.value:+.2f} [{', '.join(ends)}]"
    return found


def main() -> None:
    """Measure, print, keep."""
    asked = arguments(__doc__, images=256, rounds=5, bf16=False)
    trunk, dataset = load_trunk(), mini_battles("battle").subset(range(asked.images))
    found = pd.Series(speeds(dataset, trunk, asked.rounds))
    print(pd.DataFrame({"images/s": found, "x as loaded": found / found[FIRST]}).round(2))
    overhead = found[BARE] / found[OURS] - 1
    print(f"pipeline over the bare forward pass: {100 * overhead:+.0f} % time")
    earlier = RESULTS / "extract.json"
    bf16 = json.loads(earlier.read_text()).get(BF16, {}) if earlier.exists() else {}
    if asked.bf16:
        bf16 = bf16_costs(trunk)
        print(f"bf16 moves R@1: {bf16}")
    write("extract", {
        "images": asked.images, "rounds": asked.rounds,
        "images_per_second": found.round(1).to_dict(),
        "pipeline_overhead": round(overhead, 3), BF16: bf16,
    })  # fmt: skip


if __name__ == "__main__":
    main()
