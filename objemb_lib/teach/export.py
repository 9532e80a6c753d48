"""Networks as ONNX: for a browser (``show/front/network.js``), or another engine.

A trunk comes in two parts, the *body* up to the map that a student's branch cuts, and the *tail*
after it. A whole map goes through both, and boxes are cut out of what comes; or they are cut out of
the body's map, and each goes through the tail alone. The same two parts serve both orders.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from objemb_lib.attend.proposer import KEPT, Proposer
from objemb_lib.embed.compiled import to_onnx
from objemb_lib.embed.trunks import Trunk
from objemb_lib.teach.student import EmbeddingHead

CUT, INSIDE = "stage4", "stage5"  # the body's map; one of the tail that the proposer looks at, too


class _Body(nn.Module):
    def __init__(self, trunk: Trunk) -> None:
        super().__init__()
        self.trunk = trunk

    def forward(self, pixels: Tensor) -> Tensor:
        return self.trunk(self.trunk.normalise(pixels.permute(0, 3, 1, 2)), CUT)[CUT]


class _Tail(nn.Module):
    def __init__(self, layers: nn.Sequential, last: int) -> None:
        super().__init__()
        self.first, self.last = layers[: len(layers) - last], layers[len(layers) - last :]

    def forward(self, cut: Tensor) -> tuple[Tensor, Tensor]:
        inside = self.first(cut)
        return inside, self.last(inside)


class _Proposer(nn.Module):
    def __init__(self, proposer: Proposer) -> None:
        super().__init__()
        self.proposer = proposer

    def forward(self, *maps: Tensor) -> tuple[Tensor, Tensor]:
        return self.proposer(dict(zip(KEPT, maps)))


def body(trunk: Trunk) -> bytes:
    """ONNX: ``pixels`` ``(N, H, W, 3)`` uint8, as :func:`regions.model_input` gives them, to the
    map :data:`CUT`; sides are multiples of 32."""
    pixels = torch.zeros(2, 64, 64, 3, dtype=torch.uint8)
    return to_onnx(_Body(trunk), {"pixels": pixels}, [CUT], (0, 1, 2))


def tail(trunk: Trunk, branch: EmbeddingHead | None = None) -> bytes:
    """ONNX: :data:`CUT`, or parts of it, of even sides, to the maps :data:`INSIDE` and ``head``.

    Args:
        branch: whose layers it is to have, on the body ``trunk``; default all of the trunk's own.
    """
    layers = branch.layers(trunk) if branch else nn.Sequential(*trunk.after(CUT))
    cut = torch.zeros(2, trunk.stages[CUT].channels, 8, 8)
    module = _Tail(layers, len(trunk.after(INSIDE)))
    return to_onnx(module, {CUT: cut}, [INSIDE, "head"], (0, 2, 3))


def proposer(network: Proposer) -> bytes:
    """ONNX: the maps of :data:`proposer.KEPT` of one image, of any size, to ``boxes`` and
    ``scores`` of :meth:`Proposer.forward`; :meth:`Proposer.best` is left to do."""
    maps = {stage: torch.zeros(1, network.channels[stage], 16, 16) for stage in KEPT}
    return to_onnx(_Proposer(copy.deepcopy(network).cpu()), maps, ["boxes", "scores"], (2, 3))
