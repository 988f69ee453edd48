"""YOLO: a text file of numbers beside each image; a data file (YAML, or darknet's `.data`) with splits and names.

A line is `class centre_x centre_y width height` or `class x1 y1 x2 y2 ...` (a polygon), all but the class as shares of the
image's width and height.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from maskrcnn_bench.data.datasets.content import Content, box_of_points
from maskrcnn_bench.data.datasets.layout import IMAGE_SUFFIXES, NoSplitError, read_lines, splits
from maskrcnn_bench.data.datasets.stored import StoredDataset
from maskrcnn_bench.data.store import AnnotationStore

# Lists of classes that tools for annotating put beside the label files.
NAME_FILES = ("classes.txt", "predefined_classes.txt")


class YOLODataset(StoredDataset):
    """One split of a YOLO data set, in the order of the image files' names.

    Args:
        data_file: YAML with `names`, `train`, `val` and the like; darknet's `.data`; or a list of names, one a line, beside the
            folders `images/SPLIT` and `labels/SPLIT`.
        split: key of the data file, or name of the folder.
        labels: name of the folders of text files, in the place where a path says `images`.
        remove_images_without_annotations: leave out images without a usable object.
        transforms: called as (image, target) on every sample.
        options: `pixel`, `on_fault`, `on_exif`, `classes` of StoredDataset.
    """

    def __init__(
        self,
        data_file: str | os.PathLike,
        split: str,
        labels: str = "labels",
        remove_images_without_annotations: bool = False,
        transforms: Callable | None = None,
        **options: Any,
    ):
        store, root = self.read_store(data_file, split, labels, options.get("on_exif", "auto"))
        super().__init__(store, root, remove_images_without_annotations, transforms, **options)

    @staticmethod
    def read_store(data_file: str | os.PathLike, split: str, labels: str = "labels", on_exif: str = "auto") -> tuple[AnnotationStore, str]:
        """All annotations of a split, and the folder that its images' names start from.

        Raises:
            FileNotFoundError: when a file or folder that the data file names is missing.
            ValueError: when the data file says less than needed.
        """
        data_file = Path(data_file)
        entries = read_data_file(data_file)
        images = _images_of(data_file, entries, split)
        content = Content(f"{data_file} ({split})", entries["names"], on_exif)
        root = Path(os.path.commonpath([os.path.abspath(image.parent) for image in images]))
        for image in images:
            _read_image(content, image, root, label_file(image, labels))
        for text in _without_image(images, labels):
            content.add_fault("drop", str(text), "", "no image belongs to this label file")
        return content.store(), str(root)


def read_data_file(path: Path) -> dict[str, Any]:
    """The entries of a data file; `names` is {number: name}.

    Raises:
        ValueError: when it has no names.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no YOLO data file {path}")
    if path.suffix in (".yaml", ".yml"):
        entries = _read_yaml(path)
    elif path.suffix == ".data":
        pairs = (line.split("=", 1) for line in read_lines(path) if "=" in line)
        entries = {key.strip(): value.strip() for key, value in pairs}
    else:
        entries = {"names": path.name}
    names = entries.get("names")
    if isinstance(names, str):
        names = [line.strip() for line in read_lines(_resolve(path.parent, names)) if line.strip()]
    if not isinstance(names, (list, dict)) or not names:
        raise ValueError(f"{path}: expected `names`, a list of the classes or a table of number and name; got {names!r}")
    pairs = names.items() if isinstance(names, dict) else enumerate(names)
    return entries | {"names": {int(number): str(name) for number, name in pairs}}


def _read_yaml(path: Path) -> dict:
    try:
        entries = yaml.safe_load(path.read_bytes())
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is no YAML file ({error})") from None
    if not isinstance(entries, dict):
        raise ValueError(f"{path}: expected a table with `names`, `train` and `val`, got {str(entries)[:80]}")
    return entries


def _resolve(base: Path, name: str) -> Path:
    """A path that a data file names: as it says, else without the first folders, which were another machine's or program's."""
    parts = Path(name).parts
    candidates = [base / name, *(base.joinpath(*parts[k:]) for k in range(1, len(parts)))]
    found = next((path for path in candidates if path.exists()), None)
    if found is None:
        raise FileNotFoundError(f"{base}: no file or folder {name}, which its data file names")
    return found


def _images_of(data_file: Path, entries: dict[str, Any], split: str) -> list[Path]:
    """The image files of a split, by name."""
    named = entries.get(split)
    base = data_file.parent
    if named is None:
        named = [str(path) for path in _split_folders(base, split)]
    elif entries.get("path") not in (None, "", "."):
        base = next((p for p in (base / str(entries["path"]), Path(str(entries["path"]))) if p.is_dir()), base)
    images: set[Path] = set()
    for name in [named] if isinstance(named, str) else named:
        place = _resolve(base, name)
        images |= set(_listed(place)) if place.is_file() else {p for p in place.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES}
    if not images:
        raise ValueError(f"{data_file}: no images for split {split!r} in {named}; expected files {', '.join(IMAGE_SUFFIXES)}")
    return sorted(images)


def _split_folders(base: Path, split: str) -> list[Path]:
    return [p for p in (*sorted(base.glob(f"images/{split}*")), base / split / "images") if p.is_dir()]


def _listed(path: Path) -> Iterator[Path]:
    """Images that a text file lists, one a line."""
    for line in read_lines(path):
        if line.strip():
            yield _resolve(path.parent, line.strip())


def label_file(image: Path, labels: str = "labels") -> Path:
    """The text file of an image: `images` in its path becomes `labels`, or it lies beside the image."""
    parts = list(image.parts)
    for k in range(len(parts) - 2, -1, -1):
        if parts[k] == "images":
            parts[k] = labels
            return Path(*parts).with_suffix(".txt")
    return image.with_suffix(".txt")


def _without_image(images: Sequence[Path], labels: str) -> list[Path]:
    # Lists may have both absolute and relative paths of one folder.
    expected = {Path(os.path.abspath(label_file(image, labels))) for image in images}
    folders = {path.parent for path in expected} - {Path(os.path.abspath(image.parent)) for image in images}
    return sorted(path for folder in folders for path in folder.glob("*.txt") if path not in expected and path.name not in NAME_FILES)


def _read_image(content: Content, image: Path, root: Path, text: Path) -> None:
    name = Path(os.path.abspath(image)).relative_to(root).as_posix()
    size = content.image_size(str(image), name)
    number = content.add_image(name, size, str(text))
    if not text.is_file():
        content.add_fault("note", str(text), name, "there is no label file: the image counts as one without objects")
        return
    seen: set[str] = set()
    for place, line in enumerate(read_lines(text, errors="replace"), start=1):
        if not line.strip():
            continue
        try:
            category, box, polygon = _read_line(line, size)
        except ValueError as error:
            content.add_fault("drop", str(text), name, f"line {place}: {error}")
            continue
        if line in seen:
            content.add_fault("drop", str(text), name, f"line {place} repeats an earlier one")
            continue
        seen.add(line)
        content.add_object(number, category, box, polygon)


def _read_line(line: str, size: tuple[int, int]) -> tuple[int, list[float], list | None]:
    """Class, box (x, y, width, height) and polygon of one object, pixels."""
    values = [float(word) for word in line.split()]
    if not values[0].is_integer():
        raise ValueError(f"expected the number of a class first, got {values[0]}")
    width, height = size
    shares = values[1:]
    if len(shares) == 4:
        x, y, w, h = (share * side for share, side in zip(shares, (width, height, width, height)))
        return int(values[0]), [x - w / 2, y - h / 2, w, h], None
    if len(shares) < 6 or len(shares) % 2 or not all(map(math.isfinite, shares)):
        raise ValueError(f"expected a class and 4 numbers, or 3 points or more, as shares of the image; got {len(shares)} numbers")
    xs, ys = [share * width for share in shares[::2]], [share * height for share in shares[1::2]]
    return int(values[0]), box_of_points(xs, ys), [[v for point in zip(xs, ys) for v in point]]


# ------------------------------------------------------------------------------------------------------- recognition


def find_yolo(folder: Path, is_train: bool, masks: bool) -> tuple[dict[str, Any], str] | None:
    """Arguments for a folder in YOLO layout, or for its data file, and words for it; None when it is none.

    Raises:
        NoSplitError: when the wanted split is missing.
    """
    files = [folder] if folder.is_file() else sorted(_data_files(folder), key=lambda path: (("seg" in path.stem) != masks, path.name))
    if not files:
        return None
    data_file = files[0]
    folder = data_file.parent
    entries = read_data_file(data_file)
    split = next((s for s in splits(is_train) if entries.get(s) or (s not in entries and _split_folders(folder, s))), None)
    if split is None:
        raise NoSplitError(f"{data_file}: expected {' or '.join(splits(is_train))}, found {sorted(map(str, entries))}")
    # Polygons may lie beside the boxes of the same images.
    labels = "labels_seg" if "seg" in data_file.stem and (folder / "labels_seg").is_dir() else "labels"
    return {"data_file": str(data_file), "split": split, "labels": labels}, f"YOLO layout, {data_file.name}, split {split}, {labels}"


def _data_files(folder: Path) -> Iterator[Path]:
    for path in (*folder.glob("*.yaml"), *folder.glob("*.yml")):
        try:
            entries = _read_yaml(path)
        except (ValueError, OSError):
            continue
        if "names" in entries and any(split in entries for split in (*splits(True), *splits(False))):
            yield path
    yield from folder.glob("*.data")
    if (folder / "images").is_dir() and (folder / "labels").is_dir() and not list(folder.glob("*.y*ml")):
        yield from (path for path in (*folder.glob("*.names"), *folder.glob("classes.txt")))
