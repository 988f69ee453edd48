"""Checkpoints of Detectron (Caffe2): detectors, and the ImageNet classifiers it starts from.

Its batch norms are folded to a scale and an offset, so the statistics are filled in as mean 0 and variance 1.
Classes already start with the background, and every class, the background too, has its four deltas.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .names import FOLDED, Loaded, Naming

_INPUT = "BGR, 0..255, minus (102.9801, 115.9465, 122.7717)"
_BODY = "backbone.body"
_C4_HEAD = "roi_heads.box.feature_extractor.head"
_BRANCHES = (
    ("branch1", "downsample.0", "downsample.1"),
    ("branch2a", "conv1", "bn1"),
    ("branch2b", "conv2", "bn2"),
    ("branch2c", "conv3", "bn3"),
)
_DROPPED = (
    ("**_momentum", "state of the optimizer"),
    ("lr", "state of the optimizer"),
    ("fc1000_*", "ImageNet classifier"),
    ("pred_*", "ImageNet classifier"),
    ("conv1_b", "the norm behind this convolution has the offset"),
    ("kps_score_w", "fixed bilinear upsampling"),
    ("kps_score_b", "fixed bilinear upsampling"),
)


def _norm(theirs: str, ours: str) -> list[tuple[str, str]]:
    """A folded batch norm or a group norm: scale and offset."""
    sorts = [(sort, letter, word) for sort in ("bn", "gn") for letter, word in (("s", "weight"), ("b", "bias"))]
    return [(f"{theirs}_{sort}_{letter}", f"{ours}.{word}") for sort, letter, word in sorts]


def _weight_and_bias(theirs: str, ours: str) -> list[tuple[str, str]]:
    return [(f"{theirs}_w", f"{ours}.weight"), (f"{theirs}_b", f"{ours}.bias")]


def _stage(number: int, ours: str) -> list[tuple[str, str]]:
    """``res<number>`` of the trunk; its blocks are numbered alike."""
    pairs = []
    for branch, conv, norm in _BRANCHES:
        pairs.append((f"res{number}_#_{branch}_w", f"{ours}.#.{conv}.weight"))
        pairs += _norm(f"res{number}_#_{branch}", f"{ours}.#.{norm}")
    return pairs


def _trunk(last_stage: str) -> list[tuple[str, str]]:
    stem = [("conv1_w", f"{_BODY}.stem.conv1.weight")]
    stem += _norm("res_conv1", f"{_BODY}.stem.bn1") + _norm("conv1", f"{_BODY}.stem.bn1")
    stages = [pair for number in (2, 3, 4) for pair in _stage(number, f"{_BODY}.layer{number - 1}")]
    return stem + stages + _stage(5, last_stage)


def _pyramid() -> list[tuple[str, str]]:
    """Laterals and outputs; theirs are named after the last block of a stage, so these pairs serve one direction only."""
    pairs = []
    for number in (2, 3, 4, 5):
        lateral = "" if number == 5 else "_lateral"  # the coarsest level has nothing above to be merged with
        pairs += _weight_and_bias(f"fpn_inner_res{number}_#_sum{lateral}", f"backbone.fpn.fpn_inner{number - 1}")
        pairs += _weight_and_bias(f"fpn_res{number}_#_sum", f"backbone.fpn.fpn_layer{number - 1}")
    return pairs


def _heads() -> list[tuple[str, str]]:
    plain = [
        ("conv_rpn", "rpn.head.conv"),
        ("conv_rpn_fpn2", "rpn.head.conv"),
        ("rpn_cls_logits", "rpn.head.cls_logits"),
        ("rpn_cls_logits_fpn2", "rpn.head.cls_logits"),
        ("rpn_bbox_pred", "rpn.head.bbox_pred"),
        ("rpn_bbox_pred_fpn2", "rpn.head.bbox_pred"),
        ("fc6", "roi_heads.box.feature_extractor.fc6"),
        ("fc7", "roi_heads.box.feature_extractor.fc7"),
        ("cls_score", "roi_heads.box.predictor.cls_score"),
        ("bbox_pred", "roi_heads.box.predictor.bbox_pred"),
        ("_[mask]_fcn#", "roi_heads.mask.feature_extractor.mask_fcn#"),
        ("conv5_mask", "roi_heads.mask.predictor.conv5_mask"),
        ("mask_fcn_logits", "roi_heads.mask.predictor.mask_fcn_logits"),
        ("conv_fcn#", "roi_heads.keypoint.feature_extractor.conv_fcn#"),
        ("kps_score_lowres", "roi_heads.keypoint.predictor.kps_score_lowres"),
    ]
    return [pair for theirs, ours in plain for pair in _weight_and_bias(theirs, ours)]


FPN = Naming(
    kind="Detectron (FPN)",
    marks=("fpn_inner_res5_#_sum_w",),
    names=tuple(_trunk(f"{_BODY}.layer4") + _pyramid() + _heads()),
    dropped=_DROPPED,
    expects=_INPUT,
)
C4 = Naming(
    kind="Detectron (C4)",
    marks=("conv_rpn_w", "bbox_pred_w"),
    names=tuple(_trunk(f"{_C4_HEAD}.layer4") + _heads()),
    dropped=_DROPPED,
    expects=_INPUT,
)
IMAGENET = Naming(
    kind="ImageNet (Caffe2)",
    marks=("res2_0_branch2a_w",),
    names=tuple(_trunk(f"{_BODY}.layer4")),
    dropped=_DROPPED,
    backbone_only=True,
    expects=_INPUT,
)


def with_statistics(loaded: Loaded) -> Loaded:
    """Add mean 0 and variance 1 to every folded batch norm, since group norms of the same names have none.

    Which of the two it is, their name tells: ``..._bn_s`` or ``..._gn_s``.
    """
    for ours, theirs in list(loaded.meta["source"].items()):
        if theirs.endswith("_bn_s"):
            weight = loaded.state_dict[ours]
            _add(loaded, ours, theirs, "running_mean", torch.zeros_like(weight))
            _add(loaded, ours, theirs, "running_var", torch.ones_like(weight))
    return loaded


def _add(loaded: Loaded, ours: str, theirs: str, word: str, value: Tensor) -> None:
    name = ours.removesuffix("weight") + word
    loaded.state_dict[name] = value
    loaded.meta["source"][name] = theirs + FOLDED
