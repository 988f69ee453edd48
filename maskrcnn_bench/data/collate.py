"""From data set items to batches: transforms with the randomness of the image, optional caching, padding."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from maskrcnn_bench.data.copy_paste import CopyPaste
from maskrcnn_bench.data.proposals import ProposalSlots
from maskrcnn_bench.data.samplers import Sample
from maskrcnn_bench.structures.bounding_box import BoxList, BoxListBatch
from maskrcnn_bench.structures.image_list import ImageList, ImageVersions, to_image_list
from maskrcnn_bench.utils.counter import CounterRandom, counter_key


class TransformedDataset(Dataset):
    """A data set whose items are transformed as their iteration asks; everything else is that of the data set.

    Args:
        dataset: items are (image, BoxList, anything).
        transforms: called as (image, target, CounterRandom).
        seed: what all random choices depend on, beside iteration and image.
        cache_bytes: how much of what the data set returns is kept in memory, in each process that loads.
        paste: what takes objects from another image, after the transforms of both.
        proposals: BoxLists that follow the image as the target's field `proposals`.
    """

    def __init__(
        self,
        dataset: Dataset,
        transforms: Callable,
        seed: int = 0,
        cache_bytes: float = 0,
        paste: CopyPaste | None = None,
        proposals: Dataset | None = None,
    ):
        self.dataset = dataset
        self.proposals = proposals
        self.transforms = transforms
        self.seed = seed
        self.paste = paste
        self.cache_bytes = cache_bytes
        self._cached: dict[int, tuple[Any, BoxList]] = {}

    def __getitem__(self, sample: Sample | int) -> tuple[Any, BoxList, int, int]:
        """Image, target, index in the data set, and random key."""
        iteration, index = sample if isinstance(sample, tuple) else (0, sample)
        key = counter_key(self.seed, iteration, index)
        random = CounterRandom(key)
        image, target = self._read(index)
        if self.proposals is not None:
            target.add_field("proposals", self.proposals[index])
        image, target = self._transform(index, image, target, random)
        other = None if self.paste is None else self.paste.partner(len(self), random)
        if other is not None:
            others = self._transform(other, *self._read(other), CounterRandom(counter_key(key, 0, other)))
            image, target = self.paste(image, target, *others, random)
        return image, target, index, key

    def _transform(self, index: int, image: Any, target: BoxList, random: CounterRandom) -> tuple[Any, BoxList]:
        try:
            return self.transforms(image, target, random)
        except ValueError as error:
            # Data sets of users need not know files.
            path = self.dataset.image_path(index) if hasattr(self.dataset, "image_path") else f"image {index} of the data set"
            raise ValueError(f"{path}: {error}") from error

    def _read(self, index: int) -> tuple[Any, BoxList]:
        if index not in self._cached:
            image, target = self.dataset[index][:2]
            size = np.asarray(image).nbytes if self.cache_bytes > 0 else 0
            if size == 0 or size > self.cache_bytes:
                return image, target
            self.cache_bytes -= size
            self._cached[index] = image, target
        image, target = self._cached[index]
        # Picking all boxes copies them, so that no transform changes what is kept.
        return image, target[torch.arange(len(target))]

    def __len__(self) -> int:
        return len(self.dataset)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name == "dataset":
            raise AttributeError(name)
        return getattr(self.dataset, name)


class BatchCollator:
    """Items of a TransformedDataset as (ImageList with keys, BoxListBatch, indices); several sizes of an image make ImageVersions.

    Args:
        size_divisible: padded height and width are multiples of this, pixels; 0 pads only to the largest image.
        shapes: padded (height, width) to choose from, pixels; see `to_image_list`.
        target_slots: room for objects, at least, in each image.
        proposals: makes a batch of the targets' proposals, which go with the images.
    """

    def __init__(
        self,
        size_divisible: int = 0,
        shapes: Sequence[tuple[int, int]] = (),
        target_slots: int = 0,
        proposals: ProposalSlots | None = None,
    ):
        self.size_divisible = size_divisible
        self.shapes = [tuple(shape) for shape in shapes]
        self.target_slots = target_slots
        self.proposals = proposals

    def __call__(self, batch: Sequence[tuple[Any, BoxList, int, int]]) -> tuple[ImageList | ImageVersions, BoxListBatch, tuple[int, ...]]:
        images, targets, indices, keys = zip(*batch, strict=True)
        given = [] if self.proposals is None else [target.extra_fields.pop("proposals") for target in targets]
        if isinstance(images[0], tuple):
            versions = [self._padded(version, keys, given) for version in zip(*images, strict=True)]
            return ImageVersions(versions), self._slots(targets), indices
        padded = self._padded(images, keys, given)
        scales = [target.extra_fields.pop("resize_factor", None) for target in targets]
        if None not in scales:
            padded.scales = torch.tensor(scales, dtype=torch.float32)
        return padded, self._slots(targets), indices

    def _slots(self, targets: Sequence[BoxList]) -> BoxListBatch:
        enough = self.target_slots and max(len(target) for target in targets) <= self.target_slots
        return BoxListBatch.pad(targets, slots=self.target_slots if enough else None)

    def _padded(self, tensors: Sequence[torch.Tensor], keys: Sequence[int], given: Sequence[BoxList]) -> ImageList:
        images = to_image_list(list(tensors), self.size_divisible, self.shapes)
        images.keys = torch.tensor(keys, dtype=torch.int64)
        if self.proposals is not None:
            images.proposals = self.proposals(given, [(width, height) for height, width in images.image_sizes])
        return images


def one_thread(worker_id: int) -> None:
    """Start of a loading process: many processes with many threads each would only wait for each other."""
    torch.set_num_threads(1)
