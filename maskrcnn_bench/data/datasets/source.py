"""Which data set a name of the catalog or a path means, and what kind of folder a path is."""

from __future__ import annotations

import inspect
import json
import mmap
import re
from collections.abc import Callable, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset

from maskrcnn_bench.data.datasets.cityscapes import CityScapesDataset, find_cityscapes
from maskrcnn_bench.data.datasets.coco import COCODataset
from maskrcnn_bench.data.datasets.imagenet_det import ImageNetDETDataset, find_imagenet_det
from maskrcnn_bench.data.datasets.instance_png import InstancePNGDataset, find_instance_png
from maskrcnn_bench.data.datasets.labelme import LabelMeDataset, find_labelme, is_labelme
from maskrcnn_bench.data.datasets.layout import NOTHING, TEST_SPLITS, TRAIN_SPLITS, NoSplitError, Source, splits
from maskrcnn_bench.data.datasets.stored import StoredDataset
from maskrcnn_bench.data.datasets.toy import MARKER
from maskrcnn_bench.data.datasets.visual_genome import VisualGenomeDataset, find_visual_genome
from maskrcnn_bench.data.datasets.voc import PascalVOCDataset, find_voc
from maskrcnn_bench.data.datasets.xml_folder import XMLFolderDataset, find_xml_folder
from maskrcnn_bench.data.datasets.yolo import YOLODataset, find_yolo

# Layouts beside COCO's: each finder says the arguments of its class and describes them, or answers None. The first one wins.
LAYOUTS: tuple[tuple[type[StoredDataset], Callable[[Path, bool, bool], tuple[dict[str, Any], str] | None]], ...] = (
    (CityScapesDataset, find_cityscapes),
    (ImageNetDETDataset, find_imagenet_det),
    (VisualGenomeDataset, find_visual_genome),
    (PascalVOCDataset, find_voc),
    (YOLODataset, find_yolo),
    (InstancePNGDataset, find_instance_png),
    (XMLFolderDataset, find_xml_folder),
    (LabelMeDataset, find_labelme),
)
FACTORIES: dict[str, type[StoredDataset]] = {factory.__name__: factory for factory in (COCODataset, *(row[0] for row in LAYOUTS))}
EXPECTED = (
    "COCO layout: annotations/instances_SPLIT.json and a folder of images SPLIT*; VOC layout: Annotations, ImageSets/Main, JPEGImages;"
    " VOC's XML files without ImageSets: in Annotations beside JPEGImages or images, or each beside its image, also below SPLIT;"
    " LabelMe: a JSON file beside each image, also below SPLIT;"
    " YOLO: data.yaml, images/SPLIT, labels/SPLIT; masks as PNG: PNGImages and PedMasks, or images and masks; Cityscapes: leftImg8bit,"
    " gtFine; ImageNet DET: Annotations/DET, Data/DET, ImageSets/DET, map_det.txt; Visual Genome: objects.json, objects_vocab.txt, VG_100K"
)
IMAGES_LOOKED_FOR = 20
# What a folder of annotations may hold beside objects.
NOT_OBJECTS = ("captions", "panoptic", "stuff", "image_info", "origin")


def read_dataset(
    name: str,
    catalog: Any,
    is_train: bool = True,
    *,
    root: str | None = None,
    keypoints: bool = False,
    keep_empty: bool = False,
    masks: bool = False,
    options: Mapping[str, Any] | None = None,
) -> Dataset:
    """The data set that a name or a path means.

    Args:
        name: a name of the catalog; a folder in one of the known layouts; a COCO JSON file; or the data file of a YOLO set.
        catalog: class with `get(name)`.
        is_train: which split of a folder is meant; in training, images without objects and difficult objects are left out.
        root: folder that relative paths of the catalog start from.
        keypoints: prefer annotations that have keypoints.
        keep_empty: train on images without objects as well.
        masks: prefer annotations that have masks, where a data set has both.
        options: `pixel`, `on_fault`, `on_exif`, `classes` of StoredDataset.
    Returns:
        The data set; its `described` says what was recognised.
    Raises:
        ValueError: when the name is neither in the catalog nor a folder of a known kind.
    """
    source = find_source(name, catalog, is_train, root, keypoints, masks)
    wanted = {
        "masks": masks,
        "keypoints": keypoints,
        "require_masks": masks and is_train,
        "remove_images_without_annotations": is_train and not keep_empty,
        "use_difficult": not is_train,
        "transforms": None,
        **(options or {}),
    }
    dataset = source.factory(**{**_accepted(source.factory, wanted), **source.arguments})
    if not hasattr(dataset, "described"):
        dataset.described = source.described
    return dataset


def _accepted(factory: Callable, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments a factory takes: those it names, and those of StoredDataset when it is one and passes more on."""
    parameters = dict(inspect.signature(factory).parameters)
    passes_on = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    if passes_on and isinstance(factory, type) and issubclass(factory, StoredDataset):
        parameters |= inspect.signature(StoredDataset).parameters
    return {k: v for k, v in arguments.items() if k in parameters}


def find_source(name: str, catalog: Any, is_train: bool, root: str | None = None, keypoints: bool = False, masks: bool = False) -> Source:
    """What a name or a path means, without reading annotations."""
    known = getattr(catalog, "DATASETS", {})
    path = Path(name).expanduser()
    if name not in known and path.is_dir():
        return recognise_folder(path, is_train, keypoints, masks)
    if name not in known and path.is_file():
        if path.suffix == ".json":
            return _coco_source(path, f"{name}: a COCO annotation file")
        arguments, words = find_yolo(path, is_train, masks)
        return Source(YOLODataset, arguments, f"{name}: {words}")
    if name not in known and ("/" in name or path.is_absolute()):
        raise FileNotFoundError(f"no folder or file {name}, and no data set of the catalog has that name")
    entry = catalog.get(name, root) if "root" in inspect.signature(catalog.get).parameters else catalog.get(name)
    factory = entry["factory"]
    if not callable(factory):
        if factory not in FACTORIES:
            raise ValueError(f"data set {name!r}: the catalog asks for {factory!r}; readers are {', '.join(FACTORIES)}, or give a class")
        factory = FACTORIES[factory]
    return Source(factory, dict(entry["args"]), f"{name}: from the catalog")


def recognise_folder(folder: Path, is_train: bool, keypoints: bool = False, masks: bool = False) -> Source:
    """What kind of data set a folder holds; COCO and VOC are also looked for up to two levels below.

    Raises:
        NoSplitError: when it holds none of the known ones, or one that lacks the wanted split.
    """
    files = _coco_files(folder, is_train, keypoints)
    if files:
        kind = "toy data set" if (folder / MARKER).is_file() else "COCO layout"
        return _coco_source(files[0], f"{folder}: {kind}, {files[0].relative_to(folder)}")
    for factory, find in LAYOUTS:
        found = find(folder, is_train, masks)
        if found:
            return Source(factory, found[0], f"{folder}: {found[1]}")
    purpose = "training" if is_train else "testing"
    raise NoSplitError(f"{folder}: {NOTHING} for {purpose}. {EXPECTED}; SPLIT being {' or '.join(splits(is_train))}.")


def _coco_files(folder: Path, is_train: bool, keypoints: bool) -> list[Path]:
    """Annotation files of the wanted split, best first."""
    found = [*folder.glob("annotations/*.json"), *folder.glob("*.json"), *folder.glob("*/_annotations.coco.json")]
    ranked = []
    for path in found:
        split = _split_of(path, is_train)
        if split is None or any(word in path.stem for word in NOT_OBJECTS) or is_labelme(path):
            continue
        ranked.append((("keypoints" in path.stem) != keypoints, split, "instances" not in path.stem, len(path.name), str(path), path))
    return [entry[-1] for entry in sorted(ranked)]


def _split_of(path: Path, is_train: bool) -> int | None:
    """How well a file's name says the wanted split (0 best), or None when it says another."""
    name = path.parent.name if path.name == "_annotations.coco.json" else path.stem
    words = name.replace("-", "_").split("_")
    for rank, split in enumerate(splits(is_train)):
        if any(word.startswith(split) for word in words):
            return rank
    return None


def _coco_source(ann_file: Path, described: str) -> Source:
    root = find_image_folder(ann_file)
    return Source(COCODataset, {"ann_file": str(ann_file), "root": str(root)}, f"{described}, images in {root}")


def find_image_folder(ann_file: Path) -> Path:
    """The folder that holds the images of a COCO file: named like its split, or `images`, beside it or beside its folder.

    Where none holds any of the images, the first one that exists; the check of the image files then says what is missing.
    """
    split = ann_file.stem.rsplit("_", 1)[-1]
    word = next((w for w in (*TRAIN_SPLITS, *TEST_SPLITS) if split.startswith(w)), split)
    bases = [ann_file.parent.parent, ann_file.parent]
    bases += [base / "images" for base in bases]
    folders = [folder for base in bases for folder in (base / split, *sorted(base.glob(f"{word}*")), base) if folder.is_dir()]
    names = _some_images(ann_file)
    return max(dict.fromkeys(folders), key=lambda folder: sum((folder / name).is_file() for name in names))


def _some_images(ann_file: Path) -> list[str]:
    """The first file names in a COCO file, without parsing all of it."""
    if ann_file.stat().st_size == 0:
        return []
    with open(ann_file, "rb") as file:
        content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        found = re.finditer(rb'"file_name"\s*:\s*("(?:[^"\\]|\\.)*")', content)
        return [json.loads(match[1]) for match in islice(found, IMAGES_LOOKED_FOR)]
