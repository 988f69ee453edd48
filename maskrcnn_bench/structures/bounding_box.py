"""BoxList, the boxes of one image with whatever belongs to them, and its padded batch.

The rule of the pixel, said once: a box [x1, y1, x2, y2] is `x2 - x1 + pixel` wide. With `pixel` 1 the right and bottom edge
belong to the box (Detectron, maskrcnn-benchmark), with 0 they do not (detectron2, torchvision, mmdetection). Every BoxList
carries its `pixel`, and everything derived from it keeps it.

N images, M or P slots of an image, n boxes of one image. `size` is (width, height), as in PIL.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from .keypoint import Keypoints
from .segmentation_mask import PackedMasks, SegmentationMask, pack_masks

FLIP_LEFT_RIGHT = 0
FLIP_TOP_BOTTOM = 1
DUMMY_SIDE = 10.0


class BoxList:
    """The boxes of one image, with fields of the same length or of the user's own kind.

    Args:
        bbox: boxes in pixels of the image, in the layout of `mode`. [n, 4]
        image_size: (width, height) of the image, pixels.
        mode: "xyxy" (two corners) or "xywh" (corner and size).
        pixel: what a width adds to x2 - x1: 1 or 0.
    Raises:
        ValueError: when the boxes are not [n, 4] or the mode is unknown.
    """

    def __init__(self, bbox: Any, image_size: tuple[int, int], mode: str = "xyxy", pixel: int = 1):
        device = bbox.device if isinstance(bbox, Tensor) else None
        bbox = torch.as_tensor(bbox, dtype=torch.float32, device=device)
        if bbox.numel() == 0 and bbox.dim() < 2:
            bbox = bbox.reshape(0, 4)
        if bbox.dim() != 2 or bbox.shape[-1] != 4:
            raise ValueError(f"boxes: expected shape [n, 4], got {list(bbox.shape)}")
        if mode not in ("xyxy", "xywh"):
            raise ValueError(f"mode: expected 'xyxy' or 'xywh', got {mode!r}")
        self.bbox = bbox
        self.size = (image_size[0], image_size[1])
        self.mode = mode
        self.pixel = pixel
        self.extra_fields: dict[str, Any] = {}

    def _like(self, bbox: Tensor, size: tuple[int, int] | None = None, mode: str = "xyxy") -> BoxList:
        return BoxList(bbox, size or self.size, mode, self.pixel)

    # fields

    def add_field(self, field: str, field_data: Any) -> None:
        self.extra_fields[field] = field_data

    def get_field(self, field: str) -> Any:
        if field not in self.extra_fields:
            raise KeyError(f"no field {field!r} in this BoxList; it has {sorted(self.extra_fields)}")
        return self.extra_fields[field]

    def has_field(self, field: str) -> bool:
        return field in self.extra_fields

    def fields(self) -> list[str]:
        return list(self.extra_fields)

    def copy_with_fields(self, fields: str | Sequence[str], skip_missing: bool = False) -> BoxList:
        """The same boxes with only the named fields; a missing one is an error unless `skip_missing`."""
        out = self._like(self.bbox, mode=self.mode)
        for field in [fields] if isinstance(fields, str) else fields:
            if self.has_field(field) or not skip_missing:
                out.add_field(field, self.get_field(field))
        return out

    # geometry

    def _corners(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        x1, y1, a, b = self.bbox.unbind(dim=-1)
        if self.mode == "xyxy":
            return x1, y1, a, b
        return x1, y1, x1 + (a - self.pixel).clamp(min=0), y1 + (b - self.pixel).clamp(min=0)

    def convert(self, mode: str) -> BoxList:
        """The same boxes in another layout, fields kept."""
        if mode not in ("xyxy", "xywh"):
            raise ValueError(f"mode: expected 'xyxy' or 'xywh', got {mode!r}")
        if mode == self.mode:
            return self
        x1, y1, x2, y2 = self._corners()
        if mode == "xywh":
            x2, y2 = x2 - x1 + self.pixel, y2 - y1 + self.pixel
        out = self._like(torch.stack([x1, y1, x2, y2], dim=-1), mode=mode)
        out.extra_fields = dict(self.extra_fields)
        return out

    def resize(self, size: tuple[int, int]) -> BoxList:
        """The boxes on the image scaled to `size` (width, height); coordinates are multiplied by the ratio of the sizes."""
        ratio_w, ratio_h = (float(new) / float(old) for new, old in zip(size, self.size, strict=True))
        x1, y1, x2, y2 = self._corners()
        scaled = torch.stack([x1 * ratio_w, y1 * ratio_h, x2 * ratio_w, y2 * ratio_h], dim=-1)
        return self._derive(scaled, size, "resize", size)

    def transpose(self, method: int) -> BoxList:
        """The boxes on the mirrored image: FLIP_LEFT_RIGHT (0) or FLIP_TOP_BOTTOM (1)."""
        if method not in (FLIP_LEFT_RIGHT, FLIP_TOP_BOTTOM):
            raise ValueError(f"transpose: expected FLIP_LEFT_RIGHT (0) or FLIP_TOP_BOTTOM (1), got {method!r}")
        width, height = self.size
        x1, y1, x2, y2 = self._corners()
        if method == FLIP_LEFT_RIGHT:
            x1, x2 = width - x2 - self.pixel, width - x1 - self.pixel
        else:
            y1, y2 = height - y2 - self.pixel, height - y1 - self.pixel
        return self._derive(torch.stack([x1, y1, x2, y2], dim=-1), self.size, "transpose", method)

    def crop(self, box: Sequence[float]) -> BoxList:
        """The boxes on the part `box` (xyxy, pixels) of the image; what sticks out is cut off."""
        left, top, right, bottom = (float(v) for v in box)
        width, height = right - left, bottom - top
        x1, y1, x2, y2 = self._corners()
        cut = [(x1 - left).clamp(0, width), (y1 - top).clamp(0, height), (x2 - left).clamp(0, width), (y2 - top).clamp(0, height)]
        return self._derive(torch.stack(cut, dim=-1), (width, height), "crop", box)

    def _derive(self, bbox: Tensor, size: tuple[int, int], action: str, argument: Any) -> BoxList:
        out = self._like(bbox, size)
        for name, value in self.extra_fields.items():
            out.add_field(name, self._follow(value, action, argument))
        return out.convert(self.mode)

    def _follow(self, value: Any, action: str, argument: Any) -> Any:
        """A field after the boxes moved: tensors and plain values stay, others do the same as the boxes."""
        if isinstance(value, Tensor) or not hasattr(value, action):
            return value
        if action == "transpose" and isinstance(value, (SegmentationMask, Keypoints)):
            return value.transpose(argument, pixel=self.pixel)
        return getattr(value, action)(argument)

    def clip_to_image(self, remove_empty: bool = True) -> BoxList:
        """Clamps the boxes to the image, in place, and returns those that still have an extent."""
        width, height = self.size
        self.bbox[:, 0::2] = self.bbox[:, 0::2].clamp(min=0, max=width - self.pixel)
        self.bbox[:, 1::2] = self.bbox[:, 1::2].clamp(min=0, max=height - self.pixel)
        if not remove_empty:
            return self
        return self[(self.bbox[:, 3] > self.bbox[:, 1]) & (self.bbox[:, 2] > self.bbox[:, 0])]

    def area(self) -> Tensor:
        """Width times height by the pixel rule, pixels squared. [n]"""
        x1, y1, x2, y2 = self._corners()
        return (x2 - x1 + self.pixel) * (y2 - y1 + self.pixel)

    # container

    def to(self, device: Any) -> BoxList:
        out = self._like(self.bbox.to(device), mode=self.mode)
        for name, value in self.extra_fields.items():
            out.add_field(name, value.to(device) if hasattr(value, "to") else value)
        return out

    def __getitem__(self, item: Any) -> BoxList:
        picked = self.bbox[item]
        out = self._like(picked.reshape(-1, 4), mode=self.mode)
        for name, value in self.extra_fields.items():
            out.add_field(name, _index_field(value, item, len(self)))
        return out

    def __len__(self) -> int:
        return self.bbox.shape[0]

    def __repr__(self) -> str:
        width, height = self.size
        return f"BoxList(num_boxes={len(self)}, image_width={width}, image_height={height}, mode={self.mode}, fields={self.fields()})"


def _index_field(value: Any, item: Any, length: int) -> Any:
    """Picks the same entries of a field as of the boxes; a list of one entry a box is picked too. Boxes within boxes are the image's."""
    if isinstance(value, BoxList):
        return value
    if isinstance(value, (str, bytes, dict)) or not hasattr(value, "__getitem__") or not _has_length(value, length):
        return value
    if isinstance(value, Tensor):
        picked = value[item]
        return picked[None] if picked.dim() < value.dim() else picked
    if isinstance(value, (list, tuple)):
        inds = torch.arange(length)[item.cpu() if isinstance(item, Tensor) else item].reshape(-1)
        return type(value)(value[i] for i in inds.tolist())
    return value[item]


def _has_length(value: Any, length: int) -> bool:
    try:
        return len(value) == length
    except TypeError:  # a number in an array
        return False


def next_power_of_two(n: int) -> int:
    return 1 << max(n - 1, 0).bit_length()


def fill_unused(boxes: Tensor, valid: Tensor) -> Tensor:
    """Boxes [..., 4] with a small finite box in the slots that are not `valid` [...], whatever stood there."""
    corner = torch.where(valid[..., None], boxes[..., :2], 0.0)
    return torch.cat([corner, torch.where(valid[..., None], boxes[..., 2:], DUMMY_SIDE)], dim=-1)


class BoxListBatch:
    """The boxes of N images as tensors of one shape: P slots an image, those in use marked.

    Unused slots hold finite dummy boxes, and nothing may depend on them. Iterating gives the BoxLists back.

    Args:
        boxes: xyxy, pixels of each image. [N, P, 4]
        valid: which slots hold a box. [N, P]
        sizes: (width, height) of each image, pixels. [N, 2]
        fields: tensors with one entry a slot. {name: [N, P, ...]}
        lists: what is not a tensor, one entry an image. {name: list of N}
        pixel: the pixel rule of all boxes.
        packed_masks: ground-truth masks as flat tensors; object n * P + p is slot p of image n.
    """

    def __init__(
        self,
        boxes: Tensor,
        valid: Tensor,
        sizes: Tensor,
        fields: dict[str, Tensor] | None = None,
        lists: dict[str, list] | None = None,
        pixel: int = 1,
        packed_masks: PackedMasks | None = None,
    ):
        self.boxes = boxes
        self.valid = valid
        self.sizes = sizes
        self.fields = dict(fields or {})
        self.lists = dict(lists or {})
        self.pixel = pixel
        self.packed_masks = packed_masks

    @classmethod
    def pad(cls, boxlists: Sequence[BoxList], slots: int | None = None, bucket: bool = True) -> BoxListBatch:
        """Puts BoxLists of any length into one batch.

        Args:
            boxlists: one an image, all of one pixel rule.
            slots: how many slots an image gets; None takes the largest count.
            bucket: rounds `slots` up to a power of two, so that few shapes occur.
        Raises:
            ValueError: when there is no image, or an image has more boxes than slots.
        """
        if not boxlists:
            raise ValueError("BoxListBatch.pad: expected at least one BoxList, got none")
        largest = max(len(b) for b in boxlists)
        if slots is None:
            slots = next_power_of_two(largest) if bucket else max(largest, 1)
        if largest > slots:
            raise ValueError(f"BoxListBatch.pad: {largest} boxes in one image, but only {slots} slots")
        if len({b.pixel for b in boxlists}) > 1:
            raise ValueError("BoxListBatch.pad: BoxLists of different pixel rules in one batch")
        boxlists = [b.convert("xyxy") for b in boxlists]
        device = boxlists[0].bbox.device
        boxes = torch.zeros(len(boxlists), slots, 4, device=device)
        valid = torch.zeros(len(boxlists), slots, dtype=torch.bool, device=device)
        for n, boxlist in enumerate(boxlists):
            boxes[n, : len(boxlist)] = boxlist.bbox
            valid[n, : len(boxlist)] = True
        sizes = torch.tensor([b.size for b in boxlists], dtype=torch.float32, device=device)
        batch = cls(fill_unused(boxes, valid), valid, sizes, pixel=boxlists[0].pixel)
        batch._pad_fields(boxlists, slots)
        return batch

    def _pad_fields(self, boxlists: Sequence[BoxList], slots: int) -> None:
        for name in dict.fromkeys(name for b in boxlists for name in b.fields()):
            values = _of_one_form([b.extra_fields.get(name) for b in boxlists], boxlists)
            if name == "labels":  # which data sets of others have in any type
                values = [v.long() if isinstance(v, Tensor) else v for v in values]
            tensors = [v.keypoints if isinstance(v, Keypoints) else v for v in values]
            if _stackable(tensors, boxlists):
                self.fields[name] = torch.stack([_pad_first(t, slots) for t in tensors])
            if not all(isinstance(v, Tensor) for v in values) or name not in self.fields:
                self.lists[name] = values
            if all(isinstance(v, SegmentationMask) for v in values):
                self.packed_masks = pack_masks(values, slots)

    def add_field(self, name: str, value: Tensor) -> None:
        self.fields[name] = value

    def get_field(self, name: str) -> Any:
        if name not in self.fields and name not in self.lists:
            raise KeyError(f"no field {name!r} in this batch; it has {sorted({*self.fields, *self.lists})}")
        return self.fields[name] if name in self.fields else self.lists[name]

    def has_field(self, name: str) -> bool:
        return name in self.fields or name in self.lists

    def to(self, device: Any, non_blocking: bool = False) -> BoxListBatch:
        return self._map(lambda t: t.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> BoxListBatch:
        return self._map(lambda t: t.pin_memory())

    def _map(self, move: Any) -> BoxListBatch:
        fields = {name: move(value) for name, value in self.fields.items()}
        packed = self.packed_masks.map(move) if self.packed_masks is not None else None
        return type(self)(move(self.boxes), move(self.valid), move(self.sizes), fields, self.lists, self.pixel, packed)

    def __len__(self) -> int:
        return self.boxes.shape[0]

    def __getitem__(self, n: int) -> BoxList:
        return self.boxlists()[n]

    def __iter__(self) -> Iterator[BoxList]:
        return iter(self.boxlists())

    def boxlists(self) -> list[BoxList]:
        """The exact-length BoxLists; asking for their lengths waits for the device."""
        sizes = [(int(w), int(h)) for w, h in self.sizes.tolist()]
        slots = [valid.nonzero().squeeze(1) for valid in self.valid]
        return [self._boxlist(n, inds, size) for n, (inds, size) in enumerate(zip(slots, sizes, strict=True))]

    def _boxlist(self, n: int, inds: Tensor, size: tuple[int, int]) -> BoxList:
        out = BoxList(self.boxes[n, inds], size, "xyxy", self.pixel)
        for name, value in self.fields.items():
            out.add_field(name, value[n, inds])
        for name, values in self.lists.items():
            if values[n] is not None:
                out.add_field(name, values[n])
        return out


def _of_one_form(values: list, boxlists: Sequence[BoxList]) -> list:
    """A field's values; where it has an entry a box, those of images without boxes are empty ones of the same kind."""
    kinds = (Tensor, SegmentationMask, Keypoints)
    given = [(v, b) for v, b in zip(values, boxlists, strict=True) if len(b)]
    if not given or not all(isinstance(v, kinds) and _has_length(v, len(b)) for v, b in given):
        return values
    form = given[0][0]
    return [v if len(b) else _none_like(form, b.size) for v, b in zip(values, boxlists, strict=True)]


def _none_like(value: Tensor | SegmentationMask | Keypoints, size: tuple[int, int]) -> Tensor | SegmentationMask | Keypoints:
    return SegmentationMask([], size, value.mode) if isinstance(value, SegmentationMask) else value[:0]


def _stackable(tensors: list, boxlists: Sequence[BoxList]) -> bool:
    """Whether a field is a tensor with one entry a box and the same shape and type in every image."""
    if not all(isinstance(t, Tensor) and t.dim() >= 1 and len(t) == len(b) for t, b in zip(tensors, boxlists, strict=True)):
        return False
    return len({(t.shape[1:], t.dtype) for t in tensors}) == 1


def _pad_first(tensor: Tensor, slots: int) -> Tensor:
    out = tensor.new_zeros((slots, *tensor.shape[1:]))
    out[: len(tensor)] = tensor
    return out


class Detections(BoxListBatch):
    """What a model returns in evaluation: padded, in descending score, on the model's device.

    Fields: `scores` [N, D], `labels` [N, D] (1..K-1), `mask` [N, D, 1, S, S] probabilities when the model has masks;
    `truncated` [N] tells that more detections tied with the last one than there were slots. Iterating, indexing and `counts`
    are the only places that wait for the device. What has no fixed shape is left for then: functions in `at_handover` finish each
    BoxList that is handed over, such as a model with keypoints reads them off its heat maps.
    """

    truncated: Tensor | None = None

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.at_handover: list[Callable[[BoxList], BoxList]] = []

    @property
    def counts(self) -> list[int]:
        """How many detections each image has."""
        return self.valid.sum(dim=1).tolist()

    def _map(self, move: Any) -> Detections:
        out = super()._map(move)
        out.truncated = move(self.truncated) if self.truncated is not None else None
        out.at_handover = self.at_handover
        return out

    def _boxlist(self, n: int, inds: Tensor, size: tuple[int, int]) -> BoxList:
        out = super()._boxlist(n, inds, size)
        for finish in self.at_handover:
            out = finish(out)
        return out
