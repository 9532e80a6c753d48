"""Detectors on our trunks: Faster R-CNN, Mask R-CNN and FCOS, built from torchvision's parts.

The same trunk before and after detection training is the point: a detector starts from the
trunk's ImageNet weights, and hands them back, changed, as a trunk
(:class:`features.DetectorTrunk`).

``build``     the networks                    ``train``    the schedule, and the command line
``targets``   a data set as training targets  ``weights``  shipped files and their cards
``features``  a detector as a trunk           ``metrics``  COCO AP and recall
"""

from objemb_lib.detectors.build import KINDS, Detector, build_detector

__all__ = ["KINDS", "Detector", "build_detector"]
