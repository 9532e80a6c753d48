"""Detectors on our trunks: Faster R-CNN, Mask R-CNN and FCOS, built from torchvision's parts.

The same trunk before and after detection training is the point: a detector starts from the
trunk's ImageNet weights, and hands them back, changed, as a trunk
(:class:`features.DetectorTrunk`).

``build``     the networks                    ``weights``  shipped files and their cards
``targets``   a data set as training targets  ``coco``     torchvision's own, trained on COCO
``features``  a detector as a trunk           ``metrics``  COCO AP and recall
"""

from objemb_lib.detect.detectors import KINDS, Detector, build_detector
from objemb_lib.detect.features import DetectorTrunk
from objemb_lib.detect.metrics import detect
from objemb_lib.detect.weights import cards_table, load_detector, read_card, with_cards

__all__ = [
    "KINDS",
    "Detector",
    "DetectorTrunk",
    "build_detector",
    "cards_table",
    "detect",
    "load_detector",
    "read_card",
    "with_cards",
]
