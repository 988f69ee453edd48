"""Bilinear resizing of pictures of 8 bits a channel, in the numbers of each library that does it in its own way.

Letters: H x W pixels of C channels, h x w pixels of the result.
"""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from . import _ops


def resize_means(image: Tensor, height: int, width: int) -> Tensor:
    """Pillow's: along each axis a mean of all pixels that a new one covers, of the two nearest when enlarging; bytes in between.

    Args:
        image: uint8 [H, W, C]
        height, width: of the result, pixels.
    Returns:
        uint8 [h, w, C]
    """
    return torch.ops.maskrcnn_bench.resize_means(image, height, width)


def resize_fixed_point(image: Tensor, columns: Tensor, column_weights: Tensor, rows: Tensor, row_weights: Tensor) -> Tensor:
    """OpenCV's for bytes: between four neighbours, with weights in parts of 2,048 that the caller rounded.

    Args:
        image: uint8 [H, W, C]
        columns, rows: the two neighbours of each new column and row. int32 [2, w] and [2, h]
        column_weights, row_weights: their weights. int32 [2, w] and [2, h]
    Returns:
        uint8 [h, w, C]
    """
    return torch.ops.maskrcnn_bench.resize_fixed_point(image, columns, column_weights, rows, row_weights)


def resize_looked_up(image: Tensor, table: Tensor, columns: Tensor, column_shares: Tensor, rows: Tensor, row_shares: Tensor) -> Tensor:
    """Every byte becomes a number first, and numbers are blended between four neighbours.

    Args:
        image: uint8 [H, W, C]
        table: what each byte stands for, in each channel. float32 [C, 256]
        columns, rows: the two neighbours of each new column and row. int32 [2, w] and [2, h]
        column_shares, row_shares: how far each lies from its first neighbour to its second, 0 to 1. float32 [w] and [h]
    Returns:
        float32 [C, h, w]
    """
    return torch.ops.maskrcnn_bench.resize_looked_up(image, table, columns, column_shares, rows, row_shares)


def _means_pillow(image: Tensor, height: int, width: int) -> Tensor:
    planes = [Image.fromarray(plane).resize((width, height), Image.BILINEAR) for plane in image.permute(2, 0, 1).contiguous().numpy()]
    return torch.from_numpy(np.stack([np.asarray(plane) for plane in planes], axis=2))


def _fixed_point_torch(image: Tensor, columns: Tensor, column_weights: Tensor, rows: Tensor, row_weights: Tensor) -> Tensor:
    wide, share, part = image.int(), column_weights[..., None], row_weights[..., None, None]
    lines = (wide[:, columns[0]] * share[0] + wide[:, columns[1]] * share[1]) >> 4
    out = ((lines[rows[0]] * part[0]) >> 16) + ((lines[rows[1]] * part[1]) >> 16)
    return ((out + 2) >> 2).clamp(0, 255).to(torch.uint8)


def _looked_up_torch(image: Tensor, table: Tensor, columns: Tensor, column_shares: Tensor, rows: Tensor, row_shares: Tensor) -> Tensor:
    values = torch.stack([row[image[..., channel].long()] for channel, row in enumerate(table)])
    lines = values[:, :, columns[0]].lerp(values[:, :, columns[1]], column_shares)
    return lines[:, rows[0]].lerp(lines[:, rows[1]], row_shares[:, None])


def _fake_bytes(image: Tensor, columns: Tensor, column_weights: Tensor, rows: Tensor, row_weights: Tensor) -> Tensor:
    return image.new_empty((rows.shape[1], columns.shape[1], image.shape[2]))


def _fake_numbers(image: Tensor, table: Tensor, columns: Tensor, column_shares: Tensor, rows: Tensor, row_shares: Tensor) -> Tensor:
    return table.new_empty((image.shape[2], rows.shape[1], columns.shape[1]))


def _fake_means(image: Tensor, height: int, width: int) -> Tensor:
    return image.new_empty((height, width, image.shape[2]))


_ops.register("resize_means", _fake_means, float32=False, pillow=_means_pillow)
_ops.register("resize_fixed_point", _fake_bytes, float32=False, torch=_fixed_point_torch)
_ops.register("resize_looked_up", _fake_numbers, float32=False, torch=_looked_up_torch)
