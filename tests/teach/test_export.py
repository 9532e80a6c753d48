"""The exported search network gives torch's numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

from objemb_lib.attend.proposer import load_proposer
from objemb_lib.embed.trunks import load_trunk
from objemb_lib.teach.export import MAPS, SearchNetwork, export_onnx


@pytest.mark.parametrize("size", [256, 384])
@torch.inference_mode()
def test_onnx_gives_the_same_numbers_from_the_pixels_on(size: int, tmp_path: Path) -> None:
    trunk, proposer = load_trunk(), load_proposer()
    network = SearchNetwork(trunk, proposer, size)
    session = onnxruntime.InferenceSession(export_onnx(network, tmp_path / "search.onnx"))
    assert (tmp_path / "search.onnx").stat().st_size < 16_000_000  # the weights are there once
    draw = np.random.default_rng(size).integers
    for images in (1, 3):
        given = {x: draw(0, 256, (images, s, s, 3), np.uint8) for x, s in network.inputs.items()}
        small, large = (
            trunk(trunk.normalise(torch.from_numpy(x).permute(0, 3, 1, 2)))
            for x in (given["pixels"], given.get("large", given["pixels"]))
        )
        found = session.run([*MAPS, "boxes", "scores"], given)
        for ours, theirs in zip([*(large[stage] for stage in MAPS), *proposer(small)], found):
            assert np.abs(ours.numpy() - theirs).max() < 1e-4
