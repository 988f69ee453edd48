"""LabelMe's files: what they say, what is wrong in them, and the way there and back."""

import json

import numpy as np
import pytest
from demo_models import photo, save_model
from PIL import Image
from pycocotools import mask as coco_mask

from maskrcnn_bench.data import make_dataset
from maskrcnn_bench.data.check import main
from maskrcnn_bench.demo.export import labelme_annotations
from maskrcnn_bench.demo.predict import predict_main


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
    assert dataset.class_names == ("__background__", "cup", "dish") and "LabelMe's JSON files, which has no splits" in dataset.described
    target = dataset.get_groundtruth(0)
    assert target.bbox.tolist() == [[2, 3, 20, 30], [10, 10, 30, 20], [10, 10, 30, 30]] and target.get_field("labels").tolist() == [1, 2, 2]
    circle = target.get_field("masks").get_mask_tensor()[2].sum()
    assert abs(circle - np.pi * 100) < 12
    assert dataset.get_groundtruth(1).bbox.tolist() == [[1, 1, 25, 9], [40, 1, 44, 9]], "a group is one object"


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
    (tmp_path / "a.json").write_text(labelme_annotations(image, rows, str(tmp_path)))
    target = make_dataset(str(tmp_path), masks=True).get_groundtruth(0)
    back = target.get_field("masks").get_mask_tensor().numpy() > 0
    assert len(target) == 2
    for mask, drawn in zip(masks, back):
        assert (mask & drawn).sum() / (mask | drawn).sum() >= 0.95


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
