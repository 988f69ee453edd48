"""Checkpoints of maskrcnn-benchmark, and this library's own: the names are the same."""

from __future__ import annotations

from .names import Naming

MASKRCNN_BENCHMARK = Naming(
    kind="maskrcnn_benchmark",
    marks=(
        "rpn.head.conv.weight",
        "rpn.head.cls_logits.weight",
        "roi_heads.box.predictor.cls_score.weight",
        "backbone.body.stem.conv1.weight",
        "backbone.body.first.conv.weight",
    ),
    names=(("**", "**"),),
    anchor_order="",  # ours follow their configuration
)
