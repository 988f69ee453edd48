"""Checkpoints of mmdetection 2 and 3: Faster and Mask R-CNN with a ResNet or ResNeXt trunk.

Its background class comes last and has no box deltas and no mask; ours comes first and has both, as zero rows.
"""

from __future__ import annotations

from .detectron2 import CLASS_LAYOUTS
from .names import Naming

_C4_HEAD = "roi_heads.box.feature_extractor.head"


def _pyramid() -> list[tuple[str, str]]:
    pairs = []
    for level in range(4):
        pairs.append((f"neck.lateral_convs.{level}.conv.*", f"backbone.fpn.fpn_inner{level + 1}.*"))
        pairs.append((f"neck.fpn_convs.{level}.conv.*", f"backbone.fpn.fpn_layer{level + 1}.*"))
    return pairs


_TRUNK = [
    ("backbone.conv1.weight", "backbone.body.stem.conv1.weight"),
    ("backbone.bn1.*", "backbone.body.stem.bn1.*"),
    ("backbone.layer#.#.**", "backbone.body.layer#.#.**"),
]
_HEADS = [
    ("rpn_head.rpn_conv.*", "rpn.head.conv.*"),
    ("rpn_head.rpn_cls.*", "rpn.head.cls_logits.*"),
    ("rpn_head.rpn_reg.*", "rpn.head.bbox_pred.*"),
    ("roi_head.shared_head.layer4.**", f"{_C4_HEAD}.layer4.**"),
    ("roi_head.bbox_head.shared_fcs.0.*", "roi_heads.box.feature_extractor.fc6.*"),
    ("roi_head.bbox_head.shared_fcs.1.*", "roi_heads.box.feature_extractor.fc7.*"),
    ("roi_head.bbox_head.fc_cls.*", "roi_heads.box.predictor.cls_score.*"),
    ("roi_head.bbox_head.fc_reg.*", "roi_heads.box.predictor.bbox_pred.*"),
    ("roi_head.mask_head.upsample.*", "roi_heads.mask.predictor.conv5_mask.*"),
    ("roi_head.mask_head.conv_logits.*", "roi_heads.mask.predictor.mask_fcn_logits.*"),
]
_HEADS += [(f"roi_head.mask_head.convs.{n}.conv.*", f"roi_heads.mask.feature_extractor.mask_fcn{n + 1}.*") for n in range(4)]

DETECTION = Naming(
    kind="mmdetection",
    marks=("rpn_head.rpn_conv.weight", "roi_head.bbox_head.fc_cls.weight", "neck.lateral_convs.#.conv.weight"),
    names=tuple(_TRUNK + _pyramid() + _HEADS),
    layouts=CLASS_LAYOUTS,
)
