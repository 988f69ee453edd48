"""COCO: a JSON file with images, categories and annotations, beside a folder of images."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from maskrcnn_bench.data.datasets.stored import StoredDataset
from maskrcnn_bench.data.store import AnnotationStore
from maskrcnn_bench.data.store_cache import read_annotations


class COCODataset(StoredDataset):
    """A COCO annotation file and its images, in ascending order of image ids.

    Category ids may be any integers; they become labels 1..K-1 in ascending order.

    Args:
        ann_file: the JSON file.
        root: folder of the images.
        remove_images_without_annotations: leave out images without a usable object, as one does in training.
        transforms: called as (image, target) on every sample.
        options: `pixel`, `on_fault`, `on_exif`, `classes` of StoredDataset.
    """

    def __init__(
        self,
        ann_file: str | os.PathLike,
        root: str | os.PathLike,
        remove_images_without_annotations: bool = False,
        transforms: Callable | None = None,
        **options: Any,
    ):
        self.ann_file = os.fspath(ann_file)
        store, root = self.read_store(ann_file, root)
        super().__init__(store, root, remove_images_without_annotations, transforms, **options)

    @staticmethod
    def read_store(ann_file: str | os.PathLike, root: str | os.PathLike) -> tuple[AnnotationStore, str]:
        """All annotations of the file, and the folder of the images."""
        return read_annotations(ann_file), os.fspath(root)
