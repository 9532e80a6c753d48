"""Exported networks give torch's numbers."""

from __future__ import annotations

import pytest
import torch
from onnxruntime import InferenceSession
from torch import Tensor

from objemb_lib.attend.proposer import KEPT, load_proposer
from objemb_lib.embed.pooling import POOLINGS
from objemb_lib.embed.trunks import load_trunk
from objemb_lib.teach import export
from objemb_lib.teach.student import StudentTrunk, cut_regions, load_student


def run(written: bytes, **given: Tensor) -> dict[str, Tensor]:
    """What a network that was written gives, by name."""
    session = InferenceSession(written)
    found = session.run(None, {name: x.numpy() for name, x in given.items()})
    return {out.name: torch.from_numpy(x) for out, x in zip(session.get_outputs(), found)}


def near(ours: Tensor, theirs: Tensor) -> bool:
    return bool((ours - theirs).abs().max() <= 1e-4 * ours.abs().max())


@torch.inference_mode()
def test_body_tail_and_proposer_give_the_same_numbers_from_the_pixels_on() -> None:
    trunk, proposer = load_trunk(), load_proposer()
    parts = export.body(trunk), export.tail(trunk), export.proposer(proposer)
    assert sum(map(len, parts)) < 16_000_000  # a page loads them
    draw = torch.Generator().manual_seed(0)
    for images, size in ((3, 256), (1, 256), (1, 384)):
        pixels = torch.randint(256, (images, size, size, 3), generator=draw, dtype=torch.uint8)
        ours = trunk(trunk.normalise(pixels.permute(0, 3, 1, 2)))
        maps = run(parts[0], pixels=pixels)
        maps |= run(parts[1], **maps)
        assert all(near(ours[stage], maps[stage]) for stage in KEPT)
        boxes, scores = proposer({stage: x[:1] for stage, x in ours.items()})
        found = run(parts[2], **{stage: x[:1] for stage, x in maps.items()})
        assert near(boxes, found["boxes"]) and near(scores, found["scores"])


@pytest.mark.parametrize("name, cells", [("student", [6]), ("fork", [8, 12, 16])])
@torch.inference_mode()
def test_the_branch_gives_the_same_numbers_of_regions_of_any_size(name, cells) -> None:
    trunk = StudentTrunk(load_student(name)).eval()
    branch, pixels = trunk.embedding, torch.rand(2, 3, 384, 384)
    sides = [[9.0, 5, 60, 50], [50, 40, 270, 260], [0, 0, 384, 384]][: len(cells)]
    boxes = [torch.tensor(sides)] * 2
    maps = trunk(trunk.normalise(pixels), export.CUT)
    ours = branch(trunk, maps, boxes)
    tail = export.tail(trunk, branch)
    for k, count in enumerate(cells):
        one = [some[k : k + 1] for some in boxes]
        cut = cut_regions(maps, branch.stage, one, count)
        pooled = POOLINGS[branch.pooling](run(tail, stage4=cut)["head"])
        vectors = torch.nn.functional.normalize(pooled, dim=1)
        assert near(ours[k :: len(cells)], vectors)


def test_a_student_shares_the_tail_that_it_was_not_trained_with() -> None:
    """So a page loads it once."""
    fork = StudentTrunk(load_student("fork")).for_inference(torch.device("cpu"))
    plain = load_trunk().for_inference(torch.device("cpu"))
    assert export.tail(fork, fork.embedding) == export.tail(plain)
