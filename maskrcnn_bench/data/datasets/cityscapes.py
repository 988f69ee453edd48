"""Cityscapes: polygons of street scenes, `gtFine/SPLIT/CITY/*_polygons.json`, beside `leftImg8bit/SPLIT/CITY/*_leftImg8bit.png`.

Eight classes have instances. A polygon may cover those before it in the file; `mode` "mask" heeds that, "poly" does not.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from maskrcnn_bench.data.datasets.content import Content, box_of_mask, box_of_points, rle_of_mask
from maskrcnn_bench.data.datasets.instance_png import read_instances
from maskrcnn_bench.data.datasets.layout import NoSplitError, splits
from maskrcnn_bench.data.datasets.stored import StoredDataset
from maskrcnn_bench.data.faults import Finding, check_annotations
from maskrcnn_bench.data.store import AnnotationStore

# In the order of their ids, which count from 0.
LABELS = (
    *("unlabeled", "ego vehicle", "rectification border", "out of roi", "static", "dynamic", "ground", "road", "sidewalk", "parking"),
    *("rail track", "building", "wall", "fence", "guard rail", "bridge", "tunnel", "pole", "polegroup", "traffic light", "traffic sign"),
    *("vegetation", "terrain", "sky", "person", "rider", "car", "truck", "bus", "caravan", "trailer", "train", "motorcycle", "bicycle"),
)
VOID = (0, 1, 2, 3, 4, 5, 6, 9, 10, 14, 15, 16, 18, 29, 30)
INSTANCE_CLASSES = {k: LABELS[k] for k in (24, 25, 26, 27, 28, 31, 32, 33)}
LABEL_IDS = {name: number for number, name in INSTANCE_CLASSES.items()}
# Pixels of an `instanceIds` picture: LABEL * 1000 + number of the object; the label alone for a group or what has no objects.
PER_LABEL = 1000
# Objects of these labels have numbers too.
NUMBERED = (*INSTANCE_CLASSES.values(), "caravan", "trailer")
# A plate belongs to its car: Cityscapes does not draw it.
NOT_DRAWN = ("license plate",)
GROUP = "group"


class CityScapesDataset(StoredDataset):
    """One split of Cityscapes, in the order of the files' names; groups of objects are crowds.

    Args:
        img_dir: the folder `leftImg8bit`.
        ann_dir: the folder `gtFine` or `gtCoarse`.
        split: "train", "val" or "test".
        mode: "poly" keeps each polygon whole; "mask" leaves out what later polygons cover. Masks come from `*_instanceIds.png`
            where there is one.
        mini: skip as many images after each one that is used.
        remove_images_without_annotations: leave out images without a usable object.
        transforms: called as (image, target) on every sample.
        options: `pixel`, `on_fault`, `on_exif`, `classes` of StoredDataset.
    """

    def __init__(
        self,
        img_dir: str | os.PathLike,
        ann_dir: str | os.PathLike,
        split: str,
        mode: str = "mask",
        mini: int | None = None,
        remove_images_without_annotations: bool = False,
        transforms: Callable | None = None,
        **options: Any,
    ):
        store, root = self.read_store(img_dir, ann_dir, split, mode, mini)
        super().__init__(store, root, remove_images_without_annotations, transforms, **options)

    def void_pixels(self, i: int) -> np.ndarray:
        """Where an image is not evaluated: nothing is marked, or something that belongs to no class. [H, W] bool"""
        store, image = self.annotations, self.images[i]
        content = Content(store.source, {})
        path = Path(store.source_of(image))
        if path.suffix == ".json":
            size, entries = _read_polygons(content, path, store.file_names[image])
            pixels = draw_instances(entries, size)
        else:
            pixels = read_instances(content, path, store.file_names[image], (store.widths[image], store.heights[image]))
        return np.isin(pixels, VOID)

    @staticmethod
    def read_store(
        img_dir: str | os.PathLike, ann_dir: str | os.PathLike, split: str, mode: str = "mask", mini: int | None = None
    ) -> tuple[AnnotationStore, str]:
        """All annotations of a split, and the folder of the images."""
        if mode not in ("poly", "mask"):
            raise ValueError(f"Cityscapes: mode: expected 'poly' or 'mask', got {mode!r}")
        folder = Path(ann_dir) / split
        stems = annotated(folder, mode)
        if not stems:
            wanted = "*_polygons.json" + (" or *_instanceIds.png" if mode == "mask" else "")
            raise FileNotFoundError(f"no annotation files {folder}/CITY/{wanted}")
        content = Content(f"{folder} ({mode})", INSTANCE_CLASSES)
        for stem in stems[:: (mini or 0) + 1]:
            _read_image(content, Path(img_dir), Path(ann_dir), stem, mode)
        return content.store(), os.fspath(img_dir)


def annotated(folder: Path, mode: str = "mask") -> list[Path]:
    """Paths of a split's annotation files up to and without `_polygons.json` or `_instanceIds.png`, by name."""
    endings = ("_polygons.json",) if mode == "poly" else ("_polygons.json", "_instanceIds.png")
    return sorted({path.with_name(path.name.removesuffix(ending)) for ending in endings for path in folder.glob(f"*/*{ending}")})


def _read_image(content: Content, img_dir: Path, ann_dir: Path, stem: Path, mode: str) -> None:
    """The objects of one image, into `content`."""
    place = stem.relative_to(ann_dir)
    # CITY_SEQUENCE_FRAME_gtFine
    name = place.with_name(f"{place.name.rsplit('_', 1)[0]}_leftImg8bit.png").as_posix()
    polygons, picture = (stem.with_name(stem.name + ending) for ending in ("_polygons.json", "_instanceIds.png"))
    if mode == "mask" and picture.is_file():
        size = content.image_size(str(img_dir / name), name)
        number = content.add_image(name, size, str(picture))
        pixels = read_instances(content, picture, name, size)
    else:
        size, entries = _read_polygons(content, polygons, name)
        number = content.add_image(name, size, str(polygons))
        if mode == "poly":
            _add_polygons(content, number, entries)
            return
        pixels = draw_instances(entries, size)
    for value in [] if pixels is None else np.unique(pixels).tolist():
        label = value // PER_LABEL or value
        if label in INSTANCE_CLASSES:
            mask = pixels == value
            content.add_object(number, label, box_of_mask(mask), rle_of_mask(mask), value < PER_LABEL, area=int(mask.sum()))


def _read_polygons(content: Content, path: Path, name: str) -> tuple[tuple[int, int], list[tuple[str, list]]]:
    """(width, height), pixels, and label and corners of each polygon that is not deleted; faults go into `content`."""
    try:
        scene = json.loads(path.read_bytes())
        size = (int(scene["imgWidth"]), int(scene["imgHeight"]))
        objects = [entry for entry in scene["objects"] if not entry.get("deleted")]
        found = [(str(entry["label"]), [(float(x), float(y)) for x, y in entry["polygon"]]) for entry in objects]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        expected = "expected imgWidth, imgHeight and objects with label and polygon"
        content.add_fault("stop", str(path), name, f"{expected} ({type(error).__name__}: {error})")
        return (0, 0), []
    for label, corners in found:
        if len(corners) < 3 and split_label(label)[0] in LABEL_IDS:
            content.add_fault("drop", str(path), name, f"{label}: 3 corners or more are needed, got {len(corners)}")
    return size, [(label, corners) for label, corners in found if len(corners) >= 3]


def split_label(label: str) -> tuple[str, bool]:
    """The class that a label names, and whether it means a group of such objects."""
    alone = label.removesuffix(GROUP)
    return (alone, True) if alone != label and alone in NUMBERED else (label, False)


def _add_polygons(content: Content, number: int, entries: Sequence[tuple[str, list]]) -> None:
    for label, corners in entries:
        name, crowd = split_label(label)
        if name in LABEL_IDS:
            box = box_of_points(*zip(*corners))
            content.add_object(number, LABEL_IDS[name], box, [[v for corner in corners for v in corner]], crowd)


def draw_instances(entries: Sequence[tuple[str, list]], size: tuple[int, int]) -> np.ndarray:
    """What an `instanceIds` picture shows; where no polygon lies, and for unknown labels, it is 0.

    Args:
        entries: label and corners (pixels) of each polygon; a later one covers earlier ones.
        size: (width, height), pixels.
    Returns:
        [height, width] int32
    """
    picture = Image.new("I", size, 0)
    pen = ImageDraw.Draw(picture)
    counts = dict.fromkeys(NUMBERED, 0)
    for label, corners in entries:
        if label in NOT_DRAWN:
            continue
        name, group = split_label(label)
        value = LABELS.index(name) if name in LABELS else 0
        if name in NUMBERED and not group:
            value = value * PER_LABEL + counts[name]
            counts[name] += 1
        pen.polygon(corners, fill=value)
    return np.asarray(picture)


def convert_to_coco(folder: Path, split: str, mode: str) -> tuple[dict, list[Finding]]:
    """One split of a folder with `gtFine` and `leftImg8bit` in COCO's form, without faulty objects, and the faults."""
    store, _ = CityScapesDataset.read_store(folder / "leftImg8bit", folder / "gtFine", split, mode)
    findings, faulty = check_annotations(store)
    return store.coco_dict(~faulty), findings


def find_cityscapes(folder: Path, is_train: bool, masks: bool) -> tuple[dict[str, Any], str] | None:
    """Arguments for a folder in Cityscapes' layout, and words for it; None when it is none.

    Raises:
        NoSplitError: when the wanted split is missing.
    """
    annotations = next((folder / name for name in ("gtFine", "gtCoarse") if (folder / name).is_dir()), None)
    if annotations is None or not (folder / "leftImg8bit").is_dir():
        return None
    # The annotations of `test` are empty.
    split = next((s for s in splits(is_train) if s != "test" and annotated(annotations / s)), None)
    if split is None:
        there = sorted(path.name for path in annotations.iterdir() if path.is_dir())
        raise NoSplitError(f"{annotations}: expected annotations in {' or '.join(splits(is_train))}/CITY, found {there}")
    arguments = {"img_dir": str(folder / "leftImg8bit"), "ann_dir": str(annotations), "split": split, "mode": "mask"}
    return arguments, f"Cityscapes layout, {annotations.name}/{split}, masks without what is covered"
