"""Small data sets for the tests of the evaluation, and pycocotools used as its authors do."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from maskrcnn_bench.evaluation import evaluators, self_test
from maskrcnn_bench.structures.bounding_box import BoxList
from maskrcnn_bench.structures.segmentation_mask import SegmentationMask

BACKENDS = evaluators.EVALUATORS
NAMES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
EXACT = 1e-12


class JsonDataset:
    """A data set that has a COCO dict and no pictures."""

    def __init__(self, content: dict):
        self.content = content
        self.images = sorted(content["images"], key=lambda image: image["id"])
        ids = sorted(category["id"] for category in content["categories"])
        names = {category["id"]: category["name"] for category in content["categories"]}
        self.categories = {label: names[number] for label, number in enumerate(ids, start=1)}
        self.contiguous_category_id_to_json_id = dict(enumerate(ids, start=1))
        self.id_to_img_map = {i: image["id"] for i, image in enumerate(self.images)}

    def __len__(self):
        return len(self.images)

    def get_img_info(self, i):
        return self.images[i]

    def coco_json(self):
        return self.content

    def predictions(self, results: list[dict], pixel: int = 0) -> list[BoxList]:
        """COCO results as BoxLists."""
        labels = {number: label for label, number in self.contiguous_category_id_to_json_id.items()}
        boxlists = []
        for image in self.images:
            mine = [row for row in results if row["image_id"] == image["id"]]
            boxes = torch.tensor([row["bbox"] for row in mine], dtype=torch.float64).reshape(-1, 4)
            boxlist = BoxList(boxes, (image["width"], image["height"]), "xywh", pixel)
            boxlist.add_field("scores", torch.tensor([row["score"] for row in mine]))
            boxlist.add_field("labels", torch.tensor([labels[row["category_id"]] for row in mine], dtype=torch.int64))
            boxlists.append(boxlist)
        return boxlists


class BoxListDataset:
    """A user's data set that knows nothing but BoxLists."""

    categories = {1: "disc", 2: "bar"}

    def __init__(self, targets: list[BoxList]):
        self.targets = targets

    def __len__(self):
        return len(self.targets)

    def get_img_info(self, i):
        width, height = self.targets[i].size
        return {"width": width, "height": height, "file_name": f"{i}.png"}

    def get_groundtruth(self, i):
        return self.targets[i]


def official(content: dict, results: list[dict], iou_type: str, max_dets=(1, 10, 100), categories=None) -> COCOeval:
    """pycocotools used as its authors do; results must not be empty."""
    truth = COCO()
    truth.dataset = json.loads(json.dumps(content))
    truth.createIndex()
    run = COCOeval(truth, truth.loadRes(json.loads(json.dumps(results))), iou_type)
    run.params.maxDets = list(max_dets)
    if categories is not None:
        run.params.catIds = categories
    run.evaluate()
    run.accumulate()
    return run


def official_numbers(*args, **kwargs) -> dict[str, float]:
    run = official(*args, **kwargs)
    run.summarize()
    return dict(zip(NAMES, run.stats.tolist()))


def assert_equal_numbers(got: dict, expected: dict):
    assert {name: got[name] for name in expected} == pytest.approx(expected, abs=EXACT)


def read(path):
    return json.loads(path.read_text())


def filled(bbox, width=200, height=150) -> dict:
    """The whole pixels of a box as run lengths."""
    x, y = (max(int(v), 0) for v in bbox[:2])
    right, bottom = min(int(bbox[0] + bbox[2]), width), min(int(bbox[1] + bbox[3]), height)
    mask = np.zeros((height, width), dtype=np.uint8, order="F")
    mask[y:bottom, x:right] = 1
    rle = coco_mask.encode(mask)
    return {"size": rle["size"], "counts": rle["counts"].decode()}


def small_world() -> dict:
    content = self_test.ground_truth()
    for image in content["images"]:
        image["file_name"] = f"{image['id']}.jpg"
    return content


def truth_as_results(content: dict, score: float = 0.9) -> list[dict]:
    rows = [a for a in content["annotations"] if not a["iscrowd"]]
    keys = ("image_id", "category_id", "bbox")
    return [{**{k: a[k] for k in keys}, "segmentation": drawn(a["segmentation"]), "score": score} for a in rows]


def drawn(polygons, width=240, height=200) -> dict:
    """Polygons as run lengths."""
    rle = coco_mask.merge(coco_mask.frPyObjects(polygons, height, width))
    return {"size": rle["size"], "counts": rle["counts"].decode()}


def box_targets(pixel: int) -> list[BoxList]:
    first = BoxList([[10, 10, 30, 40], [50, 20, 90, 60]], (120, 100), pixel=pixel)
    first.add_field("labels", torch.tensor([1, 2]))
    first.add_field("masks", SegmentationMask([[[10, 10, 30, 10, 30, 40, 10, 40]], [[50, 20, 90, 20, 90, 60, 50, 60]]], (120, 100)))
    second = BoxList(torch.zeros(0, 4), (80, 90), pixel=pixel)
    second.add_field("labels", torch.zeros(0, dtype=torch.int64))
    second.add_field("masks", SegmentationMask([], (80, 90)))
    return [first, second]
