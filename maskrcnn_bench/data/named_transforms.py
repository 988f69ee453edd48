"""Transforms of torchvision.transforms.v2 by name, for the key INPUT.TRANSFORMS: `RandomRotation(degrees=10)`.

torchvision moves the image, the boxes and the masks; here its chance becomes a function of seed, iteration and image, boxes become those
around what is left of the masks, objects of which nothing is left go, and left and right keypoints change places in a mirror.
"""

from __future__ import annotations

import ast
import difflib
import inspect
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import InterpolationMode, v2

from maskrcnn_bench.data.crops import box_of_bitmap
from maskrcnn_bench.data.datasets.channels import ChannelImage
from maskrcnn_bench.structures.bounding_box import BoxList
from maskrcnn_bench.structures.keypoint import Keypoints
from maskrcnn_bench.structures.segmentation_mask import EMPTY_BITMAP, Bitmap, SegmentationMask, tight
from maskrcnn_bench.utils.counter import CounterRandom

KEY = "INPUT.TRANSFORMS"
# Masks are drawn in full for torchvision, as many at a time as fit into this, bytes.
MASK_BYTES = 64 << 20


def make_transform(text: str) -> v2.Transform:
    """What a text such as `RandomRotation(degrees=10, expand=True)` means; arguments are plain values, nothing is executed.

    Raises:
        ValueError: when it is no call, or torchvision has no such transform or argument.
    """
    example = (
        f"{KEY}: expected a transform of torchvision.transforms.v2 with plain values, such as 'RandomRotation(degrees=10)', got {text!r}"
    )
    try:
        call = ast.parse(str(text).strip(), mode="eval").body
        call = ast.Call(call, [], []) if isinstance(call, ast.Name) else call
        if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name) or any(word.arg is None for word in call.keywords):
            raise ValueError
        args = [ast.literal_eval(value) for value in call.args]
        options = {word.arg: ast.literal_eval(word.value) for word in call.keywords}
    except (SyntaxError, ValueError, TypeError):
        raise ValueError(example) from None
    known = {name: one for name, one in vars(v2).items() if inspect.isclass(one) and issubclass(one, v2.Transform)}
    if call.func.id not in known:
        near = difflib.get_close_matches(call.func.id, known, n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else f"it has {', '.join(sorted(known))}"
        raise ValueError(f"{KEY}: no transform {call.func.id!r} in torchvision.transforms.v2; {hint}")
    try:
        if isinstance(options.get("interpolation"), str):
            options["interpolation"] = InterpolationMode(options["interpolation"].lower())
        return known[call.func.id](*args, **options)
    except (TypeError, ValueError) as error:
        takes = inspect.signature(known[call.func.id])
        raise ValueError(f"{KEY}: {text}: {error}; it takes {takes}") from None


class NamedTransform:
    """A transform of torchvision on an image and its BoxList.

    A field whose type is not known stays as it is.

    Args:
        text: as `make_transform` takes it.
        slot: its place in the list, so that two of one name differ.
    """

    def __init__(self, text: str, slot: int = 0):
        self.text, self.slot = text, slot
        self.transform = make_transform(text)

    def __repr__(self) -> str:
        return self.text

    def __call__(self, image: Any, target: BoxList | None = None, random: CounterRandom | None = None) -> tuple[Any, BoxList | None]:
        if random is None:
            return image, target
        seed = random.randint("named_transform", 1 << 48, self.slot)
        boxes = torch.zeros(0, 4) if target is None else torch.cat([_edges(target), _points_as_boxes(target)])
        sample = _sample(image.size, boxes)
        out = self._run(sample | {"image": tv_tensors.Image(_tensor(image))}, image, seed)
        moved_image = self._like(image, out["image"])
        unmoved = moved_image.size == image.size and all(torch.equal(out[key], sample[key]) for key in ("boxes", "probes"))
        if target is None or unmoved:
            return moved_image, target
        if len(out["boxes"]) != len(boxes):
            raise ValueError(f"{KEY}: {self.text} takes objects out; leave it away, objects of which nothing is left go by themselves")
        mirrored = bool(_turn(out["probes"]) * _turn(sample["probes"]) < 0)
        masks = self._masks(image, target, sample, seed) if target.has_field("masks") else None
        return moved_image, _moved(target, out["boxes"].as_subclass(Tensor), masks, moved_image.size, mirrored)

    def _run(self, sample: dict[str, Any], image: Any, seed: int) -> dict[str, Any]:
        """The transform, with the numbers that follow from a seed; other users of torch's generator see nothing of it."""
        state = torch.default_generator.get_state()
        torch.default_generator.manual_seed(seed)
        try:
            return self.transform(sample)
        except (TypeError, ValueError, RuntimeError) as error:
            raise ValueError(f"{KEY}: {self.text} of an image of {image.width} x {image.height} pixels: {error}") from error
        finally:
            torch.default_generator.set_state(state)

    def _like(self, image: Any, pixels: Any) -> Any:
        """Transformed pixels as an image of the kind that came in. pixels: [C, H, W]"""
        before = _tensor(image)
        if not isinstance(pixels, Tensor) or (pixels.dtype, pixels.shape[0]) != (before.dtype, before.shape[0]):
            got = f"{pixels.dtype} [{pixels.shape[0]}, H, W]" if isinstance(pixels, Tensor) else type(pixels).__name__
            kept = f"{before.dtype} [{before.shape[0]}, H, W]"
            raise ValueError(f"{KEY}: {self.text} makes {got} of {kept}, but it must keep that: images are normalised later, by PIXEL_MEAN")
        array = pixels.as_subclass(Tensor).permute(1, 2, 0).contiguous().numpy()
        if isinstance(image, ChannelImage):
            return ChannelImage(array.clip(0, np.iinfo(image.pixels.dtype).max).astype(image.pixels.dtype))
        return Image.fromarray(array)

    def _masks(self, image: Any, target: BoxList, sample: dict[str, Any], seed: int) -> list[Bitmap | None]:
        """The transformed masks; None for an object that had no pixel before."""
        width, height = image.size
        blank = tv_tensors.Image(torch.zeros(1, 1, 1, dtype=torch.uint8).expand(3, height, width))
        bitmaps = [item.to_bitmap(target.size).crop((0, 0, width, height)) for item in target.get_field("masks").instances]
        at_once = max(MASK_BYTES // (width * height), 1)
        moved: list[Bitmap | None] = []
        for start in range(0, len(bitmaps), at_once):
            part = bitmaps[start : start + at_once]
            drawn = torch.zeros(len(part), height, width, dtype=torch.uint8)
            for canvas, bitmap in zip(drawn.numpy(), part):
                rows, columns = bitmap.pixels.shape
                canvas[bitmap.y0 : bitmap.y0 + rows, bitmap.x0 : bitmap.x0 + columns] = bitmap.pixels
            out = self._run(sample | {"image": blank, "masks": tv_tensors.Mask(drawn)}, image, seed)["masks"]
            pixels = out.as_subclass(Tensor).numpy()
            moved += [tight(one, 0, 0) if bitmap.pixels.size else None for one, bitmap in zip(pixels, part)]
        return moved


def _tensor(image: Any) -> Tensor:
    """Pixels as torchvision takes them: 8 bits, or 32 where they have 16. [C, H, W]"""
    pixels = np.array(image)
    return torch.from_numpy(pixels.astype(np.int32) if pixels.dtype == np.uint16 else pixels).permute(2, 0, 1)


def _sample(size: tuple[int, int], boxes: Tensor) -> dict[str, Any]:
    """What follows the image: boxes, and three points that tell whether it moved and was mirrored."""
    width, height = size
    shape = (height, width)
    probes = torch.tensor([[width, height], [3 * width, height], [width, 3 * height]], dtype=torch.float32) / 4
    return {
        "boxes": tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=shape, clamping_mode=None),
        "probes": tv_tensors.KeyPoints(probes, canvas_size=shape),
    }


def _turn(probes: Tensor) -> Tensor:
    """Whether three points go round clockwise or against: the sign changes in a mirror."""
    a, b, c = probes.as_subclass(Tensor)
    return (b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0])


def _edges(target: BoxList) -> Tensor:
    """Boxes as the edges of what they cover, xyxy, pixels. [n, 4]"""
    return target.convert("xyxy").bbox + torch.tensor([0.0, 0.0, target.pixel, target.pixel])


def _points_as_boxes(target: BoxList) -> Tensor:
    """Keypoints as boxes without extent, in the frame of `_edges`: torchvision mirrors its own points by another rule. [n Kp, 4]"""
    if not target.has_field("keypoints"):
        return torch.zeros(0, 4)
    return target.get_field("keypoints").keypoints[..., :2].reshape(-1, 2).repeat(1, 2) + target.pixel / 2


def _moved(target: BoxList, edges: Tensor, masks: list[Bitmap | None] | None, size: tuple[int, int], mirrored: bool) -> BoxList:
    """The target after the transform, without objects of which nothing is left.

    Args:
        target: before it.
        edges: transformed boxes, then keypoints, as they went in. [n + n Kp, 4]
        masks: transformed masks.
        size: (width, height) of the transformed image, pixels.
        mirrored: left is right now.
    """
    width, height = size
    boxes = edges[: len(target)].clone()
    boxes[:, 0::2] = boxes[:, 0::2].clamp(0, width)
    boxes[:, 1::2] = boxes[:, 1::2].clamp(0, height)
    inside = (boxes[:, 2:] > boxes[:, :2]).all(dim=1)
    boxes -= torch.tensor([0.0, 0.0, target.pixel, target.pixel])
    for k, bitmap in enumerate(masks or []):
        if bitmap is not None:
            boxes[k] = torch.tensor(box_of_bitmap(bitmap, target.pixel))
            inside[k] &= bool(bitmap.pixels.size)
    out = BoxList(boxes, size, "xyxy", target.pixel)
    out.extra_fields = dict(target.extra_fields)
    if masks is not None:
        out.add_field("masks", SegmentationMask([bitmap or EMPTY_BITMAP for bitmap in masks], size, target.get_field("masks").mode))
    if target.has_field("keypoints"):
        out.add_field("keypoints", _moved_points(target, edges[len(target) :], size, mirrored))
    return out[inside].clip_to_image(remove_empty=True)


def _moved_points(target: BoxList, places: Tensor, size: tuple[int, int], mirrored: bool) -> Keypoints:
    """Keypoints at their new places; those outside the image count as not annotated. places: [n Kp, 4]"""
    before = target.get_field("keypoints")
    points = before.keypoints.clone()
    points[..., :2] = places[:, :2].reshape(*points.shape[:2], 2)
    x, y = points[..., 0], points[..., 1]
    # Points that a crop left outside may have been set to 0, 0.
    outside = (x < 0) | (y < 0) | (x > size[0]) | (y > size[1]) | ((x == 0) & (y == 0)) | (points[..., 2] == 0)
    points[..., :2] -= target.pixel / 2
    points = torch.where(outside[..., None], 0.0, points)
    order = before.flip_inds() if mirrored else list(range(points.shape[1]))
    return before.like(points[:, order], size)
