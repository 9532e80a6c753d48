"""Shipped detectors: fp16 safetensors of a few megabytes, each with a card that says how it came.

``shipped/<kind>.safetensors`` holds the numbers, ``shipped/<kind>.json`` the card: the command
and seed that make it again, the data it learned from, its losses, its metrics on unseen objects,
and how retrieval changed while it learned.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from objemb_lib.cache import atomic_path, atomic_write_text
from objemb_lib.config import DataError
from objemb_lib.data.archives import sha256_file
from objemb_lib.detect.coco import COCO_DETECTORS, load_coco_detector
from objemb_lib.detect.detectors import Detector, build_detector
from objemb_lib.embed.trunks import load_trunk

LIMIT = 12_000_000  # bytes a file: thirty people fetch it over one Wi-Fi
REMEDY = "Get the file again (git checkout objemb_lib/detect/shipped), or make it: `make train`."

Network = TypeVar("Network", bound=nn.Module)


def weights_root() -> Path:
    """Folder of the shipped weights: they come with the package."""
    return Path(__file__).parent / "shipped"


def save_weights(detector: Detector, card: dict, name: str, root: Path | None = None) -> Path:
    """Write ``<name>.safetensors`` in half precision, and its card.

    Args:
        card: what is known of the training; what is needed to load the file is added.
    Raises:
        DataError: the file would be larger than :data:`LIMIT`.
    """
    return save_state(detector, card | about(detector), name, root)


def about(detector: Detector) -> dict:
    """What a card must say so that the detector can be built again."""
    return {
        "kind": detector.kind,
        "trunk": detector.trunk.name,
        "categories": list(detector.categories),
        "size": detector.size,
    }


def save_state(
    model: nn.Module, card: dict, name: str, root: Path | None = None, limit: int | None = None
) -> Path:
    """Any network as :func:`save_weights` writes a detector; the card gets the file's hash.

    Args:
        limit: bytes that the file may hold; default :data:`LIMIT`, 0: any number.
    """
    limit = LIMIT if limit is None else limit
    path = (root or weights_root()) / f"{name}.safetensors"
    state = {}
    for key, tensor in model.state_dict().items():
        tensor = tensor.detach().cpu()
        state[key] = (tensor.half() if tensor.is_floating_point() else tensor).contiguous()
        if tensor.is_floating_point() and not torch.isfinite(state[key]).all():
            raise DataError(f"{key} does not fit into half precision", "Train again.")
    with atomic_path(path) as temporary:
        save_file(state, temporary)
        if limit and temporary.stat().st_size > limit:
            raise DataError(
                f"{path} would hold {temporary.stat().st_size:,} bytes", "Make it slim."
            )
    # What a reader looks for comes first; an earlier card's hash must not stay.
    first = {key: card[key] for key in ("kind", "trunk", "categories", "size") if key in card}
    whole = first | {"sha256": sha256_file(path)} | {k: v for k, v in card.items() if k != "sha256"}
    atomic_write_text(card_path(name, root), json.dumps(whole, indent=1) + "\n")
    return path


def card_path(name: str, root: Path | None = None) -> Path:
    """Where a card lies."""
    return (root or weights_root()) / f"{name}.json"


def read_card(name: str, root: Path | None = None) -> dict:
    """The card of a shipped detector. Raises DataError if there is none, or it is damaged."""
    path = card_path(name, root)
    try:
        card = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(card, dict):
            raise ValueError("not a card")
        return card
    except (OSError, ValueError) as error:
        known = ", ".join(sorted(p.stem for p in path.parent.glob("*.json"))) or "none"
        raise DataError(
            f"no card of a detector called {name!r} ({path.name}: {error})",
            f"There are: {known}. `make train` makes the course's own.",
        ) from error


def with_cards(names: Sequence[str]) -> list[str]:
    """Those of some detectors that were trained here, not downloaded."""
    return [name for name in names if not name.startswith("torchvision/")]


def cards_table(names: Sequence[str], root: Path | None = None) -> str:
    """What the cards of some detectors say, as a Markdown table; torchvision's have none."""
    cards = {name: read_card(name, root) for name in with_cards(names)}
    scores = {name: card["metrics on mini-battles/battle"] for name, card in cards.items()}
    metrics = list(dict.fromkeys(metric for found in scores.values() for metric in found))
    head = ["detector", "steps", *metrics]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for name, card in cards.items():
        values = [f"{scores[name][m]:.2f}" if m in scores[name] else "" for m in metrics]
        lines.append("| " + " | ".join([name, str(card["schedule"]["steps"]), *values]) + " |")
    return "\n".join(lines) + "\n"


def load_detector(name: str, root: Path | None = None, size: int | None = None) -> Detector:
    """A detector by name.

    Args:
        name: ``faster_rcnn``, ``mask_rcnn`` or ``fcos``: shipped with the course;
            ``torchvision/MODEL`` or ``torchvision/MODEL:WEIGHTS``: trained on COCO, downloaded
            on first use, see :mod:`detectors.coco`.
        size: shorter side of what one of torchvision's sees, default 800; ours have their own.
    Raises:
        DataError: no such detector, or a file that is damaged or of another trunk.
        DownloadError: the weights cannot be fetched.
    """
    if name.startswith("torchvision/"):
        return load_coco_detector(name, size=size or 800)
    card, state, path = read_weights(name, root)
    if "student" in card:
        raise DataError(f"{name} is a student", "Use student.load_student for it.")
    return load_state(build_from(card, path), state, path)


def read_weights(name: str, root: Path | None = None) -> tuple[dict, dict[str, Tensor], Path]:
    """Card, state and file of a shipped network. Raises DataError if the file is not its card's."""
    card = read_card(name, root)
    path = (root or weights_root()) / f"{name}.safetensors"
    try:
        if sha256_file(path) != card["sha256"]:
            raise DataError(f"{path} is not the file that its card describes", REMEDY)
        return card, load_file(path), path
    except (OSError, KeyError, SafetensorError) as error:
        raise DataError(f"{path} cannot be loaded: {error}", REMEDY) from error


def build_from(card: dict, path: Path) -> Detector:
    """The detector that a card describes, with random weights."""
    try:
        if card["kind"] in COCO_DETECTORS:
            return load_coco_detector(card["kind"], pretrained=False, size=card["size"])
        trunk = load_trunk(card["trunk"], pretrained=False)
        return build_detector(card["kind"], trunk, card["categories"], card["size"])
    except KeyError as error:
        raise DataError(f"{path} cannot be loaded: its card lacks {error}", REMEDY) from error


def load_state(model: Network, state: dict[str, Tensor], path: Path) -> Network:
    """Fill a network; half precision becomes single. Raises DataError for another network's."""
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise DataError(
            f"{path} holds the weights of another network than {model}",
            "Name the trunk and the kind of detector that it was trained with.",
        ) from error
    return model.eval()
