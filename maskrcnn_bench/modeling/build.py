"""The model's drawing: from a configuration to plain values, one page. A border file: the only place that reads cfg.MODEL.

Each part is registered under the name that configurations use, and has the contract of its registry.
"""

from __future__ import annotations

import math
import re
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn

from ..config.dialect import Dialect, get_dialect
from ..layers.blocks import FixedStatisticsBatchNorm2d, FrozenBatchNorm2d, NormFactory, conv, group_norm, with_input_channels
from ..layers.masked_norm import MaskedBatchNorm2d
from ..layers.soft_nms import soft_nms
from ..structures.keypoint import Keypoints, keypoint_kind
from . import pooler_types, registry
from .backbone.fbnet import FBNetBuilder, FBNetROIHead, FBNetRPNHead, FBNetTrunk, architecture
from .backbone.fpn import FPN, LastLevelMaxPool, LastLevelP6P7
from .backbone.mobilenet import MobileNetV3Body
from .backbone.resnet import ResNet, ResNetHead, StageBuilder
from .backbone.timm import TimmBody
from .backbone.vgg import VGG16, VGGFeatureExtractor
from .box_coder import BoxCoder
from .detector import GeneralizedRCNN, Normalizer
from .losses import RegressionLoss
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
from .roi_heads.cascade import CASCADE_SCORES, CascadeBoxHead, Redraw, Relabel
from .roi_heads.cascade_mask import CascadeMaskHead, CascadeROIHeads
from .roi_heads.keypoint_head import KEYPOINT_RESULTS, KeypointLoss, KeypointPredictor, ROIKeypointHead
from .roi_heads.mask_head import MASK_TARGETS, MaskConv1x1Predictor, MaskDeconvPredictor, MaskLoss, ROIMaskHead
from .roi_heads.positives import PooledConvolutions
from .roi_heads.roi_heads import CombinedROIHeads
from .rpn.anchor_generator import AnchorGenerator
from .rpn.given import GivenProposals
from .rpn.retinanet import NORMALIZERS, RetinaNetHead, RetinaNetLoss, RetinaNetModule, RetinaNetSelector
from .rpn.rpn import ProposalSelector, RPNHead, RPNLoss, RPNModule
from .rpn.two_way_head import TwoWayRPNHead
from .sampler import BalancedSampler, ReplacementSampler


def _dialect(cfg: Any) -> Dialect:
    return get_dialect(cfg.MODEL.DIALECT)


def _box_coder(cfg: Any, weights: tuple[float, ...]) -> BoxCoder:
    d = _dialect(cfg)
    return BoxCoder(tuple(weights), d.pixel, d.decode_pixel, d.log_size_range)


@registry.META_ARCHITECTURES.register("GeneralizedRCNN")
def build_generalized_rcnn(cfg: Any) -> GeneralizedRCNN:
    backbone = with_input_channels(registry.BACKBONES[_backbone_name(cfg)](cfg), cfg.INPUT.CHANNELS)
    pixels = (cfg.INPUT.PIXEL_MEAN, cfg.INPUT.PIXEL_STD, cfg.INPUT.TO_BGR255)
    return GeneralizedRCNN(
        normalizer=Normalizer(*pixels, _dialect(cfg).unit_pixels, cfg.INPUT.CHANNELS),
        backbone=backbone,
        rpn=build_proposals(cfg, backbone.out_channels),
        roi_heads=None if cfg.MODEL.RPN_ONLY or cfg.MODEL.RETINANET_ON else build_roi_heads(cfg, backbone.out_channels),
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
        "FixedStatisticsBN": partial(FixedStatisticsBatchNorm2d, eps=_dialect(cfg).frozen_norm_eps),
        "BN": nn.BatchNorm2d,
        "SyncBN": nn.SyncBatchNorm,
        "GN": make_group_norm(cfg),
    }
    if name not in norms:
        raise ValueError(f"MODEL.RESNETS.NORM: expected one of {sorted(norms)}, got {name!r}")
    return norms[name]


_RESNET = re.compile(r"R-(\d+)-(C4|C5|FPN|FPN-RETINANET)$")


def _backbone_name(cfg: Any) -> str:
    """The registered name: all ResNets share one function a kind, whatever their depth."""
    found = _RESNET.match(cfg.MODEL.BACKBONE.CONV_BODY)
    if cfg.MODEL.BACKBONE.CONV_BODY.startswith("timm:"):
        return "timm"
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
        stages_with_dcn=keys.STAGE_WITH_DCN,
        modulated_dcn=keys.WITH_MODULATED_DCN,
        deformable_groups=keys.DEFORMABLE_GROUPS,
        stem_pool_padding=_dialect(cfg).stem_pool_padding,
        freeze_statistics=_dialect(cfg).freeze_statistics,
    )


def _resnet(cfg: Any, return_stages: tuple[int, ...]) -> ResNet:
    if cfg.MODEL.CHECKPOINT_ACTIVATIONS and cfg.MODEL.RESNETS.NORM in ("BN", "SyncBN"):
        raise ValueError(
            "MODEL.CHECKPOINT_ACTIVATIONS: a second look at each batch would move the statistics of MODEL.RESNETS.NORM "
            f"{cfg.MODEL.RESNETS.NORM} twice; take FrozenBN, FixedStatisticsBN or GN"
        )
    return ResNet(make_stage_builder(cfg), return_stages, _freeze_at(cfg), cfg.MODEL.CHECKPOINT_ACTIVATIONS)


def _freeze_at(cfg: Any) -> int:
    """Stages that are not trained. In maskrcnn-benchmark a negative number freezes none."""
    stages = cfg.MODEL.BACKBONE.FREEZE_CONV_BODY_AT
    if stages > 5:
        raise ValueError(f"MODEL.BACKBONE.FREEZE_CONV_BODY_AT: expected 0 (none) to 5 (the stem and all four stages), got {stages}")
    return max(stages, 0)


def _single_level_backbone(cfg: Any, stage: int) -> nn.Module:
    body = _resnet(cfg, (stage,))
    backbone = nn.Sequential(OrderedDict(body=body))
    backbone.out_channels = body.out_channels_of_stages[-1]
    return backbone


@registry.BACKBONES.register("ResNet-C4")
def build_resnet_c4(cfg: Any) -> nn.Module:
    return _single_level_backbone(cfg, 3)


@registry.BACKBONES.register("ResNet-C5")
def build_resnet_c5(cfg: Any) -> nn.Module:
    return _single_level_backbone(cfg, 4)


@registry.BACKBONES.register("VGG-16")
def build_vgg16(cfg: Any) -> nn.Module:
    body = VGG16(cfg.MODEL.RESNETS.STEM_OUT_CHANNELS, _freeze_at(cfg))
    backbone = nn.Sequential(OrderedDict(body=body))
    backbone.out_channels = body.out_channels
    return backbone


@registry.BACKBONES.register("ResNet-FPN")
def build_resnet_fpn(cfg: Any) -> nn.Module:
    return _with_fpn(cfg, _resnet(cfg, (1, 2, 3, 4)))


@registry.BACKBONES.register("MobileNetV3-Large-FPN")
def build_mobilenet_fpn(cfg: Any) -> nn.Module:
    return _with_fpn(cfg, MobileNetV3Body(cfg.MODEL.RESNETS.NORM or "FrozenBN", _freeze_at(cfg)))


@registry.BACKBONES.register("timm")
def build_timm_fpn(cfg: Any) -> nn.Module:
    keys = cfg.MODEL.BACKBONE
    return _with_fpn(cfg, TimmBody(keys.CONV_BODY.removeprefix("timm:"), keys.TIMM_WEIGHT, _freeze_at(cfg)))


def _make_fpn_conv(cfg: Any) -> Callable[..., nn.Module]:
    norms = {"GN": make_group_norm(cfg), "BN": nn.BatchNorm2d, "SyncBN": nn.SyncBatchNorm}
    norm = norms.get(cfg.MODEL.FPN.NORM or ("GN" if cfg.MODEL.FPN.USE_GN else ""))
    return partial(conv, norm=norm, relu=cfg.MODEL.FPN.USE_RELU)


def _with_fpn(cfg: Any, body: nn.Module) -> nn.Module:
    out_channels = cfg.MODEL.RESNETS.BACKBONE_OUT_CHANNELS
    make_conv = _make_fpn_conv(cfg)
    fpn = FPN(body.out_channels_of_stages, out_channels, make_conv, LastLevelMaxPool())
    backbone = nn.Sequential(OrderedDict(body=body, fpn=fpn))
    backbone.out_channels = out_channels
    return backbone


# FBNet: trunk, RPN head and RoI heads from one table


def make_fbnet_builder(cfg: Any, norm_name: str = "") -> FBNetBuilder:
    keys = cfg.MODEL.FBNET
    norms: dict[str, NormFactory | None] = {
        "bn": MaskedBatchNorm2d,
        "af": partial(FrozenBatchNorm2d, eps=_dialect(cfg).frozen_norm_eps),
        "gn": make_group_norm(cfg),
        "": None,
    }
    name = norm_name or keys.BN_TYPE
    if name not in norms:
        raise ValueError(f"MODEL.FBNET.BN_TYPE: expected one of {sorted(norms)}, got {name!r}")
    return FBNetBuilder(
        architecture=architecture(keys.ARCH, keys.ARCH_DEF),
        norm=norms[name],
        scale=keys.SCALE_FACTOR,
        divisor=keys.WIDTH_DIVISOR,
        depthwise_norm=not keys.DW_CONV_SKIP_BN,
        depthwise_relu=not keys.DW_CONV_SKIP_RELU,
    )


@registry.BACKBONES.register("FBNet")
def build_fbnet(cfg: Any) -> nn.Module:
    body = FBNetTrunk(make_fbnet_builder(cfg))
    backbone = nn.Sequential(OrderedDict(body=body))
    backbone.out_channels = body.out_channels
    return backbone


@registry.RPN_HEADS.register("FBNet.rpn_head")
def build_fbnet_rpn_head(cfg: Any, in_channels: int, num_anchors: int) -> FBNetRPNHead:
    keys = cfg.MODEL.FBNET
    return FBNetRPNHead(make_fbnet_builder(cfg, keys.RPN_BN_TYPE), in_channels, num_anchors, keys.RPN_HEAD_BLOCKS)


@registry.ROI_BOX_FEATURE_EXTRACTORS.register("FBNet.roi_head")
def build_fbnet_box_extractor(cfg: Any, in_channels: int) -> FBNetROIHead:
    keys, pooler = cfg.MODEL.FBNET, make_pooler(cfg, cfg.MODEL.ROI_BOX_HEAD, in_channels)
    blocks, stride, last_scale = keys.DET_HEAD_BLOCKS, keys.DET_HEAD_STRIDE, keys.DET_HEAD_LAST_SCALE
    return FBNetROIHead(pooler, make_fbnet_builder(cfg), in_channels, "bbox", blocks, stride, last_scale)


@registry.ROI_MASK_FEATURE_EXTRACTORS.register("FBNet.roi_head_mask")
def build_fbnet_mask_extractor(cfg: Any, in_channels: int) -> FBNetROIHead:
    keys, pooler = cfg.MODEL.FBNET, make_pooler(cfg, cfg.MODEL.ROI_MASK_HEAD, in_channels)
    blocks, stride, last_scale = keys.MASK_HEAD_BLOCKS, keys.MASK_HEAD_STRIDE, keys.MASK_HEAD_LAST_SCALE
    return FBNetROIHead(pooler, make_fbnet_builder(cfg), in_channels, "mask", blocks, stride, last_scale)


@registry.ROI_KEYPOINT_FEATURE_EXTRACTORS.register("FBNet.roi_head_keypoints")
def build_fbnet_keypoint_extractor(cfg: Any, in_channels: int) -> FBNetROIHead:
    keys, pooler = cfg.MODEL.FBNET, make_pooler(cfg, cfg.MODEL.ROI_KEYPOINT_HEAD, in_channels)
    blocks, stride, last_scale = keys.KPTS_HEAD_BLOCKS, keys.KPTS_HEAD_STRIDE, keys.KPTS_HEAD_LAST_SCALE
    return FBNetROIHead(pooler, make_fbnet_builder(cfg), in_channels, "kpts", blocks, stride, last_scale)


@registry.BACKBONES.register("ResNet-FPN-RETINANET")
def build_resnet_fpn_retinanet(cfg: Any) -> nn.Module:
    body = _resnet(cfg, (2, 3, 4))
    out_channels, use_c5 = cfg.MODEL.RESNETS.BACKBONE_OUT_CHANNELS, cfg.MODEL.RETINANET.USE_C5
    make_conv = _make_fpn_conv(cfg)
    top_channels = body.out_channels_of_stages[-1] if use_c5 else out_channels
    top = LastLevelP6P7(top_channels, out_channels, use_c5, _dialect(cfg).top_relu)
    fpn = FPN(body.out_channels_of_stages, out_channels, make_conv, top, first=2)
    backbone = nn.Sequential(OrderedDict(body=body, fpn=fpn))
    backbone.out_channels = out_channels
    return backbone


# Proposals


def build_proposals(cfg: Any, in_channels: int) -> nn.Module:
    """What finds regions: the RPN, RetinaNet, or nothing where they are given."""
    if not cfg.MODEL.LOAD_PROPOSALS:
        return (build_retinanet if cfg.MODEL.RETINANET_ON else build_rpn)(cfg, in_channels)
    if cfg.MODEL.RPN_ONLY or cfg.MODEL.RETINANET_ON:
        raise ValueError("MODEL.LOAD_PROPOSALS gives regions to heads, but RPN_ONLY and RETINANET_ON have none; set both False, or it")
    return GivenProposals()


@registry.RPN_HEADS.register("SingleConvRPNHead")
def build_single_conv_rpn_head(cfg: Any, in_channels: int, num_anchors: int) -> RPNHead:
    return RPNHead(in_channels, num_anchors, cfg.MODEL.RPN.CONV_CHANNELS or in_channels, cfg.MODEL.RPN.NUM_CONVS)


@registry.RPN_HEADS.register("TwoWayRPNHead")
def build_two_way_rpn_head(cfg: Any, in_channels: int, num_anchors: int) -> TwoWayRPNHead:
    return TwoWayRPNHead(in_channels, num_anchors, cfg.MODEL.RPN.CONV_CHANNELS or in_channels)


def make_anchor_generator(cfg: Any) -> AnchorGenerator:
    keys, d = cfg.MODEL.RPN, _dialect(cfg)
    strides = tuple(keys.ANCHOR_STRIDE)
    if keys.USE_FPN:
        sizes = tuple(s if isinstance(s, (tuple, list)) else (s,) for s in keys.ANCHOR_SIZES)
    else:
        sizes = (tuple(keys.ANCHOR_SIZES),)
    padding = 0 if d.anchors_of_padding else cfg.DATALOADER.SIZE_DIVISIBILITY
    ratios, straddle = tuple(keys.ASPECT_RATIOS), keys.STRADDLE_THRESH
    return AnchorGenerator(sizes, ratios, strides, d.anchor_rule, d.anchor_order, straddle, padding, d.measured_strides)


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
        score_thresh=keys.SCORE_THRESH,
        drop_empty=d.drop_empty,
        rank_by=d.rank_by,
        pixel=d.pixel,
        nms_offset=d.nms_offset,
        zero_boxes=d.zero_proposals and not train,
    )


def _nms_thresh(threshold: float, d: Dialect) -> float:
    """The threshold for an op that suppresses above it: one float32 step lower where equality suppresses too, and 0 nothing."""
    import numpy as np

    if d.nms_inclusive and threshold <= 0:
        return math.inf
    return float(np.nextafter(np.float32(threshold), np.float32(-1))) if d.nms_inclusive else threshold


def _regression_loss(keys: Any, beta: float) -> RegressionLoss:
    """The loss of the boxes that one part of the configuration describes; `beta` where it leaves that open."""
    return RegressionLoss(keys.BOX_REG_LOSS, keys.SMOOTH_L1_BETA if keys.SMOOTH_L1_BETA >= 0 else beta, keys.BOX_REG_LOSS_WEIGHT)


def build_rpn(cfg: Any, in_channels: int) -> RPNModule:
    keys, d = cfg.MODEL.RPN, _dialect(cfg)
    anchor_generator = make_anchor_generator(cfg)
    box_coder = _box_coder(cfg, (1.0, 1.0, 1.0, 1.0))
    loss = RPNLoss(
        matcher=Matcher(keys.FG_IOU_THRESHOLD, keys.BG_IOU_THRESHOLD, True, d.low_quality_overlap, d.low_quality_to_best),
        sampler=BalancedSampler(keys.BATCH_SIZE_PER_IMAGE, keys.POSITIVE_FRACTION, "rpn"),
        box_coder=box_coder,
        normalizer=d.rpn_normalizer,
        box_loss=_regression_loss(keys, d.rpn_beta),
        pixel=d.pixel,
        only_visible_compete=d.only_visible_compete,
    )
    return RPNModule(
        anchor_generator=anchor_generator,
        head=registry.RPN_HEADS[keys.RPN_HEAD](cfg, in_channels, anchor_generator.num_anchors_per_location()[0]),
        train_selector=make_proposal_selector(cfg, box_coder, train=True),
        test_selector=make_proposal_selector(cfg, box_coder, train=False),
        loss=loss,
    )


# RetinaNet


def make_retinanet_anchor_generator(cfg: Any) -> AnchorGenerator:
    keys, d = cfg.MODEL.RETINANET, _dialect(cfg)
    octaves = [keys.OCTAVE ** (i / keys.SCALES_PER_OCTAVE) for i in range(keys.SCALES_PER_OCTAVE)]
    sizes = tuple(tuple(int(size * f) if d.truncate_octaves else size * f for f in octaves) for size in keys.ANCHOR_SIZES)
    ratios, strides = tuple(keys.ASPECT_RATIOS), tuple(keys.ANCHOR_STRIDES)
    padding = 0 if d.anchors_of_padding else cfg.DATALOADER.SIZE_DIVISIBILITY
    # No STRADDLE_THRESH: the original reads it and then trains anchors wherever they lie.
    return AnchorGenerator(sizes, ratios, strides, d.anchor_rule, d.anchor_order, -1, padding, d.measured_strides)


def build_retinanet(cfg: Any, in_channels: int) -> RetinaNetModule:
    keys, d = cfg.MODEL.RETINANET, _dialect(cfg)
    anchor_generator = make_retinanet_anchor_generator(cfg)
    box_coder = _box_coder(cfg, d.retinanet_weights)
    num_anchors, num_outputs = anchor_generator.num_anchors_per_location()[0], keys.NUM_CLASSES - d.retinanet_first_label
    norm = make_group_norm(cfg) if keys.USE_GN else None
    selector = RetinaNetSelector(
        box_coder=box_coder,
        first_label=d.retinanet_first_label,
        score_thresh=keys.INFERENCE_TH,
        pre_nms_top_n=keys.PRE_NMS_TOP_N,
        nms_thresh=_nms_thresh(keys.NMS_TH, d),
        detections_per_img=cfg.TEST.DETECTIONS_PER_IMG,
        ties=d.detection_ties,
        clip=d.retinanet_clip,
        drop_empty=d.drop_empty,
        pixel=d.pixel,
        nms_offset=d.nms_offset,
        soft_nms=_make_soft_nms(cfg, keys.NMS_TH),
    )
    loss = RetinaNetLoss(
        matcher=Matcher(keys.FG_IOU_THRESHOLD, keys.BG_IOU_THRESHOLD, True, to_best_object=d.low_quality_to_best),
        box_coder=box_coder,
        first_label=d.retinanet_first_label,
        gamma=keys.LOSS_GAMMA,
        alpha=keys.LOSS_ALPHA,
        box_loss=RegressionLoss(keys.BOX_REG_LOSS, keys.BBOX_REG_BETA),
        box_divisor=keys.BBOX_REG_WEIGHT,
        pixel=d.pixel,
    )
    head = RetinaNetHead(in_channels, num_anchors, num_outputs, keys.NUM_CONVS, keys.PRIOR_PROB, norm)
    return RetinaNetModule(anchor_generator, head, selector, loss, NORMALIZERS[d.retinanet_normalizer]())


# RoI heads


def make_pooler(cfg: Any, keys: Any, in_channels: int, kind: str = "") -> Pooler:
    """The pooler of one head for features of `in_channels`; `keys` is its part of the configuration, `kind` another POOLER_TYPE."""
    d = _dialect(cfg)
    scales = tuple(keys.POOLER_SCALES)
    rule = (keys.POOLER_RESOLUTION, scales, keys.POOLER_SAMPLING_RATIO, d.roi_shift, d.roi_min_size, d.level_epsilon)
    return pooler_types.make_pooler(kind or keys.POOLER_TYPE, rule, in_channels)


def _head_norm(cfg: Any, keys: Any) -> NormFactory | None:
    norms: dict[str, NormFactory] = {"GN": make_group_norm(cfg), "BN": MaskedBatchNorm2d}
    return norms.get(keys.NORM or ("GN" if keys.USE_GN else ""))


@registry.ROI_BOX_FEATURE_EXTRACTORS.register("ResNet50Conv5ROIFeatureExtractor")
def build_conv5_extractor(cfg: Any, in_channels: int) -> Conv5FeatureExtractor:
    return Conv5FeatureExtractor(make_pooler(cfg, cfg.MODEL.ROI_BOX_HEAD, in_channels), ResNetHead(make_stage_builder(cfg)))


@registry.ROI_BOX_FEATURE_EXTRACTORS.register("VGGFeatureExtractor")
def build_vgg_extractor(cfg: Any, in_channels: int) -> VGGFeatureExtractor:
    keys = cfg.MODEL.ROI_BOX_HEAD
    return VGGFeatureExtractor(make_pooler(cfg, keys, in_channels), in_channels, keys.MLP_HEAD_DIM)


@registry.ROI_BOX_FEATURE_EXTRACTORS.register("FPN2MLPFeatureExtractor")
def build_mlp_extractor(cfg: Any, in_channels: int) -> MLPFeatureExtractor:
    keys = cfg.MODEL.ROI_BOX_HEAD
    norm = make_group_norm(cfg) if keys.USE_GN else None
    return MLPFeatureExtractor(make_pooler(cfg, keys, in_channels), in_channels, keys.MLP_HEAD_DIM, norm)


@registry.ROI_BOX_FEATURE_EXTRACTORS.register("FPNXconv1fcFeatureExtractor")
def build_xconv_extractor(cfg: Any, in_channels: int) -> XConvFeatureExtractor:
    keys = cfg.MODEL.ROI_BOX_HEAD
    norm = _head_norm(cfg, keys)
    pooler = make_pooler(cfg, keys, in_channels)
    return XConvFeatureExtractor(pooler, in_channels, keys.CONV_HEAD_DIM, keys.NUM_STACKED_CONVS, keys.DILATION, keys.MLP_HEAD_DIM, norm)


@registry.ROI_BOX_PREDICTOR.register("FastRCNNPredictor")
@registry.ROI_BOX_PREDICTOR.register("FPNPredictor")
def build_box_predictor(cfg: Any, in_channels: int) -> BoxPredictor:
    num_classes = cfg.MODEL.ROI_BOX_HEAD.NUM_CLASSES
    if num_classes < 2:
        raise ValueError(f"MODEL.ROI_BOX_HEAD.NUM_CLASSES: expected 2 or more, one of them the background, got {num_classes}")
    return BoxPredictor(in_channels, num_classes, 2 if cfg.MODEL.CLS_AGNOSTIC_BBOX_REG else num_classes)


@registry.ROI_MASK_FEATURE_EXTRACTORS.register("ResNet50Conv5ROIFeatureExtractor")
def build_mask_conv5_extractor(cfg: Any, in_channels: int) -> Conv5FeatureExtractor:
    return Conv5FeatureExtractor(make_pooler(cfg, cfg.MODEL.ROI_MASK_HEAD, in_channels), ResNetHead(make_stage_builder(cfg)))


@registry.ROI_MASK_FEATURE_EXTRACTORS.register("MaskRCNNFPNFeatureExtractor")
def build_mask_fpn_extractor(cfg: Any, in_channels: int) -> PooledConvolutions:
    keys = cfg.MODEL.ROI_MASK_HEAD
    pooler = make_pooler(cfg, keys, in_channels)
    return PooledConvolutions(pooler, in_channels, tuple(keys.CONV_LAYERS), "mask_fcn", keys.DILATION, _head_norm(cfg, keys))


def _mask_classes(cfg: Any) -> int:
    return 2 if cfg.MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK else cfg.MODEL.ROI_BOX_HEAD.NUM_CLASSES


@registry.ROI_MASK_PREDICTOR.register("MaskRCNNC4Predictor")
def build_mask_deconv_predictor(cfg: Any, in_channels: int) -> MaskDeconvPredictor:
    return MaskDeconvPredictor(in_channels, cfg.MODEL.ROI_MASK_HEAD.CONV_LAYERS[-1], _mask_classes(cfg))


@registry.ROI_MASK_PREDICTOR.register("MaskRCNNConv1x1Predictor")
def build_mask_conv1x1_predictor(cfg: Any, in_channels: int) -> MaskConv1x1Predictor:
    return MaskConv1x1Predictor(in_channels, _mask_classes(cfg))


_ROI_SAMPLERS = {"once": BalancedSampler, "repeated": ReplacementSampler}


def _box_matcher(cfg: Any) -> Matcher:
    keys = cfg.MODEL.ROI_HEADS
    high = keys.FG_IOU_THRESHOLD
    return Matcher(high, keys.BG_IOU_THRESHOLD, keys.MATCH_BEST_PROPOSALS, least_overlap=high, to_best_object=False)


@registry.ROI_KEYPOINT_FEATURE_EXTRACTORS.register("KeypointRCNNFeatureExtractor")
def build_keypoint_extractor(cfg: Any, in_channels: int) -> PooledConvolutions:
    keys = cfg.MODEL.ROI_KEYPOINT_HEAD
    return PooledConvolutions(make_pooler(cfg, keys, in_channels), in_channels, tuple(keys.CONV_LAYERS), "conv_fcn")


@registry.ROI_KEYPOINT_PREDICTOR.register("KeypointRCNNPredictor")
def build_keypoint_predictor(cfg: Any, in_channels: int) -> KeypointPredictor:
    return KeypointPredictor(in_channels, cfg.MODEL.ROI_KEYPOINT_HEAD.NUM_CLASSES)


def make_detection_selector(cfg: Any, box_coder: BoxCoder) -> DetectionSelector:
    keys, d = cfg.MODEL.ROI_HEADS, _dialect(cfg)
    return DetectionSelector(
        box_coder=box_coder,
        score_thresh=keys.SCORE_THRESH,
        nms_thresh=_nms_thresh(keys.NMS, d),
        detections_per_img=keys.DETECTIONS_PER_IMG,
        ties=d.detection_ties,
        min_size=d.min_detection_size,
        pixel=d.pixel,
        nms_offset=d.nms_offset,
        nms_original=d.nms_original,
        soft_nms=_make_soft_nms(cfg, keys.NMS),
    )


def _make_soft_nms(cfg: Any, threshold: float) -> Callable[..., Any] | None:
    keys = cfg.TEST.SOFT_NMS
    if not keys.METHOD:
        return None
    options = {"sigma": keys.SIGMA, "min_score": keys.MIN_SCORE, "pixel": _dialect(cfg).pixel}
    return partial(soft_nms, method=keys.METHOD, threshold=threshold, **options)


def make_box_targets(cfg: Any, matcher: Matcher, stage: int = 0, kept: tuple[str, ...] = ()) -> BoxTargets:
    keys, d = cfg.MODEL.ROI_HEADS, _dialect(cfg)
    word = f"box_stage{stage}" if stage else "box"
    sampler = _ROI_SAMPLERS[d.roi_sampling](keys.BATCH_SIZE_PER_IMAGE, keys.POSITIVE_FRACTION, word)
    return BoxTargets(matcher, sampler, d.pixel, kept)


def make_cascade_targets(cfg: Any) -> list[BoxTargets | Relabel | Redraw]:
    matchers = [Matcher(iou, iou) for iou in cfg.MODEL.ROI_BOX_CASCADE_HEAD.IOUS]
    if not _dialect(cfg).cascade_redraws:
        return [make_box_targets(cfg, matchers[0]), *map(Relabel, matchers[1:])]
    first, *later = (make_box_targets(cfg, matcher, stage, ("is_object",)) for stage, matcher in enumerate(matchers))
    return [first, *map(Redraw, later)]


def build_cascade_box_head(cfg: Any, in_channels: int) -> CascadeBoxHead:
    keys, head, d = cfg.MODEL.ROI_BOX_CASCADE_HEAD, cfg.MODEL.ROI_BOX_HEAD, _dialect(cfg)
    for name in ("BBOX_REG_WEIGHTS", "LOSS_WEIGHTS"):
        if len(keys.IOUS) != len(keys[name]):
            raise ValueError(f"MODEL.ROI_BOX_CASCADE_HEAD: {len(keys.IOUS)} IOUS need as many {name}, got {len(keys[name])}")
    if not cfg.MODEL.CLS_AGNOSTIC_BBOX_REG:
        raise ValueError(
            "MODEL.ROI_BOX_CASCADE_HEAD: a box goes from stage to stage whatever its class; set MODEL.CLS_AGNOSTIC_BBOX_REG True"
        )
    coders = [_box_coder(cfg, weights) for weights in keys.BBOX_REG_WEIGHTS]
    extractors = [registry.ROI_BOX_FEATURE_EXTRACTORS[head.FEATURE_EXTRACTOR](cfg, in_channels) for _ in coders]
    return CascadeBoxHead(
        feature_extractors=extractors,
        predictors=[registry.ROI_BOX_PREDICTOR[head.PREDICTOR](cfg, e.out_channels) for e in extractors],
        targets=make_cascade_targets(cfg),
        losses=[BoxLoss(coder, _regression_loss(head, d.box_beta), class_agnostic=True) for coder in coders],
        loss_weights=keys.LOSS_WEIGHTS,
        gradient_factor=1.0 / len(coders) if d.cascade_gradient_share else 1.0,
        scores=CASCADE_SCORES[d.cascade_mean],
        selector=make_detection_selector(cfg, coders[-1]),
        static_shapes=cfg.MODEL.STATIC_SHAPES,
    )


def build_box_head(cfg: Any, in_channels: int) -> ROIBoxHead | CascadeBoxHead:
    if cfg.MODEL.ROI_BOX_CASCADE_HEAD.ENABLED:
        return build_cascade_box_head(cfg, in_channels)
    d = _dialect(cfg)
    box_coder = _box_coder(cfg, cfg.MODEL.ROI_HEADS.BBOX_REG_WEIGHTS)
    extractor = registry.ROI_BOX_FEATURE_EXTRACTORS[cfg.MODEL.ROI_BOX_HEAD.FEATURE_EXTRACTOR](cfg, in_channels)
    return ROIBoxHead(
        feature_extractor=extractor,
        predictor=registry.ROI_BOX_PREDICTOR[cfg.MODEL.ROI_BOX_HEAD.PREDICTOR](cfg, extractor.out_channels),
        targets=make_box_targets(cfg, _box_matcher(cfg)),
        loss=BoxLoss(box_coder, _regression_loss(cfg.MODEL.ROI_BOX_HEAD, d.box_beta), cfg.MODEL.CLS_AGNOSTIC_BBOX_REG),
        selector=make_detection_selector(cfg, box_coder),
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


def build_keypoint_head(cfg: Any, in_channels: int, box: ROIBoxHead) -> ROIKeypointHead:
    keys, d = cfg.MODEL.ROI_KEYPOINT_HEAD, _dialect(cfg)
    share = keys.SHARE_BOX_FEATURE_EXTRACTOR
    extractor = box.feature_extractor if share else registry.ROI_KEYPOINT_FEATURE_EXTRACTORS[keys.FEATURE_EXTRACTOR](cfg, in_channels)
    return ROIKeypointHead(
        feature_extractor=extractor,
        predictor=registry.ROI_KEYPOINT_PREDICTOR[keys.PREDICTOR](cfg, extractor.out_channels),
        loss=KeypointLoss(keys.RESOLUTION, d.keypoints_in_object),
        result=KEYPOINT_RESULTS[d.keypoint_score],
        kind=_keypoint_kind(keys),
        share_box_features=share,
        static_shapes=cfg.MODEL.STATIC_SHAPES,
    )


def _keypoint_kind(keys: Any) -> Keypoints:
    try:
        return keypoint_kind(keys.NUM_CLASSES, keys.NAMES, keys.FLIP_PAIRS, keys.SKELETON)
    except ValueError as error:
        raise ValueError(f"MODEL.ROI_KEYPOINT_HEAD.NUM_CLASSES, NAMES, FLIP_PAIRS and SKELETON: {error}") from None


def build_cascade_heads(cfg: Any, in_channels: int) -> CascadeROIHeads:
    """A cascade whose stages have mask heads."""
    keys, head = cfg.MODEL.ROI_BOX_CASCADE_HEAD, cfg.MODEL.ROI_MASK_HEAD
    if head.SHARE_BOX_FEATURE_EXTRACTOR:
        raise ValueError("MODEL.ROI_MASK_HEAD.SHARE_BOX_FEATURE_EXTRACTOR: each stage of this cascade pools its masks; set it False")
    box = build_cascade_box_head(cfg, in_channels)
    stages = [build_mask_head(cfg, in_channels, box) for _ in keys.IOUS]
    return CascadeROIHeads(box, CascadeMaskHead(stages, keys.LOSS_WEIGHTS, cfg.MODEL.STATIC_SHAPES))


def build_roi_heads(cfg: Any, in_channels: int) -> CombinedROIHeads:
    if cfg.MODEL.ROI_BOX_CASCADE_HEAD.ENABLED and cfg.MODEL.MASK_ON and _dialect(cfg).cascade_masks:
        return build_cascade_heads(cfg, in_channels)
    box = build_box_head(cfg, in_channels)
    mask = build_mask_head(cfg, in_channels, box) if cfg.MODEL.MASK_ON else None
    return CombinedROIHeads(box, mask, build_keypoint_head(cfg, in_channels, box) if cfg.MODEL.KEYPOINT_ON else None)
