"""Checkpoints of torchvision: Faster and Mask R-CNN with a ResNet FPN, and ResNet classifiers.

Class order, deltas and masks are laid out as here. Older files call the same layers without the inner ``.0``.
"""

from __future__ import annotations

from .names import Naming

_INPUT = "RGB, 0..1, minus (0.485, 0.456, 0.406) over (0.229, 0.224, 0.225); stride in the 3x3 convolution"


def _trunk(theirs: str) -> list[tuple[str, str]]:
    """torchvision's ResNet lacks only our name for the stem."""
    return [
        (f"{theirs}conv1.weight", "backbone.body.stem.conv1.weight"),
        (f"{theirs}bn1.*", "backbone.body.stem.bn1.*"),
        (f"{theirs}layer#.#.**", "backbone.body.layer#.#.**"),
    ]


def _pyramid() -> list[tuple[str, str]]:
    pairs = []
    for level in range(4):
        for theirs, ours in (("inner_blocks", "fpn_inner"), ("layer_blocks", "fpn_layer")):
            pairs.append((f"backbone.fpn.{theirs}.{level}.0.*", f"backbone.fpn.{ours}{level + 1}.*"))
            pairs.append((f"backbone.fpn.{theirs}.{level}.*", f"backbone.fpn.{ours}{level + 1}.*"))
    return pairs


_HEADS = [
    ("rpn.head.conv.0.0.*", "rpn.head.conv.*"),
    ("rpn.head.conv.*", "rpn.head.conv.*"),
    ("rpn.head.cls_logits.*", "rpn.head.cls_logits.*"),
    ("rpn.head.bbox_pred.*", "rpn.head.bbox_pred.*"),
    ("roi_heads.box_head.fc#.*", "roi_heads.box.feature_extractor.fc#.*"),
    ("roi_heads.box_predictor.*.*", "roi_heads.box.predictor.*.*"),
    ("roi_heads.mask_head.mask_fcn#.*", "roi_heads.mask.feature_extractor.mask_fcn#.*"),
    ("roi_heads.mask_predictor.*.*", "roi_heads.mask.predictor.*.*"),
    ("roi_heads.keypoint_predictor.kps_score_lowres.*", "roi_heads.keypoint.predictor.kps_score_lowres.*"),
]
# The heads are Sequentials: masks have a block for each convolution, keypoints a ReLU after each.
_HEADS += [(f"roi_heads.mask_head.{n}.0.*", f"roi_heads.mask.feature_extractor.mask_fcn{n + 1}.*") for n in range(4)]
_HEADS += [(f"roi_heads.keypoint_head.{2 * n}.*", f"roi_heads.keypoint.feature_extractor.conv_fcn{n + 1}.*") for n in range(8)]

DETECTION = Naming(
    kind="torchvision (FPN)",
    marks=("backbone.fpn.inner_blocks.**",),
    names=tuple(_trunk("backbone.body.") + _pyramid() + _HEADS),
    expects=_INPUT,
)
CLASSIFICATION = Naming(
    kind="ImageNet (torchvision)",
    marks=("layer1.0.conv1.weight",),
    names=tuple(_trunk("")),
    dropped=(("fc.*", "ImageNet classifier"),),
    backbone_only=True,
    expects=_INPUT,
)
