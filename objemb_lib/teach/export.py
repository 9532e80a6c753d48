"""The search's network as ONNX: for a browser (``show/front/network.js``), or another engine."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from objemb_lib.attend.proposer import Proposer
from objemb_lib.embed.trunks import Trunk

MAPS = ("stage4", "head")  # of the trunk, whose boxes are pooled


class SearchNetwork(nn.Module):
    """A trunk and the proposer on its maps: all that a photograph costs once, however many boxes.

    Both are copied, to the CPU.
    """

    def __init__(self, trunk: Trunk, proposer: Proposer) -> None:
        super().__init__()
        self.trunk = trunk.for_inference(torch.device("cpu"))
        self.proposer = copy.deepcopy(proposer).cpu().eval()

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        """The maps of :data:`MAPS`, and boxes and scores of :meth:`Proposer.forward`.

        Args:
            pixels: ``(N, S, S, 3)`` uint8, as :func:`regions.model_input` gives them.
        """
        maps = self.trunk(self.trunk.normalise(pixels.permute(0, 3, 1, 2)))
        return *(maps[stage] for stage in MAPS), *self.proposer(maps)


def export_onnx(network: SearchNetwork, path: str | Path, size: int = 256) -> Path:
    """Write a network as ONNX, for any number of images. Needs onnxscript.

    Its input is ``pixels``, its outputs are the maps by name, ``boxes`` and ``scores``;
    :meth:`Proposer.best` is left to do.

    Args:
        size: side of what the trunk sees; the shipped proposer learned at 256.
    """
    given = torch.zeros(2, size, size, 3, dtype=torch.uint8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch about its own parts
        torch.onnx.export(
            network, (given,), path, input_names=["pixels"],
            output_names=[*MAPS, "boxes", "scores"], external_data=False, verbose=False,
            dynamic_shapes=({0: "images"},),
        )  # fmt: skip
    return Path(path)
