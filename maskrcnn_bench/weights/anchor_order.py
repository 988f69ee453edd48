"""The order of a cell's anchors, which is that of the rows of the last layers of RPN and RetinaNet.

One project counts all ratios of the first size, then the next size; the others all sizes of the first ratio. Where a level has one
size or one ratio, both are the same.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .names import matches

RATIO_MAJOR, SIZE_MAJOR = ORDERS = ("ratio_major", "size_major")
ROWS = ("rpn.head.cls_logits.*", "rpn.head.bbox_pred.*")
_SAME = 0.2  # of logarithms to base 2: rounded corners move a ratio by less, and sizes or ratios that differ by less are in no use


@dataclass(frozen=True)
class AnchorGrid:
    """How the anchors of a cell are counted.

    Args:
        order: one of ORDERS.
        sizes, ratios: how many there are, at least two each.
    """

    order: str
    sizes: int
    ratios: int


def anchor_grid(state: dict[str, Tensor]) -> AnchorGrid | None:
    """Read off the anchors among a model's tensors; None when there are none, or when both orders are the same."""
    cells = [value for name, value in state.items() if matches("**.cell_anchors.*", name) and _is_boxes(value)]
    if not cells:
        return None
    # All levels are counted alike, and rounding matters least for the largest anchors.
    width, height = (cells[-1][:, 2:] - cells[-1][:, :2]).double().cpu().log2().unbind(1)
    of_ratio, of_size, count = _run(height - width), _run(height + width), len(width)
    if of_ratio > 1 and of_ratio < count and count % of_ratio == 0:
        return AnchorGrid(RATIO_MAJOR, of_ratio, count // of_ratio)
    if of_size > 1 and of_size < count and count % of_size == 0:
        return AnchorGrid(SIZE_MAJOR, count // of_size, of_size)
    return None


def _is_boxes(value: Tensor | None) -> bool:
    """Whether there are boxes to look at: gradients by the names of a model have none, and a file may have anything."""
    return isinstance(value, Tensor) and not value.is_meta and value.dim() == 2 and value.shape[1] == 4


def _run(values: Tensor) -> int:
    """How many values at the beginning are the first one."""
    return int((abs(values - values[0]) < _SAME).cumprod(0).sum()) if len(values) else 0


def several_anchors(state: dict[str, Tensor]) -> bool:
    """Whether a cell has so many anchors that both orders may differ: a prime number is all of one size, or all of one ratio."""
    count = len(state.get("rpn.head.bbox_pred.weight", ())) // 4
    return any(count % factor == 0 for factor in range(2, count))


def in_order(state: dict[str, Tensor], grid: AnchorGrid | None, order: str) -> dict[str, Tensor]:
    """Tensors whose rows are counted as `grid` says -> the same counted by `order`; without a grid they stay."""
    if grid is None or grid.order == order:
        return state
    shape = (grid.ratios, grid.sizes) if grid.order == RATIO_MAJOR else (grid.sizes, grid.ratios)
    names = [name for name in state if any(matches(template, name) for template in ROWS)]
    return state | {name: _turned(state[name], shape) for name in names if len(state[name]) % (grid.sizes * grid.ratios) == 0}


def _turned(rows: Tensor, shape: tuple[int, int]) -> Tensor:
    """Rows counted by the second of two numbers first -> by the first. [shape[0] * shape[1] * n, ...]"""
    return torch.flatten(rows.unflatten(0, (*shape, -1)).transpose(0, 1), 0, 2)
