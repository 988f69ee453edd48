"""The model's drawing: from a configuration to plain values, one page. A border file: the only place that reads cfg.MODEL.

Each part is registered under the name that configurations use, and has the contract of its registry.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from functools import partial
from typing import Any

from torch import nn

from ..config.dialect import Dialect, get_dialect
from ..layers.blocks import FrozenBatchNorm2d, NormFactory, conv, group_norm
from . import registry
from .backbone.fpn import FPN, LastLevelMaxPool
from .backbone.resnet import ResNet, ResNetHead, StageBuilder
from .box_coder import BoxCoder
from .detector import GeneralizedRCNN, Normalizer
from .matcher import Matcher
from .poolers import Pooler
from .roi_heads.box_head import (
    BoxLoss,
    BoxPredictor,
    BoxTargets,
    Conv5FeatureExtractor,
    DetectionSelector,
    MLPFeatureExtractor,
    ROIBoxHead,
    XConvFeatureExtractor,
)
from .roi_heads.mask_head import MASK_TARGETS, MaskConv1x1Predictor, MaskDeconvPredictor, MaskFPNFeatureExtractor, MaskLoss, ROIMaskHead
from .roi_heads.roi_heads import CombinedROIHeads
from .rpn.anchor_generator import AnchorGenerator
from .rpn.rpn import ProposalSelector, RPNHead, RPNLoss, RPNModule
from .sampler import BalancedSampler


def _dialect(cfg: Any) -> Dialect:
    return get_dialect(cfg.MODEL.DIALECT)


def _box_coder(cfg: Any, weights: tuple[float, ...]) -> BoxCoder:
    d = _dialect(cfg)
    return BoxCoder(tuple(weights), d.pixel, d.decode_pixel, d.log_size_range)


@registry.META_ARCHITECTURES.register("GeneralizedRCNN")
def build_generalized_rcnn(cfg: Any) -> GeneralizedRCNN:
    backbone = registry.BACKBONES[_backbone_name(cfg)](cfg)
    return GeneralizedRCNN(
        normalizer=Normalizer(cfg.INPUT.PIXEL_MEAN, cfg.INPUT.PIXEL_STD, cfg.INPUT.TO_BGR255),
        backbone=backbone,
        rpn=build_rpn(cfg, backbone.out_channels),
        roi_heads=None if cfg.MODEL.RPN_ONLY else build_roi_heads(cfg, backbone.out_channels),
        size_divisible=cfg.DATALOADER.SIZE_DIVISIBILITY,
    )


# Backbones


def make_group_norm(cfg: Any) -> NormFactory:
    keys = cfg.MODEL.GROUP_NORM
    return partial(group_norm, num_groups=keys.NUM_GROUPS, channels_per_group=keys.DIM_PER_GP, eps=keys.EPSILON)


def make_norm(cfg: Any) -> NormFactory:
    """The trunk's norm: MODEL.RESNETS.NORM, or what the name of TRANS_FUNC says."""
    name = cfg.MODEL.RESNETS.NORM or ("GN" if cfg.MODEL.RESNETS.TRANS_FUNC.endswith("GN") else "FrozenBN")
    norms: dict[str, NormFactory] = {
        "FrozenBN": partial(FrozenBatchNorm2d, eps=_dialect(cfg).frozen_norm_eps),
        "BN": nn.BatchNorm2d,
        "SyncBN": nn.SyncBatchNorm,
        "GN": make_group_norm(cfg),
    }
    if name not in norms:
        raise ValueError(f"MODEL.RESNETS.NORM: expected one of {sorted(norms)}, got {name!r}")
    return norms[name]


_RESNET = re.compile(r"R-(\d+)-(C4|C5|FPN)$")


def _backbone_name(cfg: Any) -> str:
    """The registered name: all ResNets share one function a kind, whatever their depth."""
    found = _RESNET.match(cfg.MODEL.BACKBONE.CONV_BODY)
    return f"ResNet-{found[2]}" if found else cfg.MODEL.BACKBONE.CONV_BODY


def make_stage_builder(cfg: Any) -> StageBuilder:
    keys = cfg.MODEL.RESNETS
    found = _RESNET.match(cfg.MODEL.BACKBONE.CONV_BODY)
    return StageBuilder(
        depth=int(found[1]) if found else 50,
        stem_channels=keys.STEM_OUT_CHANNELS,
        res2_channels=keys.RES2_OUT_CHANNELS,
        width_per_group=keys.WIDTH_PER_GROUP,
        groups=keys.NUM_GROUPS,
        stride_in_1x1=keys.STRIDE_IN_1X1,
        res5_dilation=keys.RES5_DILATION,
        norm=make_norm(cfg),
    )


def _single_level_backbone(cfg: Any, stage: int) -> nn.Module:
    body = ResNet(make_stage_builder(cfg), (stage,), cfg.MODEL.BACKBONE.FREEZE_CONV_BODY_AT)
    backbone = nn.Sequential(OrderedDict(body=body))
    backbone.out_channels = body.out_channels_of_stages[-1]
    return backbone


@registry.BACKBONES.register("ResNet-C4")
def build_resnet_c4(cfg: Any) -> nn.Module:
    return _single_level_backbone(cfg, 3)


@registry.BACKBONES.register("ResNet-C5")
def build_resnet_c5(cfg: Any) -> nn.Module:
    return _single_level_backbone(cfg, 4)


@registry.BACKBONES.register("ResNet-FPN")
def build_resnet_fpn(cfg: Any) -> nn.Module:
    body = ResNet(make_stage_builder(cfg), (1, 2, 3, 4), cfg.MODEL.BACKBONE.FREEZE_CONV_BODY_AT)
    out_channels = cfg.MODEL.RESNETS.BACKBONE_OUT_CHANNELS
    norm = make_group_norm(cfg) if cfg.MODEL.FPN.USE_GN else None
    make_conv = partial(conv, norm=norm, relu=cfg.MODEL.FPN.USE_RELU)
    fpn = FPN(body.out_channels_of_stages, out_channels, make_conv, LastLevelMaxPool())
    backbone = nn.Sequential(OrderedDict(body=body, fpn=fpn))
    backbone.out_channels = out_channels
    return backbone


# Proposals


@registry.RPN_HEADS.register("SingleConvRPNHead")
def build_single_conv_rpn_head(cfg: Any, in_channels: int, num_anchors: int) -> RPNHead:
    return RPNHead(in_channels, num_anchors, cfg.MODEL.RPN.CONV_CHANNELS or in_channels)


def make_anchor_generator(cfg: Any) -> AnchorGenerator:
    keys, d = cfg.MODEL.RPN, _dialect(cfg)
    strides = tuple(keys.ANCHOR_STRIDE)
    if keys.USE_FPN:
        sizes = tuple(s if isinstance(s, (tuple, list)) else (s,) for s in keys.ANCHOR_SIZES)
    else:
        sizes = (tuple(keys.ANCHOR_SIZES),)
    return AnchorGenerator(sizes, tuple(keys.ASPECT_RATIOS), strides, d.anchor_rule, d.anchor_order, keys.STRADDLE_THRESH)


def make_proposal_selector(cfg: Any, box_coder: BoxCoder, train: bool) -> ProposalSelector:
    keys, d = cfg.MODEL.RPN, _dialect(cfg)
    return ProposalSelector(
        box_coder=box_coder,
        pre_nms_top_n=keys.PRE_NMS_TOP_N_TRAIN if train else keys.PRE_NMS_TOP_N_TEST,
        post_nms_top_n=keys.POST_NMS_TOP_N_TRAIN if train else keys.POST_NMS_TOP_N_TEST,
        fpn_post_nms_top_n=keys.FPN_POST_NMS_TOP_N_TRAIN if train else keys.FPN_POST_NMS_TOP_N_TEST,
        per_batch=train and keys.FPN_POST_NMS_PER_BATCH,
        nms_thresh=_nms_thresh(keys.NMS_THRESH, d),
        min_size=keys.MIN_SIZE,
        drop_empty=d.drop_empty,
        rank_by=d.rank_by,
        pixel=d.pixel,
    )


def _nms_thresh(threshold: float, d: Dialect) -> float:
    """The threshold for an op that suppresses above it: one float32 step lower where equality suppresses too."""
    import numpy as np

    return float(np.nextafter(np.float32(threshold), np.float32(-1))) if d.nms_inclusive else threshold


def build_rpn(cfg: Any, in_channels: int) -> RPNModule:
    keys, d = cfg.MODEL.RPN, _dialect(cfg)
    anchor_generator = make_anchor_generator(cfg)
    box_coder = _box_coder(cfg, (1.0, 1.0, 1.0, 1.0))
    loss = RPNLoss(
        matcher=Matcher(keys.FG_IOU_THRESHOLD, keys.BG_IOU_THRESHOLD, allow_low_quality_matches=True),
        sampler=BalancedSampler(keys.BATCH_SIZE_PER_IMAGE, keys.POSITIVE_FRACTION, "rpn"),
        box_coder=box_coder,
        normalizer=d.rpn_normalizer,
        beta=d.rpn_beta,
        pixel=d.pixel,
    )
    return RPNModule(
        anchor_generator=anchor_generator,
        head=registry.RPN_HEADS[keys.RPN_HEAD](cfg, in_channels, anchor_generator.num_anchors_per_location()[0]),
        train_selector=make_proposal_selector(cfg, box_coder, train=True),
        test_selector=make_proposal_selector(cfg, box_coder, train=False),
        loss=loss,
    )


# RoI heads


def make_pooler(cfg: Any, keys: Any) -> Pooler:
    """The pooler of one head; `keys` is its part of the configuration."""
    d = _dialect(cfg)
    return Pooler(
        output_size=keys.POOLER_RESOLUTION,
        scales=tuple(keys.POOLER_SCALES),
        sampling_ratio=keys.POOLER_SAMPLING_RATIO,
        shift=d.roi_shift,
        min_size=d.roi_min_size,
        level_epsilon=d.level_epsilon,
    )


def _head_norm(cfg: Any, keys: Any) -> NormFactory | None:
    return make_group_norm(cfg) if keys.USE_GN else None


@registry.ROI_BOX_FEATURE_EXTRACTORS.register("ResNet50Conv5ROIFeatureExtractor")
def build_conv5_extractor(cfg: Any, in_channels: int) -> Conv5FeatureExtractor:
    return Conv5FeatureExtractor(make_pooler(cfg, cfg.MODEL.ROI_BOX_HEAD), ResNetHead(make_stage_builder(cfg)))


@registry.ROI_BOX_FEATURE_EXTRACTORS.register("FPN2MLPFeatureExtractor")
def build_mlp_extractor(cfg: Any, in_channels: int) -> MLPFeatureExtractor:
    keys = cfg.MODEL.ROI_BOX_HEAD
    return MLPFeatureExtractor(make_pooler(cfg, keys), in_channels, keys.MLP_HEAD_DIM, _head_norm(cfg, keys))


@registry.ROI_BOX_FEATURE_EXTRACTORS.register("FPNXconv1fcFeatureExtractor")
def build_xconv_extractor(cfg: Any, in_channels: int) -> XConvFeatureExtractor:
    keys = cfg.MODEL.ROI_BOX_HEAD
    norm = _head_norm(cfg, keys)
    pooler = make_pooler(cfg, keys)
    return XConvFeatureExtractor(pooler, in_channels, keys.CONV_HEAD_DIM, keys.NUM_STACKED_CONVS, keys.DILATION, keys.MLP_HEAD_DIM, norm)


@registry.ROI_BOX_PREDICTOR.register("FastRCNNPredictor")
@registry.ROI_BOX_PREDICTOR.register("FPNPredictor")
def build_box_predictor(cfg: Any, in_channels: int) -> BoxPredictor:
    num_classes = cfg.MODEL.ROI_BOX_HEAD.NUM_CLASSES
    return BoxPredictor(in_channels, num_classes, 2 if cfg.MODEL.CLS_AGNOSTIC_BBOX_REG else num_classes)


@registry.ROI_MASK_FEATURE_EXTRACTORS.register("ResNet50Conv5ROIFeatureExtractor")
def build_mask_conv5_extractor(cfg: Any, in_channels: int) -> Conv5FeatureExtractor:
    return Conv5FeatureExtractor(make_pooler(cfg, cfg.MODEL.ROI_MASK_HEAD), ResNetHead(make_stage_builder(cfg)))


@registry.ROI_MASK_FEATURE_EXTRACTORS.register("MaskRCNNFPNFeatureExtractor")
def build_mask_fpn_extractor(cfg: Any, in_channels: int) -> MaskFPNFeatureExtractor:
    keys = cfg.MODEL.ROI_MASK_HEAD
    return MaskFPNFeatureExtractor(make_pooler(cfg, keys), in_channels, tuple(keys.CONV_LAYERS), keys.DILATION, _head_norm(cfg, keys))


@registry.ROI_MASK_PREDICTOR.register("MaskRCNNC4Predictor")
def build_mask_deconv_predictor(cfg: Any, in_channels: int) -> MaskDeconvPredictor:
    return MaskDeconvPredictor(in_channels, cfg.MODEL.ROI_MASK_HEAD.CONV_LAYERS[-1], cfg.MODEL.ROI_BOX_HEAD.NUM_CLASSES)


@registry.ROI_MASK_PREDICTOR.register("MaskRCNNConv1x1Predictor")
def build_mask_conv1x1_predictor(cfg: Any, in_channels: int) -> MaskConv1x1Predictor:
    return MaskConv1x1Predictor(in_channels, cfg.MODEL.ROI_BOX_HEAD.NUM_CLASSES)


def build_box_head(cfg: Any, in_channels: int) -> ROIBoxHead:
    keys, d = cfg.MODEL.ROI_HEADS, _dialect(cfg)
    box_coder = _box_coder(cfg, keys.BBOX_REG_WEIGHTS)
    extractor = registry.ROI_BOX_FEATURE_EXTRACTORS[cfg.MODEL.ROI_BOX_HEAD.FEATURE_EXTRACTOR](cfg, in_channels)
    selector = DetectionSelector(
        box_coder=box_coder,
        score_thresh=keys.SCORE_THRESH,
        nms_thresh=_nms_thresh(keys.NMS, d),
        detections_per_img=keys.DETECTIONS_PER_IMG,
        ties=d.detection_ties,
        min_size=d.min_detection_size,
        pixel=d.pixel,
    )
    targets = BoxTargets(
        matcher=Matcher(keys.FG_IOU_THRESHOLD, keys.BG_IOU_THRESHOLD),
        sampler=BalancedSampler(keys.BATCH_SIZE_PER_IMAGE, keys.POSITIVE_FRACTION, "box"),
        pixel=d.pixel,
    )
    return ROIBoxHead(
        feature_extractor=extractor,
        predictor=registry.ROI_BOX_PREDICTOR[cfg.MODEL.ROI_BOX_HEAD.PREDICTOR](cfg, extractor.out_channels),
        targets=targets,
        loss=BoxLoss(box_coder, d.box_beta, cfg.MODEL.CLS_AGNOSTIC_BBOX_REG),
        selector=selector,
        static_shapes=cfg.MODEL.STATIC_SHAPES,
    )


def build_mask_head(cfg: Any, in_channels: int, box: ROIBoxHead) -> ROIMaskHead:
    keys = cfg.MODEL.ROI_MASK_HEAD
    share = keys.SHARE_BOX_FEATURE_EXTRACTOR
    extractor = box.feature_extractor if share else registry.ROI_MASK_FEATURE_EXTRACTORS[keys.FEATURE_EXTRACTOR](cfg, in_channels)
    return ROIMaskHead(
        feature_extractor=extractor,
        predictor=registry.ROI_MASK_PREDICTOR[keys.PREDICTOR](cfg, extractor.out_channels),
        loss=MaskLoss(keys.RESOLUTION, MASK_TARGETS[_dialect(cfg).mask_target]),
        share_box_features=share,
        static_shapes=cfg.MODEL.STATIC_SHAPES,
    )


def build_roi_heads(cfg: Any, in_channels: int) -> CombinedROIHeads:
    box = build_box_head(cfg, in_channels)
    return CombinedROIHeads(box, build_mask_head(cfg, in_channels, box) if cfg.MODEL.MASK_ON else None)
