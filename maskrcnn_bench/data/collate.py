"""From data set items to batches: transforms with the randomness of the image, optional caching, padding."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils.data import Dataset

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
        cache: keep what the data set returns in memory, in each process that loads.
    """

    def __init__(self, dataset: Dataset, transforms: Callable, seed: int = 0, cache: bool = False):
        self.dataset = dataset
        self.transforms = transforms
        self.seed = seed
        self._cached: dict[int, tuple[Any, BoxList]] | None = {} if cache else None

    def __getitem__(self, sample: Sample | int) -> tuple[Any, BoxList, int, int]:
        """Image, target, index in the data set, and random key."""
        iteration, index = sample if isinstance(sample, tuple) else (0, sample)
        image, target = self._read(index)
        key = counter_key(self.seed, iteration, index)
        image, target = self.transforms(image, target, CounterRandom(key))
        return image, target, index, key

    def _read(self, index: int) -> tuple[Any, BoxList]:
        if self._cached is None:
            return self.dataset[index][:2]
        if index not in self._cached:
            self._cached[index] = self.dataset[index][:2]
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
    """

    def __init__(self, size_divisible: int = 0):
        self.size_divisible = size_divisible

    def __call__(self, batch: Sequence[tuple[Any, BoxList, int, int]]) -> tuple[ImageList | ImageVersions, BoxListBatch, tuple[int, ...]]:
        images, targets, indices, keys = zip(*batch, strict=True)
        if isinstance(images[0], tuple):
            return ImageVersions([self._padded(version, keys) for version in zip(*images, strict=True)]), BoxListBatch.pad(targets), indices
        padded = self._padded(images, keys)
        scales = [target.extra_fields.pop("resize_factor", None) for target in targets]
        if None not in scales:
            padded.scales = torch.tensor(scales, dtype=torch.float32)
        return padded, BoxListBatch.pad(targets), indices

    def _padded(self, tensors: Sequence[torch.Tensor], keys: Sequence[int]) -> ImageList:
        images = to_image_list(list(tensors), self.size_divisible)
        images.keys = torch.tensor(keys, dtype=torch.int64)
        return images


def one_thread(worker_id: int) -> None:
    """Start of a loading process: many processes with many threads each would only wait for each other."""
    torch.set_num_threads(1)
