"""Instance masks as pictures: for each image a PNG whose pixels are 0 or the number of an object, as the Penn-Fudan set has them."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from maskrcnn_bench.data.datasets.content import Content, box_of_mask, rle_of_mask
from maskrcnn_bench.data.datasets.layout import IMAGE_SUFFIXES, NO_SPLITS, every_fifth
from maskrcnn_bench.data.datasets.photo import UNREADABLE
from maskrcnn_bench.data.datasets.stored import StoredDataset
from maskrcnn_bench.data.store import AnnotationStore

# Folders of images and of masks, and the class of the objects, which the files do not say.
LAYOUTS = (("PNGImages", "PedMasks", "person"), ("images", "masks", "object"))


class InstancePNGDataset(StoredDataset):
    """Images and PNGs of their objects, in the order of the images' names; all objects are of one class.

    Args:
        img_dir: folder of the images.
        mask_dir: folder of the masks, named NAME.png or NAME_mask.png for an image NAME.
        split: "train" or "test" takes a part, as `layout.every_fifth` has it; "all" takes all.
        class_name: what the objects are.
        remove_images_without_annotations: leave out images without a usable object.
        transforms: called as (image, target) on every sample.
        options: `pixel`, `on_fault`, `on_exif`, `classes` of StoredDataset.
    """

    def __init__(
        self,
        img_dir: str | os.PathLike,
        mask_dir: str | os.PathLike,
        split: str = "all",
        class_name: str = "object",
        remove_images_without_annotations: bool = False,
        transforms: Callable | None = None,
        **options: Any,
    ):
        store, root = self.read_store(img_dir, mask_dir, split, class_name, options.get("on_exif", "auto"))
        super().__init__(store, root, remove_images_without_annotations, transforms, **options)

    @staticmethod
    def read_store(
        img_dir: str | os.PathLike, mask_dir: str | os.PathLike, split: str = "all", class_name: str = "object", on_exif: str = "auto"
    ) -> tuple[AnnotationStore, str]:
        """All objects, with the boxes around their pixels, and the folder of the images."""
        images = sorted(path for path in Path(img_dir).iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)
        masks = {path.stem.removesuffix("_mask"): path for path in sorted(Path(mask_dir).glob("*.png"))}
        content = Content(f"{img_dir} ({split})", {1: class_name}, on_exif)
        for k in every_fifth(len(images), split):
            _read_image(content, images[k], masks.get(images[k].stem), Path(mask_dir))
        for name in sorted(masks.keys() - {path.stem for path in images}):
            content.add_fault("drop", str(masks[name]), "", "no image belongs to this mask")
        return content.store(), os.fspath(img_dir)


def _read_image(content: Content, image: Path, mask: Path | None, mask_dir: Path) -> None:
    size = content.image_size(str(image), image.name)
    number = content.add_image(image.name, size, str(mask or mask_dir))
    if mask is None:
        reason = f"there is no mask {image.stem}.png or {image.stem}_mask.png: the image counts as one without objects"
        content.add_fault("note", str(mask_dir), image.name, reason)
        return
    pixels = read_instances(content, mask, image.name, size)
    if pixels is None:
        return
    for instance in np.unique(pixels[pixels > 0]).tolist():
        of_object = pixels == instance
        content.add_object(number, 1, box_of_mask(of_object), rle_of_mask(of_object), area=int(of_object.sum()))


def read_instances(content: Content, path: Path, image: str, size: tuple[int, int]) -> np.ndarray | None:
    """The numbers in a PNG of one channel; None and a fault when it cannot be used.

    Args:
        content: where the fault is noted.
        path: the PNG; a palette's colours do not matter.
        image: name of the image it belongs to.
        size: (width, height) of that image, pixels; (0, 0) when it is not known.
    Returns:
        [H, W] int32
    """
    try:
        with Image.open(path) as picture:
            pixels = np.asarray(picture)
    except UNREADABLE as error:
        content.add_fault("stop", str(path), image, f"the mask cannot be read ({error})")
        return None
    if pixels.ndim != 2:
        reason = f"expected a PNG of one channel with the objects' numbers, got {pixels.shape[2]} channels"
        content.add_fault("stop", str(path), image, reason)
        return None
    if max(size) > 0 and pixels.shape != (size[1], size[0]):
        found = "{} x {}".format(*pixels.shape[::-1])
        content.add_fault("stop", str(path), image, f"the mask has {found} pixels, its image {size[0]} x {size[1]}")
        return None
    return pixels.astype(np.int32)


def find_instance_png(folder: Path, is_train: bool, masks: bool) -> tuple[dict[str, Any], str] | None:
    """Arguments for a folder of images and masks, and words for it; None when it is none."""
    for images, mask_folder, name in LAYOUTS:
        if (folder / images).is_dir() and any((folder / mask_folder).glob("*.png")):
            split = "train" if is_train else "test"
            arguments = {"img_dir": str(folder / images), "mask_dir": str(folder / mask_folder), "split": split, "class_name": name}
            return arguments, f"instance masks as PNG, {images} and {mask_folder}, {NO_SPLITS}"
    return None
