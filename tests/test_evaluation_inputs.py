"""Evaluation of every kind of data set and prediction: what goes in, which files and tables come out, and proposals."""

from __future__ import annotations

import csv
import json
import logging

import numpy as np
import pytest
import torch
from coco_worlds import (
    BACKENDS,
    EXACT,
    BoxListDataset,
    JsonDataset,
    box_targets,
    filled,
    official_numbers,
    read,
    small_world,
    truth_as_results,
)

from maskrcnn_bench.data.datasets.coco import COCODataset
from maskrcnn_bench.evaluation import check_expected_results, evaluate, format_results
from maskrcnn_bench.evaluation.coco import coco_results, evaluate_coco, flatten, ground_truth
from maskrcnn_bench.evaluation.evaluators import FlatDetections
from maskrcnn_bench.evaluation.proposals import evaluate_proposals
from maskrcnn_bench.structures.bounding_box import BoxList

# data sets and predictions of every kind


@pytest.mark.parametrize("pixel", [0, 1])
def test_a_data_set_of_boxlists(pixel, tmp_path):
    targets = box_targets(pixel)
    dataset = BoxListDataset(targets)
    predictions = [BoxList(target.bbox.clone(), target.size, pixel=pixel) for target in targets]
    for boxlist, target in zip(predictions, targets):
        boxlist.add_field("labels", target.get_field("labels"))
        boxlist.add_field("scores", torch.full((len(boxlist),), 0.75))
        boxlist.add_field("mask", torch.ones(len(boxlist), 1, 28, 28))
    rule = {0: "pixel_centres", 1: "expand_truncate"}[pixel]
    results = evaluate(dataset, predictions, tmp_path, mask_rule=rule)
    assert results["bbox"]["AP"] == pytest.approx(1.0)
    assert results["segm"]["AP75"] == pytest.approx(1.0)
    assert read(tmp_path / "bbox.json")[1] == {"image_id": 1, "category_id": 2, "bbox": [50, 20, 40 + pixel, 40 + pixel], "score": 0.75}
    assert read(tmp_path / "segm.json")[0]["segmentation"]["size"] == [100, 120]
    truth = ground_truth(dataset)
    assert [a["area"] for a in truth["annotations"]] == [600, 1600]


def test_a_stored_data_set_without_its_faulty_objects(tmp_path):
    content = small_world()
    content["annotations"].append({"id": 99, "image_id": 9, "category_id": 1, "bbox": [5, 5, 0, 12], "area": 0, "iscrowd": 0})
    path = tmp_path / "instances.json"
    path.write_text(json.dumps(content))
    dataset = COCODataset(path, tmp_path)
    truth = ground_truth(dataset)
    assert len(truth["annotations"]) == len(content["annotations"]) - 1
    expected = ground_truth(JsonDataset(small_world()))
    drop = ("segmentation",)
    strip = [{k: v for k, v in a.items() if k not in drop} for a in truth["annotations"]]
    assert strip == [{k: v for k, v in a.items() if k not in drop} for a in expected["annotations"]]
    # The crowd is no training target but part of the ground truth of an evaluation.
    assert sum(a["iscrowd"] for a in truth["annotations"]) == 1
    results = evaluate(dataset, JsonDataset(content).predictions(truth_as_results(small_world())), iou_types=("bbox",))
    assert results["bbox"]["AP"] == pytest.approx(1.0)


def test_images_whose_ids_are_no_numbers():
    content, expected, dataset = small_world(), JsonDataset(small_world()), JsonDataset(small_world())
    stray = content["annotations"][0] | {"image_id": 1}
    content["annotations"] = [a | {"image_id": f"image {a['image_id']}"} for a in content["annotations"]] + [stray]
    dataset.content, dataset.id_to_img_map = content, {i: f"image {number}" for i, number in expected.id_to_img_map.items()}
    assert len(ground_truth(dataset)["annotations"]) == len(expected.content["annotations"]), "all but that of an image it does not have"
    predictions = expected.predictions(truth_as_results(expected.content))
    results = evaluate(dataset, predictions, iou_types=("bbox",))["bbox"]
    assert results["AP"] == pytest.approx(1.0) and results == evaluate(expected, predictions, iou_types=("bbox",))["bbox"]


def test_polygons_that_are_none_and_no_keypoints():
    content = small_world()
    good = content["annotations"][0]["segmentation"]
    expected = ground_truth(JsonDataset(small_world()))["annotations"][0]["segmentation"]
    content["annotations"][0] |= {"segmentation": [*good, [1, 2, 3, 4, 5, float("nan")], [1, 2, 3, 4, 5, 6, 7]], "keypoints": []}
    first = ground_truth(JsonDataset(content))["annotations"][0]
    assert first["segmentation"] == expected and "keypoints" not in first


def test_a_data_set_that_offers_no_ground_truth():
    class Bare:
        categories = {1: "a"}

        def __len__(self):
            return 0

    with pytest.raises(TypeError, match="Bare cannot be evaluated: expected a method coco_json"):
        ground_truth(Bare())


def test_predictions_of_another_size_are_rescaled():
    content = small_world()
    dataset = JsonDataset(content)
    predictions = [boxlist.convert("xyxy").resize((480, 400)) for boxlist in dataset.predictions(truth_as_results(content))]
    results = evaluate(dataset, predictions, iou_types=("bbox",))
    assert results["bbox"]["AP"] == pytest.approx(1.0)


def test_predictions_with_finished_run_lengths():
    content = small_world()
    dataset = JsonDataset(content)
    predictions = dataset.predictions(truth_as_results(content))
    for boxlist in predictions:
        boxlist.add_field("rle", [filled(box, 240, 200) for box in boxlist.bbox.tolist()])
    predictions[0].bbox[0, 0] = float("nan")
    flat = flatten(dataset, predictions)
    assert len(flat) == len(flat.segmentations) == 6
    assert flat.segmentations[0] == filled([30, 20, 50, 40], 240, 200)
    row = coco_results(flat, "segm")[0]
    assert set(row) == {"image_id", "category_id", "segmentation", "score"}


def test_predictions_that_do_not_fit():
    content = small_world()
    dataset = JsonDataset(content)
    predictions = dataset.predictions(truth_as_results(content))
    with pytest.raises(ValueError, match="3 predictions expected, .* got 2"):
        flatten(dataset, predictions[:2])
    with pytest.raises(ValueError, match="neither a field `mask` nor `rle`"):
        evaluate(dataset, predictions, iou_types=("segm",))
    predictions[0].get_field("labels")[0] = 7
    with pytest.raises(ValueError, match=r"image 3.jpg: labels \[1, 2\] expected, got \[7\]"):
        flatten(dataset, predictions)


def test_masks_are_not_evaluated_without_masks_in_the_ground_truth(caplog):
    content = small_world()
    for a in content["annotations"]:
        del a["segmentation"]
    dataset = JsonDataset(content)
    predictions = dataset.predictions(truth_as_results(small_world()))
    results = evaluate(dataset, predictions)
    assert "segm" not in results and results["bbox"]["AP"] == pytest.approx(1.0)
    assert "segm is not evaluated" in caplog.text


@pytest.mark.parametrize("backend", BACKENDS)
def test_keypoints_of_another_number(backend, caplog):
    content = small_world()
    points = np.arange(15).reshape(5, 3) * 3.0
    points[:, 2] = 2
    for a in content["annotations"]:
        if a["category_id"] == 1:
            x, y = a["bbox"][:2]
            a["keypoints"] = (points + [x, y, 0]).ravel().tolist()
    flat = FlatDetections.from_results([{**a, "score": 0.5} for a in content["annotations"] if "keypoints" in a and not a["iscrowd"]])
    numbers, per_class, _ = evaluate_coco(ground_truth(JsonDataset(content)), flat, "keypoints", backend)
    assert numbers["AP"] == pytest.approx(1.0) and list(per_class) == ["1"]
    assert "5 keypoints without `sigmas`" in caplog.text
    flat.keypoints[..., :2] += 4
    loose = {**content, "categories": [{"id": 1, "name": "1", "sigmas": [1.0] * 5}, {"id": 4, "name": "4"}]}
    tight = {**content, "categories": [{"id": 1, "name": "1", "sigmas": [0.01] * 5}, {"id": 4, "name": "4"}]}
    assert evaluate_coco(ground_truth(JsonDataset(loose)), flat, "keypoints", backend)[0]["AP"] == pytest.approx(1.0)
    assert evaluate_coco(ground_truth(JsonDataset(tight)), flat, "keypoints", backend)[0]["AP"] < 0.1


# files, tables, expected results


def test_files_and_tables(tmp_path, caplog):
    content = small_world()
    content["categories"][1]["name"] = "1"
    dataset = JsonDataset(content)
    with caplog.at_level(logging.INFO):
        results = evaluate(dataset, dataset.predictions(truth_as_results(content)), tmp_path / "new" / "folder", ("bbox",))
    folder = tmp_path / "new" / "folder"
    assert sorted(p.name for p in folder.iterdir()) == ["bbox.json", "confusion.csv", "per_class.csv", "results.json"]
    assert read(folder / "results.json") == results
    assert results["evaluator"]["name"] in BACKENDS and results["evaluator"]["version"]
    with open(folder / "per_class.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["class"] for row in rows] == ["1 (1)", "1 (4)"]
    assert float(rows[0]["AP"]) == results["per_class"]["bbox"]["1 (1)"]["AP"]
    assert official_numbers(content, read(folder / "bbox.json"), "bbox")["AP"] == pytest.approx(results["bbox"]["AP"], abs=EXACT)
    lines = format_results(results).splitlines()
    assert lines[0].split() == ["bbox", "AP", "AP50", "AP75", "APs", "APm", "APl"]
    assert lines[1].split() == ["1.0000"] * 6
    assert "bbox by class" in caplog.text


def test_expected_results():
    results = {"bbox": {"AP": 0.375, "AP50": 0.6}, "segm": {"AP": 0.3}}
    assert check_expected_results(results, [("bbox", "AP", 0.377, 0.001), ["segm", "AP", 0.3, 0.0]]) == []
    failures = check_expected_results(results, [("bbox", "AP", 0.377, 0.001), ("keypoints", "AP", 0.6, 0.01)], sigma_tol=1)
    assert failures[0] == "bbox/AP: 0.3760 to 0.3780 expected (mean 0.377, 1 x 0.001), got 0.3750"
    assert "there is no such number; there are bbox/AP, bbox/AP50, segm/AP" in failures[1]
    assert len(check_expected_results(results, [("bbox", "AP", 0.373, 0.001)], sigma_tol=1)) == 1


# proposals


def slow_recall(overlaps: torch.Tensor) -> torch.Tensor:
    """Objects take their proposals best pair first. [proposals, objects] -> [objects]"""
    covers, overlaps = [], overlaps.clone()
    for _ in range(overlaps.shape[1]):
        best = overlaps.max() if overlaps.numel() else torch.tensor(0.0)
        covers.append(max(float(best), 0.0))
        if overlaps.numel() and best >= 0:
            row, column = divmod(int(overlaps.argmax()), overlaps.shape[1])
            overlaps[row] = -1
            overlaps[:, column] = -1
    return torch.tensor(covers)


def test_proposals():
    from torchvision.ops import box_convert, box_iou

    content = small_world()
    dataset = JsonDataset(content)
    generator = torch.Generator().manual_seed(0)
    predictions, overlaps, areas = [], [], []
    for image in dataset.images:
        mine = [a for a in content["annotations"] if a["image_id"] == image["id"] and not a["iscrowd"]]
        boxes = torch.tensor([a["bbox"] for a in mine], dtype=torch.float32).reshape(-1, 4)
        noisy = (boxes.repeat(30, 1) + torch.randn(30 * len(boxes), 4, generator=generator) * 4).clamp(min=1)
        boxlist = BoxList(noisy, (240, 200), "xywh", 0)
        boxlist.add_field("objectness", torch.rand(len(noisy), generator=generator))
        predictions.append(boxlist if mine else None)
        order = boxlist.get_field("objectness").argsort(descending=True)[:5]
        overlaps.append(box_iou(box_convert(noisy, "xywh", "xyxy"), box_convert(boxes, "xywh", "xyxy"))[order])
        areas.append(torch.tensor([a["area"] for a in mine]))
    thresholds = torch.linspace(0.5, 0.95, 10, dtype=torch.float64)[:, None]
    numbers = evaluate_proposals(dataset, predictions, limits=(5, 1000))
    for suffix, low, high in (("", 0, 1e10), ("s", 0, 32**2), ("m", 32**2, 96**2), ("l", 96**2, 1e10)):
        covers = torch.cat([slow_recall(table[:, (area >= low) & (area <= high)]) for table, area in zip(overlaps, areas)])
        assert numbers[f"AR{suffix}@5"] == pytest.approx(float((covers >= thresholds).double().mean()))
    assert numbers["AR@1000"] > numbers["AR@5"] > 0
    twins = box_targets(0)[:1]
    twins[0].bbox = torch.tensor([[10.0, 10, 30, 40]] * 2)
    lone = BoxList([[10, 10, 30, 40]], (120, 100), pixel=0)
    lone.add_field("objectness", torch.ones(1))
    assert evaluate_proposals(BoxListDataset(twins), [lone])["AR@100"] == 0.5
    results = evaluate(dataset, [None] * 3, box_only=True)
    assert results["box_proposal"]["AR@100"] == results["box_proposal"]["ARl@1000"] == 0.0
