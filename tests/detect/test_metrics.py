"""Detection metrics: small cases by hand, crowds, and recall against a slow second count."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco_mask
from tiny_scenes import rectangle, scenes, small
from torch import Tensor, nn
from torchvision.models.detection.roi_heads import RoIHeads

from objemb_lib.data.dataset import ImageDataset
from objemb_lib.detect.detectors import load_coco_detector
from objemb_lib.detect.metrics import coco_ap, detect, main_recall

ONE = [([(10, 10, 30, 30)], [0]), ([(20, 10, 40, 30)], [0])]  # two images, an object each


def detections(*rows: tuple, size: tuple[int, int] = (64, 48)) -> dict:
    """``(box, label, score)`` each; the masks fill the boxes."""
    boxes, labels, scores = zip(*rows) if rows else ((), (), ())
    return {
        "boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        "labels": torch.tensor(labels, dtype=torch.int64),
        "scores": torch.tensor(scores, dtype=torch.float32),
        "rles": [rectangle(box, size) for box in boxes],
    }


def truth(data: ImageDataset) -> list[dict]:
    """What a perfect detector finds."""
    return [
        detections(*((tuple(b.tolist()), int(c) + 1, 0.9) for b, c in zip(boxes, categories)))
        for boxes, categories in zip(data.boxes, data.box_categories)
    ]


@pytest.mark.parametrize("text", [True, False], ids=["text", "bytes"])
@pytest.mark.parametrize("masks", [False, True], ids=["boxes", "masks"])
def test_perfect_detections_have_ap_1(tmp_path: Path, masks: bool, text: bool) -> None:
    # A category without any object does not count, nor does an image without any.
    names = ("white thing", "black thing", "never seen")
    many = [([(4, 6, 30, 40), (36, 10, 60, 30)], [0, 1]), ([], []), ([(2, 20, 22, 46)], [0])]
    data = scenes(tmp_path, many, text=text, names=names)
    assert coco_ap(truth(data), data, masks) == {"AP": 1.0, "AP50": 1.0, "AP75": 1.0}


@pytest.mark.parametrize("masks", [False, True])
def test_false_and_inexact_detections_by_hand(tmp_path: Path, masks: bool) -> None:
    found = [
        detections(((10, 10, 30, 30), 1, 0.9), ((40, 30, 60, 46), 1, 0.8)),
        detections(((20, 10, 40, 30), 1, 0.7)),
    ]
    # Precision 1 up to recall 0.5, then 2/3: at COCO's 101 levels of recall, 51 and 50 of them.
    by_hand, data = (51 + 50 * 2 / 3) / 101, scenes(tmp_path, ONE)
    assert list(coco_ap(found, data, masks).values()) == pytest.approx([by_hand] * 3)
    # 20 x 13 of 20 x 20: an overlap of 0.65, right at 0.5, 0.55, 0.6 and 0.65 of ten levels.
    found = [detections(((x, 10, x + 20, 23), 1, 0.9)) for x in (10, 20)]
    assert coco_ap(found, data, masks) == pytest.approx({"AP": 0.4, "AP50": 1, "AP75": 0})


def test_masks_labels_and_images_must_agree(tmp_path: Path) -> None:
    data = scenes(tmp_path, ONE)
    small = [one | {"rles": [rectangle((0, 0, 8, 8), (64, 48))]} for one in truth(data)]
    assert coco_ap(small, data)["AP"] == 1 and coco_ap(small, data, masks=True)["AP"] == 0
    wrong = [{**one, "labels": one["labels"] + 1} for one in truth(data)]
    assert coco_ap(wrong, data)["AP50"] == 0
    assert coco_ap(truth(data)[::-1], data)["AP75"] == 0  # overlap 1/3


def test_nothing_found_is_zero_and_nothing_to_find_is_nan(tmp_path: Path) -> None:
    none = [detections(), detections()]
    assert coco_ap(none, scenes(tmp_path, ONE)) == {"AP": 0.0, "AP50": 0.0, "AP75": 0.0}
    empty = scenes(tmp_path / "b", [([], []), ([], [])])
    only_crowd = scenes(tmp_path / "c", ONE, crowds=[[True], [True]])
    some = [detections(((1, 1, 9, 9), 1, 0.5)), detections()]
    for data in (empty, only_crowd):
        for found in (none, some):
            assert all(math.isnan(value) for value in coco_ap(found, data).values())


@pytest.mark.parametrize("masks", [False, True])
def test_crowds_are_neither_right_nor_wrong(tmp_path: Path, masks: bool) -> None:
    many = [([(4, 4, 24, 24), (30, 4, 62, 44)], [0, 0])]
    data = scenes(tmp_path, many, crowds=[[False, True]])
    found = [detections(((32, 6, 40, 20), 1, 0.9), ((44, 10, 60, 30), 1, 0.8),
                        ((4, 4, 24, 24), 1, 0.3))]  # fmt: skip
    assert coco_ap(found, data, masks) == pytest.approx({"AP": 1, "AP50": 1, "AP75": 1})
    assert coco_ap([detections(((4, 4, 24, 24), 1, 0.3))], data, masks)["AP"] == pytest.approx(1)


def test_recall_counts_from_the_threshold_on(tmp_path: Path) -> None:
    data = scenes(tmp_path, [*ONE, ([], []), ONE[0]])  # one without a box, one without detections
    half = [detections(((10, 10, 30, 20), 2, 0.1)), detections(((20, 10, 40, 19.9), 1, 0.9))]
    half += [detections(((10, 10, 30, 30), 1, 0.9)), detections()]
    assert main_recall(half, data).tolist() == [1, 0, 0, 0]  # from 0.5 on, whatever the label
    late = [detections(((0, 0, 5, 5), 1, 0.9), ((10, 10, 30, 30), 1, 0.8)), *half[1:]]
    assert [main_recall(late, data, top)[0] for top in (1, 2)] == [False, True]


class Finder(nn.Module):
    """Finds what is white: its box and its mask, and next to it one pixel.

    Memory runs out where more than two images come at once.
    """

    def __init__(self) -> None:
        super().__init__()
        self.batches = []

    def for_inference(self, device: torch.device, masks: bool) -> Finder:
        return self.eval()

    def forward(self, images: list[Tensor]) -> list[dict[str, Tensor]]:
        assert not self.training and not torch.is_grad_enabled()
        if len(images) > 2:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        self.batches.append(len(images))
        return [self._one(image) for image in images]

    def _one(self, image: Tensor) -> dict[str, Tensor]:
        rows, columns = torch.nonzero(image.min(dim=0).values > 0.9).T
        one = torch.stack([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
        mask = 0.2 + 0.6 * (image.min(dim=0).values > 0.9).float()
        return {
            "boxes": torch.stack([one, one + 1]).float(),
            "labels": torch.ones(2, dtype=torch.int64),
            "scores": torch.tensor([0.9, 0.4]),
            "masks": torch.stack([mask, 0 * mask])[:, None],
        }


def test_detect_gives_every_image_its_own_also_where_memory_runs_out(tmp_path: Path) -> None:
    data = scenes(tmp_path, [([(k, 2 * k, 20 + k, 20 + k)], [0]) for k in range(1, 12)])
    finder = Finder().train()
    with pytest.warns(UserWarning, match="out of memory: 2 images at once"):
        found = detect(finder, data, batch_size=4, progress=False)
    assert finder.batches == [2] * 5 + [1] and len(found) == 11
    for one, boxes in zip(found, data.boxes):
        assert one["boxes"][0].tolist() == boxes[0].tolist() and "masks" not in one
        x0, y0, x1, y1 = boxes[0].astype(int)
        mask = coco_mask.decode(one["rles"][0])
        assert mask.shape == (48, 64) and mask[y0:y1, x0:x1].all()
        assert mask.sum() == (x1 - x0) * (y1 - y0) and not coco_mask.decode(one["rles"][1]).any()
    assert main_recall(found, data).all()
    perfect = [{k: v[:1] for k, v in one.items()} for one in found]
    assert coco_ap(perfect, data, masks=True)["AP"] == 1
    assert "rles" not in detect(finder, data, 2, progress=False, masks=False)[0]


def test_proposals_come_with_the_detections_in_pixels_of_the_image(tmp_path, monkeypatch) -> None:
    """Also where an attempt runs out of memory after it has proposed."""
    monkeypatch.setenv("OBJEMB_DEVICE", "cpu")
    data, detector = scenes(tmp_path, size=(128, 96)), small("faster_rcnn")
    network, real = detector.network, RoIHeads.forward

    def full(self: RoIHeads, features: dict, proposals: list, *more: object) -> tuple:
        if len(proposals) > 1:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return real(self, features, proposals, *more)

    monkeypatch.setattr(RoIHeads, "forward", full)
    with pytest.warns(UserWarning, match="out of memory"):
        found = detect(detector, data, batch_size=4, progress=False)
    for i, one in enumerate(found):
        pixels = torch.from_numpy(np.asarray(data.image(i)).copy()).permute(2, 0, 1) / 255
        with torch.inference_mode():
            batch, _ = network.transform([pixels])  # 128 x 96 pixels become 64 x 48
            (proposals,), _ = network.rpn(batch, network.backbone(batch.tensors))
        assert torch.allclose(one["proposals"], 2 * proposals, atol=0.05)
        assert len(one["proposals"]) > 5 and one["proposals"][:, 2].max() > 64
    assert "proposals" not in detect(small("fcos"), data, progress=False)[0]


@pytest.mark.parametrize("size", [(2000, 1), (1, 2000), (3000, 2), (1, 1), (700, 11)])
def test_images_however_thin_are_detected_in(size, tmp_path, on_cpu) -> None:
    """mindee/doctr#695: resized, a side had no pixel, and nobody said of which image."""
    Image.new("RGB", size, "red").save(tmp_path / "thin.png")
    Image.new("RGB", (90, 60)).save(tmp_path / "other.png")
    data = ImageDataset("some", "all", tmp_path, ["thin.png", "other.png"], [-1, -1])
    for name in ("torchvision/maskrcnn_resnet50_fpn", "torchvision/retinanet_resnet50_fpn"):
        torch.manual_seed(0)
        detector = load_coco_detector(name, pretrained=False, size=64)
        first, _ = detect(detector, data, masks=True, progress=False)
        for key in first.keys() & {"boxes", "proposals"}:
            assert (first[key] <= torch.tensor([*size, *size])).all() and (first[key] >= 0).all()
        assert all(one["size"] == [*size[::-1]] for one in first.get("rles", []))
