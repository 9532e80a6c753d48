"""The exported search network gives torch's numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from objemb_lib.attend.proposer import load_proposer
from objemb_lib.embed.trunks import load_trunk
from objemb_lib.teach.export import MAPS, SearchNetwork, export_onnx


@torch.inference_mode()
def test_onnx_gives_the_same_numbers_from_the_pixels_on(tmp_path: Path) -> None:
    runtime = pytest.importorskip("onnxruntime", reason="`make extras` installs onnxruntime")
    network = SearchNetwork(load_trunk(), load_proposer())
    session = runtime.InferenceSession(export_onnx(network, tmp_path / "search.onnx"))
    for images in (1, 3):
        pixels = np.random.default_rng(images).integers(0, 256, (images, 256, 256, 3), np.uint8)
        found = session.run([*MAPS, "boxes", "scores"], {"pixels": pixels})
        for ours, theirs in zip(network(torch.from_numpy(pixels)), found):
            assert np.abs(ours.numpy() - theirs).max() < 1e-4
