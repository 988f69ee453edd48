"""What the mask head learns: each object's mask, cut out by a box, on a small grid.

Letters: R boxes, S cells along each side of the grid, G objects, Q rings, V vertices, B bytes of all bitmaps.
"""

from functools import cache

import torch
from torch import Tensor

from . import _ops


def polygon_targets(
    vertices: Tensor,
    ring_offsets: Tensor,
    object_offsets: Tensor,
    frames: Tensor,
    object_inds: Tensor,
    resolution: int,
) -> Tensor:
    """Rasterises the union of an object's rings on an S x S grid, to the bit as the COCO API does.

    Args:
        vertices: (x, y) of all rings, pixels of the image; float64 is drawn in float64. [V, 2]
        ring_offsets: ring q is vertices[ring_offsets[q] : ring_offsets[q + 1]]; below three vertices it is skipped.
            int64 [Q + 1]
        object_offsets: the rings of object g, likewise. int64 [G + 1]
        frames: (x0, y0, scale_x, scale_y); a vertex is drawn at ((x - x0) * scale_x, (y - y0) * scale_y), in cells.
            [R, 4]
        object_inds: which object each frame is filled with; -1 gives zeros. int64 [R]
        resolution: S.

    Returns:
        1 inside, 0 outside. uint8 [R, S, S]
    """
    _ops.check_shape("polygon_targets", "vertices", vertices, "V", 2)
    _ops.check_shape("polygon_targets", "ring_offsets", ring_offsets, "Q + 1")
    _ops.check_shape("polygon_targets", "object_offsets", object_offsets, "G + 1")
    _ops.check_shape("polygon_targets", "frames", frames, "R", 4)
    _ops.check_shape("polygon_targets", "object_inds", object_inds, frames.shape[0])
    return torch.ops.maskrcnn_bench.polygon_targets(vertices, ring_offsets, object_offsets, frames, object_inds, resolution)


def bitmap_targets(bitmaps: Tensor, geometry: Tensor, boxes: Tensor, object_inds: Tensor, resolution: int) -> Tensor:
    """Averages an object's bitmap over the S x S bins of a box, with the samples of an aligned RoIAlign.

    Args:
        bitmaps: crops of all objects, row by row, one after the other. uint8 [B]
        geometry: (offset into `bitmaps`, x0, y0, width, height) of each crop, pixels of the image; outside its crop an
            object is 0; width 0: no bitmap. int64 [G, 5]
        boxes: xyxy, pixels of the image. [R, 4]
        object_inds: which object each box is filled with; -1 gives zeros. int64 [R]
        resolution: S.

    Returns:
        Averages; the caller applies its threshold. float32 [R, S, S]
    """
    _ops.check_shape("bitmap_targets", "bitmaps", bitmaps, "B")
    _ops.check_shape("bitmap_targets", "geometry", geometry, "G", 5)
    _ops.check_shape("bitmap_targets", "boxes", boxes, "R", 4)
    _ops.check_shape("bitmap_targets", "object_inds", object_inds, boxes.shape[0])
    return torch.ops.maskrcnn_bench.bitmap_targets(bitmaps, geometry, boxes, object_inds, resolution)


@cache
def _say_pycocotools() -> None:
    _ops.say("mask targets from polygons are drawn by pycocotools on the CPU, one object after the other")


def _polygon_targets_pycocotools(
    vertices: Tensor,
    ring_offsets: Tensor,
    object_offsets: Tensor,
    frames: Tensor,
    object_inds: Tensor,
    resolution: int,
) -> Tensor:
    _say_pycocotools()
    offsets = ring_offsets.tolist()
    objects = object_offsets.tolist()
    points = vertices.cpu() if vertices.dtype == torch.float64 else vertices.cpu().float()
    out = torch.zeros(frames.shape[0], resolution, resolution, dtype=torch.uint8)
    for r, (frame, g) in enumerate(zip(frames.cpu().to(points.dtype), object_inds.tolist(), strict=True)):
        if g >= 0:
            bounds = [offsets[q : q + 2] for q in range(objects[g], objects[g + 1])]
            rings = [(points[a:b] - frame[:2]) * frame[2:] for a, b in bounds if b - a >= 3]
            out[r] = _draw_rings([ring.flatten().tolist() for ring in rings], resolution)
    return out.to(vertices.device)


def _draw_rings(rings: list[list[float]], resolution: int) -> Tensor:
    if not rings:
        return torch.zeros(resolution, resolution, dtype=torch.uint8)
    from pycocotools import mask

    merged = mask.merge(mask.frPyObjects(rings, resolution, resolution))
    return torch.from_numpy(mask.decode(merged))


def _bitmap_targets_torch(bitmaps: Tensor, geometry: Tensor, boxes: Tensor, object_inds: Tensor, resolution: int) -> Tensor:
    out = torch.zeros(boxes.shape[0], resolution, resolution)
    pixels = bitmaps.cpu()
    rows = geometry.tolist()
    for r, (box, g) in enumerate(zip(boxes.cpu().float(), object_inds.tolist(), strict=True)):
        offset, x0, y0, width, height = rows[g] if g >= 0 else (0, 0, 0, 0, 0)
        if width > 0 and height > 0:
            crop = pixels[offset : offset + width * height].view(height, width).float()
            weights_y = _sample_weights(box[1], box[3], resolution, y0, height)
            weights_x = _sample_weights(box[0], box[2], resolution, x0, width)
            out[r] = weights_y @ crop @ weights_x.T
    return out.to(boxes.device)


def _sample_weights(begin: Tensor, end: Tensor, bins: int, origin: int, extent: int) -> Tensor:
    """How much of each crop pixel goes into each bin, along one axis. [bins, extent]"""
    bin_size = (end - begin) / bins
    samples = int(bin_size.ceil().clamp(min=0))
    if samples == 0:
        return torch.zeros(bins, extent)
    within = (torch.arange(samples) + 0.5) * bin_size / samples
    positions = begin - 0.5 + torch.arange(bins)[:, None] * bin_size + within
    pixels = torch.arange(origin, origin + extent)
    return (1 - (positions[:, :, None] - pixels).abs()).clamp(min=0).mean(1)


def _fake_polygons(vertices, ring_offsets, object_offsets, frames, object_inds, resolution) -> Tensor:
    return frames.new_empty((frames.shape[0], resolution, resolution), dtype=torch.uint8)


def _fake_bitmaps(bitmaps, geometry, boxes, object_inds, resolution) -> Tensor:
    return boxes.new_empty((boxes.shape[0], resolution, resolution), dtype=torch.float32)


_ops.register("polygon_targets", _fake_polygons, float32=True, pycocotools=_polygon_targets_pycocotools)
_ops.register("bitmap_targets", _fake_bitmaps, float32=True, torch=_bitmap_targets_torch)
