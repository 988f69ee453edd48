"""BoxCoder: boxes relative to reference boxes, as the four numbers that a network learns (Fast R-CNN, section 3)."""

from __future__ import annotations

import torch
from torch import Tensor

from ..layers.decode_boxes import decode_boxes


class BoxCoder:
    """Encodes boxes relative to reference boxes, and back.

    Args:
        weights: factors of dx, dy, dw, dh.
        pixel: what a width adds to x2 - x1.
        decode_pixel: what a decoded x2 and y2 lose against centre + size / 2.
        log_size_range: clamp of dw and dh before the exponential.
    """

    def __init__(self, weights: tuple[float, float, float, float], pixel: int, decode_pixel: float, log_size_range: tuple[float, float]):
        self.weights = weights
        self.pixel = pixel
        self.decode_pixel = decode_pixel
        self.log_size_range = log_size_range

    def _centre_and_size(self, boxes: Tensor) -> tuple[Tensor, Tensor]:
        size = boxes[..., 2:] - boxes[..., :2] + self.pixel
        return boxes[..., :2] + 0.5 * size, size

    def encode(self, boxes: Tensor, references: Tensor) -> Tensor:
        """What a network must answer at `references` to mean `boxes`.

        Args:
            boxes: xyxy, pixels, of positive size. [..., 4]
            references: anchors or proposals, xyxy, same pixels, of positive size. [..., 4]
        Returns:
            (dx, dy, dw, dh): offsets in reference sizes and logarithms of ratios of sizes, times `weights`. [..., 4]
        """
        centre, size = self._centre_and_size(boxes)
        reference_centre, reference_size = self._centre_and_size(references)
        wx, wy, ww, wh = self.weights
        dxy = (centre - reference_centre) / reference_size
        dwh = torch.log(size / reference_size)
        return torch.stack([wx * dxy[..., 0], wy * dxy[..., 1], ww * dwh[..., 0], wh * dwh[..., 1]], dim=-1)

    def decode(self, codes: Tensor, references: Tensor) -> Tensor:
        """The boxes that a network means; float32 at least.

        Args:
            codes: (dx, dy, dw, dh) for each class, times `weights`. [..., 4K]
            references: anchors or proposals, xyxy, pixels. [..., 4]
        Returns:
            One box a class, xyxy, same pixels, not clipped to the image. [..., 4K]
        """
        codes = (codes if codes.dtype == torch.float64 else codes.float()).unflatten(-1, (-1, 4))
        centre, size = self._centre_and_size(references.to(codes.dtype))
        wx, wy, ww, wh = self.weights
        width, height = size[..., None, 0], size[..., None, 1]
        lowest, highest = self.log_size_range
        x = codes[..., 0] / wx * width + centre[..., None, 0]
        y = codes[..., 1] / wy * height + centre[..., None, 1]
        half_w = 0.5 * (torch.exp((codes[..., 2] / ww).clamp(lowest, highest)) * width)
        half_h = 0.5 * (torch.exp((codes[..., 3] / wh).clamp(lowest, highest)) * height)
        corners = [x - half_w, y - half_h, x + half_w - self.decode_pixel, y + half_h - self.decode_pixel]
        return torch.stack(corners, dim=-1).flatten(-2)

    def decode_chosen(
        self, regression: Tensor, anchors: Tensor, inds: Tensor, sizes: Tensor, clip: bool, min_size: float = 0.0, strict: bool = False
    ) -> tuple[Tensor, Tensor]:
        """`decode` of some anchors of each image in one go, without gradients; arguments and answer as for `layers.decode_boxes`."""
        rule = (self.weights, self.log_size_range, self.pixel, self.decode_pixel)
        return decode_boxes(regression, anchors, inds, sizes, *rule, clip, min_size, strict)


def clip_boxes(boxes: Tensor, sizes: Tensor, pixel: int) -> Tensor:
    """Boxes clamped to their images.

    Args:
        boxes: xyxy, pixels. [N, ..., 4]
        sizes: (width, height) of each image, pixels. [N, 2]
        pixel: the largest coordinate is the size minus `pixel`.
    Returns:
        [N, ..., 4]
    """
    limit = (sizes - pixel).repeat(1, 2).view(len(sizes), *[1] * (boxes.dim() - 2), 4)
    return torch.minimum(boxes.clamp(min=0), limit)
