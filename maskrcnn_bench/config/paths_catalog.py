"""Names of data sets and of published weights, and where they are.

PATHS_CATALOG may name another file with the classes `DatasetCatalog` and `ModelCatalog`; this one shows what they need.
"""

from __future__ import annotations

import difflib
import importlib.util
import os
import sys
from collections.abc import Iterable
from types import ModuleType
from typing import Any

from maskrcnn_bench.config import model_addresses

_COCO = "coco/annotations/"
_GENOME = {"img_dir": "vg", "ann_file": "vg/objects.json", "vocabulary": "vg/objects_vocab.txt"}
_IMAGENET = {"data_dir": "imagenet/ILSVRC", "map_file": "imagenet/map_det.txt"}
_CITYSCAPES = {"img_dir": "cityscapes/leftImg8bit", "ann_dir": "cityscapes/gtFine"}


def _coco_json(images: str, annotations: str) -> dict[str, str]:
    return {"img_dir": images, "ann_file": annotations}


def _voc(year: int, split: str) -> dict[str, str]:
    return {"data_dir": f"voc/VOC{year}", "split": split}


def _voc_as_coco(year: int, split: str) -> dict[str, str]:
    folder = f"voc/VOC{year}"
    return _coco_json(f"{folder}/JPEGImages", f"{folder}/Annotations/pascal_{split}{year}.json")


def _cityscapes_as_coco(split: str) -> dict[str, str]:
    return _coco_json("cityscapes/images", f"cityscapes/annotations/instancesonly_filtered_gtFine_{split}.json")


class DatasetCatalog:
    """Data sets by name. Paths are relative to a root folder; absolute ones stay as they are."""

    # The keys of an entry choose its reader: img_dir and ann_file a COCO JSON, data_dir the VOC layout,
    # img_dir and ann_dir the Cityscapes layout, vocabulary Visual Genome, map_file ImageNet DET. An entry with a class of
    # one's own as `factory`, and its arguments as `args`, is taken as it is.
    DATASETS: dict[str, dict[str, Any]] = {
        "coco_2017_train": _coco_json("coco/train2017", _COCO + "instances_train2017.json"),
        "coco_2017_val": _coco_json("coco/val2017", _COCO + "instances_val2017.json"),
        "coco_2014_train": _coco_json("coco/train2014", _COCO + "instances_train2014.json"),
        "coco_2014_val": _coco_json("coco/val2014", _COCO + "instances_val2014.json"),
        "coco_2014_minival": _coco_json("coco/val2014", _COCO + "instances_minival2014.json"),
        "coco_2014_valminusminival": _coco_json("coco/val2014", _COCO + "instances_valminusminival2014.json"),
        "keypoints_coco_2017_train": _coco_json("coco/train2017", _COCO + "person_keypoints_train2017.json"),
        "keypoints_coco_2017_val": _coco_json("coco/val2017", _COCO + "person_keypoints_val2017.json"),
        "keypoints_coco_2014_train": _coco_json("coco/train2014", _COCO + "person_keypoints_train2014.json"),
        "keypoints_coco_2014_val": _coco_json("coco/val2014", _COCO + "person_keypoints_val2014.json"),
        "keypoints_coco_2014_minival": _coco_json("coco/val2014", _COCO + "person_keypoints_minival2014.json"),
        "keypoints_coco_2014_valminusminival": _coco_json("coco/val2014", _COCO + "person_keypoints_valminusminival2014.json"),
        "voc_2007_train": _voc(2007, "train"),
        "voc_2007_val": _voc(2007, "val"),
        "voc_2007_test": _voc(2007, "test"),
        "voc_2012_train": _voc(2012, "train"),
        "voc_2012_val": _voc(2012, "val"),
        "voc_2012_test": _voc(2012, "test"),
        "voc_2007_train_cocostyle": _voc_as_coco(2007, "train"),
        "voc_2007_val_cocostyle": _voc_as_coco(2007, "val"),
        "voc_2007_test_cocostyle": _voc_as_coco(2007, "test"),
        "voc_2012_train_cocostyle": _voc_as_coco(2012, "train"),
        "voc_2012_val_cocostyle": _voc_as_coco(2012, "val"),
        "cityscapes_fine_instanceonly_seg_train_cocostyle": _cityscapes_as_coco("train"),
        "cityscapes_fine_instanceonly_seg_val_cocostyle": _cityscapes_as_coco("val"),
        "cityscapes_fine_instanceonly_seg_test_cocostyle": _cityscapes_as_coco("test"),
        "cityscapes_poly_instance_train": {**_CITYSCAPES, "split": "train", "mode": "poly"},
        "cityscapes_poly_instance_val": {**_CITYSCAPES, "split": "val", "mode": "poly"},
        "cityscapes_poly_instance_minival": {**_CITYSCAPES, "split": "val", "mode": "poly", "mini": 10},
        "cityscapes_mask_instance_train": {**_CITYSCAPES, "split": "train", "mode": "mask"},
        "cityscapes_mask_instance_val": {**_CITYSCAPES, "split": "val", "mode": "mask"},
        "cityscapes_mask_instance_minival": {**_CITYSCAPES, "split": "val", "mode": "mask", "mini": 10},
        "vg_train": {**_GENOME, "image_list": "vg/train.txt"},
        "vg_val": {**_GENOME, "image_list": "vg/val.txt"},
        "vg_test": {**_GENOME, "image_list": "vg/test.txt"},
        "imagenet_det_train": {**_IMAGENET, "split": "train"},
        "imagenet_det_val": {**_IMAGENET, "split": "val"},
    }

    READERS = {
        "map_file": "ImageNetDETDataset",
        "data_dir": "PascalVOCDataset",
        "ann_dir": "CityScapesDataset",
        "vocabulary": "VisualGenomeDataset",
    }

    @classmethod
    def get(cls, name: str, root: str | None = None) -> dict[str, Any]:
        """Looks a data set up.

        Args:
            name: a key of `DATASETS`.
            root: folder that relative paths start from; None takes the environment variable DATASETS, else "datasets".
        Returns:
            "factory", a data set class or the name of one, and "args", its arguments.
        """
        if name not in cls.DATASETS:
            raise ValueError(f"no data set {name!r} in the catalog. {_did_you_mean(name, cls.DATASETS)} A folder works as well as a name.")
        root = root or os.environ.get("DATASETS") or "datasets"
        entry = dict(cls.DATASETS[name])
        if "factory" in entry:
            return {"args": {}, **entry}
        for key in {"img_dir", "ann_file", "ann_dir", "data_dir", "vocabulary", "image_list", "map_file"} & entry.keys():
            entry[key] = os.path.join(root, entry[key])
        for key, factory in cls.READERS.items():
            if key in entry:
                return {"factory": factory, "args": entry}
        return {"factory": "COCODataset", "args": {"root": entry["img_dir"], "ann_file": entry["ann_file"]}}


class ModelCatalog:
    """Addresses of published weights by name; a key such as MODEL.WEIGHT writes the name behind "catalog://"."""

    S3_C2_DETECTRON_URL = "https://dl.fbaipublicfiles.com/detectron"
    C2_IMAGENET_MODELS = {
        "MSRA/R-50": "ImageNetPretrained/MSRA/R-50.pkl",
        "MSRA/R-50-GN": "ImageNetPretrained/47261647/R-50-GN.pkl",
        "MSRA/R-101": "ImageNetPretrained/MSRA/R-101.pkl",
        "MSRA/R-101-GN": "ImageNetPretrained/47592356/R-101-GN.pkl",
        "FAIR/20171220/X-101-32x8d": "ImageNetPretrained/20171220/X-101-32x8d.pkl",
    }
    # Detectron's baselines: <id>/<name> and the time and signature of their run, which are part of the address.
    C2_DETECTRON_MODELS = {
        "35857197/e2e_faster_rcnn_R-50-C4_1x": "01_33_49.iAX0mXvW",
        "35857345/e2e_faster_rcnn_R-50-FPN_1x": "01_36_30.cUF7QR7I",
        "35857890/e2e_faster_rcnn_R-101-FPN_1x": "01_38_50.sNxI7sX7",
        "36761737/e2e_faster_rcnn_X-101-32x8d-FPN_1x": "06_31_39.5MIHi1fZ",
        "35858791/e2e_mask_rcnn_R-50-C4_1x": "01_45_57.ZgkA7hPB",
        "35858933/e2e_mask_rcnn_R-50-FPN_1x": "01_48_14.DzEQe4wC",
        "35861795/e2e_mask_rcnn_R-101-FPN_1x": "02_31_37.KqyEK4tT",
        "36761843/e2e_mask_rcnn_X-101-32x8d-FPN_1x": "06_35_59.RZotkLKI",
        "37129812/e2e_mask_rcnn_X-152-32x8d-FPN-IN5k_1.44x": "09_35_36.8pzTQKYK",
        "37697547/e2e_keypoint_rcnn_R-50-FPN_1x": "08_42_54.kdzV35ao",
    }
    C2_DETECTRON_SUFFIX = "output/train/{0}coco_2014_train%3A{0}coco_2014_valminusminival/generalized_rcnn/model_final.pkl"
    _IMAGENET = "ImageNetPretrained/"
    _BASELINE = "Caffe2Detectron/COCO/"

    @classmethod
    def get(cls, name: str) -> str:
        """The address of `name`, with or without "catalog://"; `names` lists them."""
        name = name.removeprefix("catalog://")
        known = cls.names()
        if name not in known:
            raise ValueError(f"no weights catalog://{name} in the catalog. {_did_you_mean(name, known)}")
        return known[name]

    @classmethod
    def names(cls) -> dict[str, str]:
        """All names with their addresses, the project first: Detectron2/<its configuration>, MMDetection/<its configuration>, ..."""
        found = {cls._IMAGENET + name: f"{cls.S3_C2_DETECTRON_URL}/{path}" for name, path in cls.C2_IMAGENET_MODELS.items()}
        found |= {cls._BASELINE + name: cls._baseline_url(name) for name in cls.C2_DETECTRON_MODELS}
        found |= {
            f"MaskRCNNBenchmark/{name}": model_addresses.MASKRCNN_BENCHMARK.format(name)
            for name in model_addresses.MASKRCNN_BENCHMARK_MODELS
        }
        for name, run in model_addresses.DETECTRON2_MODELS.items():
            found[f"Detectron2/{name}"] = model_addresses.DETECTRON2.format(f"{name}/{run}.pkl")
        for name, path in model_addresses.MMDETECTION_MODELS.items():
            found[f"MMDetection/{name}"] = model_addresses.MMDETECTION.format(path.format(path.split("/")[1]))
        found |= {f"OpenXLab/{name}": model_addresses.OPENXLAB.format(name) for name in model_addresses.OPENXLAB_MODELS}
        found |= {f"OpenMMLab/{name}": model_addresses.OPEN_MMLAB.format(file) for name, file in model_addresses.OPEN_MMLAB_MODELS.items()}
        found |= {
            f"TorchVision/{name}": model_addresses.TORCHVISION.format(file) for name, file in model_addresses.TORCHVISION_MODELS.items()
        }
        return found | {f"FasterRCNNPytorch/{name}": address for name, address in model_addresses.FASTER_RCNN_PYTORCH_MODELS.items()}

    @classmethod
    def _baseline_url(cls, name: str) -> str:
        number, model = name.split("/")
        run = f"{model}.yaml.{cls.C2_DETECTRON_MODELS[name]}"
        suffix = cls.C2_DETECTRON_SUFFIX.format("keypoints_" if "keypoint" in model else "")
        return f"{cls.S3_C2_DETECTRON_URL}/{number}/12_2017_baselines/{run}/{suffix}"


# What other projects' configurations write before a name, and how it is called here.
_SCHEMES = {"open-mmlab": "OpenMMLab/{}", "torchvision": "TorchVision/{}/IMAGENET1K_V1"}


def foreign_address(name: str) -> str:
    """The address behind a name as other projects write it: detectron2://<path>, open-mmlab://<name>, torchvision://<classifier>.

    Returns:
        `name` itself where it is none of these.
    """
    scheme, separator, rest = name.partition("://")
    if separator and scheme == "detectron2":
        return model_addresses.DETECTRON2.format(rest)
    return ModelCatalog.get(_SCHEMES[scheme].format(rest)) if separator and scheme in _SCHEMES else name


def import_file(module_name: str, file_path: str | os.PathLike, make_importable: bool = False) -> ModuleType:
    """Runs a Python file, such as the one that PATHS_CATALOG names, as a module.

    Args:
        module_name: the name it gets.
        file_path: the file.
        make_importable: also let later `import module_name` find it.
    """
    if not os.path.isfile(file_path):
        raise FileNotFoundError(f"no Python file {os.fspath(file_path)}; a catalog is named by the key PATHS_CATALOG")
    if os.path.samefile(file_path, __file__):
        # Not a second copy: entries that a program added to DATASETS stay.
        return sys.modules[__name__]
    spec = importlib.util.spec_from_file_location(module_name, file_path)
    if spec is None or spec.loader is None:
        raise ValueError(f"{os.fspath(file_path)}: expected a Python file (.py)")
    module = importlib.util.module_from_spec(spec)
    if make_importable:
        sys.modules[module_name] = module
    spec.loader.exec_module(module)
    return module


def _did_you_mean(name: str, known: Iterable[str]) -> str:
    known = sorted(known)
    found = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    if found:
        return f"Did you mean {' or '.join(found)}?"
    groups = sorted({word.partition("/")[0] + "/..." if "/" in word else word for word in known})
    return f"It has: {', '.join(groups)}."
