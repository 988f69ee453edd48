"""Checkpoints of mmdetection 2 and 3: RetinaNet, Faster, Mask and Cascade R-CNN with a ResNet or ResNeXt trunk.

Its background class comes last and has no box deltas and no mask; ours comes first and has both, as zero rows.
"""

from __future__ import annotations

from .detectron2 import CLASS_LAYOUTS
from .names import Naming

_C4_HEAD = "roi_heads.box.feature_extractor.head"


def _pyramid(first: int) -> list[tuple[str, str]]:
    """The levels that are made from the trunk's stages; `first` is the number of the first in our names."""
    pairs = []
    for level, ours in enumerate(range(first, 5)):
        pairs.append((f"neck.lateral_convs.{level}.conv.*", f"backbone.fpn.fpn_inner{ours}.*"))
        pairs.append((f"neck.fpn_convs.{level}.conv.*", f"backbone.fpn.fpn_layer{ours}.*"))
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
_STAGES = [
    ("roi_head.bbox_head.#.shared_fcs.0.*", "roi_heads.box.feature_extractor.#.fc6.*"),
    ("roi_head.bbox_head.#.shared_fcs.1.*", "roi_heads.box.feature_extractor.#.fc7.*"),
    ("roi_head.bbox_head.#.fc_cls.*", "roi_heads.box.predictor.#.cls_score.*"),
    ("roi_head.bbox_head.#.fc_reg.*", "roi_heads.box.predictor.#.bbox_pred.*"),
    ("roi_head.mask_head.#.upsample.*", "roi_heads.mask.stages.#.predictor.conv5_mask.*"),
    ("roi_head.mask_head.#.conv_logits.*", "roi_heads.mask.stages.#.predictor.mask_fcn_logits.*"),
]
_STAGES += [(f"roi_head.mask_head.#.convs.{n}.conv.*", f"roi_heads.mask.stages.#.feature_extractor.mask_fcn{n + 1}.*") for n in range(4)]
_HEADS += [(f"roi_head.mask_head.convs.{n}.conv.*", f"roi_heads.mask.feature_extractor.mask_fcn{n + 1}.*") for n in range(4)]

_RETINANET = [
    ("neck.fpn_convs.3.conv.*", "backbone.fpn.top_blocks.p6.*"),
    ("neck.fpn_convs.4.conv.*", "backbone.fpn.top_blocks.p7.*"),
    ("bbox_head.retina_cls.*", "rpn.head.cls_logits.*"),
    ("bbox_head.retina_reg.*", "rpn.head.bbox_pred.*"),
]
for _n in range(4):  # in our towers each convolution is followed by a ReLU
    _RETINANET += [
        (f"bbox_head.cls_convs.{_n}.conv.*", f"rpn.head.cls_tower.{2 * _n}.*"),
        (f"bbox_head.reg_convs.{_n}.conv.*", f"rpn.head.bbox_tower.{2 * _n}.*"),
    ]

RETINANET = Naming(
    kind="mmdetection (RetinaNet)",
    marks=("bbox_head.retina_cls.weight",),
    names=tuple(_TRUNK + _pyramid(2) + _RETINANET),
)
DETECTION = Naming(
    kind="mmdetection",
    marks=("rpn_head.rpn_conv.weight", "roi_head.bbox_head.fc_cls.weight", "neck.lateral_convs.#.conv.weight"),
    names=tuple(_TRUNK + _pyramid(1) + _HEADS + _STAGES),
    layouts=CLASS_LAYOUTS,
)
