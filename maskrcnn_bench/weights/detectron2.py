"""Checkpoints of detectron2: detectors and ImageNet trunks, both directions.

Its background class comes last and has no box deltas and no mask; ours comes first and has both, as zero rows.
"""

from __future__ import annotations

import re
from functools import partial

import torch
from torch import Tensor

from .anchor_order import SIZE_MAJOR, anchor_grid, in_order
from .names import Layout, Naming, to_theirs

_C4_HEAD = "roi_heads.box.feature_extractor.head"
_DROPPED = (
    ("pixel_mean", "normalisation follows the configuration"),
    ("pixel_std", "normalisation follows the configuration"),
    ("proposal_generator.anchor_generator.cell_anchors.#", "anchors follow the configuration"),
    ("anchor_generator.cell_anchors.#", "anchors follow the configuration"),
    ("linear.*", "ImageNet classifier"),
)


def background_first(rows: Tensor) -> Tensor:
    """Move the last class, the background, to the front. [K, ...]"""
    return torch.roll(rows, 1, 0)


def background_last(rows: Tensor) -> Tensor:
    """Move the first class, the background, to the end. [K, ...]"""
    return torch.roll(rows, -1, 0)


def with_background(rows: Tensor, rows_per_class: int) -> Tensor:
    """Put zero rows for the background in front; a class-agnostic head so gets its unused half. [rows_per_class + rows, ...]"""
    return torch.cat([rows.new_zeros(rows_per_class, *rows.shape[1:]), rows])


def without_background(rows: Tensor, rows_per_class: int) -> Tensor:
    """Take the background's rows away."""
    return rows[rows_per_class:].clone()


def _padded(name: str, rows_per_class: int) -> Layout:
    return Layout(name, partial(with_background, rows_per_class=rows_per_class), partial(without_background, rows_per_class=rows_per_class))


CLASS_LAYOUTS = (
    Layout("roi_heads.box.predictor.cls_score.*", background_first, background_last),
    Layout("roi_heads.box.predictor.#.cls_score.*", background_first, background_last),
    _padded("roi_heads.box.predictor.#.bbox_pred.*", 4),
    _padded("roi_heads.box.predictor.bbox_pred.*", 4),
    _padded("roi_heads.mask.predictor.mask_fcn_logits.*", 1),
    _padded("roi_heads.mask.stages.#.predictor.mask_fcn_logits.*", 1),
)


def _trunk(theirs: str, last_stage: str, ours: str = "backbone.body") -> list[tuple[str, str]]:
    """Stem and stages; ``res5`` stands alone when a C4 head owns it."""
    pairs = [
        (f"{theirs}stem.conv1.norm.*", f"{ours}.stem.bn1.*"),
        (f"{theirs}stem.conv1.weight", f"{ours}.stem.conv1.weight"),
    ]
    for number in (2, 3, 4):
        pairs += _stage(f"{theirs}res{number}", f"{ours}.layer{number - 1}")
    return pairs + _stage(f"{theirs}res5", last_stage)


def _stage(theirs: str, ours: str) -> list[tuple[str, str]]:
    return [
        (f"{theirs}.#.shortcut.norm.*", f"{ours}.#.downsample.1.*"),
        (f"{theirs}.#.shortcut.weight", f"{ours}.#.downsample.0.weight"),
        (f"{theirs}.#.conv#.norm.*", f"{ours}.#.bn#.*"),
        (f"{theirs}.#.conv#.weight", f"{ours}.#.conv#.weight"),
        (f"{theirs}.#.conv#_offset.*", f"{ours}.#.conv#.offset.*"),
        (f"{theirs}.#.conv#.weight", f"{ours}.#.conv#.conv.weight"),  # written so; read by the first of the three
    ]


def _block(theirs: str, ours: str, norms: bool) -> list[tuple[str, str]]:
    """A convolution; with a norm behind it, it is the first of two layers here."""
    return [(f"{theirs}.norm.*", f"{ours}.1.*"), (f"{theirs}.*", f"{ours}.0.*")] if norms else [(f"{theirs}.*", f"{ours}.*")]


def _pyramid(norms: bool = False) -> list[tuple[str, str]]:
    pairs = []
    for number in (2, 3, 4, 5):
        pairs += _block(f"backbone.fpn_lateral{number}", f"backbone.fpn.fpn_inner{number - 1}", norms)
        pairs += _block(f"backbone.fpn_output{number}", f"backbone.fpn.fpn_layer{number - 1}", norms)
    return pairs


def _masks(norms: bool = False) -> list[tuple[str, str]]:
    return _block("roi_heads.mask_head.mask_fcn#", "roi_heads.mask.feature_extractor.mask_fcn#", norms)


def _box_convolutions() -> list[tuple[str, str]]:
    """The head of four convolutions and one linear layer; ours is flat, with convolution, norm and ReLU in a row."""
    pairs = []
    for stage in ("", "#."):
        theirs, ours = f"roi_heads.box_head.{stage}conv", f"roi_heads.box.feature_extractor.{stage}xconvs"
        for n in range(4):
            pairs += [(f"{theirs}{n + 1}.norm.*", f"{ours}.{3 * n + 1}.*"), (f"{theirs}{n + 1}.*", f"{ours}.{3 * n}.*")]
    return pairs


_HEADS = [
    ("proposal_generator.rpn_head.conv.*", "rpn.head.conv.*"),
    ("proposal_generator.rpn_head.objectness_logits.*", "rpn.head.cls_logits.*"),
    ("proposal_generator.rpn_head.anchor_deltas.*", "rpn.head.bbox_pred.*"),
    ("roi_heads.box_head.fc1.*", "roi_heads.box.feature_extractor.fc6.*"),
    ("roi_heads.box_head.fc2.*", "roi_heads.box.feature_extractor.fc7.*"),
    ("roi_heads.box_head.#.fc1.*", "roi_heads.box.feature_extractor.#.fc6.*"),
    ("roi_heads.box_head.#.fc2.*", "roi_heads.box.feature_extractor.#.fc7.*"),
    ("roi_heads.box_predictor.#.*.*", "roi_heads.box.predictor.#.*.*"),
    ("roi_heads.box_predictor.*.*", "roi_heads.box.predictor.*.*"),
    ("roi_heads.mask_head.deconv.*", "roi_heads.mask.predictor.conv5_mask.*"),
    ("roi_heads.mask_head.predictor.*", "roi_heads.mask.predictor.mask_fcn_logits.*"),
    ("roi_heads.keypoint_head.conv_fcn#.*", "roi_heads.keypoint.feature_extractor.conv_fcn#.*"),
    ("roi_heads.keypoint_head.score_lowres.*", "roi_heads.keypoint.predictor.kps_score_lowres.*"),
]
_RETINANET_HEADS = [
    ("backbone.top_block.p#.*", "backbone.fpn.top_blocks.p#.*"),
    ("head.cls_subnet.#.*", "rpn.head.cls_tower.#.*"),
    ("head.bbox_subnet.#.*", "rpn.head.bbox_tower.#.*"),
    ("head.cls_score.*", "rpn.head.cls_logits.*"),
    ("head.bbox_pred.*", "rpn.head.bbox_pred.*"),
]

RETINANET = Naming(
    kind="detectron2 (RetinaNet)",
    marks=("head.cls_subnet.#.weight",),
    names=tuple(_trunk("backbone.bottom_up.", "backbone.body.layer4") + _pyramid() + _RETINANET_HEADS),
    dropped=_DROPPED,
    anchor_order=SIZE_MAJOR,
)


def _fpn(kind: str, marks: tuple[str, ...], pyramid_norms: bool, mask_norms: bool) -> Naming:
    trunk = _trunk("backbone.bottom_up.", "backbone.body.layer4")
    names = (*trunk, *_pyramid(pyramid_norms), *_box_convolutions(), *_masks(mask_norms), *_HEADS)
    return Naming(kind, marks, names, _DROPPED, CLASS_LAYOUTS, anchor_order=SIZE_MAJOR)


FPN_NORMS = _fpn("detectron2 (FPN with norms)", ("backbone.fpn_lateral5.norm.weight",), pyramid_norms=True, mask_norms=True)
FPN_HEAD_NORMS = _fpn("detectron2 (FPN, norms in the heads)", ("roi_heads.mask_head.mask_fcn1.norm.weight",), False, mask_norms=True)
FPN = _fpn("detectron2 (FPN)", ("backbone.bottom_up.**", "backbone.fpn_lateral#.weight"), False, False)
C4 = Naming(
    kind="detectron2 (one level)",
    marks=("proposal_generator.rpn_head.conv.weight", "backbone.res2.0.conv1.weight"),
    names=tuple(_stage("roi_heads.res5", f"{_C4_HEAD}.layer4") + _trunk("backbone.", "backbone.body.layer4") + _masks() + _HEADS),
    dropped=_DROPPED,
    layouts=CLASS_LAYOUTS,
    anchor_order=SIZE_MAJOR,
)
IMAGENET = Naming(
    kind="ImageNet (detectron2)",
    marks=("stem.conv1.weight", "res2.0.conv1.weight"),
    names=tuple(_trunk("", "backbone.body.layer4")),
    dropped=_DROPPED,
    backbone_only=True,
)


# By which tensor of ours the kind to write is told; the first that is there decides.
_WRITTEN = (
    ("rpn.head.cls_tower.0.weight", RETINANET),
    ("backbone.fpn.fpn_inner4.0.weight", FPN_NORMS),
    ("roi_heads.mask.feature_extractor.mask_fcn1.0.weight", FPN_HEAD_NORMS),
    ("backbone.fpn.fpn_inner4.weight", FPN),
    ("", C4),
)


def to_detectron2(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """One of our models in detectron2's names, class order and order of anchors; ``{"model": ...}`` around it is what its loader reads.

    Args:
        state: ``model.state_dict()`` of a C4, DC5 or FPN model with ResNet trunk. Its anchors tell in which order they are counted;
            without them it is taken to be detectron2's.
    Raises:
        ValueError: a tensor has no counterpart there.
    """
    naming = next(naming for mark, naming in _WRITTEN if mark in state or not mark)
    # C4: the box head's own modules under a second name; anchors and a loss's average are no weights there.
    left_out = re.compile(r"roi_heads\.mask\.feature_extractor\.head\.|.*\.cell_anchors|rpn\.normalizer\.")
    state = in_order(state, anchor_grid(state), naming.anchor_order)
    return to_theirs(naming, {name: value for name, value in state.items() if not left_out.match(name)})
