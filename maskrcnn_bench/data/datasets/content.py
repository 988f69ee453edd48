"""What a reader collects while it goes through a data set's files, in COCO's form, with the faults it meets."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from maskrcnn_bench.data.datasets.photo import UNREADABLE, photo_size
from maskrcnn_bench.data.store import AnnotationStore


class Content:
    """Images, objects and faults, in the order in which a reader finds them.

    Args:
        source: folder or file that is read, for messages.
        names: names of the classes by their number in the files.
        on_exif: as `read_photo` has it.
    """

    def __init__(self, source: str, names: dict[int, str], on_exif: str = "auto"):
        self.source, self.on_exif = source, on_exif
        self.categories = [{"id": number, "name": name} for number, name in sorted(names.items())]
        self.images: list[dict] = []
        self.sources: dict[int, str] = {}
        self.annotations: list[dict] = []
        self.faults: list[tuple[str, str, str, int | None, str]] = []

    def add_image(self, file_name: str, size: tuple[int, int], source: str = "", number: int | None = None) -> int:
        """Note an image of (width, height) `size`, pixels, and the file of its annotations; returns its id."""
        number = len(self.images) + 1 if number is None else number
        self.images.append({"id": number, "file_name": file_name, "width": size[0], "height": size[1]})
        if source:
            self.sources[number] = source
        return number

    def add_object(
        self, image_id: int, category_id: int, box: Sequence[float], mask: list | dict | None = None, crowd: bool = False, **more
    ) -> None:
        """Note an object: its box as x, y, width, height, pixels; its mask as polygons or RLE; `area` where the file gives it."""
        entry = {"id": len(self.annotations) + 1, "image_id": image_id, "category_id": category_id, "bbox": list(box)}
        self.annotations.append(entry | {"segmentation": mask, "iscrowd": int(crowd)} | more)

    def add_fault(self, severity: str, file: str, image: str, reason: str) -> None:
        """Note a fault, as `faults.Finding` describes it."""
        self.faults.append((severity, file, image, None, reason))

    def image_size(self, path: str, name: str) -> tuple[int, int]:
        """(width, height) of an image file, pixels; (0, 0) and a fault when it cannot be read."""
        try:
            return photo_size(path, self.on_exif)
        except UNREADABLE as error:
            self.add_fault("stop", path, name, f"the image cannot be read ({error})")
            return 0, 0

    def store(self, empty_extent: float = 0.0, corners_from: int | None = None) -> AnnotationStore:
        """Everything as flat arrays, with the arguments of AnnotationStore; this object is empty afterwards."""
        content = {"images": self.images, "categories": self.categories, "annotations": self.annotations}
        self.images, self.annotations = [], []
        return AnnotationStore(self.source, content, empty_extent, self.sources, self.faults, corners_from)


def box_of_points(xs: Sequence[float], ys: Sequence[float]) -> list[float]:
    """The box around points, as x, y, width, height."""
    x, y = min(xs), min(ys)
    return [x, y, max(xs) - x, max(ys) - y]


def box_of_mask(mask: np.ndarray) -> list[int]:
    """The box around the pixels of a mask, as x, y, width, height, pixels. mask: [H, W] bool, at least one set"""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    x, y = int(columns[0]), int(rows[0])
    return [x, y, int(columns[-1]) + 1 - x, int(rows[-1]) + 1 - y]


def rle_of_mask(mask: np.ndarray) -> dict:
    """A mask as COCO's compressed RLE. mask: [H, W] bool"""
    from pycocotools import mask as coco_mask

    rle = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": list(mask.shape), "counts": rle["counts"].decode()}
