"""Masks of boxes straight to COCO's run lengths: a compiled kernel without a replacement in torch.

Letters: n masks of one image, S cells along each side of a mask.
The length of the answer depends on the data, so this belongs behind the hand-over to the host, never in a model.
"""

import torch
from torch import Tensor

from . import _ops


def is_compiled() -> bool:
    """Whether `mask_rle` can be called."""
    return _ops.load() == "csrc"


def mask_rle(probs: Tensor, boxes: Tensor, size: tuple[int, int], threshold: float, rule: str, padding: int, fused: bool) -> list[str]:
    """Pastes each mask into an image that is never made, and encodes which pixels lie inside.

    Args:
        probs: probabilities; on the CPU. float32 [n, S, S]
        boxes: finite, xyxy, pixels of the image. float32 [n, 4]
        size: (width, height) of the image, pixels.
        threshold: probability that separates object from background.
        rule: "expand_truncate" or "pixel_centres", see structures/mask_paste.py.
        padding: border of zeros, in mask pixels ("expand_truncate" only).
        fused: whether products are added without rounding them first. torch's own kernels do so on processors with FMA.

    Returns:
        COCO's compressed run lengths, one string a mask.
    """
    width, height = size
    return torch.ops.maskrcnn_bench.mask_rle(probs, boxes, height, width, threshold, rule, padding, fused)
