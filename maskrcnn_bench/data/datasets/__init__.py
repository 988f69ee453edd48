from maskrcnn_bench.data.datasets.coco import COCODataset
from maskrcnn_bench.data.datasets.concat import ConcatDataset
from maskrcnn_bench.data.datasets.voc import PascalVOCDataset

__all__ = ["COCODataset", "ConcatDataset", "PascalVOCDataset"]
