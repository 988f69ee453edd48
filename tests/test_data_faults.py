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
from maskrcnn_bench.evaluation.coco import ground_truth

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
    write(tmp_path / "set", [GOOD | {"segmentation": [RING, [1, 2, 3, 4], [*RING, 3], [*RING, 5, math.nan]]}])
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
    "two images one id": (lambda c: c["images"][0].update(id=2), r"images\[1\]: id 2 occurs more than once"),
    "two categories one id": (lambda c: c["categories"][0].update(id=2), r"categories\[1\]: id 2 occurs more than once"),
    "no box": (lambda c: c["annotations"][1].pop("bbox"), "image id 1, annotation 2: `bbox`: expected 4 numbers"),
    "short box": (lambda c: c["annotations"][1].update(bbox=[1, 2, 3]), "image id 1, annotation 2: `bbox`: expected 4 numbers"),
    "text box": (lambda c: c["annotations"][1].update(bbox=["1", 2, 3, 4]), "image id 1, annotation 2: `bbox`: expected 4 numbers"),
    "no category": (lambda c: c["annotations"][1].pop("category_id"), "image id 1, annotation 2: `category_id`: expected an integer"),
    "text image id": (lambda c: c["annotations"][1].update(image_id="1"), "image id 1, annotation 2: `image_id`: expected an integer"),
    "text mask": (lambda c: c["annotations"][1].update(segmentation="x"), "image id 1, annotation 2: `segmentation`: expected a list"),
    "mask of texts": (lambda c: c["annotations"][1].update(segmentation=[["x"]]), "image id 1, annotation 2: `segmentation`"),
    "large image": (lambda c: c["images"][1].update(id=1 << 63), r"images\[1\]: expected `id` \(an integer of 64 bits\)"),
    "large width": (lambda c: c["images"][1].update(width=10**30), r"images\[1\]: `width`: expected pixels"),
    "large category": (lambda c: c["categories"][1].update(id=-(10**30)), r"categories\[1\]: expected `id` \(an integer of 64 bits\)"),
    "large annotation": (lambda c: c["annotations"][1].update(id=1 << 63), r"annotations\[1\]: `id`: expected an integer of 64 bits"),
    "large image id": (lambda c: c["annotations"][1].update(image_id=1 << 70), "annotation 2: `image_id`: expected an integer of 64 bits"),
    "rle without counts": (lambda c: c["annotations"][1].update(segmentation={"size": [4, 4]}), "image id 1, annotation 2: `segmentation`"),
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


def test_missing_folder_of_the_catalog_says_where_it_should_be(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["check", "voc_2007_train"]) == 1
    assert "no folder datasets/voc/VOC2007; check the path, or DATASETS.ROOT" in capsys.readouterr().out


def test_missing_image_stops_before_training(tmp_path, capsys):
    write(tmp_path / "set")
    (tmp_path / "set" / "train" / "1.jpg").unlink()
    with pytest.raises(ValueError, match=r"(?s)1\.jpg \(id 1\): there is no such image file"):
        make_data_loader(config(tmp_path / "set"))
    assert main(["check", str(tmp_path / "set")]) == 1
    assert "1 to stop" in capsys.readouterr().out
    with pytest.raises(FileNotFoundError, match=r"1\.jpg for image id 1 of .*instances_train.json.*check the image folder"):
        make_dataset(str(tmp_path / "set"))[0]


@pytest.mark.parametrize("sized", [True, False])
@pytest.mark.parametrize("kind", ["link", "huge"])
def test_what_cannot_be_opened_is_a_finding(tmp_path, kind, sized, monkeypatch, capsys):
    write(tmp_path / "set", change=None if sized else lambda c: [image.pop("width") for image in c["images"]])
    path = tmp_path / "set" / "train" / "1.jpg"
    if kind == "link":
        path.unlink()
        path.symlink_to(tmp_path / "gone.jpg")
    else:
        Image.new("RGB", (160, 140)).save(path)
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10_000)
    code, lines = checked(capsys, tmp_path / "set")
    expected = {"link": f"no image file {path}", "huge": "exceeds limit of"}[kind]
    assert code == 1 and [line for line in lines if "[note]" not in line] == [
        line for line in lines if "1.jpg" in line and expected in line
    ]
    assert main(["stats", str(tmp_path / "set")]) == 0
    with pytest.raises((ValueError, FileNotFoundError), match="1.jpg"):
        make_data_loader(config(tmp_path / "set"))


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


def test_what_a_command_cannot_do_is_one_line(tmp_path, capsys):
    write(tmp_path / "set")
    assert main(["toy", str(tmp_path / "set")]) == 1
    assert len(capsys.readouterr().out.splitlines()) == 1
    assert main(["stats", str(tmp_path / "set"), "--anchor-sizes", "32", "64"]) == 1
    assert capsys.readouterr().out.splitlines()[-1] == "anchors: expected 1 or 2 strides, as many as sizes, got 5"


@pytest.mark.parametrize("content", [b"<html>not found</html>", b"", b"\x00" * 100])
def test_a_file_that_is_no_image_is_found_without_decoding_all(tmp_path, content):
    from maskrcnn_bench.data.check import main
    from maskrcnn_bench.data.datasets.toy import generate

    folder = generate(tmp_path / "toy", 4, 2, size=64)
    (folder / "train" / "000002.jpg").write_bytes(content)
    assert main(["check", str(folder)]) == 1


# ------------------------------------------------------------------------------------- everything at once, and once only


def checked(capsys, *words):
    """The exit code of `data check` and its lines that report findings."""
    code = main(["check", *map(str, words)])
    return code, [line for line in capsys.readouterr().out.splitlines() if line.startswith("[")]


def test_all_faults_of_the_form_are_listed_at_once(tmp_path, capsys):
    wrong = [{"bbox": [1, 2, 3]}, {"id": "abc"}, {"iscrowd": "yes"}, {"image_id": None}, {"segmentation": [["x"]]}, {"keypoints": [1, 2]}]

    def change(content):
        content["images"] += [{"id": 5}, {"id": 6, "file_name": "1.jpg", "width": "60", "height": 40}, 7]
        content["annotations"] += ["text"]

    path = write(tmp_path / "set", [GOOD | entry for entry in wrong], change)
    code, lines = checked(capsys, tmp_path / "set")
    expected = [
        r"images\[2\]: expected `file_name`",
        r"images\[3\]: `width`: expected pixels, got '60' \(image id 6\)",
        r"images\[4\]: expected an object, got 7",
        r"image id 1, annotation 2: `bbox`: expected 4 numbers, got \[1, 2, 3\]",
        r"image id 1: annotations\[2\]: `id`: expected an integer of 64 bits, got 'abc'",
        r"image id 1, annotation 4: `iscrowd`: expected 0 or 1, got 'yes'",
        r"annotation 5: `image_id`: expected an integer of 64 bits, got None",
        r"image id 1, annotation 7: `keypoints`: expected numbers",
        r"annotations\[7\]: expected an object, got 'text'",
        r"image id 1, annotation 6: `segmentation`: expected a list of polygons",
    ]
    assert code == 1 and len(lines) == len(expected)
    for line, pattern in zip(lines, expected):
        assert line.startswith(f"[stop] {path}") and line.count(str(path)) == 1 and re.search(pattern, line)
    with pytest.raises(ValueError, match=r"(?s)10 to stop.*annotation 2: `bbox`.*annotation 4: `iscrowd`"):
        make_data_loader(config(tmp_path / "set"))


def test_a_masks_numbers_that_are_none_leave_the_others_as_they_are(tmp_path):
    path = write(tmp_path / "set", [GOOD | {"segmentation": [RING, [1, 2, "x"]]}, GOOD])
    store = AnnotationStore.from_json(path)
    assert [len(store.rings(row)) for row in range(3)] == [0, 1, 1] and store.rings(1)[0].tolist() == RING


def test_one_file_named_twice_is_noted(tmp_path, capsys):
    write(tmp_path / "set", change=lambda c: c["images"][1].update(file_name="1.jpg"))
    assert [line.split("json, ")[1] for line in checked(capsys, tmp_path / "set")[1]] == ["image 1.jpg (id 2): image id 1 is the same file"]


def test_annotations_of_unknown_categories_are_counted(tmp_path, capsys):
    write(tmp_path / "set", [GOOD] * 20, change=lambda c: c.update(categories=[]))
    code, lines = checked(capsys, tmp_path / "set")
    assert code == 1 and len(lines) == 1 and "category id 1 is not among `categories` [] (nor in 20 more annotations)" in lines[0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.pop("annotations"), "[stop] {}: there are no annotations: nothing can be learnt"),
        (lambda c: c.update(annotations=[]), "[stop] {}: there are no annotations: nothing can be learnt"),
        (lambda c: c.update(images=[], annotations=[]), "[stop] {}: `images` is empty"),
    ],
)
def test_a_file_without_purpose(tmp_path, change, message, capsys):
    path = write(tmp_path / "set", change=change)
    code, lines = checked(capsys, tmp_path / "set")
    assert code == 1 and len(lines) == 1 and lines[0].startswith(message.format(path))
    test = path.with_name("instances_test.json")
    path.rename(test)
    (tmp_path / "set" / "train").rename(tmp_path / "set" / "test")
    assert checked(capsys, tmp_path / "set")[1][0].startswith("[stop]" if "images" in message else "[note]")


def test_an_object_without_mask_where_masks_are_learnt(tmp_path, capsys, caplog):
    bare = {k: v for k, v in GOOD.items() if k != "segmentation"}
    write(tmp_path / "set", [GOOD, bare])
    assert checked(capsys, tmp_path / "set") == (0, [])
    code, lines = checked(capsys, tmp_path / "set", "--masks")
    assert code == 1 and len(lines) == 1 and lines[0].startswith("[drop]") and "annotation 3: it has no `segmentation`" in lines[0]
    with caplog.at_level(logging.WARNING, "maskrcnn_bench.data"):
        dataset = make_data_loader(config(tmp_path / "set", "MODEL.MASK_ON", "True")).dataset
    assert len(dataset.get_groundtruth(0)) == 1 and "it has no `segmentation`" in caplog.text
    assert len(make_data_loader(config(tmp_path / "set")).dataset.get_groundtruth(0)) == 2
    tested = make_dataset(str(tmp_path / "set" / "annotations" / "instances_train.json"), is_train=False, masks=True)
    assert len(tested.get_groundtruth(0).get_field("masks")) == 2, "a test of boxes needs no masks"
    assert [a["bbox"] for a in ground_truth(tested)["annotations"]] == [GOOD["bbox"]] * 3


def test_an_empty_list_of_keypoints_is_none(tmp_path):
    points = [6, 6, 2, 9, 9, 1]
    write(tmp_path / "boxes", [GOOD | {"keypoints": []}])
    write(tmp_path / "points", [GOOD | {"keypoints": []}, GOOD | {"keypoints": points}])
    boxes, some = (make_dataset(str(tmp_path / name), keep_empty=True) for name in ("boxes", "points"))
    assert boxes.findings == [] and not boxes.get_groundtruth(0).has_field("keypoints")
    assert some.findings == [] and some.get_groundtruth(0).get_field("keypoints").keypoints.flatten(1).tolist() == [[0] * 6, points]
    assert some.annotations.num_keypoints.tolist() == [-1, 2, -1]


def test_masks_that_nobody_has_are_missed_before_images_are_looked_at(tmp_path):
    write(tmp_path / "set", change=lambda c: [a.pop("segmentation") for a in c["annotations"]])
    (tmp_path / "set" / "train" / "1.jpg").unlink()
    with pytest.raises(ValueError, match="MODEL.MASK_ON needs masks"):
        make_data_loader(config(tmp_path / "set", "MODEL.MASK_ON", "True", "DATASETS.KEEP_EMPTY", "True"))


@pytest.mark.parametrize("sizes", [{"width": 0}, {"width": None, "height": None}])
def test_sizes_that_are_missing_come_from_the_images(tmp_path, sizes, capsys):
    rle = {"size": [40, 60], "counts": [100, 50, 2250]}
    write(tmp_path / "set", [GOOD | {"segmentation": rle}, GOOD | {"bbox": [70, 5, 20, 10]}], lambda c: c["images"][0].update(sizes))
    code, lines = checked(capsys, tmp_path / "set")
    assert code == 1 and len(lines) == 2
    assert "image 1.jpg (id 1): `width` or `height` is missing or 0, for 1 of 2 images" in lines[0] and "[note]" in lines[0]
    assert "annotation 3: box lies outside the image of 60 x 40" in lines[1]
    assert make_dataset(str(tmp_path / "set")).get_img_info(0)["width"] == 60
    (tmp_path / "set" / "train" / "1.jpg").unlink()
    with pytest.raises(FileNotFoundError, match="do not say its size"):
        make_dataset(str(tmp_path / "set"))
    assert sum("there is no such image file" in line for line in checked(capsys, tmp_path / "set")[1]) == 1


def test_lines_about_images_name_their_file_once(tmp_path):
    write(tmp_path / "set")
    image = tmp_path / "set" / "train" / "1.jpg"
    image.write_bytes(b"no picture")
    with pytest.raises(ValueError) as error:
        make_data_loader(config(tmp_path / "set"))
    line = next(line for line in str(error.value).splitlines() if line.startswith("[stop]"))
    assert line.count(str(image)) == 1 and line.endswith(
        "cannot be read (no kind of image that is known); copy it again, or take it out of the annotations"
    )


def test_voc_boxes_are_told_in_vocs_numbers(tmp_path, capsys):
    write_voc(tmp_path / "set", ("dog", 7, 5, 7, 5), ("dog", 1, 1, 9, 9), ("cat", 9, 2, 3, 8))
    lines = checked(capsys, tmp_path / "set")[1]
    assert lines[0].endswith("box is empty: xmin, ymin, xmax, ymax = 7, 5, 7, 5")
    assert "(it ends before it begins): xmin, ymin, xmax, ymax = 9, 2, 3, 8" in lines[1]


def test_names_of_an_own_catalog_are_checked_too(tmp_path, capsys):
    path = write(tmp_path / "set", [GOOD | {"bbox": [5, 5, 0, 10]}])
    catalog = tmp_path / "my_catalog.py"
    entry = {"factory": "COCODataset", "args": {"ann_file": str(path), "root": str(tmp_path / "set" / "train")}}
    catalog.write_text(f"class DatasetCatalog:\n    @staticmethod\n    def get(name):\n        return {entry!r}\n")
    code, lines = checked(capsys, "mine", "--catalog", catalog)
    assert code == 1 and "box is empty" in lines[0]
    assert main(["stats", "mine", "--catalog", str(catalog)]) == 0 and "images       2" in capsys.readouterr().out


def test_a_folder_without_any_of_the_images_is_one_line(tmp_path, capsys):
    write(tmp_path / "set")
    for image in (tmp_path / "set" / "train").iterdir():
        image.unlink()
    expected = f"[stop] {tmp_path / 'set' / 'train'}: none of the 2 images is here, such as 1.jpg; check the folder, or copy them there"
    assert checked(capsys, tmp_path / "set") == (1, [expected])


def test_a_folder_that_holds_nothing_is_one_line(tmp_path, capsys):
    (tmp_path / "set").mkdir()
    code, lines = checked(capsys, tmp_path / "set")
    assert (
        code == 1
        and len(lines) == 1
        and lines[0].startswith(f"[stop] {tmp_path / 'set'}: no data set recognised")
        and lines[0].count("/set") == 1
    )
