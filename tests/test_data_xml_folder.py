"""Folders of images and VOC's XML files without lists of images: which folders are recognised, and what is told about faults."""

import pytest
import torch
from PIL import Image

from maskrcnn_bench.data import make_dataset
from maskrcnn_bench.data.check import main

BOX = "<bndbox><xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax><ymax>{}</ymax></bndbox>"
OBJECT = "<object><name>{}</name><difficult>{}</difficult>" + BOX + "</object>"
XML = "<annotation verified='yes'><filename>elsewhere.jpg</filename>{}</annotation>"


def write(folder, stem, objects=(), images="JPEGImages", xmls="Annotations"):
    """An image of 50 x 40 pixels and its XML file, which does not say its size; objects: (class, difficult, xmin, ymin, xmax, ymax)"""
    for name in (images, xmls):
        (folder / name).mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (50, 40)).save(folder / images / f"{stem}.png")
    (folder / xmls / f"{stem}.xml").write_text(XML.format("".join(OBJECT.format(*entry) for entry in objects)))


def both(folder, **options):
    return [make_dataset(str(folder), is_train, **options) for is_train in (True, False)]


@pytest.mark.parametrize("below", ["", "export", "export/v1"])
@pytest.mark.parametrize(("images", "xmls"), [("JPEGImages", "Annotations"), ("images", "annotations"), (".", "."), (".", "Annotations")])
def test_all_images_are_used_where_there_are_no_splits(tmp_path, below, images, xmls):
    for k in range(10):
        write(
            tmp_path / below,
            f"img{k}",
            [("cup", 0, 1, 1, 50, 40)] if k else [("dish", 0, 3, 5, 10, 20), ("cup", 1, 1, 1, 9, 9)],
            images,
            xmls,
        )
    train, test = both(tmp_path)
    names = [[dataset.get_img_info(i)["file_name"] for i in range(len(dataset))] for dataset in (train, test)]
    assert names[1] == ["img4.png", "img9.png"] and sorted(names[0] + names[1]) == [f"img{k}.png" for k in range(10)]
    assert train.class_names == test.class_names == ("__background__", "cup", "dish")
    assert "without ImageSets" in train.described and " ." not in train.described.replace(str(tmp_path), "")
    assert ("in the folder itself" in train.described) == (images == "." and not below)
    assert train.described.endswith("every fifth image by name is for testing, the others for training (fewer than five: all for both)")
    picture, target, _ = train[0]
    assert picture.size == (50, 40) and target.bbox.tolist() == [[2, 4, 9, 19]] and target.get_field("labels").tolist() == [2]
    assert test.get_groundtruth(0).get_field("difficult").tolist() == [0]


@pytest.mark.parametrize("place", ["{}", "{}/images", "images/{}"])
def test_folders_of_splits_are_the_splits(tmp_path, place):
    xmls = place.replace("images", "annotations")
    write(tmp_path, "a", [("cup", 0, 1, 1, 50, 40)], place.format("train"), xmls.format("train"))
    write(tmp_path, "b", [("dish", 0, 1, 1, 50, 40), ("cup", 1, 1, 1, 9, 9)], place.format("valid"), xmls.format("valid"))
    train, test = both(tmp_path)
    assert train.class_names == test.class_names == ("__background__", "cup", "dish")
    assert (len(train), len(test)) == (1, 1) and test.get_groundtruth(0).get_field("difficult").tolist() == [0, 1]
    assert train.described.endswith("all images of the folder train are for training")
    assert test.described.endswith("all images of the folder valid are for testing")


def test_a_split_that_is_missing_is_named(tmp_path):
    write(tmp_path / "train", "a", [("cup", 0, 1, 1, 50, 40)])
    assert len(make_dataset(str(tmp_path))) == 1
    with pytest.raises(ValueError, match="expected a folder val or valid or test, found train"):
        make_dataset(str(tmp_path), is_train=False)


def test_every_broken_file_is_named_at_once(tmp_path, capsys):
    for k in range(4):
        write(tmp_path, f"img{k}", [("cup", 0, 1, 1, 50, 40)], ".", ".")
    (tmp_path / "img1.xml").write_text("<annotation><object>")
    (tmp_path / "img2.xml").write_text("<annotation><object><name>cup</name></object></annotation>")
    (tmp_path / "img3.xml").rename(tmp_path / "lost.xml")
    with pytest.raises(ValueError, match="(?s)img1.xml, image img1.png.*malformed.*img2.xml, image img2.png.*'cup' has no bndbox/xmin"):
        make_dataset(str(tmp_path))
    assert main(["check", str(tmp_path)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("]")[0][1:] for line in lines if line.startswith("[")] == ["stop", "stop", "note", "drop"]
    assert "img3.xml, image img3.png: there is no such XML file" in lines[-3] and "lost.xml: no image in" in lines[-2]


def test_other_xml_files_are_no_data_set(tmp_path):
    Image.new("RGB", (50, 40)).save(tmp_path / "a.png")
    (tmp_path / "a.xml").write_text("<annotations><image/></annotations>")
    with pytest.raises(ValueError, match="no data set recognised for training.*XML files without ImageSets"):
        make_dataset(str(tmp_path))


def test_real_pedestrians_that_were_labelled_anew(shared_dir):
    train, test = both(shared_dir / "data" / "pennfudan" / "voc_relabelled", keep_empty=True)
    assert (len(train), len(test)) == (105, 26) and train.class_names == ("__background__", "person")
    assert len(train.annotations.ids) + len(test.annotations.ids) == 302
    assert [finding.severity for finding in train.findings + test.findings] == ["note", "note"]
    target = torch.cat([test.get_groundtruth(i).bbox for i in range(len(test))])
    assert (target[:, 2:] > target[:, :2]).all()
