"""How well a detector finds: COCO AP (by pycocotools) and recall of main objects."""

from __future__ import annotations

import contextlib
import io
import warnings
from functools import partial

import numpy as np
import torch
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torchvision.ops import box_iou
from tqdm.auto import tqdm

from objemb_lib import config
from objemb_lib.data.dataset import ImageDataset
from objemb_lib.detect.detectors import Detector, Target
from objemb_lib.embed.memory import until_it_fits


@torch.inference_mode()
def detect(
    detector: Detector,
    dataset: ImageDataset,
    batch_size: int = 8,
    progress: bool = True,
    masks: bool = True,
) -> list[Target]:
    """Detections of every image, in pixels of it, best first, on the CPU.

    Masks, where there are any, become COCO run-length encodings under ``"rles"``: the maps of
    all images at once would take gigabytes. ``masks=False`` leaves them out. ``batch_size`` is
    halved, with a warning, where memory runs out.
    """
    detector, found = detector.for_inference(config.device()), []
    for start in tqdm(
        range(0, len(dataset), batch_size), "detecting", unit="batch", disable=not progress
    ):
        every = range(start, min(start + batch_size, len(dataset)))
        some, batch_size = until_it_fits(
            partial(_detected, detector, dataset, every, masks), batch_size
        )
        found += some
    return found


def _detected(
    detector: Detector, dataset: ImageDataset, every: range, masks: bool, size: int
) -> list[Target]:
    """Detections of some images, ``size`` at once."""
    device, found = config.device(), []
    for start in range(0, len(every), size):
        pixels = [np.asarray(dataset.image(i)).copy() for i in every[start : start + size]]
        images = [torch.from_numpy(p).permute(2, 0, 1).to(device).float() / 255 for p in pixels]
        for one in detector(images):
            maps = one.pop("masks", None)
            one = {key: value.cpu() for key, value in one.items()}
            if maps is not None and masks:
                one["rles"] = [_encode(m) for m in (maps[:, 0] > 0.5).cpu().numpy()]
            found.append(one)
    return found


def _encode(mask: np.ndarray) -> dict:
    rle = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": rle["size"], "counts": rle["counts"].decode()}


def coco_ap(found: list[Target], dataset: ImageDataset, masks: bool = False) -> dict[str, float]:
    """COCO's average precision over classes: ``AP`` (IoU 0.5 to 0.95), ``AP50``, ``AP75``.

    What lies in a crowd counts neither as right nor as wrong.

    Args:
        found: as :func:`detect` gives them. masks: compare masks instead of boxes.
    Returns:
        values in 0..1; nan where the data set has no objects.
    Source: Lin et al., Microsoft COCO, 2014; computed by pycocotools.
    """
    truth = {"images": [], "annotations": [], "info": {}}
    truth["categories"] = [{"id": k + 1} for k in range(len(dataset.category_names))]
    guesses = []
    for i, detections in enumerate(found):
        truth["images"].append({"id": i + 1, **_size(dataset, i)})
        truth["annotations"] += _truth(dataset, i, masks)
        shapes = detections["rles"] if masks else _xywh(detections["boxes"].numpy())
        key = "segmentation" if masks else "bbox"
        for shape, label, score in zip(
            shapes, detections["labels"].tolist(), detections["scores"].tolist()
        ):
            guesses.append({"image_id": i + 1, "category_id": label, "score": score, key: shape})
    for number, annotation in enumerate(truth["annotations"], 1):
        annotation["id"] = number
    if not guesses:
        any_object = any(not one["iscrowd"] for one in truth["annotations"])
        return dict.fromkeys(("AP", "AP50", "AP75"), 0.0 if any_object else float("nan"))
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # pycocotools on numpy 2
        coco = COCO()
        coco.dataset = truth
        coco.createIndex()
        scored = COCOeval(coco, coco.loadRes(guesses), "segm" if masks else "bbox")
        scored.evaluate(), scored.accumulate(), scored.summarize()
    ap, ap50, ap75 = (float(v) if v >= 0 else float("nan") for v in scored.stats[:3])
    return {"AP": ap, "AP50": ap50, "AP75": ap75}


def _truth(dataset: ImageDataset, i: int, masks: bool) -> list[dict]:
    many, crowd = [], crowds(dataset, i)
    for k, (box, category) in enumerate(zip(dataset.boxes[i], dataset.box_categories[i])):
        if category < 0:
            continue
        (xywh,) = _xywh(np.asarray(box)[None])
        one = {"image_id": i + 1, "category_id": int(category) + 1, "bbox": xywh}
        one |= {"iscrowd": int(crowd[k]), "area": xywh[2] * xywh[3]}
        if masks:
            one["segmentation"] = dataset.masks[i][k]
            one["area"] = float(coco_mask.area(one["segmentation"]))
        many.append(one)
    return many


def _size(dataset: ImageDataset, i: int) -> dict[str, int]:
    """What COCO says of an image's size: as in its masks, which alone need it."""
    if dataset.masks is None or not len(dataset.masks[i]):
        return {"height": 1, "width": 1}
    height, width = dataset.masks[i][0]["size"]
    return {"height": height, "width": width}


def _xywh(boxes: np.ndarray) -> list[list[float]]:
    return np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], 1).astype(float).tolist()


def main_recall(
    found: list[Target], dataset: ImageDataset, top: int = 100, iou: float = 0.5
) -> np.ndarray:
    """``(N,)`` booleans: is the main object of each image among its ``top`` best detections?

    A detection counts whatever its category: to look at the right place is what hard attention
    needs. Images without a box count as not found.
    """
    hits = np.zeros(len(dataset), bool)
    for i, detections in enumerate(found):
        if len(dataset.boxes[i]) and len(detections["boxes"]):
            main = torch.from_numpy(np.asarray(dataset.boxes[i][:1], np.float32))
            hits[i] = bool((box_iou(main, detections["boxes"][:top]) >= iou).any())
    return hits


def crowds(dataset: ImageDataset, i: int) -> np.ndarray:
    """``(K,)`` booleans: which boxes of an image hold a crowd instead of one object."""
    stated = dataset.extra[i].get("iscrowd") if len(dataset.extra) else None
    return np.asarray(stated or [False] * len(dataset.boxes[i]), bool)
