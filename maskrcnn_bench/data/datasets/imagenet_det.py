"""ImageNet DET, 200 classes: VOC's XML files with WordNet ids as names, in `Annotations/DET`, `Data/DET` and `ImageSets/DET`.

`map_det.txt` of the development kit gives the ids their numbers and names: a line is `n02672831 1 accordion`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from maskrcnn_bench.data.datasets.content import Content
from maskrcnn_bench.data.datasets.layout import NoSplitError, read_lines, splits
from maskrcnn_bench.data.datasets.stored import StoredDataset
from maskrcnn_bench.data.datasets.voc import read_xml
from maskrcnn_bench.data.store import AnnotationStore

_CLASS = re.compile(r"(?P<wnid>n\d{8})\s+(?:(?P<number>\d+)\s+)?(?P<name>.+)")
ABSENT = "-1"


class ImageNetDETDataset(StoredDataset):
    """One split of ImageNet DET; coordinates count pixels from 0, both ends included.

    Args:
        data_dir: folder with `Annotations/DET`, `Data/DET` and `ImageSets/DET`.
        split: name of a list in `ImageSets/DET`; where there is none, all lists SPLIT_*.txt together.
        map_file: the ids, numbers and names of the classes.
        remove_images_without_annotations: leave out images without a usable object.
        transforms: called as (image, target) on every sample.
        options: `pixel`, `on_fault`, `on_exif`, `classes` of StoredDataset.
    """

    def __init__(
        self,
        data_dir: str | os.PathLike,
        split: str,
        map_file: str | os.PathLike,
        remove_images_without_annotations: bool = False,
        transforms: Callable | None = None,
        **options: Any,
    ):
        store, root = self.read_store(data_dir, split, map_file)
        super().__init__(store, root, remove_images_without_annotations, transforms, **options)

    @staticmethod
    def read_store(data_dir: str | os.PathLike, split: str, map_file: str | os.PathLike) -> tuple[AnnotationStore, str]:
        """All annotations of a split, and the folder of the images."""
        folder, classes = Path(data_dir), read_map(Path(map_file))
        content = Content(f"{folder} ({split})", {number: name for number, name in classes.values()})
        annotations, images = folder / "Annotations" / "DET" / split, folder / "Data" / "DET" / split
        for name, present in read_lists(folder / "ImageSets" / "DET", split).items():
            _read_image(content, annotations / f"{name}.xml", f"{name}.JPEG", classes, present)
        return content.store(corners_from=0), str(images)


def read_map(path: Path) -> dict[str, tuple[int, str]]:
    """Number, from 1, and name of each WordNet id.

    Raises:
        FileNotFoundError: when there is no such file.
        ValueError: when a line has another form.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no class list {path}; it is `data/map_det.txt` of ImageNet's development kit for DET")
    classes: dict[str, tuple[int, str]] = {}
    for place, line in enumerate(read_lines(path), start=1):
        if not line.strip():
            continue
        found = _CLASS.fullmatch(line.strip())
        if found is None:
            raise ValueError(f"{path}, line {place}: expected `n02672831 1 accordion`, got {line[:80]!r}")
        classes[found["wnid"]] = (int(found["number"] or len(classes) + 1), found["name"].strip())
    return classes


def read_lists(folder: Path, split: str) -> dict[str, bool]:
    """Names of a split's images in order; False for those listed only because a class is absent."""
    files = [folder / f"{split}.txt"] if (folder / f"{split}.txt").is_file() else sorted(folder.glob(f"{split}_*.txt"))
    if not files:
        there = ", ".join(sorted(path.stem for path in folder.glob("*.txt"))) or "none"
        raise FileNotFoundError(f"no list of images {folder / split}.txt or {split}_*.txt; lists there: {there}")
    names: dict[str, bool] = {}
    for line in (line for path in files for line in read_lines(path) if line.strip()):
        name, *mark = line.split()
        names[name] = names.get(name, False) or mark[:1] != [ABSENT]
    return names


def _read_image(content: Content, path: Path, file_name: str, classes: dict[str, tuple[int, str]], present: bool) -> None:
    if not path.is_file():
        if present:
            content.add_fault("note", str(path), file_name, "there is no such annotation file: the image counts as one without objects")
        content.add_image(file_name, (0, 0), str(path))
        return
    image, objects = read_xml(path, first=0)
    number = content.add_image(file_name, (image["width"], image["height"]), str(path))
    for entry in objects:
        if entry["name"] in classes:
            content.add_object(number, classes[entry["name"]][0], entry["bbox"])
        else:
            content.add_fault("drop", str(path), file_name, f"{entry['name']} is not in the class list")


def find_imagenet_det(folder: Path, is_train: bool, masks: bool) -> tuple[dict[str, Any], str] | None:
    """Arguments for a folder in ImageNet's layout, and words for it; None when it is none.

    Raises:
        NoSplitError: when the wanted split is missing.
    """
    root = next((p for p in (folder, *sorted(folder.glob("*"))) if (p / "Annotations" / "DET").is_dir()), None)
    if root is None:
        return None
    lists = sorted(path.stem for path in (root / "ImageSets" / "DET").glob("*.txt"))
    split = next((s for s in splits(is_train) if any(re.fullmatch(rf"{s}(_\d+)?", stem) for stem in lists)), None)
    if split is None:
        raise NoSplitError(f"{root / 'ImageSets' / 'DET'}: expected a list {' or '.join(splits(is_train))}, found {lists}")
    usual = [folder.glob(f"{place}map_det.txt") for place in ("", "data/", "devkit/data/", "*/", "*/data/", "*/devkit/data/")]
    map_file = next((path for paths in usual for path in sorted(paths)), folder / "map_det.txt")
    arguments = {"data_dir": str(root), "split": split, "map_file": str(map_file)}
    return arguments, f"ImageNet DET layout, ImageSets/DET/{split}, {map_file.name}"
