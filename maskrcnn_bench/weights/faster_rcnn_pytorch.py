"""Checkpoints of faster-rcnn.pytorch, VGG-16 and ResNet; and VGG-16 classifiers, which it and torchvision call alike.

Classes already start with the background. Boxes that don't depend on the class have one set of deltas there and a second one,
for the background, here.
"""

from __future__ import annotations

from torch import Tensor

from .detectron2 import with_background, without_background
from .names import Layout, Naming

_INPUT = "BGR, 0..255, minus (102.9801, 115.9465, 122.7717), resized as float numbers"
_BOX = "roi_heads.box"
_C4_HEAD = f"{_BOX}.feature_extractor.head"
_HEADS = [
    ("RCNN_rpn.RPN_Conv.*", "rpn.head.conv.*"),
    ("RCNN_rpn.RPN_cls_score.*", "rpn.head.cls_logits.*"),
    ("RCNN_rpn.RPN_bbox_pred.*", "rpn.head.bbox_pred.*"),
    ("RCNN_cls_score.*", f"{_BOX}.predictor.cls_score.*"),
    ("RCNN_bbox_pred.*", f"{_BOX}.predictor.bbox_pred.*"),
]


def _padded(rows: Tensor) -> Tensor:
    return with_background(rows, 4) if len(rows) == 4 else rows


def _unpadded(rows: Tensor) -> Tensor:
    return without_background(rows, 4) if len(rows) == 8 and not rows[:4].any() else rows


_LAYOUTS = (Layout(f"{_BOX}.predictor.bbox_pred.*", _padded, _unpadded),)

VGG = Naming(
    kind="faster-rcnn.pytorch (VGG-16)",
    marks=("RCNN_base.28.weight",),
    names=(
        ("RCNN_base.#.*", "backbone.body.features.#.*"),
        ("RCNN_top.0.*", f"{_BOX}.feature_extractor.fc6.*"),
        ("RCNN_top.3.*", f"{_BOX}.feature_extractor.fc7.*"),
        *_HEADS,
    ),
    layouts=_LAYOUTS,
    expects=_INPUT,
)
RESNET = Naming(
    kind="faster-rcnn.pytorch (ResNet)",
    marks=("RCNN_base.4.0.conv1.weight",),
    names=(
        ("RCNN_base.0.weight", "backbone.body.stem.conv1.weight"),
        ("RCNN_base.1.*", "backbone.body.stem.bn1.*"),
        *((f"RCNN_base.{stage + 3}.#.**", f"backbone.body.layer{stage}.#.**") for stage in (1, 2, 3)),
        ("RCNN_top.0.#.**", f"{_C4_HEAD}.layer4.#.**"),
        *_HEADS,
    ),
    layouts=_LAYOUTS,
    expects=_INPUT,
)
VGG_CLASSIFICATION = Naming(
    kind="ImageNet (VGG-16)",
    marks=("features.28.weight",),
    names=(
        ("features.#.*", "backbone.body.features.#.*"),
        ("classifier.0.*", f"{_BOX}.feature_extractor.fc6.*"),
        ("classifier.3.*", f"{_BOX}.feature_extractor.fc7.*"),
    ),
    dropped=(("classifier.6.*", "ImageNet classifier"),),
    backbone_only=True,
    expects="their origin had it: Caffe's file BGR, 0..255, minus (102.9801, 115.9465, 122.7717); torchvision's RGB, 0..1, normalised",
)
