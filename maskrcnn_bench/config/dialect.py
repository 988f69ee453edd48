"""What the reference implementations compute differently, as one table.

Five projects train "the same" Faster R-CNN, and each computes other numbers. Here every such difference has one name, one
meaning and one value a project; nothing else in the library knows the projects. A configuration names its row with
`MODEL.DIALECT`. What a configuration key already says (thresholds, sizes, pixel means) is not repeated here.

The sources are files of the projects: maskrcnn-benchmark at 57eec25 (below `maskrcnn_benchmark/`), detectron2 at 02b5c4e (below
`detectron2/`), torchvision 0.29.1 (below `torchvision/`) and mmdetection 3 (below `mmdet/`, or in mmcv where it says so).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

LOG_MAX_SCALE = math.log(1000.0 / 16)


@dataclass(frozen=True)
class Dialect:
    """One reference implementation's small numbers. Every field is a plain value; no field is a branch on a name."""

    name: str

    # Boxes
    pixel: int
    """What the width of a box adds to x2 - x1. Clipping goes to (width - pixel, height - pixel)."""
    decode_pixel: float
    """What a decoded x2 and y2 lose against centre + size / 2."""
    log_size_range: tuple[float, float]
    """Clamp of the decoded dw and dh (logarithms of a ratio of sizes)."""

    # Anchors
    anchor_rule: str
    """rounded_corner: sides rounded at the size of the stride, box centred on (stride - 1) / 2; exact_centre: unrounded, centred on 0;
    rounded_centre: corners rounded, centred on 0."""
    anchor_order: str
    """ratio_major: all sizes of the first ratio, then the next ratio; size_major: the other way round."""

    measured_strides: bool
    """Whether the distance of anchors is the padded image's size over the feature's, cut to whole pixels; it falls below the level's stride
    where that does not divide the size."""
    truncate_octaves: bool
    """Whether the sizes between octaves of RetinaNet's anchors are cut to whole pixels."""

    anchors_of_padding: bool
    """Whether anchors train whose centre lies beyond their own image's padding, in the padding that a larger image of the batch brings."""

    # Matching
    low_quality_overlap: float
    """The least overlap with which the best anchor of an object is positive although it is under the threshold."""
    low_quality_to_best: bool
    """Whether such an anchor belongs to the object which *it* overlaps most (True), or to the one whose best it is (False)."""
    only_visible_compete: bool
    """Whether the best anchor of an object is looked for among the anchors that may train, or among all."""

    # Proposals
    rank_by: str
    """Proposals are ranked by `probability` (after the sigmoid) or by `logit`; they differ where the sigmoid saturates."""
    drop_empty: bool
    """Whether proposals must be wider and higher than RPN.MIN_SIZE (True), or at least that wide and high (False)."""
    nms_inclusive: bool
    """Whether a box whose overlap equals the threshold is suppressed."""

    nms_offset: bool
    """Whether classes and levels are kept apart in the suppression by moving their boxes, which rounds coordinates."""

    zero_proposals: bool
    """Whether an image with fewer proposals than POST_NMS_TOP_N_TEST is filled up with boxes of zeros that go through the heads."""

    # Detections
    nms_original: bool
    """Whether detections suppress each other in pixels of the original image, where the pixel rule weighs otherwise."""
    detection_ties: int
    """Extra slots for detections that tie with the last of DETECTIONS_PER_IMG; 0 takes exactly that many."""
    min_detection_size: float
    """Least width and height of a detection before the suppression, pixels of the resized image."""
    clip_rescaled: bool
    """Whether detections are clipped once more after they are moved to the original image."""

    # Cascade
    cascade_redraws: bool
    """Whether each stage of a cascade draws anew from its boxes and the objects; otherwise it learns from the first stage's draw."""
    cascade_mean: str
    """Of what of the stages the mean counts: `probability`, or `logit`."""
    cascade_gradient_share: bool
    """Whether a stage's gradient into the features is divided by the number of stages."""
    cascade_masks: bool
    """Whether each stage of a cascade has a mask head."""

    # Pooling
    roi_shift: float
    """What RoIAlign subtracts from a scaled corner, in cells."""
    roi_min_size: float
    """The least width and height of a scaled RoI, in cells; 0 for none."""
    level_epsilon: float
    """Added to sqrt(area) / 224 before the logarithm that picks the FPN level."""

    # Backbone and input
    frozen_norm_eps: float
    """Added to the variance in frozen batch norms."""
    freeze_statistics: bool
    """Whether batch norms of frozen stages keep their statistics too, and not their weights alone."""
    stem_pool_padding: int
    """Padding of a ResNet's first pooling; without any, the last window may reach beyond the border."""
    resize_rounding: str
    """The longer side of a resized image: `truncate` cuts its fraction off, `round` adds one half first. `one_factor`: both sides are
    multiplied by one factor and rounded, and boxes by exactly that factor, there and back; `both_truncated`: both sides lose their
    fraction, also where that was rounding."""

    interpolation: str
    """How images are resized. antialiased: averages when it shrinks; four_neighbours: between the nearest four pixels only;
    normalized_four_neighbours: the same after mean and deviation, without rounding to 8 bits."""
    unit_pixels: bool
    """Whether red-first pixels are divided by 255 before mean and deviation apply, or these are multiplied by it; the last bit differs."""

    # Masks
    mask_target: str
    """clamped: polygons move with the box cut to the image, at least 1 wide; exact: with the box as it is, at least .1 wide;
    half_covered, soft_cover: resampled from bitmaps, as 0 or 1 or as what they cover."""
    mask_paste: str
    """expand_truncate: padded mask, corners cut to integers, inclusive pixels; pixel_centres: sampled at the centres of pixels."""

    # Keypoints
    keypoints_in_object: bool
    """Whether an object trains the keypoint head only when one of its annotated points lies in its own box."""
    keypoint_score: str
    """logit: a point's score is the largest value of its resampled heat map; share: its part of the softmax over the map's cells."""

    # RetinaNet
    top_relu: bool
    """Whether P7 is made from P6 without its negative part."""
    retinanet_weights: tuple[float, float, float, float]
    """Factors of (dx, dy, dw, dh) in the box targets."""
    retinanet_first_label: int
    """Label of the first output: 1, or 0 where the background has an output that nothing trains."""
    retinanet_clip: bool
    """Whether detections are clipped to the resized image."""
    retinanet_normalizer: str
    """What the losses (of classes, of boxes) are divided by. positives_and_images: positives plus images, positives; positives: of each
    image at least 1; positives_of_image: an image's loss by its own, then the mean; moving_average: positives averaged over the steps."""

    # Losses
    roi_sampling: str
    """once: each proposal trains at most once; repeated: background proposals are drawn with replacement until all slots are full."""
    rpn_normalizer: str
    """sampled: RPN losses are divided by the anchors drawn; configured: by RPN.BATCH_SIZE_PER_IMAGE for each image; one_of_each: by the
    anchors drawn, with at least one positive and one negative for each image; last_image: boxes by the images times the anchors drawn from
    the last one."""
    rpn_beta: float
    """Where smooth L1 of the RPN turns from a parabola to a line; 0 is L1."""
    box_beta: float
    """The same for the box head."""


DIALECTS: dict[str, Dialect] = {
    dialect.name: dialect
    for dialect in (
        Dialect(
            name="maskrcnn_benchmark",
            pixel=1,  # structures/bounding_box.py, structures/boxlist_ops.py, modeling/box_coder.py
            decode_pixel=1.0,  # modeling/box_coder.py
            log_size_range=(-math.inf, LOG_MAX_SCALE),  # modeling/box_coder.py
            anchor_rule="rounded_corner",  # modeling/rpn/anchor_generator.py
            anchor_order="ratio_major",  # modeling/rpn/anchor_generator.py
            measured_strides=False,  # modeling/rpn/anchor_generator.py
            truncate_octaves=False,  # modeling/rpn/anchor_generator.py
            anchors_of_padding=True,  # modeling/rpn/anchor_generator.py
            low_quality_overlap=0.0,  # modeling/matcher.py
            low_quality_to_best=True,  # modeling/matcher.py
            only_visible_compete=False,  # modeling/rpn/loss.py
            rank_by="probability",  # modeling/rpn/inference.py
            drop_empty=False,  # structures/boxlist_ops.py
            nms_inclusive=True,  # csrc/cpu/nms_cpu.cpp; csrc/cuda/nms.cu is exclusive
            nms_offset=False,  # modeling/roi_heads/box_head/inference.py
            zero_proposals=False,  # modeling/rpn/inference.py
            nms_original=False,  # modeling/roi_heads/box_head/inference.py
            detection_ties=28,  # modeling/roi_heads/box_head/inference.py
            min_detection_size=0.0,  # modeling/roi_heads/box_head/inference.py
            clip_rescaled=False,  # engine/inference.py, demo/predictor.py
            cascade_redraws=False,
            cascade_mean="probability",
            cascade_gradient_share=True,
            cascade_masks=False,
            roi_shift=0.0,  # csrc/cpu/ROIAlign_cpu.cpp
            roi_min_size=1.0,  # csrc/cpu/ROIAlign_cpu.cpp
            level_epsilon=1e-6,  # modeling/poolers.py
            frozen_norm_eps=0.0,  # layers/batch_norm.py
            freeze_statistics=False,  # modeling/backbone/resnet.py
            stem_pool_padding=1,  # modeling/backbone/resnet.py
            resize_rounding="truncate",  # data/transforms/transforms.py
            interpolation="antialiased",  # data/transforms/transforms.py
            unit_pixels=True,  # data/transforms/transforms.py
            mask_target="clamped",  # structures/segmentation_mask.py
            mask_paste="expand_truncate",  # modeling/roi_heads/mask_head/inference.py
            keypoints_in_object=True,  # modeling/roi_heads/keypoint_head/loss.py
            keypoint_score="logit",  # modeling/roi_heads/keypoint_head/inference.py
            top_relu=True,  # modeling/backbone/fpn.py
            retinanet_weights=(10.0, 10.0, 5.0, 5.0),  # modeling/rpn/retinanet/retinanet.py
            retinanet_first_label=1,  # modeling/rpn/retinanet/inference.py
            retinanet_clip=True,  # modeling/rpn/retinanet/inference.py
            retinanet_normalizer="positives_and_images",  # modeling/rpn/retinanet/loss.py
            roi_sampling="once",  # modeling/balanced_positive_negative_sampler.py
            rpn_normalizer="sampled",  # modeling/rpn/loss.py
            rpn_beta=1.0 / 9,  # modeling/rpn/loss.py
            box_beta=1.0,  # modeling/roi_heads/box_head/loss.py
        ),
        Dialect(
            name="detectron2",
            pixel=0,  # structures/boxes.py
            decode_pixel=0.0,  # modeling/box_regression.py
            log_size_range=(-math.inf, LOG_MAX_SCALE),  # modeling/box_regression.py
            anchor_rule="exact_centre",  # modeling/anchor_generator.py
            anchor_order="size_major",  # modeling/anchor_generator.py
            measured_strides=False,  # modeling/anchor_generator.py
            truncate_octaves=False,  # modeling/anchor_generator.py
            anchors_of_padding=True,  # modeling/proposal_generator/rpn.py
            low_quality_overlap=0.0,  # modeling/matcher.py
            low_quality_to_best=True,  # modeling/matcher.py
            only_visible_compete=False,  # modeling/proposal_generator/rpn.py
            rank_by="logit",  # modeling/proposal_generator/proposal_utils.py
            drop_empty=True,  # modeling/proposal_generator/proposal_utils.py
            nms_inclusive=False,  # layers/nms.py
            nms_offset=False,  # layers/nms.py, at more than 1000 boxes
            zero_proposals=False,  # modeling/proposal_generator/proposal_utils.py
            nms_original=False,  # modeling/roi_heads/fast_rcnn.py
            detection_ties=0,  # modeling/roi_heads/fast_rcnn.py
            min_detection_size=0.0,  # modeling/roi_heads/fast_rcnn.py
            clip_rescaled=True,  # modeling/postprocessing.py
            cascade_redraws=False,  # modeling/roi_heads/cascade_rcnn.py
            cascade_mean="probability",  # modeling/roi_heads/cascade_rcnn.py
            cascade_gradient_share=True,  # modeling/roi_heads/cascade_rcnn.py
            cascade_masks=False,  # modeling/roi_heads/cascade_rcnn.py
            roi_shift=0.5,  # layers/roi_align.py
            roi_min_size=0.0,  # layers/roi_align.py
            level_epsilon=1e-8,  # modeling/poolers.py
            frozen_norm_eps=1e-5,  # layers/batch_norm.py
            freeze_statistics=True,  # modeling/backbone/resnet.py
            stem_pool_padding=1,  # modeling/backbone/resnet.py
            resize_rounding="round",  # data/transforms/augmentation_impl.py
            interpolation="antialiased",  # data/transforms/augmentation_impl.py
            unit_pixels=True,
            mask_target="exact",  # structures/masks.py
            mask_paste="pixel_centres",  # layers/mask_ops.py
            keypoints_in_object=False,  # modeling/roi_heads/keypoint_head.py
            keypoint_score="share",  # structures/keypoints.py
            top_relu=True,  # modeling/backbone/fpn.py
            retinanet_weights=(1.0, 1.0, 1.0, 1.0),  # config/defaults.py
            retinanet_first_label=1,  # modeling/meta_arch/retinanet.py
            retinanet_clip=False,  # modeling/meta_arch/dense_detector.py
            retinanet_normalizer="moving_average",  # modeling/meta_arch/retinanet.py
            roi_sampling="once",  # modeling/sampling.py
            rpn_normalizer="configured",  # modeling/proposal_generator/rpn.py
            rpn_beta=0.0,  # modeling/proposal_generator/rpn.py
            box_beta=0.0,  # modeling/roi_heads/fast_rcnn.py
        ),
        Dialect(
            name="torchvision",
            pixel=0,  # ops/boxes.py
            decode_pixel=0.0,  # models/detection/_utils.py
            log_size_range=(-math.inf, LOG_MAX_SCALE),  # models/detection/_utils.py
            anchor_rule="rounded_centre",  # models/detection/anchor_utils.py
            anchor_order="ratio_major",  # models/detection/anchor_utils.py
            measured_strides=True,  # models/detection/anchor_utils.py
            truncate_octaves=True,  # models/detection/retinanet.py
            anchors_of_padding=True,  # models/detection/rpn.py
            low_quality_overlap=0.0,  # models/detection/_utils.py
            low_quality_to_best=True,  # models/detection/_utils.py
            only_visible_compete=False,  # models/detection/rpn.py
            rank_by="logit",  # models/detection/rpn.py
            drop_empty=False,  # ops/boxes.py; RPN.MIN_SIZE is 0.001
            nms_inclusive=False,  # csrc/ops/cpu/nms_kernel.cpp
            nms_offset=False,  # ops/boxes.py, at more than 1000 boxes
            zero_proposals=False,  # models/detection/rpn.py
            nms_original=False,  # models/detection/roi_heads.py
            detection_ties=0,  # models/detection/roi_heads.py
            min_detection_size=0.01,  # models/detection/roi_heads.py
            clip_rescaled=False,  # models/detection/transform.py
            cascade_redraws=False,
            cascade_mean="probability",
            cascade_gradient_share=True,
            cascade_masks=False,
            roi_shift=0.0,  # ops/poolers.py
            roi_min_size=1.0,  # csrc/ops/cpu/roi_align_kernel.cpp
            level_epsilon=1e-6,  # ops/poolers.py
            frozen_norm_eps=0.0,  # models/detection/_utils.py: overwrite_eps of the released weights
            freeze_statistics=False,  # models/detection/backbone_utils.py
            stem_pool_padding=1,  # models/resnet.py
            resize_rounding="both_truncated",  # models/detection/transform.py
            interpolation="normalized_four_neighbours",  # models/detection/transform.py
            unit_pixels=True,  # transforms/functional.py: to_tensor
            mask_target="soft_cover",  # models/detection/roi_heads.py
            mask_paste="expand_truncate",  # models/detection/roi_heads.py
            keypoints_in_object=False,  # models/detection/roi_heads.py
            keypoint_score="logit",  # models/detection/roi_heads.py
            top_relu=True,  # ops/feature_pyramid_network.py
            retinanet_weights=(1.0, 1.0, 1.0, 1.0),  # models/detection/retinanet.py
            retinanet_first_label=0,  # models/detection/retinanet.py
            retinanet_clip=True,  # models/detection/retinanet.py
            retinanet_normalizer="positives_of_image",  # models/detection/retinanet.py
            roi_sampling="once",  # models/detection/_utils.py
            rpn_normalizer="sampled",  # models/detection/rpn.py
            rpn_beta=1.0 / 9,  # models/detection/rpn.py
            box_beta=1.0 / 9,  # models/detection/roi_heads.py
        ),
        Dialect(
            name="mmdetection",
            pixel=0,  # structures/bbox/bbox_overlaps.py
            decode_pixel=0.0,  # models/task_modules/coders/delta_xywh_bbox_coder.py
            log_size_range=(-LOG_MAX_SCALE, LOG_MAX_SCALE),  # models/task_modules/coders/delta_xywh_bbox_coder.py: wh_ratio_clip
            anchor_rule="exact_centre",  # models/task_modules/prior_generators/anchor_generator.py
            anchor_order="ratio_major",  # models/task_modules/prior_generators/anchor_generator.py
            measured_strides=False,  # models/task_modules/prior_generators/anchor_generator.py
            truncate_octaves=False,  # models/task_modules/prior_generators/anchor_generator.py
            anchors_of_padding=False,  # models/task_modules/prior_generators/anchor_generator.py: valid_flags
            low_quality_overlap=0.3,  # configs/_base_/models: min_pos_iou
            low_quality_to_best=False,  # models/task_modules/assigners/max_iou_assigner.py
            only_visible_compete=True,  # models/dense_heads/anchor_head.py
            rank_by="probability",  # models/dense_heads/rpn_head.py
            drop_empty=True,  # models/dense_heads/rpn_head.py
            nms_inclusive=False,  # mmcv ops/nms.py
            nms_offset=True,  # mmcv ops/nms.py
            zero_proposals=False,  # models/dense_heads/rpn_head.py
            nms_original=False,  # models/roi_heads/bbox_heads/bbox_head.py: it does, but without the pixel rule scale makes no difference
            detection_ties=0,  # models/layers/bbox_nms.py
            min_detection_size=0.0,  # models/layers/bbox_nms.py
            clip_rescaled=False,  # models/roi_heads/bbox_heads/bbox_head.py
            cascade_redraws=True,  # models/roi_heads/cascade_roi_head.py
            cascade_mean="logit",  # models/roi_heads/cascade_roi_head.py
            cascade_gradient_share=False,  # models/roi_heads/cascade_roi_head.py
            cascade_masks=True,  # models/roi_heads/cascade_roi_head.py
            roi_shift=0.5,  # mmcv ops/roi_align.py
            roi_min_size=0.0,  # mmcv ops/roi_align.py
            level_epsilon=1e-6 / 4,  # models/roi_heads/roi_extractors/single_level_roi_extractor.py: 1e-6 on sqrt(area) / 56
            frozen_norm_eps=1e-5,  # torch's BatchNorm2d
            freeze_statistics=True,  # models/backbones/resnet.py
            stem_pool_padding=1,  # models/backbones/resnet.py
            resize_rounding="round",  # mmcv image/geometric.py
            interpolation="four_neighbours",  # mmcv image/geometric.py: cv2.INTER_LINEAR
            unit_pixels=False,  # models/data_preprocessors/data_preprocessor.py
            mask_target="half_covered",  # structures/mask/structures.py
            mask_paste="pixel_centres",  # models/roi_heads/mask_heads/fcn_mask_head.py
            keypoints_in_object=False,
            keypoint_score="logit",
            top_relu=False,  # models/necks/fpn.py: relu_before_extra_convs
            retinanet_weights=(1.0, 1.0, 1.0, 1.0),  # configs/_base_/models/retinanet_r50_fpn.py
            retinanet_first_label=1,  # models/dense_heads/retina_head.py
            retinanet_clip=True,  # models/task_modules/coders/delta_xywh_bbox_coder.py
            retinanet_normalizer="positives",  # models/dense_heads/anchor_head.py
            roi_sampling="once",  # models/task_modules/samplers/random_sampler.py
            rpn_normalizer="one_of_each",  # models/dense_heads/anchor_head.py, models/task_modules/samplers/sampling_result.py
            rpn_beta=0.0,  # configs/_base_/models/faster-rcnn_r50_fpn.py
            box_beta=0.0,  # configs/_base_/models/faster-rcnn_r50_fpn.py
        ),
        Dialect(
            name="faster_rcnn_pytorch",
            pixel=1,  # rpn/bbox_transform.py
            decode_pixel=0.0,  # rpn/bbox_transform.py
            log_size_range=(-math.inf, math.inf),  # rpn/bbox_transform.py
            anchor_rule="rounded_corner",  # rpn/generate_anchors.py
            anchor_order="ratio_major",  # rpn/generate_anchors.py
            measured_strides=False,  # rpn/proposal_layer.py
            truncate_octaves=False,
            anchors_of_padding=True,  # rpn/anchor_target_layer.py
            low_quality_overlap=1e-30,  # rpn/anchor_target_layer.py: any overlap but none
            low_quality_to_best=True,  # rpn/anchor_target_layer.py
            only_visible_compete=True,  # rpn/anchor_target_layer.py
            rank_by="probability",  # rpn/proposal_layer.py
            drop_empty=False,  # rpn/proposal_layer.py
            nms_inclusive=False,  # nms/nms_cpu.py, nms/src/nms_cuda_kernel.cu
            nms_offset=False,  # test_net.py
            zero_proposals=True,  # rpn/proposal_layer.py
            nms_original=True,  # demo.py, test_net.py
            detection_ties=28,  # test_net.py
            min_detection_size=0.0,  # test_net.py
            clip_rescaled=False,  # test_net.py
            cascade_redraws=False,
            cascade_mean="probability",
            cascade_gradient_share=True,
            cascade_masks=False,
            roi_shift=0.0,  # roi_align/src/roi_align.c
            roi_min_size=1.0,  # roi_align/src/roi_align.c
            level_epsilon=1e-6,
            frozen_norm_eps=1e-5,  # torch's BatchNorm2d
            freeze_statistics=True,  # faster_rcnn/resnet.py
            stem_pool_padding=0,  # faster_rcnn/resnet.py
            resize_rounding="one_factor",  # utils/blob.py
            interpolation="normalized_four_neighbours",  # utils/blob.py: cv2.INTER_LINEAR of float32
            unit_pixels=True,
            mask_target="clamped",
            mask_paste="expand_truncate",
            keypoints_in_object=False,
            keypoint_score="logit",
            top_relu=True,
            retinanet_weights=(1.0, 1.0, 1.0, 1.0),
            retinanet_first_label=1,
            retinanet_clip=True,
            retinanet_normalizer="positives",
            roi_sampling="repeated",  # rpn/proposal_target_layer_cascade.py
            rpn_normalizer="last_image",  # rpn/anchor_target_layer.py
            rpn_beta=1.0 / 9,  # rpn/rpn.py: sigma 3
            box_beta=1.0,  # utils/net_utils.py
        ),
    )
}


def get_dialect(name: str) -> Dialect:
    """The row of the table that `MODEL.DIALECT` names.

    Raises:
        ValueError: for a name that is not in the table.
    """
    if name not in DIALECTS:
        raise ValueError(f"MODEL.DIALECT: expected one of {sorted(DIALECTS)}, got {name!r}")
    return DIALECTS[name]
