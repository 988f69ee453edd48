"""Masks of boxes straight to COCO's run lengths: compiled kernels without a replacement in torch.

Letters: n masks of one image, S cells along each side of a mask.
The length of the answer depends on the data, so this belongs behind the hand-over to the host, never in a model.
On the CPU one kernel makes the strings. On the GPU one counts the edges of each column and another writes them; nothing but them
is copied to the host.
"""

import numpy as np
import torch
from torch import Tensor

from . import _ops


def is_compiled(device: str = "cpu") -> bool:
    """Whether masks on a device ("cpu" or "cuda") have a kernel here."""
    op_name, key = {"cpu": ("mask_rle", "CPU"), "cuda": ("mask_edges", "CUDA")}.get(device, ("", ""))
    return _ops.load() == "csrc" and op_name != "" and torch._C._dispatch_has_kernel_for_dispatch_key(f"{_ops.NAMESPACE}::{op_name}", key)


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


def mask_edges(
    probs: Tensor, boxes: Tensor, size: tuple[int, int], threshold: float, rule: str, padding: int, fused: bool
) -> list[np.ndarray]:
    """Where the vertical runs of each pasted mask begin and end, from masks and boxes on the GPU; arguments as those of `mask_rle`.

    Returns:
        For each mask beginnings (even places) and ends (odd places) in the image's pixels, counted column by column. int64 [2 runs]
    """
    width, height = size
    rest = (height, width, threshold, rule, padding, fused)
    counts = torch.ops.maskrcnn_bench.mask_edge_counts(probs, boxes, *rest)
    ends = counts.flatten().cumsum(0).view_as(counts)
    of_masks = counts.sum(1).cpu().numpy()  # here, and below for the edges, the host waits
    edges = torch.ops.maskrcnn_bench.mask_edges(probs, boxes, ends, int(of_masks.sum()), *rest)
    return np.split(edges.cpu().numpy(), of_masks.cumsum()[:-1]) if len(of_masks) else []
