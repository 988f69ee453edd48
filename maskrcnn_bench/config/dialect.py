"""What the reference implementations compute differently, as one table.

Five projects train "the same" Faster R-CNN, and each computes other numbers. Here every such difference has one name, one
meaning and one value a project; nothing else in the library knows the projects. A configuration names its row with
`MODEL.DIALECT`. What a configuration key already says (thresholds, sizes, pixel means) is not repeated here.

The sources are files of the projects: maskrcnn-benchmark at 57eec25 (below `maskrcnn_benchmark/`), detectron2 at 02b5c4e (below
`detectron2/`) and torchvision 0.29.1 (below `torchvision/`).
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

    # Proposals
    rank_by: str
    """Proposals are ranked by `probability` (after the sigmoid) or by `logit`; they differ where the sigmoid saturates."""
    drop_empty: bool
    """Whether proposals must be wider and higher than RPN.MIN_SIZE (True), or at least that wide and high (False)."""
    nms_inclusive: bool
    """Whether a box whose overlap equals the threshold is suppressed."""

    # Detections
    detection_ties: int
    """Extra slots for detections that tie with the last of DETECTIONS_PER_IMG; 0 takes exactly that many."""
    min_detection_size: float
    """Least width and height of a detection before the suppression, pixels of the resized image."""
    clip_rescaled: bool
    """Whether detections are clipped once more after they are moved to the original image."""

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
    resize_rounding: str
    """The longer side of a resized image: `truncate` cuts its fraction off, `round` adds one half first."""

    # Masks
    mask_target: str
    """clamped: polygons move with the box cut to the image, at least 1 wide; exact: with the box as it is, at least .1 wide;
    half_covered, soft_cover: resampled from bitmaps, as 0 or 1 or as what they cover."""
    mask_paste: str
    """expand_truncate: padded mask, corners cut to integers, inclusive pixels; pixel_centres: sampled at the centres of pixels."""

    # Losses
    rpn_normalizer: str
    """sampled: RPN losses are divided by the anchors drawn; configured: by RPN.BATCH_SIZE_PER_IMAGE for each image."""
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
            rank_by="probability",  # modeling/rpn/inference.py
            drop_empty=False,  # structures/boxlist_ops.py
            nms_inclusive=True,  # csrc/cpu/nms_cpu.cpp; csrc/cuda/nms.cu is exclusive
            detection_ties=28,  # modeling/roi_heads/box_head/inference.py
            min_detection_size=0.0,
            clip_rescaled=False,  # engine/inference.py, demo/predictor.py
            roi_shift=0.0,  # csrc/cpu/ROIAlign_cpu.cpp
            roi_min_size=1.0,  # csrc/cpu/ROIAlign_cpu.cpp
            level_epsilon=1e-6,  # modeling/poolers.py
            frozen_norm_eps=0.0,  # layers/batch_norm.py
            resize_rounding="truncate",  # data/transforms/transforms.py
            mask_target="clamped",  # structures/segmentation_mask.py
            mask_paste="expand_truncate",  # modeling/roi_heads/mask_head/inference.py
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
            rank_by="logit",  # modeling/proposal_generator/proposal_utils.py
            drop_empty=True,  # modeling/proposal_generator/proposal_utils.py
            nms_inclusive=False,  # layers/nms.py
            detection_ties=0,  # modeling/roi_heads/fast_rcnn.py
            min_detection_size=0.0,
            clip_rescaled=True,  # modeling/postprocessing.py
            roi_shift=0.5,  # layers/roi_align.py
            roi_min_size=0.0,  # layers/roi_align.py
            level_epsilon=1e-8,  # modeling/poolers.py
            frozen_norm_eps=1e-5,  # layers/batch_norm.py
            resize_rounding="round",  # data/transforms/augmentation_impl.py
            mask_target="exact",  # structures/masks.py
            mask_paste="pixel_centres",  # layers/mask_ops.py
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
            rank_by="logit",  # models/detection/rpn.py
            drop_empty=False,  # ops/boxes.py; RPN.MIN_SIZE is 0.001
            nms_inclusive=False,  # csrc/ops/cpu/nms_kernel.cpp
            detection_ties=0,  # models/detection/roi_heads.py
            min_detection_size=0.01,  # models/detection/roi_heads.py
            clip_rescaled=False,  # models/detection/transform.py
            roi_shift=0.0,  # ops/poolers.py
            roi_min_size=1.0,  # csrc/ops/cpu/roi_align_kernel.cpp
            level_epsilon=1e-6,  # ops/poolers.py
            frozen_norm_eps=0.0,  # models/detection/_utils.py: overwrite_eps of the released weights
            resize_rounding="truncate",  # models/detection/transform.py
            mask_target="soft_cover",  # models/detection/roi_heads.py
            mask_paste="expand_truncate",  # models/detection/roi_heads.py
            rpn_normalizer="sampled",  # models/detection/rpn.py
            rpn_beta=1.0 / 9,  # models/detection/rpn.py
            box_beta=1.0 / 9,  # models/detection/roi_heads.py
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
