"""Visual Genome: `objects.json` with free names, and a vocabulary that makes classes of them, as bottom-up-attention prepares it.

A line of `objects_vocab.txt` is a class: its name and, behind commas, other names for the same thing. Objects whose names are not in
the vocabulary are left out.
"""

from __future__ import annotations

import json
import logging
import os
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from maskrcnn_bench.data.datasets.content import Content
from maskrcnn_bench.data.datasets.layout import NO_SPLITS, every_fifth, read_lines, splits
from maskrcnn_bench.data.datasets.stored import StoredDataset
from maskrcnn_bench.data.store import AnnotationStore

# Classes that are made of the most frequent names when there is no vocabulary.
CLASSES_WITHOUT_VOCABULARY = 2500

logger = logging.getLogger("maskrcnn_bench.data")


class VisualGenomeDataset(StoredDataset):
    """Images of Visual Genome, in ascending order of their ids.

    Args:
        ann_file: `objects.json`. Where `image_data.json` lies beside it, that gives the images' sizes.
        img_dir: folder of the images ID.jpg, or of folders of them (VG_100K, VG_100K_2).
        vocabulary: `objects_vocab.txt`; "" takes the most frequent names of `ann_file`.
        image_list: file with an image a line, as bottom-up-attention's train.txt has them; "" takes `split`.
        split: "train" or "test" takes a part, as `layout.every_fifth` has it; "all" takes all.
        remove_images_without_annotations: leave out images without a usable object.
        transforms: called as (image, target) on every sample.
        options: `pixel`, `on_fault`, `on_exif`, `classes` of StoredDataset.
    """

    def __init__(
        self,
        ann_file: str | os.PathLike,
        img_dir: str | os.PathLike,
        vocabulary: str | os.PathLike = "",
        image_list: str | os.PathLike = "",
        split: str = "all",
        remove_images_without_annotations: bool = False,
        transforms: Callable | None = None,
        **options: Any,
    ):
        store, root = self.read_store(ann_file, img_dir, vocabulary, image_list, split)
        super().__init__(store, root, remove_images_without_annotations, transforms, **options)

    @staticmethod
    def read_store(
        ann_file: str | os.PathLike,
        img_dir: str | os.PathLike,
        vocabulary: str | os.PathLike = "",
        image_list: str | os.PathLike = "",
        split: str = "all",
    ) -> tuple[AnnotationStore, str]:
        """The objects whose names are in the vocabulary, and the folder of the images."""
        entries = sorted(_read_json(Path(ann_file)), key=lambda entry: entry["image_id"])
        lines = read_lines(Path(vocabulary)) if vocabulary else frequent_names(entries)
        names, numbers = read_vocabulary(lines)
        content = Content(str(ann_file), names)
        if image_list:
            wanted = {Path(line.split()[0]).stem for line in read_lines(Path(image_list)) if line.strip()}
            entries = [entry for entry in entries if str(entry["image_id"]) in wanted]
        else:
            entries = [entries[k] for k in every_fifth(len(entries), split)]
        files, sizes = _image_files(Path(img_dir)), _image_sizes(Path(ann_file).with_name("image_data.json"))
        for entry in entries:
            number = int(entry["image_id"])
            content.add_image(files.get(str(number), f"{number}.jpg"), sizes.get(number, (0, 0)), number=number)
            for thing in entry["objects"]:
                _add_object(content, number, thing, numbers)
        named = sum(len(entry["objects"]) for entry in entries)
        logger.info("%s: %d of %d objects have a name in the vocabulary", ann_file, len(content.annotations), named)
        return content.store(), os.fspath(img_dir)


def _read_json(path: Path) -> list[dict]:
    if not path.is_file():
        raise FileNotFoundError(f"no annotation file {path}; check the path, or DATASETS.ROOT for names of the catalog")
    try:
        entries = json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path} is no JSON file ({error}); it may be cut off: copy or download it again") from None
    rows = entries if isinstance(entries, list) else [None]
    if not all(isinstance(row, dict) and isinstance(row.get("objects"), list) and isinstance(row.get("image_id"), int) for row in rows):
        raise ValueError(f"{path}: expected Visual Genome's objects.json, a list of images with `image_id` and `objects`")
    return entries


def frequent_names(entries: Sequence[dict], limit: int = CLASSES_WITHOUT_VOCABULARY) -> list[str]:
    """The most frequent names of objects, the first one the most frequent; equally frequent ones by alphabet."""
    counts = Counter(_clean(name) for entry in entries for thing in entry["objects"] for name in thing.get("names", ())[:1])
    return sorted(counts, key=lambda name: (-counts[name], name))[:limit]


def read_vocabulary(lines: Sequence[str]) -> tuple[dict[int, str], dict[str, int]]:
    """Classes by number, from 1, each with its first name; and the number that every name means.

    A name in two lines means the later one, as in the programs that use these files; the earlier class keeps its number.
    """
    classes = [[_clean(name) for name in line.split(",")] for line in lines if line.strip()]
    numbers = {name: number for number, names in enumerate(classes, start=1) for name in names}
    return {number: names[0] for number, names in enumerate(classes, start=1)}, numbers


def _clean(name: str) -> str:
    return name.lower().strip()


def _add_object(content: Content, image_id: int, thing: dict, numbers: dict[str, int]) -> None:
    box = [thing.get(key) for key in ("x", "y", "w", "h")]
    if not all(isinstance(value, (int, float)) for value in box):
        reason = f"object {thing.get('object_id')}: expected numbers x, y, w, h, got {box}"
        content.add_fault("drop", content.source, f"id {image_id}", reason)
        return
    number = next((numbers[name] for name in map(_clean, thing.get("names", ())) if name in numbers), None)
    if number is not None:
        content.add_object(image_id, number, box)


def _image_files(folder: Path) -> dict[str, str]:
    """Path below `folder` of every JPEG there and one level deeper, by its name without ending."""
    found = [*folder.glob("*.jpg"), *folder.glob("*/*.jpg")]
    return {path.stem: path.relative_to(folder).as_posix() for path in found}


def _image_sizes(path: Path) -> dict[int, tuple[int, int]]:
    """(width, height) of images, pixels, by id; {} when there is no such file."""
    if not path.is_file():
        return {}
    return {entry.get("image_id", entry.get("id")): (entry["width"], entry["height"]) for entry in json.loads(path.read_bytes())}


def find_visual_genome(folder: Path, is_train: bool, masks: bool) -> tuple[dict[str, Any], str] | None:
    """Arguments for a folder with `objects.json`, and words for it; None when there is none."""
    ann_file = folder / "objects.json"
    if not ann_file.is_file():
        return None
    vocabularies = [*folder.glob("objects_vocab.txt"), *folder.glob("*/objects_vocab.txt")]
    largest = max(sorted(vocabularies), key=lambda path: len(read_lines(path)), default=None)
    image_list = next((path for name in splits(is_train) for path in (folder / f"{name}.txt",) if path.is_file()), None)
    arguments = {"ann_file": str(ann_file), "img_dir": str(folder), "vocabulary": str(largest or "")}
    arguments |= {"image_list": str(image_list)} if image_list else {"split": "train" if is_train else "test"}
    words = f"vocabulary {largest.relative_to(folder)}" if largest else "its most frequent names as vocabulary"
    return arguments, f"Visual Genome's objects.json, {words}, {image_list.name if image_list else NO_SPLITS}"
