"""ImageList: images of different sizes in one zero-padded tensor."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .bounding_box import BoxListBatch


class ImageList:
    """A batch of images, padded to the right and at the bottom, that remembers the size of each.

    Args:
        tensors: uint8 RGB (normalised later, on the device) or float32 (normalised already). [N, C, H, W]
        image_sizes: (height, width) of each image before padding, pixels.
        keys: random key of each image (`utils.counter.counter_key`), int64; None draws keys when they are needed. [N]
        scales: pixels of the image per pixel of the original, where both sides were multiplied by exactly that. [N]
        proposals: regions for a model that finds none itself, in pixels of the images, with the field `objectness`.
    """

    def __init__(
        self,
        tensors: Tensor,
        image_sizes: Sequence[tuple[int, int]],
        keys: Tensor | None = None,
        sizes: Tensor | None = None,
        scales: Tensor | None = None,
        proposals: BoxListBatch | None = None,
    ):
        self.tensors = tensors
        self.image_sizes = [(int(h), int(w)) for h, w in image_sizes]
        self.keys = keys
        self.scales = scales
        self.proposals = proposals
        if sizes is None:
            sizes = torch.tensor([(w, h) for h, w in self.image_sizes], dtype=torch.float32).to(tensors.device)
        self.sizes = sizes
        """(width, height) of each image as a tensor on the device of the images. [N, 2]"""

    def _map(self, move: Callable[[Tensor], Tensor]) -> ImageList:
        keys = move(self.keys) if self.keys is not None else None
        scales = move(self.scales) if self.scales is not None else None
        proposals = self.proposals._map(move) if self.proposals is not None else None
        return ImageList(move(self.tensors), self.image_sizes, keys, move(self.sizes), scales, proposals)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> ImageList:
        return self._map(lambda t: t.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> ImageList:
        return self._map(lambda t: t.pin_memory())

    def __len__(self) -> int:
        return self.tensors.shape[0]


class ImageVersions:
    """The same images at several sizes, the first of which the targets belong to.

    Args:
        versions: the same images in the same order each.
    """

    def __init__(self, versions: Sequence[ImageList]):
        self.versions = list(versions)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> ImageVersions:
        return ImageVersions([version.to(device, non_blocking) for version in self.versions])

    def pin_memory(self) -> ImageVersions:
        return ImageVersions([version.pin_memory() for version in self.versions])

    def __len__(self) -> int:
        return len(self.versions[0])


def to_image_list(
    tensors: ImageList | Tensor | Sequence[Tensor], size_divisible: int = 0, shapes: Sequence[tuple[int, int]] = ()
) -> ImageList:
    """Pads images with zeros to the largest of them.

    Args:
        tensors: images of one dtype, [C, H, W] each, or a tensor [N, C, H, W] or [C, H, W], or an ImageList (returned as it is).
        size_divisible: height and width of the result are multiples of it; 0 or 1 pads no further.
        shapes: (height, width) of results to choose from: the smallest that holds all images, where there is one. Pixels.
    Raises:
        TypeError: for anything else.
    """
    if isinstance(tensors, ImageList):
        return tensors
    if isinstance(tensors, Tensor):
        tensors = [tensors] if tensors.dim() == 3 else list(tensors)
    if not isinstance(tensors, (list, tuple)) or not all(isinstance(t, Tensor) and t.dim() == 3 for t in tensors):
        raise TypeError(f"to_image_list: expected tensors of shape [C, H, W], got {type(tensors).__name__}")
    step = max(size_divisible, 1)
    height = math.ceil(max(t.shape[1] for t in tensors) / step) * step
    width = math.ceil(max(t.shape[2] for t in tensors) / step) * step
    fitting = [(h, w) for h, w in shapes if h >= height and w >= width]
    height, width = min(fitting, key=math.prod, default=(height, width))
    batch = tensors[0].new_zeros((len(tensors), tensors[0].shape[0], height, width))
    for slot, image in zip(batch, tensors, strict=True):
        slot[:, : image.shape[1], : image.shape[2]].copy_(image)
    return ImageList(batch, [(t.shape[1], t.shape[2]) for t in tensors])
