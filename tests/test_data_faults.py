"""Faulty data: each fault gives one clear message that names file, image and remedy, before training starts."""

import json
import logging
import math
import re

import numpy as np
import pytest
from PIL import Image

from maskrcnn_bench.config import load_config
from maskrcnn_bench.data import check_dataset, make_data_loader, make_dataset
from maskrcnn_bench.data.check import main
from maskrcnn_bench.data.datasets import COCODataset, toy
from maskrcnn_bench.data.store import AnnotationStore

GOOD = {"image_id": 1, "category_id": 1, "bbox": [5, 5, 20, 10], "segmentation": [[5, 5, 25, 5, 25, 15, 5, 15]]}
RING = [5, 5, 25, 5, 25, 15, 5, 15]
# What is wrong with an annotation of an image of 60 x 40 pixels, and what the finding must say.
OBJECT_FAULTS = {
    "nan": ({"bbox": [5, math.nan, 20, 10]}, "drop", "not a number"),
    "null": ({"bbox": [5, None, 20, 10]}, "drop", "not a number"),
    "infinite": ({"bbox": [5, 5, math.inf, 10]}, "drop", "not a number"),
    "negative": ({"bbox": [25, 15, -20, 10]}, "drop", "negative width or height"),
    "zero": ({"bbox": [5, 5, 0, 10]}, "drop", "box is empty"),
    "outside": ({"bbox": [70, 5, 20, 10]}, "drop", "outside the image of 60 x 40"),
    "left of it": ({"bbox": [-30, 5, 20, 10]}, "drop", "outside the image of 60 x 40"),
    "reaching out": ({"bbox": [50, 5, 20, 10]}, "clip", "reaches out of the image of 60 x 40"),
    "two points": ({"segmentation": [[5, 5, 25, 15]]}, "drop", "3 points or more"),
    "odd polygon": ({"segmentation": [[*RING, 7]]}, "drop", "3 points or more"),
    "nan polygon": ({"segmentation": [[5, 5, 25, math.nan, 25, 15]]}, "drop", "no usable polygon"),
    "rle of another size": ({"segmentation": {"size": [60, 40], "counts": [2400]}}, "drop", r"RLE has size \[60, 40\]"),
    "rle too short": ({"segmentation": {"size": [40, 60], "counts": [100, 5]}}, "drop", "fill 40 x 60"),
    "text rle too short": ({"segmentation": {"size": [40, 60], "counts": "a1"}}, "drop", "fill 40 x 60"),
    "unknown image": ({"image_id": 77}, "drop", "image id 77"),
    "repeated id": ({"id": 1}, "drop", "has this id already"),
    "unknown category": ({"category_id": 9}, "stop", r"category id 9 is not among `categories` \[1, 2\]"),
}


def write(folder, annotations=(GOOD,), change=None):
    """A data set of two grey images with the annotations and one more good one; `change` edits the JSON's content."""
    (folder / "annotations").mkdir(parents=True)
    (folder / "train").mkdir()
    images = [{"id": k, "file_name": f"{k}.jpg", "width": 60, "height": 40} for k in (1, 2)]
    for image in images:
        noise = np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / "train" / image["file_name"])
    objects = [{"id": k + 1, "iscrowd": 0, **a} for k, a in enumerate([GOOD | {"image_id": 2}, *annotations])]
    content = {"images": images, "annotations": objects, "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]}
    if change:
        change(content)
    path = folder / "annotations" / "instances_train.json"
    path.write_text(json.dumps(content))
    return path


def config(folder, *opts):
    base = ["DATASETS.DATA", str(folder), "SOLVER.IMS_PER_BATCH", "2", "SOLVER.MAX_ITER", "3", "DATALOADER.NUM_WORKERS", "0"]
    return load_config(None, [*base, "MODEL.DEVICE", "cpu", "INPUT.MIN_SIZE_TRAIN", "(40,)", *opts])


# ------------------------------------------------------------------------------------------------- faulty annotations


@pytest.mark.parametrize("name", OBJECT_FAULTS)
def test_each_fault_is_found_once_with_file_image_and_annotation(tmp_path, name, capsys):
    change, severity, reason = OBJECT_FAULTS[name]
    path = write(tmp_path / "set", [GOOD | change])
    assert main(["check", str(tmp_path / "set")]) == 1
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("[")]
    assert len(lines) == 1 and lines[0].startswith(f"[{severity}] {path}, ")
    assert f"annotation {change.get('id', 2)}" in lines[0]
    image = {"unknown image": "image id 77", "repeated id": "image id 1"}.get(name, "image 1.jpg (id 1)")
    assert image in lines[0] and re.search(reason, lines[0])


def test_a_file_with_many_faults_gives_exactly_their_lines(tmp_path, capsys):
    faults = {name: fault for name, fault in OBJECT_FAULTS.items() if name != "repeated id"}
    write(tmp_path / "set", [GOOD | change for change, _, _ in faults.values()])
    assert main(["check", str(tmp_path / "set")]) == 1
    out = capsys.readouterr().out
    assert sum(line.startswith("[") for line in out.splitlines()) == len(faults)
    assert "14 to drop, 1 to clip, 1 to stop" in out


@pytest.mark.parametrize("name", [name for name, fault in OBJECT_FAULTS.items() if fault[1] != "stop"])
def test_fix_drops_or_clips_and_says_so(tmp_path, name, caplog):
    change, severity, _ = OBJECT_FAULTS[name]
    write(tmp_path / "set", [GOOD | change, GOOD])
    with caplog.at_level(logging.WARNING, "maskrcnn_bench.data"):
        images, targets, indices = next(iter(make_data_loader(config(tmp_path / "set"))))
    assert f"1 to {severity}" in caplog.text and "instances_train.json" in caplog.text
    by_index = dict(zip(indices, targets))
    kept = 2 if severity == "clip" else 1
    assert len(by_index[0]) == kept and len(by_index[1]) == 1
    assert targets.boxes.isfinite().all() and targets.packed_masks.vertices.isfinite().all()
    assert (targets.boxes >= 0).all() and (by_index[0].bbox[:, 2] <= 59).all()


def test_fixed_data_leave_the_evaluation_too(tmp_path):
    write(tmp_path / "set", [GOOD | {"bbox": [5, math.nan, 20, 10]}])
    assert [a["id"] for a in make_dataset(str(tmp_path / "set")).coco_json()["annotations"]] == [1]


@pytest.mark.parametrize("name", ["zero", "two points", "reaching out"])
def test_error_stops_at_any_fault(tmp_path, name):
    write(tmp_path / "set", [GOOD | OBJECT_FAULTS[name][0]])
    with pytest.raises(ValueError, match=r"(?s)1\.jpg \(id 1\).*annotation 2.*ON_FAULT"):
        make_data_loader(config(tmp_path / "set", "DATASETS.ON_FAULT", "error"))


def test_ignore_passes_on(tmp_path, caplog):
    write(tmp_path / "set", [GOOD | {"bbox": [50, 5, 20, 10]}])
    with caplog.at_level(logging.WARNING, "maskrcnn_bench.data"):
        dataset = make_data_loader(config(tmp_path / "set", "DATASETS.ON_FAULT", "ignore")).dataset
    assert caplog.text == "" and not dataset.faulty.any()


@pytest.mark.parametrize("on_fault", ["fix", "ignore"])
def test_a_category_that_is_none_always_stops(tmp_path, on_fault):
    write(tmp_path / "set", [GOOD | {"category_id": 9}])
    with pytest.raises(ValueError, match=r"(?s)instances_train.json.*1\.jpg \(id 1\).*annotation 2.*category id 9.*Correct the file"):
        make_data_loader(config(tmp_path / "set", "DATASETS.ON_FAULT", on_fault))


def test_a_polygon_that_is_faulty_beside_a_good_one_is_left_out(tmp_path):
    write(tmp_path / "set", [GOOD | {"segmentation": [RING, [1, 2, 3, 4], [*RING, 3]]}])
    dataset = make_dataset(str(tmp_path / "set"))
    assert dataset.findings == [] and dataset.get_groundtruth(0).get_field("masks").get_mask_tensor().sum() == 200


def test_rounding_over_the_border_is_no_fault(tmp_path):
    write(tmp_path / "set", [GOOD | {"bbox": [-0.4, 0, 60.9, 40.5]}])
    dataset = make_dataset(str(tmp_path / "set"))
    assert dataset.findings == [] and dataset.get_groundtruth(0).bbox.tolist() == [[0, 0, 59, 39]]


def test_a_data_set_without_usable_objects_counts_why(tmp_path):
    crowd = GOOD | {"iscrowd": 1}
    path = write(tmp_path / "set", [crowd, GOOD | {"bbox": [1, 1, 0, 5]}], change=lambda c: c["annotations"].pop(0))
    with pytest.raises(ValueError, match="2 images, 2 annotations; 1 crowd; 1 faulty; 0 of other classes.*cat, dog"):
        COCODataset(path, tmp_path / "set" / "train", True)


# ----------------------------------------------------------------------------------------------------- faulty files

STRUCTURE = {
    "list": (lambda c: None, "got a list"),
    "no images": (lambda c: c.pop("images"), "`images` is missing"),
    "no categories": (lambda c: c.pop("categories"), "`categories` is missing"),
    "annotations no list": (lambda c: c.update(annotations={}), "`annotations` is missing or no list"),
    "image without id": (lambda c: c["images"][0].pop("id"), r"images\[0\]: expected `id`"),
    "image without name": (lambda c: c["images"][1].pop("file_name"), r"images\[1\]: expected `file_name`"),
    "category without name": (lambda c: c["categories"][0].pop("name"), r"categories\[0\]: expected `name`"),
    "two images one id": (lambda c: c["images"][0].update(id=2), "image id 2 occurs more than once"),
    "two categories one id": (lambda c: c["categories"][0].update(id=2), "same id"),
    "no box": (lambda c: c["annotations"][1].pop("bbox"), "annotation 2 of image 1: `bbox`: expected 4 numbers"),
    "short box": (lambda c: c["annotations"][1].update(bbox=[1, 2, 3]), "annotation 2 of image 1: `bbox`: expected 4 numbers"),
    "text box": (lambda c: c["annotations"][1].update(bbox=["1", 2, 3, 4]), "annotation 2 of image 1: `bbox`: expected 4 numbers"),
    "no category": (lambda c: c["annotations"][1].pop("category_id"), "annotation 2 of image 1: `category_id`: expected an integer"),
    "text image id": (lambda c: c["annotations"][1].update(image_id="1"), "annotation 2 of image 1: `image_id`: expected an integer"),
    "text mask": (lambda c: c["annotations"][1].update(segmentation="x"), "annotation 2 of image 1: `segmentation`: expected a list"),
    "mask of texts": (lambda c: c["annotations"][1].update(segmentation=[["x"]]), "annotation 2 of image 1: `segmentation`"),
    "rle without counts": (lambda c: c["annotations"][1].update(segmentation={"size": [4, 4]}), "annotation 2 of image 1: `segmentation`"),
}


@pytest.mark.parametrize("name", STRUCTURE)
@pytest.mark.parametrize("on_fault", ["fix", "ignore"])
def test_json_that_is_not_coco_stops_with_its_place(tmp_path, name, on_fault, capsys):
    change, message = STRUCTURE[name]
    path = write(tmp_path / "set", change=change)
    if name == "list":
        path.write_text("[1, 2]")
    with pytest.raises(ValueError, match=message) as error:
        make_data_loader(config(tmp_path / "set", "DATASETS.ON_FAULT", on_fault))
    assert str(path) in str(error.value)
    assert main(["check", str(tmp_path / "set")]) == 1
    assert f"[stop] {path}" in capsys.readouterr().out


def test_json_that_is_cut_off_or_missing(tmp_path):
    path = write(tmp_path / "set")
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(ValueError, match="no JSON file.*copy or download it again"):
        AnnotationStore.from_json(path)
    with pytest.raises(FileNotFoundError, match="check the path"):
        AnnotationStore.from_json(tmp_path / "nothing.json")


def test_missing_image_stops_before_training(tmp_path, capsys):
    write(tmp_path / "set")
    (tmp_path / "set" / "train" / "1.jpg").unlink()
    with pytest.raises(ValueError, match=r"(?s)1\.jpg \(id 1\): there is no such image file"):
        make_data_loader(config(tmp_path / "set"))
    assert main(["check", str(tmp_path / "set")]) == 1
    assert "1 to stop" in capsys.readouterr().out
    with pytest.raises(FileNotFoundError, match=r"1\.jpg for image id 1 of .*instances_train.json.*check the image folder"):
        make_dataset(str(tmp_path / "set"))[0]


@pytest.mark.parametrize("kind", ["cut", "empty", "text"])
def test_image_that_cannot_be_read_stops_before_training(tmp_path, kind):
    write(tmp_path / "set")
    image = tmp_path / "set" / "train" / "1.jpg"
    content = image.read_bytes()
    image.write_bytes({"cut": content[: len(content) // 2], "empty": b"", "text": b"\xff\xd8 no picture"}[kind])
    with pytest.raises(ValueError, match=r"(?s)1\.jpg \(id 1\).*cannot be read.*copy it again"):
        make_data_loader(config(tmp_path / "set"))
    with pytest.raises(OSError, match=r"1\.jpg \(image id 1 of .*instances_train.json\) cannot be read"):
        make_dataset(str(tmp_path / "set"))[0]


def test_bytes_behind_the_end_of_a_jpeg_are_no_fault(tmp_path):
    write(tmp_path / "set")
    image = tmp_path / "set" / "train" / "1.jpg"
    image.write_bytes(image.read_bytes() + b"\0" * 500)
    assert check_dataset(make_dataset(str(tmp_path / "set"))) == []


def test_an_image_of_another_size_is_found_from_its_head(tmp_path, capsys):
    write(tmp_path / "set")
    image = tmp_path / "set" / "train" / "1.jpg"
    Image.new("RGB", (60, 41)).save(image)
    assert main(["check", str(tmp_path / "set")]) == 1
    assert "expected 60 x 40 pixels as its annotations say, got 60 x 41" in capsys.readouterr().out
    with pytest.raises(ValueError, match="60 x 41"):
        make_dataset(str(tmp_path / "set"))[0]


def test_too_few_classes_of_the_model_are_told_before_training(tmp_path):
    write(tmp_path / "set", [GOOD | {"category_id": 2}])
    with pytest.raises(ValueError, match=r"annotation 2 of image 1\.jpg \(id 1\) has label 2 \(dog\), but NUM_CLASSES is 2.*NUM_CLASSES 3"):
        make_data_loader(config(tmp_path / "set", "MODEL.ROI_BOX_HEAD.NUM_CLASSES", "2"))
    for enough in ("3", "0"):
        make_data_loader(config(tmp_path / "set", "MODEL.ROI_BOX_HEAD.NUM_CLASSES", enough))


# --------------------------------------------------------------------------------------------------------------- VOC

OBJECT = "<object><name>{}</name><bndbox><xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax><ymax>{}</ymax></bndbox></object>"


def write_voc(folder, *objects, xml=None):
    for part in ("Annotations", "ImageSets/Main", "JPEGImages"):
        (folder / part).mkdir(parents=True)
    size = "<size><width>50</width><height>40</height></size>"
    (folder / "Annotations" / "a.xml").write_text(xml or f"<annotation>{size}{''.join(OBJECT.format(*o) for o in objects)}</annotation>")
    (folder / "ImageSets" / "Main" / "train.txt").write_text("a\n")
    Image.new("RGB", (50, 40)).save(folder / "JPEGImages" / "a.jpg")
    return folder


def test_empty_voc_boxes_are_dropped_and_listed(tmp_path, capsys):
    write_voc(tmp_path / "set", ("dog", 5, 5, 5, 5), ("dog", 1, 1, 9, 9), ("cat", 9, 2, 3, 8))
    dataset = make_dataset(str(tmp_path / "set"))
    assert dataset.get_groundtruth(0).bbox.tolist() == [[0, 0, 8, 8]]
    assert main(["check", str(tmp_path / "set")]) == 1
    out = capsys.readouterr().out
    assert out.count("[drop]") == 2 and "Annotations/a.xml, image a.jpg" in out and "box is empty" in out and "negative" in out


def test_voc_that_counts_from_zero_is_no_fault(tmp_path):
    dataset = make_dataset(str(write_voc(tmp_path / "set", ("dog", 0, 0, 50, 40))))
    assert dataset.findings == [] and dataset.get_groundtruth(0).bbox.tolist() == [[0, 0, 49, 39]]


@pytest.mark.parametrize(
    ("xml", "message"),
    [
        ("<annotation><object>", "a.xml: malformed VOC annotation"),
        ("<annotation><object><name>dog</name></object></annotation>", "a.xml.*object 'dog' has no bndbox/xmin"),
        ("<annotation><object><bndbox/></object></annotation>", "a.xml.*an object has no name"),
        (f"<annotation>{OBJECT.format('dog', 'x', 1, 2, 3)}</annotation>", "a.xml.*could not convert string to float: 'x'"),
    ],
)
def test_malformed_xml_names_its_file(tmp_path, xml, message, capsys):
    write_voc(tmp_path / "set", xml=xml)
    with pytest.raises(ValueError, match=message):
        make_dataset(str(tmp_path / "set"))
    assert main(["check", str(tmp_path / "set")]) == 1
    assert "a.xml" in capsys.readouterr().out


def test_missing_parts_of_a_voc_folder(tmp_path):
    write_voc(tmp_path / "set", ("dog", 1, 1, 9, 9))
    with pytest.raises(ValueError, match="expected a list test or val"):
        make_dataset(str(tmp_path / "set"), is_train=False)
    (tmp_path / "set" / "Annotations" / "a.xml").unlink()
    with pytest.raises(FileNotFoundError, match="a.xml; write one, or take a out of the list"):
        make_dataset(str(tmp_path / "set"))


# --------------------------------------------------------------------------------------------------------- the command


def test_sound_data_exit_with_0(tmp_path, capsys):
    toy.generate(tmp_path / "toy", 3, 2, size=64)
    assert main(["check", str(tmp_path / "toy"), "--deep"]) == 0
    assert "5 images" in capsys.readouterr().out


def test_statistics(tmp_path, capsys):
    write(tmp_path / "set", [GOOD, GOOD | {"category_id": 2, "iscrowd": 1}])
    assert main(["stats", str(tmp_path / "set")]) == 0
    out = capsys.readouterr().out
    assert "images       2, 0 without objects" in out and "annotations  3, 1 of them crowds" in out and "60 to 60" in out
    assert [line.split()[:2] for line in out.splitlines() if line.split()[0] in ("cat", "dog")] == [["cat", "2"], ["dog", "1"]]


def test_a_name_that_means_nothing(capsys):
    assert main(["check", "coco_2017_vall"]) == 1
    assert "Did you mean coco_2017_val" in capsys.readouterr().out


def test_toy_set_by_command(tmp_path, capsys):
    assert main(["toy", str(tmp_path / "toy"), "--train", "2", "--test", "1", "--size", "64"]) == 0
    assert len(make_dataset(str(tmp_path / "toy"))) == 2


@pytest.mark.parametrize("content", [b"<html>not found</html>", b"", b"\x00" * 100])
def test_a_file_that_is_no_image_is_found_without_decoding_all(tmp_path, content):
    from maskrcnn_bench.data.check import main
    from maskrcnn_bench.data.datasets.toy import generate

    folder = generate(tmp_path / "toy", 4, 2, size=64)
    (folder / "train" / "000002.jpg").write_bytes(content)
    assert main(["check", str(folder)]) == 1

