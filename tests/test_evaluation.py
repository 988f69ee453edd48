"""COCO evaluation: the numbers are pycocotools' own with either evaluator, also where there is little or nothing to count."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
from coco_worlds import (
    BACKENDS,
    EXACT,
    NAMES,
    JsonDataset,
    assert_equal_numbers,
    filled,
    official,
    official_numbers,
    read,
    small_world,
    truth_as_results,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from maskrcnn_bench.evaluation import evaluate, evaluators, self_test
from maskrcnn_bench.evaluation.coco import evaluate_coco, ground_truth
from maskrcnn_bench.evaluation.evaluators import FlatDetections, Request, accumulate, choose_evaluator, summarize

# published data


@pytest.fixture(scope="module")
def reference(shared_dir):
    folder = shared_dir / "data" / "coco_eval_reference"
    if not folder.is_dir():
        pytest.skip(f"no {folder}")
    return folder


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
def test_numbers_of_coco_val2014_example(reference, backend, iou_type):
    folder = reference / "coco_val2014_100"
    expected = read(folder / "expected.json")[iou_type]
    content, results = read(folder / "instances_val2014_100.json"), read(folder / expected["results"])
    truth = ground_truth(JsonDataset(content))
    numbers, per_class, _ = evaluate_coco(truth, FlatDetections.from_results(results), iou_type, backend)
    assert list(numbers) == list(NAMES)
    assert_equal_numbers(numbers, expected["computed_here"])
    assert numbers == pytest.approx(expected["published_cocoapi_3dp"], abs=5.1e-4)
    names = {category["name"]: category["id"] for category in content["categories"]}
    for name in ("person", "dog", "hair drier"):
        alone = official_numbers(content, results, iou_type, categories=[names[name]])
        assert_equal_numbers(per_class[name], {key: alone[key] for key in ("AP", "AP50", "AP75", "AR100")})


@pytest.mark.parametrize("backend", BACKENDS)
def test_numbers_of_sampled_boxes(reference, backend):
    folder = reference / "sampled_bbox"
    results = read(folder / "dt.json")
    numbers, *_ = evaluate_coco(ground_truth(JsonDataset(read(folder / "gt.json"))), FlatDetections.from_results(results), "bbox", backend)
    assert_equal_numbers(numbers, read(folder / "expected.json")["computed_here"])


@pytest.mark.parametrize("backend", BACKENDS)
def test_numbers_of_people_with_fourteen_points(reference, backend):
    folder = reference / "crowdpose_small"
    content, expected = read(folder / "gt.json"), read(folder / "expected.json")
    content["categories"][0]["sigmas"] = [sigma / 10 for sigma in expected["kpt_oks_sigmas_times_10"]]
    for a in content["annotations"]:
        # The published numbers were made without areas; this is what then stands for them.
        a["area"] = a["bbox"][2] * a["bbox"][3] * 0.53
    found = FlatDetections.from_results(read(folder / "dt.json"))
    numbers, *_ = evaluate_coco(ground_truth(JsonDataset(content)), found, "keypoints", backend)
    published = expected["published_faster_coco_eval"]
    assert_equal_numbers(numbers, {name: published[name] for name in ("AP", "AP50", "AP75", "AR", "AR50", "AR75")})


# random cases


@st.composite
def cases(draw):
    """A small world on a coarse grid of boxes and scores, so that ties of both are common."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    crowded = draw(st.booleans())
    images = [{"id": int(k), "width": 200, "height": 150, "file_name": f"{k}"} for k in rng.permutation(9)[:3]]
    categories = [{"id": k, "name": f"class {k}"} for k in (2, 3, 11)]

    def row(fine):
        x, y = rng.integers(0, 15, 2) * 10 / fine
        w, h = rng.choice([8, 30, 31.5, 33, 60, 110]), rng.choice([8, 30, 32, 60, 100])
        owner = images[rng.integers(0, 3)]["id"]
        return {"image_id": owner, "category_id": int(rng.choice([2, 11])), "bbox": [float(v) for v in (x, y, w, h)]}

    annotations = []
    for number in range(draw(st.integers(1, 25))):
        a = row(1)
        x, y, w, h = a["bbox"]
        area = w * h * float(rng.choice([0.5, 1.0]))
        crowd = int(rng.random() < 0.25)
        outline = [[x, y, x + w, y, x + w, y + h * 0.8, x + w / 2, y + h]]
        annotations.append({**a, "id": number + 1, "area": area, "iscrowd": crowd, "segmentation": outline})
    results = []
    for number in range(draw(st.sampled_from([1, 10, 40])) + 150 * crowded):
        base = row(2)
        if rng.random() < 0.6:
            near = annotations[rng.integers(0, len(annotations))]
            base = {**base, "image_id": near["image_id"], "bbox": [v + float(rng.integers(-1, 2)) for v in near["bbox"]]}
            base["category_id"] = near["category_id"] if rng.random() < 0.9 else base["category_id"]
        if crowded and number < 130:
            base |= {"image_id": images[0]["id"], "category_id": 2}
        results.append({**base, "score": float(rng.integers(1, 8) / 8)})
    return {"images": images, "categories": categories, "annotations": annotations}, results


@settings(max_examples=60, deadline=None)
@given(case=cases(), limits=st.sampled_from([(1, 10, 100), (2, 5, 20)]))
def test_boxes_equal_pycocotools(case, limits):
    content, results = case
    run = official(content, results, "bbox", limits)
    truth = ground_truth(JsonDataset(content))
    for backend in BACKENDS:
        curves = accumulate(truth, FlatDetections.from_results(results), Request("bbox", limits), backend)
        for name in ("precision", "recall", "scores"):
            np.testing.assert_allclose(getattr(curves, name), run.eval[name], rtol=0, atol=EXACT, err_msg=backend)
    if limits == (1, 10, 100):
        assert_equal_numbers(summarize(curves, "bbox"), official_numbers(content, results, "bbox"))


@settings(max_examples=15, deadline=None)
@given(case=cases())
def test_masks_equal_pycocotools(case):
    content, results = case
    results = [{**{k: v for k, v in row.items() if k != "bbox"}, "segmentation": filled(row["bbox"])} for row in results]
    expected = official_numbers(content, results, "segm")
    for backend in BACKENDS:
        numbers, *_ = evaluate_coco(ground_truth(JsonDataset(content)), FlatDetections.from_results(results), "segm", backend)
        assert_equal_numbers(numbers, expected)


@settings(max_examples=15, deadline=None)
@given(case=cases(), seed=st.integers(0, 2**31))
def test_keypoints_of_one_class_equal_pycocotools(case, seed):
    content, results = case
    rng = np.random.default_rng(seed)

    def points(bbox, spread):
        place = np.array(bbox[:2]) + rng.random((17, 2)) * bbox[2:] + rng.normal(0, spread, (17, 2))
        return np.column_stack((place, rng.integers(0, 3, 17))).ravel().tolist()

    people = [{**a, "keypoints": points(a["bbox"], 0)} for a in content["annotations"] if a["category_id"] == 2]
    if not people:
        return
    people = [{**a, "num_keypoints": sum(v > 0 for v in a["keypoints"][2::3])} for a in people]
    found = [{**{k: v for k, v in row.items() if k != "bbox"}, "keypoints": points(row["bbox"], 3)} for row in results]
    found += [{**found[0], "image_id": a["image_id"], "category_id": 2, "keypoints": a["keypoints"], "score": 0.5} for a in people]
    both = {**content, "annotations": [a for a in content["annotations"] if a["category_id"] != 2] + people}
    alone = {**content, "annotations": people, "categories": [{"id": 2, "name": "person"}]}
    truth = COCO()
    truth.dataset = json.loads(json.dumps(alone))
    truth.createIndex()
    run = COCOeval(truth, truth.loadRes([dict(row) for row in found if row["category_id"] == 2]), "keypoints")
    run.evaluate()
    run.accumulate()
    run.summarize()
    expected = dict(zip(("AP", "AP50", "AP75", "APm", "APl", "AR", "AR50", "AR75", "ARm", "ARl"), run.stats.tolist()))
    for backend in BACKENDS:
        numbers, *_ = evaluate_coco(ground_truth(JsonDataset(both)), FlatDetections.from_results(found), "keypoints", backend)
        assert_equal_numbers(numbers, expected)


# corner cases


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("empty", ["none", "boxlists"])
def test_no_detections_give_zero_and_minus_one_without_ground_truth(backend, empty, tmp_path):
    content = small_world()
    content["annotations"] = [a for a in content["annotations"] if a["category_id"] == 1]
    content["annotations"] = [{**a, "keypoints": [5, 5, 2] * 17} for a in content["annotations"]]
    dataset = JsonDataset(content)
    predictions = dataset.predictions([]) if empty == "boxlists" else [None] * 3
    results = evaluate(dataset, predictions, tmp_path, ("bbox", "segm", "keypoints"), backend)
    for task in ("bbox", "segm"):
        without = {"APl", "ARl"}
        assert results[task] == {name: -1.0 if name in without else 0.0 for name in NAMES}
    assert results["keypoints"]["AP"] == results["keypoints"]["AR"] == 0.0
    assert results["per_class"]["bbox"]["1"]["AP"] == 0.0
    assert results["per_class"]["bbox"]["4"]["AP"] == results["per_class"]["bbox"]["4"]["F1"] == -1.0
    assert read(tmp_path / "bbox.json") == read(tmp_path / "segm.json") == []
    assert "no detection at all" in results["diagnosis"][0]


def test_a_data_set_without_images(tmp_path):
    content = {**small_world(), "images": [], "annotations": []}
    results = evaluate(JsonDataset(content), [], tmp_path, ("bbox", "segm"), "auto", pictures=True)
    assert results["bbox"] == results["segm"] == dict.fromkeys(NAMES, -1.0)
    assert (results["images"], results["detections"]) == (0, 0)
    assert "no ground truth" in results["diagnosis"][0]


def test_a_missing_image_counts_as_an_image_without_detections():
    content = small_world()
    dataset = JsonDataset(content)
    found = truth_as_results(content)
    predictions = dataset.predictions(found)
    predictions[1] = None
    results = evaluate(dataset, predictions, iou_types=("bbox",))
    expected = official_numbers(content, [row for row in found if row["image_id"] != 7], "bbox")
    assert_equal_numbers(results["bbox"], expected)
    assert results["detections"] == 3


def test_ground_truth_as_predictions_is_perfect():
    content = small_world()
    dataset = JsonDataset(content)
    flat = FlatDetections.from_results(truth_as_results(content))
    for task in ("bbox", "segm"):
        numbers, per_class, _ = evaluate_coco(ground_truth(dataset), flat, task, "hotcoco")
        assert numbers["AP"] == pytest.approx(1.0) and numbers["AR100"] == 1.0
        row = per_class["1"]
        assert (row["gt"], row["detections"], row["threshold"]) == (4, 4, 0.9)
        assert row["F1"] == pytest.approx(1.0)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shift", [2**53, 2**62, -1000])
def test_ids_may_be_any_whole_numbers(backend, shift):
    content = small_world()
    content["images"] = [image | {"id": image["id"] + shift} for image in content["images"]]
    content["categories"] = [category | {"id": category["id"] + shift} for category in content["categories"]]
    keys = ("image_id", "category_id")
    content["annotations"] = [a | {key: a[key] + shift for key in keys} for a in content["annotations"]]
    flat = FlatDetections.from_results(truth_as_results(content))
    numbers, per_class, _ = evaluate_coco(ground_truth(JsonDataset(content)), flat, "bbox", backend)
    assert numbers["AP"] == pytest.approx(1.0) and len(per_class) == len(content["categories"])


@pytest.mark.parametrize("backend", BACKENDS)
def test_more_detections_an_image_than_coco_counts(backend):
    boxes = [[float(x * 12), float(y * 12), 10.0, 10.0] for x in range(20) for y in range(15)]
    rows = [{"image_id": 1, "category_id": 1, "bbox": box} for box in boxes]
    annotations = [{**row, "id": k + 1, "iscrowd": 0} for k, row in enumerate(rows)]
    images = [{"id": 1, "width": 240, "height": 180, "file_name": "1"}]
    dataset = JsonDataset({"images": images, "categories": [{"id": 1, "name": "cell"}], "annotations": annotations})
    predictions = dataset.predictions([{**row, "score": 1 - k / 1000} for k, row in enumerate(rows)])
    results = evaluate(dataset, predictions, iou_types=("bbox",), evaluator=backend, max_detections=300)
    assert results["bbox"]["AP"] == pytest.approx(1.0)
    assert results["bbox"]["AR300"] == 1.0 and results["bbox"]["AR100"] == pytest.approx(1 / 3)
    # At recalls 0, 0.01 ... 0.33 the precision is 1.
    assert results["bbox"]["AP@100"] == pytest.approx(34 / 101)
    standard = evaluate(dataset, predictions, iou_types=("bbox",), evaluator=backend)
    assert standard["bbox"]["AP"] == results["bbox"]["AP@100"]
    assert "AP@100" not in standard["bbox"]


def test_annotation_ids_from_zero_do_not_lose_a_match():
    content = small_world()
    for a in content["annotations"]:
        a["id"] -= 1
    numbers, *_ = evaluate_coco(
        ground_truth(JsonDataset(content)), FlatDetections.from_results(truth_as_results(content)), "bbox", "pycocotools"
    )
    assert numbers["AP"] == pytest.approx(1.0)


def test_incomplete_annotations_are_completed():
    content = small_world()
    for a in content["annotations"]:
        del a["area"], a["iscrowd"]
    content["annotations"][0]["segmentation"] = [[1, 2, 3, 4]]
    del content["annotations"][1]["segmentation"]
    truth = ground_truth(JsonDataset(content))
    first, second = truth["annotations"][:2]
    assert first["area"] == 400 and first["iscrowd"] == 0
    assert first["segmentation"] == [[10, 10, 10, 30, 30, 30, 30, 10]]
    assert second["segmentation"] == [[30, 20, 30, 60, 80, 60, 80, 20]]
    content["annotations"][0]["segmentation"] = {"size": [200, 240], "counts": [1, 2]}
    with pytest.raises(ValueError, match="annotation 1 of image 3: .* runs of another length"):
        ground_truth(JsonDataset(content))


def test_a_subset_of_images_and_classes():
    content = small_world()
    dataset = JsonDataset(content)
    dataset.images = dataset.images[:1]
    dataset.id_to_img_map = {0: 3}
    dataset.categories, dataset.contiguous_category_id_to_json_id = {1: "4"}, {1: 4}
    truth = ground_truth(dataset)
    assert [(a["image_id"], a["category_id"]) for a in truth["annotations"]] == [(3, 4)]
    assert [c["id"] for c in truth["categories"]] == [4] and [image["id"] for image in truth["images"]] == [3]


# choice of the evaluator


def test_the_self_test_chooses(monkeypatch, caplog):
    evaluators.hotcoco_fault.cache_clear()
    assert choose_evaluator("auto")[0] == "hotcoco"
    assert choose_evaluator("pycocotools")[0] == "pycocotools"
    monkeypatch.setitem(self_test.EXPECTED, "segm", (0.5,) * 12)
    evaluators.hotcoco_fault.cache_clear()
    assert choose_evaluator("auto")[0] == "pycocotools"
    assert "gives other segm numbers" in caplog.text
    monkeypatch.setitem(sys.modules, "hotcoco", None)
    evaluators.hotcoco_fault.cache_clear()
    assert choose_evaluator("auto")[0] == "pycocotools"
    evaluators.hotcoco_fault.cache_clear()
    with pytest.raises(ValueError, match="auto, hotcoco or pycocotools expected, got 'fast'"):
        choose_evaluator("fast")


def test_the_stored_numbers_are_pycocotools_numbers():
    for iou_type, expected in self_test.EXPECTED.items():
        curves = accumulate(self_test.ground_truth(), self_test.detections(), Request(iou_type), "pycocotools")
        assert list(summarize(curves, iou_type).values()) == pytest.approx(list(expected), abs=EXACT)


@pytest.mark.parametrize("backend", BACKENDS)
def test_evaluation_is_quiet_and_leaves_its_input_alone(backend, capfd, recwarn):
    truth, flat = self_test.ground_truth(), self_test.detections()
    before = json.dumps(truth)
    accumulate(truth, flat, Request("segm", (3, 7, 200)), backend)
    assert json.dumps(truth) == before
    out, err = capfd.readouterr()
    assert out == err == ""
    assert not len(recwarn)
