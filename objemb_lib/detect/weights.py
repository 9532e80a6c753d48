"""Shipped networks: fp16 safetensors of a few megabytes, each with a card that says how it came.

The card states the command and seed that make it again, the data it learned from, its losses, its
metrics on unseen objects, and how retrieval changed while it learned.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import pandas as pd
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from objemb_lib import config
from objemb_lib.cache import atomic_path, atomic_write_text
from objemb_lib.config import DataError
from objemb_lib.data.archives import sha256_file
from objemb_lib.detect.detectors import KINDS, Detector, build_detector, load_coco_detector
from objemb_lib.embed.trunks import load_trunk

LIMIT = 12_000_000  # bytes a file: thirty people fetch it over one Wi-Fi
REMEDY = "Get the file again (git checkout objemb_lib/detect/shipped), or make it: `make train`."

Network = TypeVar("Network", bound=nn.Module)


def weights_root() -> Path:
    """Folder of the shipped weights: they come with the package."""
    return Path(__file__).parent / "shipped"


def save_weights(
    model: nn.Module, card: dict, name: str, root: Path | None = None, limit: int | None = LIMIT
) -> Path:
    """Write ``<name>.safetensors`` in half precision, and its card.

    Args:
        model: a detector or a student; what ``model.about()`` says goes on the card.
        card: what is known of the training. limit: bytes that the file may hold; None: any.
    Raises:
        DataError: a larger file, or a number that half precision lacks; nothing is written then.
    """
    path, state = (root or weights_root()) / f"{name}.safetensors", {}
    for key, tensor in model.state_dict().items():
        tensor = tensor.detach().cpu().contiguous()
        state[key] = tensor.half() if tensor.is_floating_point() else tensor
        if not torch.isfinite(state[key]).all():
            raise DataError(f"{key} does not fit into half precision", "Train again.")
    with atomic_path(path) as temporary:
        save_file(state, temporary)
        if limit and (size := temporary.stat().st_size) > limit:
            raise DataError(f"{path} would hold {size:,} bytes", "Make it slim.")
    first = model.about() | {"sha256": sha256_file(path)}  # what a reader looks for
    whole = first | card | first  # an earlier card's must not stay
    atomic_write_text(path.with_suffix(".json"), json.dumps(whole, indent=1) + "\n")
    return path


def update_card(name: str, more: dict, root: Path | None = None) -> dict:
    """A card with more said on it, written and returned."""
    card = read_card(name, root) | more
    path = (root or weights_root()) / f"{name}.json"
    atomic_write_text(path, json.dumps(card, indent=1) + "\n")
    return card


def read_card(name: str, root: Path | None = None) -> dict:
    """The card of a shipped network, or of one of runs/weights/.

    Raises DataError if there is none, or it is damaged.
    """
    path = _folder(name, root) / f"{name}.json"
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        known = ", ".join(sorted(p.stem for p in path.parent.glob("*.json"))) or "none"
        problem = f"no card of a detector called {name!r} ({path.name}: {error})"
        remedy = f"There are: {known}. `make train` makes the course's own."
        raise DataError(problem, remedy) from error


def _folder(name: str, root: Path | None) -> Path:
    places = [root] if root else [weights_root(), config.PROJECT / "runs" / "weights"]
    return next((place for place in places if (place / f"{name}.json").exists()), places[0])


def with_cards(names: Sequence[str]) -> list[str]:
    """Those of some detectors that were trained here, not downloaded."""
    return [name for name in names if not name.startswith("torchvision/")]


def cards_table(names: Sequence[str], root: Path | None = None) -> pd.DataFrame:
    """Steps and metrics that the cards of some detectors state; torchvision's have none."""
    cards = [read_card(name, root) for name in with_cards(names)]
    rows = [{"steps": card["schedule"]["steps"], **card["metrics on mini-battles/battle"]}
            for card in cards]  # fmt: skip
    return pd.DataFrame(rows, index=with_cards(names))


def load_detector(name: str, root: Path | None = None, size: int | None = None) -> Detector:
    """A detector by name.

    Args:
        name: ``faster_rcnn``, ``mask_rcnn`` or ``fcos``: shipped with the course;
            ``torchvision/MODEL[:WEIGHTS]``: see :func:`load_coco_detector`.
        size: shorter side of what one of torchvision's sees, default 800; ours have their own.
    """
    if name.startswith("torchvision/"):
        return load_coco_detector(name, size=size or 800)
    if "student" in read_card(name, root):
        raise DataError(f"{name} is a student", "Use load_student for it.")
    return load_network(name, root, build_from)


def load_network(name: str, root: Path | None, build: Callable[[dict], Network]) -> Network:
    """A shipped network: what ``build`` makes of its card, filled; half precision becomes single.

    Raises DataError for a file that is absent, damaged, or not the one of its card.
    """
    card, path = read_card(name, root), _folder(name, root) / f"{name}.safetensors"
    try:
        if sha256_file(path) != card["sha256"]:
            raise DataError(f"{path} is not the file that its card describes", REMEDY)
        model = build(card)
        model.load_state_dict(load_file(path))
    except (OSError, KeyError, RuntimeError, SafetensorError) as error:
        raise DataError(f"{path} cannot be loaded: {error}", REMEDY) from error
    return model.eval()


def build_from(card: dict) -> Detector:
    """The detector that a card describes, with random weights."""
    if card["kind"] not in KINDS:
        return load_coco_detector(card["kind"], pretrained=False, size=card["size"])
    trunk = load_trunk(card["trunk"], pretrained=False)
    frozen = card.get("frozen", "")
    return build_detector(card["kind"], trunk, card["categories"], card["size"], frozen=frozen)
