"""The search's network as ONNX: for a browser (``show/front/network.js``), or another engine."""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from torch import Tensor, nn

from objemb_lib.attend.proposer import Proposer
from objemb_lib.embed.compiled import write_onnx
from objemb_lib.embed.trunks import Trunk

MAPS = ("stage4", "head")  # of the trunk, whose boxes are pooled
PROPOSES = 256  # side in pixels of what the shipped proposer learned from


class SearchNetwork(nn.Module):
    """A trunk and the proposer on its maps: all that a photograph costs once, however many boxes.

    Both are copied, to the CPU.

    Args:
        size: side in pixels of what vectors come from; the proposer always looks at 256.
    """

    def __init__(self, trunk: Trunk, proposer: Proposer, size: int = PROPOSES) -> None:
        super().__init__()
        self.trunk = trunk.for_inference(torch.device("cpu"))
        self.proposer = copy.deepcopy(proposer).cpu().eval()
        self.inputs = {"pixels": PROPOSES} | ({} if size == PROPOSES else {"large": size})

    def forward(self, pixels: Tensor, large: Tensor | None = None) -> tuple[Tensor, ...]:
        """The maps of :data:`MAPS`, and boxes and scores of :meth:`Proposer.forward`.

        Args:
            pixels, large: ``(N, S, S, 3)`` uint8, as :func:`regions.model_input` gives them; those
                and of those sizes that ``inputs`` says.
        """
        maps = every = self._maps(pixels)
        if large is not None:
            maps = self._maps(large)
        return *(maps[stage] for stage in MAPS), *self.proposer(every)

    def _maps(self, pixels: Tensor) -> dict[str, Tensor]:
        return self.trunk(self.trunk.normalise(pixels.permute(0, 3, 1, 2)))


def export_onnx(network: SearchNetwork, path: str | Path) -> Path:
    """Write a network as ONNX, for any number of images.

    Inputs are called as in ``network.inputs``, outputs as the maps, ``boxes`` and ``scores``;
    :meth:`Proposer.best` is left to do.
    """
    given = {
        name: torch.zeros(2, size, size, 3, dtype=torch.uint8)
        for name, size in network.inputs.items()
    }
    write_onnx(network.eval(), given, [*MAPS, "boxes", "scores"], path, {0: "images"})
    return Path(path)
