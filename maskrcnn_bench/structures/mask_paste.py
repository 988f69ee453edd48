"""From box-sized mask probabilities to masks of the image: `Masker` (dense) and `paste_rle` (run lengths).

Two rules are in use among the reference implementations; both are here to the pixel:

* ``expand_truncate`` (maskrcnn-benchmark): the S x S mask gets a border of zeros, the box grows by the same share about its
  centre, its corners are cut to integers, and the mask is resized bilinearly to ``x2 - x1 + 1`` pixels. Inside is `> threshold`.
* ``pixel_centres`` (detectron2): the mask is sampled at the centre of each pixel, in the exact box. Inside is `>= threshold`.

`paste_rle` works on the visible part of one box at a time, in strips of columns, so that its memory depends neither on the number
of masks nor on the size of the image. With csrc/ compiled kernels do all of it, on the CPU or the GPU; the strings are the same.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F

from ..layers import mask_rle
from .bounding_box import BoxList

STRIP_PIXELS = 1 << 22
"""Largest number of pixels that are interpolated at once (float32: 16 MiB)."""

Strip = tuple[int, int, int, torch.Tensor]
"""Which mask; left column and upper row in the image; probabilities by column. [columns, rows]"""


class Masker:
    """Pastes box-sized masks into images of full size.

    Args:
        threshold: probability that separates object from background; negative: the masks stay soft, 0 to 255.
        padding: border of zeros around each mask, in mask pixels (``expand_truncate`` only).
        rule: ``expand_truncate`` or ``pixel_centres``.
    """

    def __init__(self, threshold: float = 0.5, padding: int = 1, rule: str = "expand_truncate"):
        _rule(rule)
        self.threshold = threshold
        self.padding = padding
        self.rule = rule

    def __call__(self, masks: list[torch.Tensor] | torch.Tensor, boxlists: list[BoxList] | BoxList) -> list[torch.Tensor]:
        """Pastes the masks of each image.

        Args:
            masks: one entry an image, mask probabilities. [n, 1, S, S]
            boxlists: one BoxList an image, in pixels of the image to paste into.
        Returns:
            One tensor an image: uint8, 0 or 1 (0 to 255 if soft). [n, 1, height, width]
        """
        if isinstance(boxlists, BoxList):
            boxlists = [boxlists]
        if len(boxlists) != len(masks):
            raise ValueError(f"masks and boxes of as many images expected, got masks of {len(masks)} and boxes of {len(boxlists)}")
        return [self._paste_image(mask, boxlist) for mask, boxlist in zip(masks, boxlists)]

    def _paste_image(self, masks: torch.Tensor, boxlist: BoxList) -> torch.Tensor:
        probs, boxes = _checked(masks, boxlist.convert("xyxy").bbox)
        width, height = boxlist.size
        pasted = torch.zeros((len(boxes), 1, height, width), dtype=torch.uint8)
        strips, inside = _rule(self.rule)
        for index, x, y, values in strips(probs, boxes, (width, height), self.padding):
            values = (values * 255).to(torch.uint8) if self.threshold < 0 else inside(values, self.threshold)
            columns, rows = values.shape
            pasted[index, 0, y : y + rows, x : x + columns] = values.t()
        return pasted


def paste_rle(
    mask_probs: torch.Tensor,
    boxes: torch.Tensor,
    size: tuple[int, int],
    threshold: float = 0.5,
    rule: str = "expand_truncate",
    padding: int = 1,
) -> list[dict]:
    """Pastes masks straight into COCO's compressed run lengths, without an image-sized array.

    Args:
        mask_probs: mask probabilities of the detected class; on a GPU with kernels they are pasted there. [n, S, S] or [n, 1, S, S]
        boxes: xyxy, pixels of the image to paste into. [n, 4]
        size: (width, height) of that image, pixels.
        threshold: probability that separates object from background.
        rule: ``expand_truncate`` or ``pixel_centres``.
        padding: border of zeros, in mask pixels (``expand_truncate`` only).
    Returns:
        One ``{"size": [height, width], "counts": str}`` a mask; the strings are those that pycocotools gives for the pasted mask.
    """
    _rule(rule)
    fused = _arithmetic(rule)
    on_device = fused is not None and mask_rle.is_compiled(mask_probs.device.type)
    probs, boxes = _checked(mask_probs, boxes, mask_probs.device if on_device else "cpu")
    if fused is None:
        counts = _paste_strips(probs, boxes, size, threshold, rule, padding)
    elif probs.is_cuda:
        edges = mask_rle.mask_edges(probs, boxes, size, threshold, rule, padding, fused)
        counts = encode_counts([_run_lengths([of_mask], size[0] * size[1]) for of_mask in edges])
    else:
        counts = mask_rle.mask_rle(probs, boxes, size, threshold, rule, padding, fused)
    return [{"size": [size[1], size[0]], "counts": text} for text in counts]


@cache
def _arithmetic(rule: str) -> bool | None:
    """How the compiled kernel has to add products to decide as torch does here; None: torch itself has to be used.

    The probe's values equal the threshold, so that the rounding of each pixel decides.
    """
    if not mask_rle.is_compiled():
        return None
    size, probe = (97, 61), (torch.full((3, 14, 14), 0.7), torch.tensor([[1.3, 2.1, 90.2, 55.7], [4, 9, 61, 44], [30.6, 1, 43, 60]]))
    expected = _paste_strips(*probe, size, 0.7, rule, 1)
    return next((fused for fused in (True, False) if mask_rle.mask_rle(*probe, size, 0.7, rule, 1, fused) == expected), None)


def _paste_strips(probs: torch.Tensor, boxes: torch.Tensor, size: tuple[int, int], threshold: float, rule: str, padding: int) -> list[str]:
    """What `paste_rle` answers, one strip after the other; the same arguments, checked before."""
    strips, inside = _rule(rule)
    width, height = size
    edges: list[list[np.ndarray]] = [[] for _ in probs]
    for index, x, y, values in strips(probs, boxes, size, padding):
        edges[index].append(_edges(x, y, inside(values, threshold).numpy(), height))
    return encode_counts([_run_lengths(of_mask, width * height) for of_mask in edges])


def encode_counts(counts: list[np.ndarray]) -> list[str]:
    """COCO's text form of run lengths: differences to the run before last, five bits a character, least significant first.

    Args:
        counts: a mask's run lengths in pixels, background first, column by column; int64. [runs] each
    Returns:
        One string a mask.
    """
    if not counts:
        return []
    deltas = [np.concatenate((runs[:3], runs[3:] - runs[1:-2])) for runs in counts]
    rest = np.concatenate(deltas)
    characters, used = [], []
    more = np.ones(len(rest), dtype=bool)
    while more.any():
        used.append(more)
        bits = rest & 31
        rest = rest >> 5
        # The highest of the five bits is the sign: the number ends when the rest says nothing beyond it.
        more = more & (rest != np.where(bits & 16, -1, 0))
        characters.append((bits | (more << 5)) + 48)
    used = np.stack(used, axis=1)
    text = np.stack(characters, axis=1)[used].astype(np.uint8).tobytes().decode("ascii")
    ends = np.cumsum(used.sum(axis=1))[np.cumsum([len(runs) for runs in counts]) - 1]
    return [text[start:end] for start, end in zip([0, *ends[:-1]], ends)]


def _checked(probs: torch.Tensor, boxes: torch.Tensor, device: torch.device | str = "cpu") -> tuple[torch.Tensor, torch.Tensor]:
    """Probabilities [n, S, S] and boxes [n, 4] as float32 on a device, or an error that says what is wrong with them."""
    probs = probs.detach().to(device, torch.float32)
    if probs.dim() == 4 and probs.shape[1] == 1:
        probs = probs[:, 0]
    if probs.dim() != 3 or probs.shape[1] != probs.shape[2]:
        raise ValueError(f"mask probabilities of shape [n, S, S] or [n, 1, S, S] expected, got {list(probs.shape)}")
    boxes = boxes.detach().to(device, torch.float32)
    if boxes.shape != (len(probs), 4):
        raise ValueError(f"{len(probs)} boxes, one a mask, expected in an array [{len(probs)}, 4], got {list(boxes.shape)}")
    if not torch.isfinite(boxes).all():
        raise ValueError("finite boxes expected, got NaN or infinity; leave such detections out before pasting their masks")
    return probs, boxes


def _expand_truncate(probs: torch.Tensor, boxes: torch.Tensor, size: tuple[int, int], padding: int) -> Iterator[Strip]:
    """The visible part of each mask resized to its enlarged, truncated box, strip by strip."""
    resolution = probs.shape[-1] + 2 * padding
    corners = _enlarge(boxes, resolution / probs.shape[-1]).to(torch.int32).tolist()
    for index, (padded, (left, top, right, bottom)) in enumerate(zip(F.pad(probs, (padding,) * 4), corners)):
        columns, rows = max(right - left + 1, 1), max(bottom - top + 1, 1)
        x0, x1 = max(left, 0), min(left + columns, size[0])
        y0, y1 = max(top, 0), min(top + rows, size[1])
        if x0 >= x1 or y0 >= y1:
            continue
        if columns * rows <= STRIP_PIXELS:
            resized = _resize(padded, rows, columns)
            yield index, x0, y0, resized[y0 - top : y1 - top, x0 - left : x1 - left].t().contiguous()
            continue
        # Resizing along x first and then, strip by strip, along y gives the same bits as resizing at once: the weights of the axis
        # that keeps its length are 1 and 0.
        wide = _resize(padded, resolution, columns)
        for x, end in _strips(x0, x1, rows):
            resized = _resize(wide[:, x - left : end - left].t().contiguous(), end - x, rows)
            yield index, x, y0, resized[:, y0 - top : y1 - top].contiguous()


def _enlarge(boxes: torch.Tensor, scale: float) -> torch.Tensor:
    """Boxes (xyxy) with `scale` times their half width and height about their centres; float32 in the original's order."""
    half = (boxes[:, 2:] - boxes[:, :2]) * 0.5 * scale
    centre = (boxes[:, 2:] + boxes[:, :2]) * 0.5
    return torch.cat((centre - half, centre + half), dim=1)


def _resize(values: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    return F.interpolate(values[None, None], size=(rows, columns), mode="bilinear", align_corners=False)[0, 0]


def _pixel_centres(probs: torch.Tensor, boxes: torch.Tensor, size: tuple[int, int], padding: int) -> Iterator[Strip]:
    """Each mask sampled at the pixel centres in and one pixel around its box, strip by strip."""
    for index, (prob, box) in enumerate(zip(probs, boxes)):
        left, top, right, bottom = box.tolist()
        x0, x1 = max(math.floor(left) - 1, 0), min(math.ceil(right) + 1, size[0])
        y0, y1 = max(math.floor(top) - 1, 0), min(math.ceil(bottom) + 1, size[1])
        if x0 >= x1 or y0 >= y1 or right <= left or bottom <= top:
            continue
        grid_y = _grid(y0, y1, box[1], box[3])
        for x, end in _strips(x0, x1, y1 - y0):
            grid_x = _grid(x, end, box[0], box[2])
            shape = (len(grid_x), len(grid_y))
            grid = torch.stack((grid_x[:, None].expand(shape), grid_y[None, :].expand(shape)), dim=-1)
            yield index, x, y0, F.grid_sample(prob[None, None], grid[None], align_corners=False)[0, 0]


def _grid(start: int, end: int, low: torch.Tensor, high: torch.Tensor) -> torch.Tensor:
    """Centres of the pixels start to end - 1, with the side from `low` to `high` as -1 to 1."""
    centres = torch.arange(start, end, dtype=torch.float32) + 0.5
    return (centres - low) / (high - low) * 2 - 1


def _strips(start: int, end: int, rows: int) -> Iterator[tuple[int, int]]:
    """Ranges of columns from `start` to `end`, each of at most STRIP_PIXELS pixels (at least one column)."""
    step = max(STRIP_PIXELS // rows, 1)
    for x in range(start, end, step):
        yield x, min(x + step, end)


RULES = {"expand_truncate": (_expand_truncate, torch.gt), "pixel_centres": (_pixel_centres, torch.ge)}
"""Name -> (strips of probabilities, comparison with the threshold)."""


def _rule(name: str):
    if name not in RULES:
        raise ValueError(f"paste rule {' or '.join(RULES)} expected, got {name!r}")
    return RULES[name]


def _edges(x: int, y: int, inside: np.ndarray, height: int) -> np.ndarray:
    """Where the object begins and ends, in turns, in the image's pixels counted column by column.

    Args:
        x, y: column and row of the image where `inside` begins.
        inside: which pixels belong to the object. [columns, rows]
        height: of the image, pixels.
    Returns:
        Beginnings (even places) and ends (odd places) of its vertical runs. [2 runs]
    """
    columns, rows = inside.shape
    padded = np.zeros(columns * (rows + 1) + 1, dtype=bool)
    padded[1:].reshape(columns, rows + 1)[:, :rows] = inside
    column, row = np.divmod(np.flatnonzero(padded[1:] != padded[:-1]), rows + 1)
    return (x + column) * height + y + row


def _run_lengths(edges: list[np.ndarray], pixels: int) -> np.ndarray:
    """Lengths of the runs of background and object, in turns, from the edges of the strips; `pixels` in the whole image."""
    edge = np.concatenate(([0], *edges, [pixels]))
    # A run that reaches the lower border goes on at the top of the next column.
    joined = np.flatnonzero(edge[2:-2:2] == edge[3:-1:2]) * 2 + 2
    if joined.size:
        edge = np.delete(edge, np.concatenate((joined, joined + 1)))
    runs = edge[1:] - edge[:-1]
    return runs[:-1] if len(runs) > 1 and runs[-1] == 0 else runs
