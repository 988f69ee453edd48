"""An evaluation that finds nothing names its cause."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from coco_worlds import (
    JsonDataset,
)

from maskrcnn_bench.evaluation import evaluate
from maskrcnn_bench.evaluation.coco import flatten, ground_truth
from maskrcnn_bench.evaluation.diagnose import diagnose
from maskrcnn_bench.structures.bounding_box import BoxList


def scene(seed: int = 0) -> tuple[JsonDataset, list[dict]]:
    """Twenty images with five objects of four classes, and detections a pixel beside each."""
    rng = np.random.default_rng(seed)
    images = [{"id": k, "width": 640, "height": 480, "file_name": f"{k}.jpg"} for k in range(20)]
    categories = [{"id": k, "name": name} for k, name in ((5, "cat"), (6, "dog"), (8, "cow"), (9, "pig"))]
    annotations = []
    for k in range(100):
        x, y, w, h = rng.uniform((150, 120, 30, 30), (450, 330, 120, 120)).round(1).tolist()
        row = {"id": k, "image_id": k // 5, "category_id": int(rng.choice([5, 6, 8, 9])), "bbox": [x, y, w, h], "iscrowd": 0}
        annotations.append(row)
    dataset = JsonDataset({"images": images, "categories": categories, "annotations": annotations})
    return dataset, [{**a, "bbox": [a["bbox"][0] + 1, *a["bbox"][1:]], "score": 0.9} for a in annotations]


def causes(dataset: JsonDataset, predictions: list[BoxList]) -> str:
    lines = diagnose(ground_truth(dataset), flatten(dataset, predictions))
    return "\n".join(line for line in lines if line.startswith("diagnosis:"))


def test_a_good_result_is_not_diagnosed():
    dataset, found = scene()
    results = evaluate(dataset, dataset.predictions(found), iou_types=("bbox",))
    assert results["bbox"]["AP"] > 0.7 and "diagnosis" not in results


def test_shuffled_classes_are_recognised():
    dataset, found = scene()
    turn = {5: 6, 6: 8, 8: 9, 9: 5}
    predictions = dataset.predictions([{**row, "category_id": turn[row["category_id"]]} for row in found])
    results = evaluate(dataset, predictions, iou_types=("bbox",))
    report = "\n".join(results["diagnosis"])
    assert "the boxes fit but the classes do not" in report and "cat is called dog" in report
    assert "classes: 4 among the objects, 4 among the detections, 4 in both" in report


def test_a_class_that_is_called_by_its_name_is_no_example():
    dataset, found = scene()
    report = causes(dataset, dataset.predictions([{**row, "category_id": 5} for row in found]))
    assert "dog is called cat" in report and "cat is called" not in report


@pytest.mark.parametrize("pixel", [0, 1])
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda b: b, "boxes given as x, y, width, height are read as two corners"),
        (lambda b: torch.stack([b[:, 1], b[:, 0], b[:, 1] + b[:, 3], b[:, 0] + b[:, 2]], dim=1), "x and y of the boxes are exchanged"),
        (lambda b: torch.cat((b[:, :2], b[:, :2] + b[:, 2:]), dim=1) * 1.66, "pixels of the resized"),
        (lambda b: torch.cat((b[:, :2], b[:, :2] + b[:, 2:]), dim=1) / torch.tensor([640.0, 480] * 2), "fractions of the image's size"),
    ],
)
def test_wrong_boxes_are_recognised(change, words, pixel):
    dataset, found = scene()
    predictions = dataset.predictions(found)
    wrong = []
    for boxlist in predictions:
        # Fractions with one pixel added to their width can't be told from small boxes.
        rule = 0 if "fractions" in words else pixel
        wrong.append(BoxList(change(boxlist.bbox), boxlist.size, "xyxy", rule))
        for field in boxlist.fields():
            wrong[-1].add_field(field, boxlist.get_field(field))
    report = causes(dataset, wrong)
    assert words in report and len(report.splitlines()) == 1


def test_corners_taken_for_sizes_are_recognised():
    dataset, found = scene()
    found = [{**row, "bbox": [x, y, x + w, y + h]} for row in found for x, y, w, h in [row["bbox"]]]
    assert "boxes given as two corners are read as x, y, width, height" in causes(dataset, dataset.predictions(found))


def test_noise_looks_like_an_untrained_model():
    dataset, _ = scene()
    rng = np.random.default_rng(1)
    noise = []
    for k in range(2000):
        x, y = rng.uniform(0, 400, 2).tolist()
        w, h = rng.uniform(5, 240, 2).tolist()
        category = int(rng.choice([5, 6, 8, 9]))
        noise.append({"image_id": k % 20, "category_id": category, "bbox": [x, y, w, h], "score": float(rng.uniform(0.05, 0.08))})
    report = causes(dataset, dataset.predictions(noise))
    assert "untrained model: were the weights loaded" in report and len(report.splitlines()) == 1


def test_no_ground_truth_and_no_detections_are_recognised():
    dataset, found = scene()
    assert "no detection at all" in causes(dataset, [None] * 20)
    dataset.content = {**dataset.content, "annotations": []}
    assert "no ground truth" in causes(dataset, dataset.predictions(found))
