"""Several data sets behind one index."""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from typing import Any

import numpy as np
from torch.utils.data import ConcatDataset as TorchConcatDataset
from torch.utils.data import Dataset


class ConcatDataset(TorchConcatDataset):
    """Data sets with the same classes, one after the other.

    Raises:
        ValueError: when their classes differ.
    """

    def __init__(self, datasets: Sequence[Dataset]):
        super().__init__(datasets)
        names = [tuple(getattr(dataset, "class_names", ())) for dataset in self.datasets]
        for other in names[1:]:
            if other != names[0]:
                raise ValueError(f"data sets to join: different classes {names[0]} and {other}; name those to use in DATASETS.CLASSES")
        self.class_names = names[0]
        self.categories = dict(enumerate(self.class_names[1:], start=1))

    def get_idxs(self, i: int) -> tuple[int, int]:
        """Which data set an index means, and the index there."""
        k = bisect.bisect_right(self.cumulative_sizes, i)
        return k, i - (self.cumulative_sizes[k - 1] if k else 0)

    def get_img_info(self, i: int) -> dict[str, Any]:
        k, inner = self.get_idxs(i)
        return self.datasets[k].get_img_info(inner)

    @property
    def aspect_ratios(self) -> np.ndarray:
        """Height over width of every image. [len(self)]"""
        return np.concatenate([aspect_ratios(dataset) for dataset in self.datasets])


def aspect_ratios(dataset: Any) -> np.ndarray:
    """Height over width of every image of any data set with `get_img_info`. [len(dataset)]"""
    if hasattr(dataset, "aspect_ratios"):
        return dataset.aspect_ratios
    infos = (dataset.get_img_info(i) for i in range(len(dataset)))
    return np.array([info["height"] / info["width"] for info in infos], dtype=np.float64)
