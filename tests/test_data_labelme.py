"""LabelMe's files: what they say, what is wrong in them, and the way there and back."""

import json

import numpy as np
import pytest
from demo_models import photo, save_model
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as coco_mask

from maskrcnn_bench.data import make_dataset
from maskrcnn_bench.data.check import main
from maskrcnn_bench.demo.export import coco_annotations, labelme_annotations, labelme_paths
from maskrcnn_bench.demo.images import Found
from maskrcnn_bench.demo.predict import predict_main
from maskrcnn_bench.structures.keypoint import keypoint_kind
from maskrcnn_bench.structures.mask_outline import signed_area


def write(folder, stem, *shapes, text=None):
    folder.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (50, 40)).save(folder / f"{stem}.png")
    content = {"version": "5.0.0", "flags": {}, "shapes": list(shapes), "imagePath": f"..\\{stem}.png", "imageData": None}
    (folder / f"{stem}.json").write_text(json.dumps(content) if text is None else text)


def shape(label, points, kind="polygon", group=None):
    return {"label": label, "points": points, "shape_type": kind, "group_id": group, "flags": {}}


def test_shapes_become_objects(tmp_path):
    triangle, square = [[2, 3], [20, 3], [2, 30]], [[30, 20], [10, 10]]
    write(tmp_path, "a", shape("cup", triangle), shape("dish", square, "rectangle"), shape("dish", [[20, 20], [20, 30]], "circle"))
    parts = [shape("cup", [[k, 1], [k + 4, 1], [k, 9]], group=7) for k in (1, 21)]
    write(tmp_path, "b", *parts, shape("cup", [[40, 1], [44, 1], [44, 9]], group=8))
    dataset = make_dataset(str(tmp_path), masks=True, pixel=0)
    assert dataset.class_names == ("__background__", "cup", "dish") and "LabelMe's JSON files, without splits" in dataset.described
    target = dataset.get_groundtruth(0)
    assert target.bbox.tolist() == [[2, 3, 20, 30], [10, 10, 30, 20], [10, 10, 30, 30]] and target.get_field("labels").tolist() == [1, 2, 2]
    circle = target.get_field("masks").get_mask_tensor()[2].sum()
    assert abs(circle - np.pi * 100) < 12
    assert dataset.get_groundtruth(1).bbox.tolist() == [[1, 1, 25, 9], [40, 1, 44, 9]], "a group is one object"


def test_pictures_of_predict_are_no_images(tmp_path):
    for stem in ("a", "b_2", "own_det"):
        write(tmp_path / "train", stem, shape("cup", [[2, 3], [20, 3], [2, 30]]))
    write(tmp_path / "train", "a_det", shape("cup", [[2, 3], [20, 3], [2, 30]]))
    for stem in ("a_2_det", "b_2_det", "own_det_det", "c_det"):
        Image.new("RGB", (50, 40)).save(tmp_path / "train" / f"{stem}.png")
    dataset = make_dataset(str(tmp_path), keep_empty=True)
    names = [dataset.get_img_info(i)["file_name"] for i in range(len(dataset))]
    assert names == ["a.png", "a_det.png", "b_2.png", "c_det.png", "own_det.png"], "annotated ones and those of no image stay"


def test_folders_of_splits(tmp_path):
    write(tmp_path / "train", "a", shape("cup", [[2, 3], [20, 3], [2, 30]]))
    write(tmp_path / "val", "b", shape("dish", [[2, 3], [20, 3], [2, 30]]))
    train, test = (make_dataset(str(tmp_path), is_train) for is_train in (True, False))
    assert train.class_names == test.class_names == ("__background__", "cup", "dish") and (len(train), len(test)) == (1, 1)
    assert "all images of the folder val are for testing" in test.described
    (tmp_path / "val/b.json").unlink()
    with pytest.raises(ValueError, match="expected a folder val or valid or test, found train"):
        make_dataset(str(tmp_path), is_train=False)


def test_faults_name_file_image_and_shape(tmp_path, capsys):
    write(tmp_path, "a", shape("cup", [[2, 3], [20, 3], [2, 30]]), shape("line", [[1, 2], [3, 4]], "line"), shape("bad", [[1], [2]]))
    write(tmp_path, "b", text='{"shapes": [')
    write(tmp_path, "c", text='{"shapes": 3, "imagePath": ""}')
    (tmp_path / "b.json").rename(tmp_path / "lost.json")
    write(tmp_path, "d", text='{"shapes": [')
    assert main(["check", str(tmp_path)]) == 1
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("[")]
    expected = [
        "a.png: shape 2 (line): a line of 2 points has no area",
        "a.png: shape 3 (bad): not enough values",
        "b.png: there is no such file",
    ]
    expected += ["c.png: `shapes` is no list", "d.png: not a file of LabelMe (JSONDecodeError", "lost.json: no image belongs"]
    assert len(lines) == len(expected) and all(part in line for part, line in zip(expected, lines)), lines
    with pytest.raises(ValueError, match="(?s)c.json.*d.json"):
        make_dataset(str(tmp_path))


def test_masks_come_back(tmp_path):
    """Detections written for LabelMe and read as a data set again: an object in two parts, and a plain one."""
    ys, xs = np.mgrid[:80, :120]
    masks = [((xs - 30) ** 2 + (ys - 40) ** 2 < 400) | ((xs - 90) ** 2 + (ys - 30) ** 2 < 150), (abs(xs - 60) < 12) & (abs(ys - 60) < 9)]
    rows = []
    for mask in masks:
        rle = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
        row = {"category_name": "cup", "bbox": coco_mask.toBbox(rle).tolist(), "score": 0.9}
        rows.append(row | {"segmentation": rle | {"counts": rle["counts"].decode()}})
    Image.new("RGB", (120, 80)).save(tmp_path / "a.png")
    image = {"path": str(tmp_path / "a.png"), "width": 120, "height": 80}
    (tmp_path / "a.json").write_text(labelme_annotations(image, rows, str(tmp_path), None))
    target = make_dataset(str(tmp_path), masks=True).get_groundtruth(0)
    back = target.get_field("masks").get_mask_tensor().numpy() > 0
    assert len(target) == 2
    for mask, drawn in zip(masks, back):
        assert (mask & drawn).sum() / (mask | drawn).sum() >= 0.95


def outlined(mask):
    """LabelMe's shapes of a mask. mask: [H, W] bool"""
    rle = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    row = {"category_name": "cup", "bbox": [0.0, 0.0, 1.0, 1.0], "score": 0.9, "segmentation": rle | {"counts": rle["counts"].decode()}}
    image = {"path": "a.png", "width": mask.shape[1], "height": mask.shape[0]}
    return json.loads(labelme_annotations(image, [row], "", None))["shapes"]


@given(st.integers(0, 2**32 - 1), st.sampled_from([0.4, 0.7, 0.9]))
def test_holes_stay_holes(seed, filled):
    """Polygons that are cut open from the outline to the holes have the area of the pixels, whatever is in or beside what."""
    mask = np.random.default_rng(seed).random((9, 11)) < filled
    shapes = outlined(mask)
    assert sum(signed_area(np.array(one["points"])) for one in shapes) == mask.sum()
    assert all(signed_area(np.array(one["points"])) > 0 for one in shapes)


def test_ring_comes_back(tmp_path):
    ys, xs = np.mgrid[:80, :80]
    far = np.hypot(xs - 40, ys - 40)
    ring = (far < 30) & (far > 15)
    write(tmp_path, "a", *outlined(ring))
    Image.new("RGB", (80, 80)).save(tmp_path / "a.png")
    back = make_dataset(str(tmp_path), masks=True).get_groundtruth(0).get_field("masks").get_mask_tensor().numpy() > 0
    assert (ring & back).sum() / (ring | back).sum() >= 0.95 and not back[30:50, 35:45].any()


@pytest.mark.parametrize("count", [2, 17])
def test_keypoints_of_results_become_those_of_annotations(count):
    """Results have scores where annotations have 0, 1 or 2."""
    points = [value for k in range(count) for value in (10.0 + k, 20.0, 0.07)]
    row = {"image_id": 1, "category_id": 1, "category_name": "cup", "bbox": [8.0, 9.0, 30.0, 20.0], "score": 0.9, "keypoints": points}
    image = {"id": 1, "path": "a.png", "width": 80, "height": 64}
    kind = keypoint_kind(count)
    written = json.loads(coco_annotations([image], [row], ("__background__", "cup"), "", kind))
    (annotation,), (category,) = written["annotations"], written["categories"]
    assert annotation["keypoints"][2::3] == [2] * count and annotation["keypoints"][0::3] == points[0::3]
    assert annotation["num_keypoints"] == count == len(category["keypoints"])
    assert category["keypoints"][0] == ("nose" if count == 17 else "point_0")
    assert ([1, 2] in category["skeleton"]) == (count == 17) and np.max(category["skeleton"], initial=1) <= count
    assert json.loads(coco_annotations([image], [], ("__background__", "cup"), "", kind))["categories"] == [category]
    box, *dots = json.loads(labelme_annotations(image, [row], "", kind))["shapes"]
    assert (box["shape_type"], {one["group_id"] for one in (box, *dots)}) == ("rectangle", {1})
    assert [(one["label"], one["points"]) for one in dots] == [(name, [[10.0 + k, 20.0]]) for k, name in enumerate(kind.names)]


def test_points_of_a_group_are_keypoints(tmp_path, capsys):
    triangle = [[2, 3], [20, 3], [2, 30]]
    dots = [shape(name, [[k, 6]], "point", 1) for k, name in ((5, "nose"), (9, "tail"))]
    write(tmp_path, "a", shape("dog", triangle, group=1), *dots, shape("dog", triangle, group=2), shape("nose", [[9, 9]], "point", 2))
    dataset = make_dataset(str(tmp_path), keypoints=True)
    assert dataset.class_names == ("__background__", "dog") and dataset.keypoint_kind.names == ("nose", "tail")
    points = dataset.get_groundtruth(0).get_field("keypoints").keypoints
    assert points.tolist() == [[[5, 6, 2], [9, 6, 2]], [[9, 9, 2], [0, 0, 0]]]
    assert not make_dataset(str(tmp_path)).get_groundtruth(0).has_field("keypoints")
    assert main(["check", str(tmp_path)]) == 0
    write(tmp_path, "b", shape("dog", triangle), shape("nose", [[9, 9]], "point"), shape("nose", [[9, 9]], "point", 4))
    assert main(["check", str(tmp_path)]) == 1 and capsys.readouterr().out.count("(nose): a point of no object; give it") == 2


def test_files_of_labelme_lie_beside_their_images(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    images = list(enumerate([Found("im/x.jpg", "x.jpg"), Found("im/sub/x.jpg", "sub/x.jpg")]))
    assert labelme_paths(images, "im") == {1: "im/x.json", 2: "im/sub/x.json"}
    assert labelme_paths(images, str(tmp_path))[2] == "im/sub/x.json", "the folder may be one above"
    assert labelme_paths(images, "out") == {1: "out/x.json", 2: "out/sub/x.json"}
    assert labelme_paths(images, "") == {}
    with pytest.raises(ValueError, match="im/x.jpg and im/X.png would both have im/X.json"):
        labelme_paths([*images, (2, Found("im/X.png", "X.png"))], "im")


def test_names_of_splits_do_not_make_files_coco(tmp_path, capsys):
    for stem in ("train", "instances_train_0", "val_2", "test_3"):
        write(tmp_path, stem, shape("cup", [[2, 3], [20, 3], [2, 30]]))
    assert len(make_dataset(str(tmp_path))) == len(make_dataset(str(tmp_path), is_train=False)) == 4
    assert main(["check", str(tmp_path)]) == 0, capsys.readouterr().out


def test_files_without_their_images(tmp_path):
    write(tmp_path, "a", shape("cup", [[2, 3], [20, 3], [2, 30]]))
    (tmp_path / "a.png").unlink()
    with pytest.raises(ValueError, match="LabelMe's files but no image; each JSON file must lie beside its image"):
        make_dataset(str(tmp_path))


def test_keypoints_come_back(tmp_path, monkeypatch):
    """What a model of three points finds is read again from either kind of file, point for point."""
    names = ("tip", "left foot", "right foot")
    lines = (names[1:], names[:2])
    opts = [f"MODEL.ROI_KEYPOINT_HEAD.{key}" for key in ("NAMES", "FLIP_PAIRS", "SKELETON")]
    weights = save_model(tmp_path / "model", "keypoint_fpn", opts=[v for pair in zip(opts, (names, lines[:1], lines)) for v in pair])
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos" / "sub").mkdir(parents=True)
    for name in ("a.png", "sub/a.png"):
        photo(80, 64, 1).save(f"photos/{name}")
    words = ["photos", "--weights", str(weights), "--score", "0", "--output", "out"]
    assert predict_main([*words, "--labelme", "photos", "--annotations", "out/instances_train.json"]) == 0
    assert sorted(path.name for path in (tmp_path / "photos").rglob("*.json")) == ["a.json", "a.json"]
    rows = [row for row in json.loads((tmp_path / "out/predictions.json").read_text()) if row["file_name"] == "a.png"]
    found = np.array([row["keypoints"] for row in rows]).reshape(len(rows), 3, 3)
    for source in ("photos", "out/instances_train.json"):
        dataset = make_dataset(source, keypoints=True, keep_empty=True)
        keypoints = dataset.get_groundtruth(0).get_field("keypoints")
        assert dataset.keypoint_kind.names == names and len(keypoints) == len(rows) > 0
        assert dataset.keypoint_kind.skeleton == (lines if source != "photos" else ())
        assert dataset.keypoint_kind.flip_inds() == [0, 2, 1]
        seen = keypoints.keypoints.numpy()
        assert (seen[..., :2] == found[..., :2].astype(np.float32))[seen[..., 2] == 2].all() and (seen[..., 2] == 2).any()


@pytest.mark.parametrize("family", ["mask_fpn", "faster_fpn"])
def test_predict_writes_files_that_are_a_data_set(tmp_path, monkeypatch, capsys, family):
    weights = save_model(tmp_path / "model", family)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    photo(80, 64, 1).save("photos/a.png")
    given = ["photos", "--weights", str(weights), "--score", "0", "--labelme", "photos"]
    assert predict_main(given) == 0 and "LabelMe's files in photos" in capsys.readouterr().out
    content = json.loads((tmp_path / "photos/a.json").read_text())
    assert (content["imagePath"], content["imageWidth"], content["imageHeight"]) == ("a.png", 80, 64)
    assert {one["shape_type"] for one in content["shapes"]} == {"polygon" if family == "mask_fpn" else "rectangle"}
    dataset = make_dataset("photos", keep_empty=True)
    assert set(dataset.class_names[1:]) == {one["label"] for one in content["shapes"]}
    assert predict_main(given) == 1 and "a.json is there already" in capsys.readouterr().err
