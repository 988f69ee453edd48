"""SegmentationMask: the masks of one image's objects, each kept in the spelling it came in until somebody needs pixels.

An object is a list of polygons, or a bitmap that reaches no further than the object's box, so that memory is bounded by
the objects and not by the image. Run lengths (COCO's RLE, compressed or not) become such bitmaps. Objects of both kinds
may stand in one list, and empty objects and empty lists are legal everywhere.

Coordinates are pixels; pixel (i, j) covers [i, i + 1) x [j, j + 1). `size` is (width, height).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .mask_outline import FARTHEST, decode_crop, outline, signed_area

MODES = ("poly", "mask", "auto")


@dataclass(frozen=True)
class Polygons:
    """An object as the union of closed polygons. rings: corners, xy, pixels. tuple of [n, 2] float64

    Drawing rounds corners to fifths of a pixel, so files with coordinates of one or two decimals need more than float32.
    """

    rings: tuple[np.ndarray, ...]

    def shift_scale(self, x0: float, y0: float, ratio_w: float, ratio_h: float) -> Polygons:
        offset, ratio = np.array([x0, y0]), np.array([ratio_w, ratio_h])
        return Polygons(tuple((ring - offset) * ratio for ring in self.rings))

    def crop(self, box: tuple[float, float, float, float]) -> Polygons:
        return self.shift_scale(box[0], box[1], 1.0, 1.0)

    def resize(self, ratio_w: float, ratio_h: float) -> Polygons:
        return self.shift_scale(0.0, 0.0, ratio_w, ratio_h)

    def transpose(self, axis: int, extent: float, pixel: int) -> Polygons:
        rings = [ring.copy() for ring in self.rings]
        for ring in rings:
            ring[:, axis] = extent - ring[:, axis] - pixel
        return Polygons(tuple(rings))

    def to_bitmap(self, size: tuple[float, float]) -> Bitmap:
        """The pixels as pycocotools draws them, inside the image."""
        from pycocotools import mask as coco_mask

        # pycocotools walks along every fifth of a pixel of an outline, with 32-bit counts, and crashes on far or undefined corners.
        rings = [np.nan_to_num(ring, nan=0.0).clip(-FARTHEST, FARTHEST) for ring in self.rings if len(ring) >= 3]
        if not rings:
            return EMPTY_BITMAP
        points = np.concatenate(rings)
        width, height = math.ceil(size[0]), math.ceil(size[1])
        x0, y0 = np.maximum(np.floor(points.min(axis=0)), 0).astype(int).tolist()
        x1, y1 = np.minimum(np.ceil(points.max(axis=0)) + 1, (width, height)).astype(int).tolist()
        if x1 <= x0 or y1 <= y0:
            return EMPTY_BITMAP
        # Drawn in the window of its box. Drawing begins by cutting corners to fifths of a pixel; that must come before the shift.
        fifths = [np.trunc(ring * 5 + 0.5) - (5 * x0, 5 * y0) for ring in rings]
        flat = [(np.where(ring < 0, ring - 0.75, ring) / 5).flatten().tolist() for ring in fifths]
        drawn = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(flat, y1 - y0, x1 - x0)))
        return tight(drawn, x0, y0)

    def to_polygons(self) -> Polygons:
        return self


@dataclass(frozen=True)
class Bitmap:
    """An object as pixels 0/1 of a part of the image whose first pixel is (x0, y0). pixels: [h, w] uint8"""

    x0: int
    y0: int
    pixels: np.ndarray

    def crop(self, box: tuple[float, float, float, float]) -> Bitmap:
        left, top, right, bottom = (math.floor(v + 0.5) for v in box)
        x0, y0 = max(left - self.x0, 0), max(top - self.y0, 0)
        kept = self.pixels[y0 : max(bottom - self.y0, 0), x0 : max(right - self.x0, 0)]
        return tight(kept, self.x0 + x0 - left, self.y0 + y0 - top)

    def resize(self, ratio_w: float, ratio_h: float) -> Bitmap:
        """Pixels whose antialiased bilinear coverage is at least a half, as the image itself is resized."""
        from PIL import Image

        height, width = self.pixels.shape
        if not self.pixels.size:
            return self
        x0, y0 = math.floor(self.x0 * ratio_w) - 1, math.floor(self.y0 * ratio_h) - 1
        x1, y1 = math.ceil((self.x0 + width) * ratio_w) + 1, math.ceil((self.y0 + height) * ratio_h) + 1
        source = (x0 / ratio_w - self.x0, y0 / ratio_h - self.y0, x1 / ratio_w - self.x0, y1 / ratio_h - self.y0)
        pad = (math.ceil(2 / ratio_w) + 2, math.ceil(2 / ratio_h) + 2)
        padded = np.pad(self.pixels * np.uint8(255), ((pad[1],) * 2, (pad[0],) * 2))
        box = (source[0] + pad[0], source[1] + pad[1], source[2] + pad[0], source[3] + pad[1])
        scaled = Image.fromarray(padded).resize((x1 - x0, y1 - y0), Image.BILINEAR, box=box)
        return tight((np.asarray(scaled) >= 128).astype(np.uint8), x0, y0)

    def transpose(self, axis: int, extent: float, pixel: int) -> Bitmap:
        """Mirrored pixels; whole pixels change places, whatever the pixel rule of boxes is."""
        height, width = self.pixels.shape
        flipped = np.ascontiguousarray(self.pixels[:, ::-1] if axis == 0 else self.pixels[::-1])
        if axis == 0:
            return Bitmap(round(extent) - self.x0 - width, self.y0, flipped)
        return Bitmap(self.x0, round(extent) - self.y0 - height, flipped)

    def to_bitmap(self, size: tuple[float, float]) -> Bitmap:
        return self

    def to_polygons(self) -> Polygons:
        """Outer outlines along pixel edges; holes are filled, because a list of polygons cannot say them."""
        rings = [ring for ring in outline(self.pixels) if signed_area(ring) > 0]
        return Polygons(tuple(ring.astype(np.float64) + (self.x0, self.y0) for ring in rings))


EMPTY_BITMAP = Bitmap(0, 0, np.zeros((0, 0), dtype=np.uint8))


def tight(pixels: np.ndarray, x0: int, y0: int) -> Bitmap:
    """A bitmap cut to the pixels that are set. pixels: [h, w] uint8, the first one at (x0, y0)"""
    rows, columns = np.flatnonzero(pixels.any(axis=1)), np.flatnonzero(pixels.any(axis=0))
    if not len(rows):
        return EMPTY_BITMAP
    kept = pixels[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    return Bitmap(x0 + int(columns[0]), y0 + int(rows[0]), np.ascontiguousarray(kept))


def _read_rle(rle: dict, size: tuple[float, float]) -> Bitmap:
    if tuple(rle["size"]) != (size[1], size[0]):
        raise ValueError(f"RLE: expected size (height, width) {(size[1], size[0])} of the image, got {tuple(rle['size'])}")
    return Bitmap(*decode_crop(rle))


def _read_pixels(pixels: np.ndarray, size: tuple[float, float]) -> Bitmap:
    if pixels.shape != (size[1], size[0]):
        raise ValueError(f"bitmap: expected shape (height, width) {(size[1], size[0])} of the image, got {pixels.shape}")
    return tight((pixels > 0).astype(np.uint8), 0, 0)


def _read_instance(instance: Any, size: tuple[float, float]) -> Polygons | Bitmap:
    """One object from any of its spellings: polygons (each flat or [n, 2]), RLE dict, pixels."""
    if isinstance(instance, (Polygons, Bitmap)):
        return instance
    if isinstance(instance, dict):
        return _read_rle(instance, size)
    if isinstance(instance, (Tensor, np.ndarray)):
        return _read_pixels(np.asarray(instance), size)
    rings = [np.asarray(ring, dtype=np.float64).reshape(-1) for ring in instance]
    for ring in rings:
        if len(ring) % 2:
            raise ValueError(f"polygon: expected x and y in turn, an even count of numbers, got {len(ring)}")
    return Polygons(tuple(ring.reshape(-1, 2) for ring in rings))


class SegmentationMask:
    """The masks of the objects of one image.

    Args:
        instances: one an object: a list of polygons ([x0, y0, x1, y1, ...], pixels), an RLE dict with `size` and `counts`,
            or the object's pixels [H, W]; or all of them as a tensor [n, H, W]; or a SegmentationMask.
        size: (width, height) of the image, pixels.
        mode: "auto" keeps every object as it came, "poly" makes all of them polygons, "mask" bitmaps.
    Raises:
        ValueError: when an RLE or bitmap has another size than the image, a polygon an odd count of numbers, or the mode is unknown.
    """

    def __init__(self, instances: Any, size: tuple[float, float], mode: str = "auto"):
        if mode not in MODES:
            raise ValueError(f"mode: expected one of {MODES}, got {mode!r}")
        self.size = (size[0], size[1])
        if isinstance(instances, Tensor) and instances.dim() == 2:
            instances = [instances]
        objects = [_read_instance(instance, self.size) for instance in getattr(instances, "instances", instances)]
        if mode == "poly":
            objects = [item.to_polygons() for item in objects]
        elif mode == "mask":
            objects = [item.to_bitmap(self.size) for item in objects]
        self.instances: list[Polygons | Bitmap] = objects
        self.mode = mode

    def _like(self, instances: list, size: tuple[float, float] | None = None) -> SegmentationMask:
        return SegmentationMask(instances, size or self.size, self.mode)

    def crop(self, box: Sequence[float]) -> SegmentationMask:
        """The masks on the part `box` (xyxy, pixels) of the image, which is first clamped to it and at least 1 wide and high.

        Bitmaps are cut at whole pixels.
        """
        x1, y1, x2, y2 = (float(v) for v in box)
        if x1 > x2 or y1 > y2:
            raise ValueError(f"crop: expected x1 <= x2 and y1 <= y2, got {(x1, y1, x2, y2)}")
        width, height = self.size
        x1, y1 = min(max(x1, 0.0), width - 1), min(max(y1, 0.0), height - 1)
        x2, y2 = max(min(max(x2, 0.0), width), x1 + 1), max(min(max(y2, 0.0), height), y1 + 1)
        cut = [item.crop((x1, y1, x2, y2)) for item in self.instances]
        return self._like(cut, (x2 - x1, y2 - y1))

    def resize(self, size: int | tuple[int, int]) -> SegmentationMask:
        """The masks on the image scaled to `size` (width, height)."""
        size = size if isinstance(size, (tuple, list)) else (size, size)
        ratio_w, ratio_h = size[0] / self.size[0], size[1] / self.size[1]
        return self._like([item.resize(ratio_w, ratio_h) for item in self.instances], (size[0], size[1]))

    def transpose(self, method: int, pixel: int = 1) -> SegmentationMask:
        """The masks on the mirrored image: 0 left to right, 1 top to bottom.

        Args:
            method: FLIP_LEFT_RIGHT (0) or FLIP_TOP_BOTTOM (1).
            pixel: the boxes' pixel rule; the corner x of a polygon goes to width - x - pixel, as the boxes do.
        """
        if method not in (0, 1):
            raise ValueError(f"transpose: expected FLIP_LEFT_RIGHT (0) or FLIP_TOP_BOTTOM (1), got {method!r}")
        return self._like([item.transpose(method, self.size[method], pixel) for item in self.instances])

    def to(self, *args: Any, **kwargs: Any) -> SegmentationMask:
        """Itself: masks stay on the host until `pack_masks` makes tensors of them."""
        return self

    def convert(self, mode: str) -> SegmentationMask:
        """All objects as polygons ("poly") or bitmaps ("mask")."""
        return SegmentationMask(self, self.size, mode)

    def get_mask_tensor(self) -> Tensor:
        """Full pixels, 0 or 1, [n, H, W] uint8; a single object gives [H, W] as in maskrcnn-benchmark."""
        width, height = math.ceil(self.size[0]), math.ceil(self.size[1])
        full = torch.zeros(len(self), height, width, dtype=torch.uint8)
        for canvas, item in zip(full, self.instances, strict=True):
            _paste(canvas.numpy(), item.to_bitmap(self.size))
        return full[0] if len(self) == 1 else full

    def __len__(self) -> int:
        return len(self.instances)

    def __getitem__(self, item: Any) -> SegmentationMask:
        if isinstance(item, slice):
            return self._like(self.instances[item])
        inds = np.atleast_1d(np.asarray(item.cpu() if isinstance(item, Tensor) else item))
        if inds.dtype == bool or (isinstance(item, Tensor) and inds.dtype == np.uint8):  # as torch does
            if len(inds) != len(self):
                raise IndexError(f"boolean index: expected {len(self)} entries, got {len(inds)}")
            inds = np.flatnonzero(inds)
        return self._like([self.instances[i] for i in inds.astype(np.int64).tolist()])

    def __iter__(self) -> Iterator[SegmentationMask]:
        return (self[i] for i in range(len(self)))

    def __repr__(self) -> str:
        width, height = self.size
        return f"SegmentationMask(num_instances={len(self)}, image_width={width}, image_height={height}, mode={self.mode})"


def _paste(canvas: np.ndarray, bitmap: Bitmap) -> None:
    """Write a bitmap into an image's pixels, cut at the border. canvas: [H, W]"""
    height, width = bitmap.pixels.shape
    left, top = max(bitmap.x0, 0), max(bitmap.y0, 0)
    right, bottom = min(bitmap.x0 + width, canvas.shape[1]), min(bitmap.y0 + height, canvas.shape[0])
    if right > left and bottom > top:
        part = bitmap.pixels[top - bitmap.y0 : bottom - bitmap.y0, left - bitmap.x0 : right - bitmap.x0]
        canvas[top:bottom, left:right] = part


@dataclass
class PackedMasks:
    """The masks of a batch as tensors whose lengths are powers of two, so that few shapes occur.

    N images, M slots; object g = n * M + m, G = N * M. Q rings, V corners, B pixels.

    Attributes:
        vertices: corners of all polygons, xy, pixels of their image; zeros at the end. [V, 2] float32
        ring_offsets: where each ring begins in `vertices`; unused rings are empty. [Q + 1] int64
        object_offsets: where each object begins in the rings; a slot without polygons is empty. [G + 1] int64
        bitmaps: pixels 0/1 of all bitmaps, row by row; None when the batch has none. [B] uint8
        geometry: offset in `bitmaps`, x0, y0, width, height of each object; width 0 when it has no bitmap. [G, 5] int64
    """

    vertices: Tensor
    ring_offsets: Tensor
    object_offsets: Tensor
    bitmaps: Tensor | None = None
    geometry: Tensor | None = None

    def map(self, move: Callable[[Tensor], Tensor]) -> PackedMasks:
        """The same masks with every tensor sent through a function."""
        tensors = (self.vertices, self.ring_offsets, self.object_offsets, self.bitmaps, self.geometry)
        return PackedMasks(*(None if t is None else move(t) for t in tensors))

    def to(self, device: torch.device | str, non_blocking: bool = False) -> PackedMasks:
        return self.map(lambda t: t.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> PackedMasks:
        return self.map(lambda t: t.pin_memory())


def _bucket(count: int) -> int:
    return 1 << max(count - 1, 0).bit_length()


def pack_masks(masks: Sequence[SegmentationMask], slots: int) -> PackedMasks:
    """The masks of N images as flat tensors, `slots` objects an image.

    Raises:
        ValueError: when an image has more objects than slots.
    """
    objects: list[Polygons | Bitmap | None] = []
    for image_masks in masks:
        if len(image_masks) > slots:
            raise ValueError(f"pack_masks: {len(image_masks)} masks in one image, but only {slots} slots")
        objects += list(image_masks.instances) + [None] * (slots - len(image_masks))
    rings = [item.rings if isinstance(item, Polygons) else () for item in objects]
    flat = [ring for group in rings for ring in group]
    lengths = np.array([len(ring) for ring in flat] + [0] * (_bucket(len(flat)) - len(flat)), dtype=np.int64)
    vertices = np.zeros((_bucket(int(lengths.sum())), 2), dtype=np.float32)
    if flat:
        vertices[: lengths.sum()] = np.concatenate(flat)
    counts = np.array([len(group) for group in rings], dtype=np.int64)
    # Images without objects must look as those with: a model that reads bitmaps finds empty ones.
    wanted = any(m.mode == "mask" for m in masks) or any(isinstance(item, Bitmap) for item in objects)
    bitmaps = _pack_bitmaps(objects) if wanted else (None, None)
    return PackedMasks(torch.from_numpy(vertices), _offsets(lengths), _offsets(counts), *bitmaps)


def _offsets(lengths: np.ndarray) -> Tensor:
    return torch.from_numpy(np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths, dtype=np.int64)]))


def _pack_bitmaps(objects: Sequence[Polygons | Bitmap | None]) -> tuple[Tensor, Tensor]:
    geometry = np.zeros((len(objects), 5), dtype=np.int64)
    parts, offset = [], 0
    for row, item in zip(geometry, objects, strict=True):
        if isinstance(item, Bitmap) and item.pixels.size:
            height, width = item.pixels.shape
            row[:] = offset, item.x0, item.y0, width, height
            parts.append(item.pixels.reshape(-1))
            offset += item.pixels.size
    pixels = np.zeros(_bucket(offset), dtype=np.uint8)
    if parts:
        pixels[:offset] = np.concatenate(parts)
    return torch.from_numpy(pixels), torch.from_numpy(geometry)
