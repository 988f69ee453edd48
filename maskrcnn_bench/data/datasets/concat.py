"""Several data sets behind one index."""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from typing import Any

import numpy as np
from torch.utils.data import ConcatDataset as TorchConcatDataset
from torch.utils.data import Dataset


class ConcatDataset(TorchConcatDataset):
    """Data sets with the same classes and kinds of keypoints, one after the other.

    Raises:
        ValueError: when these differ.
    """

    def __init__(self, datasets: Sequence[Dataset]):
        super().__init__(datasets)
        names = [tuple(getattr(dataset, "class_names", ())) for dataset in self.datasets]
        for other in names[1:]:
            if other != names[0]:
                raise ValueError(f"data sets to join: different classes {names[0]} and {other}; name those to use in DATASETS.CLASSES")
        kinds = [getattr(dataset, "keypoint_kind", None) for dataset in self.datasets]
        points = [() if kind is None else kind.names for kind in kinds]
        if len(set(points)) > 1:
            raise ValueError(f"data sets to join: different keypoints {' and '.join(str(one) for one in points)}")
        self.class_names, self.keypoint_kind = names[0], kinds[0]
        self.categories = dict(enumerate(self.class_names[1:], start=1))

    def get_idxs(self, i: int) -> tuple[int, int]:
        """Which data set an index means, and the index there."""
        k = bisect.bisect_right(self.cumulative_sizes, i)
        return k, i - (self.cumulative_sizes[k - 1] if k else 0)

    def get_img_info(self, i: int) -> dict[str, Any]:
        k, inner = self.get_idxs(i)
        return self.datasets[k].get_img_info(inner)

    def image_path(self, i: int) -> str:
        k, inner = self.get_idxs(i)
        return self.datasets[k].image_path(inner)

    def image_labels(self) -> tuple[np.ndarray, np.ndarray]:
        """The image (as index here) and the label of every object. [n], [n] int64"""
        firsts = [0, *self.cumulative_sizes[:-1]]
        parts = [(first + images, labels) for first, dataset in zip(firsts, self.datasets) for images, labels in [image_labels(dataset)]]
        return tuple(np.concatenate(column) for column in zip(*parts))

    @property
    def aspect_ratios(self) -> np.ndarray:
        """Height over width of every image. [len(self)]"""
        return np.concatenate([aspect_ratios(dataset) for dataset in self.datasets])


def image_labels(dataset: Any) -> tuple[np.ndarray, np.ndarray]:
    """The image and the label of every object of a data set with `image_labels` or `get_groundtruth`. [n], [n] int64"""
    if hasattr(dataset, "image_labels"):
        return dataset.image_labels()
    if not hasattr(dataset, "get_groundtruth"):
        raise TypeError(f"{type(dataset).__name__} has no get_groundtruth(i), which DATALOADER.REPEAT_THRESHOLD needs to know the classes")
    labels = [dataset.get_groundtruth(i).get_field("labels").numpy() for i in range(len(dataset))]
    return np.repeat(np.arange(len(labels)), [len(part) for part in labels]), np.concatenate(labels)


def aspect_ratios(dataset: Any) -> np.ndarray:
    """Height over width of every image of any data set with `get_img_info`. [len(dataset)]"""
    if hasattr(dataset, "aspect_ratios"):
        return dataset.aspect_ratios
    infos = (dataset.get_img_info(i) for i in range(len(dataset)))
    return np.array([info["height"] / info["width"] for info in infos], dtype=np.float64)
