"""How well a detector finds: COCO AP (by pycocotools) and recall of main objects."""

from __future__ import annotations

import contextlib
import io
import warnings

import numpy as np
import torch
import torch.nn.functional as F
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torchvision.ops import box_convert, box_iou, clip_boxes_to_image
from torchvision.transforms.functional import pil_to_tensor
from tqdm.auto import tqdm

from objemb_lib import config
from objemb_lib.data.dataset import ImageDataset
from objemb_lib.detect.detectors import Detector, Target
from objemb_lib.embed.memory import until_it_fits

THIN = 64  # sides of an image, one by the other, beyond which a detector sees it padded


@torch.inference_mode()
def detect(
    detector: Detector,
    dataset: ImageDataset,
    batch_size: int = 4,
    progress: bool = True,
    masks: bool = True,
) -> list[Target]:
    """Detections of every image, as :class:`Detector` gives them, in pixels of it, on the CPU.

    Masks, where there are any, become COCO run-length encodings under ``"rles"``: the maps of
    all images at once would take gigabytes. ``batch_size`` is halved where memory runs out.
    """
    detector, found = detector.for_inference(config.device(), masks), []
    every = range(len(dataset))
    with tqdm(total=len(dataset), desc="detecting", unit="image", disable=not progress) as bar:
        while rest := every[len(found) :]:
            some, batch_size = until_it_fits(
                lambda size, rest=rest: _detected(detector, dataset, rest[:size], masks), batch_size
            )
            found += some
            bar.update(len(some))
    return found


def _detected(detector: Detector, dataset: ImageDataset, some: range, masks: bool) -> list[Target]:
    """Detections of some images, all at once."""
    pixels = [pil_to_tensor(dataset.image(i)).to(config.device()).float() / 255 for i in some]
    sizes, found = [image.shape[1:] for image in pixels], []
    least = [-(-max(size) // THIN) for size in sizes]  # or a side that is resized has no pixel
    images = [F.pad(image, (0, max(0, few - w), 0, max(0, few - h)))
              for image, (h, w), few in zip(pixels, sizes, least)]  # fmt: skip
    for one, (h, w), few in zip(detector(images), sizes, least):
        maps = one.pop("masks", None)
        one = {key: value.cpu() for key, value in one.items()}
        if min(h, w) < few:
            one |= {key: clip_boxes_to_image(one[key], (h, w))
                    for key in ("boxes", "proposals") if key in one}  # fmt: skip
        if maps is not None and masks:
            whole = (maps[:, 0, :h, :w] > 0.5).permute(1, 2, 0).cpu().numpy().astype(np.uint8)
            rles = coco_mask.encode(np.asfortranarray(whole))
            one["rles"] = [{**rle, "counts": rle["counts"].decode()} for rle in rles]
        found.append(one)
    return found


def coco_ap(found: list[Target], dataset: ImageDataset, masks: bool = False) -> dict[str, float]:
    """COCO's average precision over classes: ``AP`` (IoU 0.5 to 0.95), ``AP50``, ``AP75``.

    What lies in a crowd counts neither as right nor as wrong.

    Args:
        found: as :func:`detect` gives them. masks: compare masks instead of boxes.
    Returns:
        in 0..1; nan where the data set has no objects.
    Source: Lin et al., Microsoft COCO, 2014; computed by pycocotools.
    """
    truth = [one for i in range(len(found)) for one in _truth(dataset, i, masks)]
    guesses = [one for i, detections in enumerate(found) for one in _guesses(detections, i, masks)]
    if not guesses:  # pycocotools cannot count none
        any_object = any(not one["iscrowd"] for one in truth)
        return dict.fromkeys(("AP", "AP50", "AP75"), 0.0 if any_object else float("nan"))
    coco = COCO()
    coco.dataset = {
        "images": [{"id": i + 1, "height": 1, "width": 1} for i in range(len(found))],  # unused
        "annotations": [one | {"id": number} for number, one in enumerate(truth, 1)],
        "categories": [{"id": k + 1} for k in range(len(dataset.category_names))],
        "info": {},
    }
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # pycocotools on numpy 2
        coco.createIndex()
        scored = COCOeval(coco, coco.loadRes(guesses), "segm" if masks else "bbox")
        scored.evaluate(), scored.accumulate(), scored.summarize()
    ap, ap50, ap75 = (float(v) if v >= 0 else float("nan") for v in scored.stats[:3])
    return {"AP": ap, "AP50": ap50, "AP75": ap75}


def _guesses(detections: Target, i: int, masks: bool) -> list[dict]:
    """Detections of an image as COCO says them."""
    key = "segmentation" if masks else "bbox"
    boxes = box_convert(detections["boxes"], "xyxy", "xywh").tolist()
    shapes = detections["rles"] if masks else boxes
    said = zip(shapes, detections["labels"].tolist(), detections["scores"].tolist())
    return [{"image_id": i + 1, "category_id": label, "score": score, key: shape}
            for shape, label, score in said]  # fmt: skip


def _truth(dataset: ImageDataset, i: int, masks: bool) -> list[dict]:
    """Objects of an image as COCO says them; those of no known category are left out."""
    many, crowd = [], crowds(dataset, i)
    boxes = box_convert(torch.as_tensor(dataset.boxes[i]), "xyxy", "xywh").tolist()
    for k in np.flatnonzero(np.asarray(dataset.box_categories[i]) >= 0):
        one = {"image_id": i + 1, "category_id": int(dataset.box_categories[i][k]) + 1}
        one |= {"bbox": boxes[k], "iscrowd": int(crowd[k]), "area": boxes[k][2] * boxes[k][3]}
        if masks:
            one["segmentation"] = dataset.masks[i][k]
            one["area"] = float(coco_mask.area(one["segmentation"]))
        many.append(one)
    return many


def main_recall(found: list[Target], dataset: ImageDataset, top: int = 100) -> np.ndarray:
    """``(N,)`` booleans: do the ``top`` detections meet the main object (IoU 0.5), whatever they
    call it? Not where there is no true box."""
    hits = np.zeros(len(dataset), bool)
    for i, detections in enumerate(found):
        if len(dataset.boxes[i]) and len(detections["boxes"]):
            main = torch.from_numpy(np.asarray(dataset.boxes[i][:1], np.float32))
            hits[i] = bool((box_iou(main, detections["boxes"][:top]) >= 0.5).any())
    return hits


def score_detector(detector: Detector, dataset: ImageDataset, progress: bool = True) -> dict:
    """Metrics on unseen objects: recall of main ones, and COCO AP if the categories are known."""
    found = detect(detector, dataset, progress=progress)
    right, same = main_recall(found, dataset), detector.categories == tuple(dataset.category_names)
    scores = {f"box {name}": v for name, v in coco_ap(found, dataset).items()} if same else {}
    if detector.kind == "mask_rcnn" and same:
        scores |= {f"mask {n}": value for n, value in coco_ap(found, dataset, True).items()}
    scores["recall of main objects, IoU 0.5"] = float(right.mean())
    scores["the same, 5 best detections"] = float(main_recall(found, dataset, 5).mean())
    scores["detections an image"] = float(np.mean([len(one["boxes"]) for one in found]))
    return {name: round(value, 4) for name, value in scores.items()}


def crowds(dataset: ImageDataset, i: int) -> np.ndarray:
    """``(K,)`` booleans: which boxes of an image hold a crowd instead of one object."""
    stated = dataset.extra[i].get("iscrowd") if len(dataset.extra) else None
    return np.asarray(stated or [False] * len(dataset.boxes[i]), bool)
