import importlib
from typing import Any

# Imported when they are asked for, since they need torch and what stands beside them may not.
_PLACES = {
    "COCODataset": "coco",
    "CityScapesDataset": "cityscapes",
    "ConcatDataset": "concat",
    "ImageNetDETDataset": "imagenet_det",
    "InstancePNGDataset": "instance_png",
    "PascalVOCDataset": "voc",
    "VisualGenomeDataset": "visual_genome",
    "YOLODataset": "yolo",
}

__all__ = [
    "COCODataset",
    "CityScapesDataset",
    "ConcatDataset",
    "ImageNetDETDataset",
    "InstancePNGDataset",
    "PascalVOCDataset",
    "VisualGenomeDataset",
    "YOLODataset",
]


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_PLACES[name]}"), name)
