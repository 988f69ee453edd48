import importlib
from typing import Any

# Imported when they are asked for, since they need torch and what stands beside them may not.
_PLACES = {
    "COCODataset": "coco",
    "CityScapesDataset": "cityscapes",
    "ConcatDataset": "concat",
    "ImageNetDETDataset": "imagenet_det",
    "InstancePNGDataset": "instance_png",
    "LabelMeDataset": "labelme",
    "PascalVOCDataset": "voc",
    "VisualGenomeDataset": "visual_genome",
    "XMLFolderDataset": "xml_folder",
    "YOLODataset": "yolo",
}

__all__ = [
    "COCODataset",
    "CityScapesDataset",
    "ConcatDataset",
    "ImageNetDETDataset",
    "InstancePNGDataset",
    "LabelMeDataset",
    "PascalVOCDataset",
    "VisualGenomeDataset",
    "XMLFolderDataset",
    "YOLODataset",
]


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_PLACES[name]}"), name)
