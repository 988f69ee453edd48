"""Fast R-CNN: proposals from files follow their images, and heads get from them what they get from an RPN."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from models import FPN_WIDTH, NARROW, given_proposals, narrow_model, objects_as_proposals, scene_of

from maskrcnn_bench.config import load_config
from maskrcnn_bench.data import make_data_loader
from maskrcnn_bench.data.build import make_dataset
from maskrcnn_bench.data.datasets.toy import generate
from maskrcnn_bench.data.proposals import ProposalSlots
from maskrcnn_bench.engine.inference import inference, predict, save_predictions
from maskrcnn_bench.engine.launch import test_main, train_main
from maskrcnn_bench.engine.tta import TestTimeAugmentation, make_passes, mirror_images
from maskrcnn_bench.modeling.detector import build_detection_model
from maskrcnn_bench.structures.bounding_box import BoxList, BoxListBatch
from maskrcnn_bench.utils.proposal_files import read_proposals
from maskrcnn_bench.weights import convert, load_into, to_detectron2

test_main.__test__ = False  # pytest would take it for a test

FULL, FAST = "detectron2/faster_rcnn_R_50_FPN_1x.yaml", "detectron2/fast_rcnn_R_50_FPN_1x.yaml"
SMALL = [
    *NARROW, *FPN_WIDTH, "DATALOADER.NUM_WORKERS", 0, "MODEL.WEIGHT", "", "TEST.IMS_PER_BATCH", 2, "SOLVER.IMS_PER_BATCH", 2,
    "INPUT.MIN_SIZE_TEST", 90, "INPUT.MAX_SIZE_TEST", 120, "INPUT.MIN_SIZE_TRAIN", (70, 90), "INPUT.MAX_SIZE_TRAIN", 200,
    "MODEL.ROI_BOX_HEAD.NUM_CLASSES", 7, "MODEL.RPN.FPN_POST_NMS_TOP_N_TEST", 40,
    "MODEL.ROI_HEADS.DETECTIONS_PER_IMG", 300, "DATASETS.KEEP_EMPTY", True,
]  # fmt: skip


@pytest.fixture(scope="module")
def toy(tmp_path_factory) -> Path:
    """Four pictures of each split, two of them made wider; objects without masks, so that only boxes say where they are."""
    from PIL import Image

    folder = generate(tmp_path_factory.mktemp("given") / "toy", 4, 4, 64)
    for path in sorted((folder / "annotations").glob("instances_*.json")):
        content = json.loads(path.read_text())
        for image in content["images"][:2]:
            file = folder / path.stem.split("_")[1] / image["file_name"]
            Image.open(file).resize((83, 64)).save(file)
            image["width"] = 83
        content["annotations"] = [{k: v for k, v in a.items() if k != "segmentation"} for a in content["annotations"]]
        path.write_text(json.dumps(content))
    return folder


def settings(yaml, toy, *changes):
    data = ["DATASETS.DATA", str(toy), "DATASETS.TRAIN", "()", "DATASETS.TEST", "()"]
    return load_config(yaml, [str(word) for word in [*SMALL, *data, "DATASETS.PROPOSAL_FILES_TRAIN", "()", *changes]])


def with_files(kind, *files):
    return [f"DATASETS.PROPOSAL_FILES_{kind}", repr(tuple(map(str, files)))]


def write_objects(toy, split, folder, pixel=0):
    """The path of a file whose proposals are the objects of a split."""
    return objects_as_proposals(make_dataset(str(toy), split == "train", keep_empty=True, pixel=pixel), folder)


# proposals follow

AUGMENTED = {
    "flips, many sizes": ["INPUT.VERTICAL_FLIP_PROB_TRAIN", 0.5],
    "jitter": ["INPUT.SCALE_JITTER", (0.5, 2.0), "INPUT.MAX_SIZE_TRAIN", 80],
    "cut": ["INPUT.ASPECT_RATIO_RANGE", (0.9, 1.1), "DATALOADER.CACHE", "ram"],
    "one factor": ["MODEL.DIALECT", "faster_rcnn_pytorch", "MODEL.RPN.MIN_SIZE", 0.5],
}


@pytest.mark.parametrize("name", AUGMENTED)
def test_proposals_that_are_the_objects_stay_the_objects(toy, tmp_path, name):
    files = with_files("TRAIN", write_objects(toy, "train", tmp_path, pixel=int(name == "one factor")))
    loader = iter(make_data_loader(settings(FAST, toy, *files, *AUGMENTED[name], "SOLVER.MAX_ITER", 12)))
    seen, shapes = 0, set()
    for images, targets, _ in loader:
        assert images.proposals.boxes.shape == (2, 2000, 4) and "proposals" not in targets.lists
        assert torch.equal(images.proposals.sizes, images.sizes)
        for given, target in zip(images.proposals, targets, strict=True):
            torch.testing.assert_close(given.bbox, target.bbox, rtol=0, atol=2e-5)
            assert (given.get_field("objectness").diff() < 0).all()
            seen += len(given)
        shapes |= set(images.image_sizes)
    assert seen > 20 and len(shapes) > 2


def test_the_best_that_are_large_enough_fill_the_slots():
    boxes = torch.tensor([[0.0, 0, 5, 5], [90, 0, 120, 10], [30, 30, 30, 40], [2, 2, 9, 9], [-9, 3, 4, 8], [1, 1, 3, 3]])
    given = BoxList(boxes, (100, 50), pixel=0)
    given.add_field("objectness", torch.arange(6.0, 0, -1))
    batch = ProposalSlots(4, 0.0, drop_empty=True)([given, given[:1]], [(100, 50), (50, 50)])
    # The second one is cut at the border, the third is empty; the last one comes too late.
    assert batch.boxes[0].tolist() == [[0, 0, 5, 5], [90, 0, 100, 10], [2, 2, 9, 9], [0, 3, 4, 8]]
    assert batch.get_field("objectness")[0].tolist() == [6, 5, 3, 2]
    assert batch[1].bbox.tolist() == [[0, 0, 2.5, 5]] and batch.valid.sum(dim=1).tolist() == [4, 1]
    assert len(ProposalSlots(6, 3.0, drop_empty=False)([given], [(100, 50)])[0]) == 4
    assert given.bbox.tolist() == boxes.tolist()


def test_every_pass_of_a_test_gets_its_own(toy, tmp_path):
    files = with_files("TEST", write_objects(toy, "test", tmp_path))
    passes = ["TEST.BBOX_AUG.ENABLED", True, "TEST.BBOX_AUG.H_FLIP", True, "TEST.BBOX_AUG.SCALES", (50, 130)]
    cfg = settings(FAST, toy, *files, *passes)
    for versions, targets, _ in make_data_loader(cfg, is_train=False)[0]:
        for images in versions.versions:
            for given, target, flipped in zip(images.proposals, targets, mirror_images(images).proposals, strict=True):
                expected = target.resize(given.size)
                torch.testing.assert_close(given.bbox, expected.bbox, rtol=0, atol=1e-4)
                torch.testing.assert_close(flipped.bbox, expected.transpose(0).bbox, rtol=0, atol=1e-4)
    model = TestTimeAugmentation(build_detection_model(cfg).eval(), make_passes(2, True, False))
    assert predict(model, make_data_loader(cfg, is_train=False)[0], "cpu").keys() == {0, 1, 2, 3}


# what an RPN found, from a file


def sharpened(model):
    """Random weights whose scores differ by more than rounding."""
    for name, parameter in model.named_parameters():
        if name.endswith(("cls_logits.weight", "bbox_pred.weight", "cls_score.weight")):
            parameter.data *= 10
    return model


def assert_same(found, expected):
    """The same boxes, scores and labels up to rounding, which may exchange the order of neighbours."""
    assert len(found) == len(expected)
    boxes = torch.cdist(found.bbox, expected.bbox, p=torch.inf) < 2e-3
    scores = torch.cdist(*(b.get_field("scores")[:, None] for b in (found, expected))) < 1e-3
    same = boxes & scores & (found.get_field("labels")[:, None] == expected.get_field("labels"))
    assert same.any(dim=0).all() and same.any(dim=1).all()


@pytest.mark.parametrize(
    ("yaml", "changes"),
    [
        (FULL, []),
        ("e2e_faster_rcnn_R_50_FPN_1x.yaml", []),
        (FULL, ["MODEL.DIALECT", "faster_rcnn_pytorch", "MODEL.RPN.POST_NMS_TOP_N_TEST", 60, "MODEL.RPN.FPN_POST_NMS_TOP_N_TEST", 300]),
    ],
    ids=["detectron2", "maskrcnn_benchmark", "faster_rcnn_pytorch"],
)
def test_an_rpn_and_then_fast_rcnn_find_what_faster_rcnn_finds(toy, tmp_path, yaml, changes):
    torch.manual_seed(3)
    full = sharpened(build_detection_model(settings(yaml, toy, *changes)))
    cfg = settings(yaml, toy, *changes, "MODEL.RPN_ONLY", True)
    rpn = build_detection_model(cfg)
    rpn.load_state_dict(full.state_dict(), strict=False)
    inference(rpn, make_data_loader(cfg, is_train=False)[0], "toy", box_only=True, device="cpu", output_folder=str(tmp_path))
    files = with_files("TEST", tmp_path / "predictions.pth")
    cfg = settings(yaml, toy, *changes, "MODEL.LOAD_PROPOSALS", True, *files)
    fast = build_detection_model(cfg)
    assert not fast.load_state_dict(full.state_dict(), strict=False).missing_keys
    expected = predict(full, make_data_loader(settings(yaml, toy, *changes), is_train=False)[0], "cpu")
    found = predict(fast, make_data_loader(cfg, is_train=False)[0], "cpu")
    assert len(found) == 4 and sum(map(len, expected.values())) > 100
    for index, boxes in expected.items():
        assert_same(found[index], boxes)


def test_losses_are_those_of_the_same_proposals_from_an_rpn():
    images, targets = scene_of("d2_mask_fpn")
    full = narrow_model("d2_mask_fpn")
    fast = narrow_model("d2_mask_fpn", "MODEL.LOAD_PROPOSALS", True)
    fast.load_state_dict(full.state_dict(), strict=False)
    expected = full(images, targets)
    proposals, _ = full.rpn(images, full.backbone(full.normalizer(images)), targets, images.keys)
    found = ~proposals.get_field("is_object")[0]
    images.proposals = BoxListBatch(proposals.boxes[:, found], proposals.valid[:, found], proposals.sizes, pixel=0)
    losses = fast(images, targets)
    assert (
        losses.keys() == {"loss_classifier", "loss_box_reg", "loss_mask"} == {n for n in expected if "rpn" not in n} - {"loss_objectness"}
    )
    for name, loss in losses.items():
        assert torch.equal(loss, expected[name])
    images.proposals = given_proposals(images, 0)
    assert fast(images, targets)["loss_classifier"] != losses["loss_classifier"]


def test_detectron2_s_weights_fill_all_of_it():
    state = narrow_model("d2_fast_fpn", seed=1).state_dict()
    theirs = to_detectron2(state)
    assert not [name for name in theirs if "proposal" in name or "rpn" in name]
    report = load_into(narrow_model("d2_fast_fpn", seed=2), convert(theirs), strict=True)
    assert len(report.loaded) == report.total and not report.missing and not report.unused


def test_the_two_commands(toy, tmp_path, capsys):
    torch.manual_seed(0)
    short = [*map(str, SMALL), "SOLVER.MAX_ITER", "2", "SOLVER.STEPS", "(1,)", "SOLVER.WARMUP_ITERS", "1", "SOLVER.BASE_LR", "0.001"]
    rpn = "detectron2/rpn_R_50_FPN_1x.yaml"
    torch.save({"model": build_detection_model(settings(rpn, toy)).state_dict()}, tmp_path / "rpn.pth")
    for split in ("train", "test"):
        data = str(toy / "annotations" / f"instances_{split}.json")
        output = str(tmp_path / split)
        assert test_main(["--config-file", rpn, "--ckpt", str(tmp_path / "rpn.pth"), "--data", data, "--output", output, *short]) == 0
    words = ["--config-file", FAST, "--data", str(toy), "--output", str(tmp_path / "fast"), *short]
    found = {split: tmp_path / split / "inference" / f"instances_{split}.json" / "predictions.pth" for split in ("train", "test")}
    assert train_main([*words, *with_files("TRAIN", found["train"]), *with_files("TEST", found["test"])]) == 0
    results = json.loads((tmp_path / "fast" / "results.json").read_text())
    assert results["detections"] > 0
    capsys.readouterr()
    # The YAML's files belong to COCO, not to this data; and those of the other split are of other images.
    assert train_main(words) == 1
    assert "DATASETS.PROPOSAL_FILES_TRAIN: MODEL.LOAD_PROPOSALS needs one file for each of 1 data set" in capsys.readouterr().err
    assert train_main([*words, *with_files("TRAIN", found["test"])]) == 1
    assert "no proposals for 4 of 4 images: 000001.jpg (id 1), " in capsys.readouterr().err


def test_joined_data_sets_take_a_file_each(toy, tmp_path):
    data = [str(toy / "annotations" / f"instances_{split}.json") for split in ("train", "test")]
    files = [write_objects(toy, split, tmp_path / split) for split in ("train", "test")]
    cfg = settings(FAST, toy, "DATASETS.TRAIN", tuple(data), *with_files("TRAIN", *files), "SOLVER.MAX_ITER", 4)
    loader = make_data_loader(cfg)
    assert len(loader.dataset.proposals) == 8
    for images, targets, _ in loader:
        for given, target in zip(images.proposals, targets, strict=True):
            torch.testing.assert_close(given.bbox, target.bbox, rtol=0, atol=1e-4)
    with pytest.raises(ValueError, match=r"one file for each of 2 data set\(s\) .*, got 1"):
        make_data_loader(settings(FAST, toy, "DATASETS.TRAIN", tuple(data), *with_files("TRAIN", files[0])))


# files

BOXES = [np.array([[1.0, 2, 5, 7], [0, 0, 3, 3]]), np.zeros((0, 4))]
SCORES = [np.array([-0.5, 2.0], dtype=np.float32), np.zeros(0, dtype=np.float32)]
WIDE = [np.array([[1.0, 2, 4, 5], [0, 0, 3, 3]]), np.zeros((0, 4))]
FORMS = {
    "detectron2": {"ids": [7, 9], "boxes": BOXES, "objectness_logits": SCORES, "bbox_mode": 0},
    "sizes": {"ids": [7, 9], "boxes": WIDE, "objectness_logits": SCORES, "bbox_mode": 1},
    "Detectron": {"ids": [7, 9], "boxes": BOXES, "scores": SCORES, "cfg": "NUM_GPUS: 8"},
    "older Detectron": {"indexes": ["7", "9"], "boxes": BOXES, "scores": SCORES},
}


@pytest.mark.parametrize("form", FORMS)
def test_pickles_of_other_projects(tmp_path, form):
    path = tmp_path / "proposals.pkl"
    path.write_bytes(pickle.dumps(FORMS[form]))
    found = read_proposals(path)
    assert list(found) == ["7", "9"] and found["9"].boxes.shape == (0, 4) and found["7"].size is None
    assert found["7"].boxes.tolist() == BOXES[0].tolist() and found["7"].objectness.tolist() == [-0.5, 2.0]
    assert found["7"].boxes.dtype == found["7"].objectness.dtype == np.float32


class Trap:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_nothing_in_a_file_is_executed(tmp_path):
    for name, write in (("a.pkl", pickle.dump), ("b.pth", torch.save)):
        with open(tmp_path / name, "wb") as file:
            write([ROW, Trap(tmp_path / "sprung")], file)
        with pytest.raises(ValueError, match=f"proposals, read as .*{name} holds objects.*Nothing in it was executed"):
            read_proposals(tmp_path / name)
    assert not (tmp_path / "sprung").exists()


ROW = {"image_id": 7, "bbox": torch.tensor([[1.0, 2, 5, 7]]), "size": (9, 9), "objectness": torch.ones(1)}
FAULTS = {
    "weights": ({"model": {"conv.weight": torch.zeros(1)}}, r"holds \['model'\]; expected proposals: the predictions.pth"),
    "detections": ([ROW, {"bbox": 0, "size": 0, "scores": 0, "labels": 0}], "entry 1 holds .*'labels', 'scores'.*expected proposals"),
    "no id": ([None, {k: v for k, v in ROW.items() if k != "image_id"}], "entry 1 does not say of which image it is; test the RPN again"),
    "twice": ([ROW, ROW], "two entries for image id 7"),
    "not finite": ([{**ROW, "objectness": torch.tensor([torch.nan])}], "image id 7: values that are not finite"),
    "lengths": ([{**ROW, "objectness": torch.ones(2)}], r"image id 7: expected boxes \[n, 4\].*got \[1, 4\] and 2 scores"),
    "columns": ({**FORMS["Detectron"], "ids": [7]}, r"got \[1, 2, 2\] ids, boxes and scores"),
    "kind of boxes": ({**FORMS["detectron2"], "bbox_mode": 4}, r"bbox_mode: expected 0 \(xyxy\) or 1 \(xywh\), got 4"),
    "number": (3, "holds int; expected proposals"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faulty_files_say_what_is_wrong(tmp_path, fault):
    content, message = FAULTS[fault]
    with open(tmp_path / "x.pth", "wb") as file:
        (pickle.dump if isinstance(content, dict) and "boxes" in content else torch.save)(content, file)
    with pytest.raises(ValueError, match=r"x\.pth.*" + message):
        read_proposals(tmp_path / "x.pth")


def test_ids_that_are_text_or_numbers_of_numpy(tmp_path):
    boxes = BoxList(ROW["bbox"], (9, 9))
    boxes.add_field("objectness", ROW["objectness"])
    save_predictions([boxes, boxes, boxes], str(tmp_path), [np.int64(7), "000012", torch.tensor(8)])
    assert list(read_proposals(tmp_path / "predictions.pth")) == ["7", "000012", "8"]


def test_files_that_do_not_fit_say_so(toy, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"PROPOSAL_FILES_TEST: .*none.pth is no file; expected proposals"):
        make_data_loader(settings(FAST, toy, *with_files("TEST", tmp_path / "none.pth")), is_train=False)
    path = write_objects(toy, "test", tmp_path)
    rows = torch.load(path, weights_only=True)
    cfg = settings(FAST, toy, *with_files("TEST", path))
    torch.save(rows[1:], path)
    with pytest.raises(ValueError, match=r"no proposals for 1 of 4 images: 000004.jpg \(id \d+\)\. It has other images, such as id"):
        make_data_loader(cfg, is_train=False)
    rows[1]["size"] = (12, 34)
    torch.save(rows, path)
    with pytest.raises(ValueError, match="is 12 x 34 there, but 000003.jpg of the data set is 64 x 64"):
        make_data_loader(cfg, is_train=False)


def test_models_that_get_none_and_keys_that_contradict(toy):
    images, targets = scene_of("d2_fast_fpn")
    model, images.proposals = narrow_model("d2_fast_fpn"), None
    for call in (lambda: model(images, targets), lambda: model.eval()(images)):
        with pytest.raises(ValueError, match="MODEL.LOAD_PROPOSALS is True.*PROPOSAL_FILES_TRAIN"):
            call()
    with pytest.raises(ValueError, match="LOAD_PROPOSALS gives regions to heads, but RPN_ONLY"):
        narrow_model("d2_fast_fpn", "MODEL.RPN_ONLY", True)
    with pytest.raises(ValueError, match="COPY_PASTE puts objects where MODEL.LOAD_PROPOSALS"):
        make_data_loader(settings(FAST, generate(toy.parent / "masks", 2, 1, 64), "INPUT.COPY_PASTE", 0.5))
