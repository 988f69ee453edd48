"""The recorded outputs of the reference implementations on known weights, stage by stage; and the judge itself."""

from __future__ import annotations

import json
import sys
import zlib
from types import ModuleType

import numpy as np
import pytest
import torch

from maskrcnn_bench.config import load_config
from maskrcnn_bench.weights.pairing import Boxes, Limits, pair

FIXTURES = [
    "mb/e2e_faster_rcnn_R_50_FPN_1x",
    "mb/e2e_mask_rcnn_R_50_FPN_1x",
    "mb/e2e_faster_rcnn_R_50_C4_1x",
    "d2/faster_rcnn_R_50_FPN_1x",
    "d2/mask_rcnn_R_50_FPN_1x",
    "d2/faster_rcnn_R_50_C4_1x",
    "mb/retinanet_R-50-FPN_1x",
    "d2/keypoint_rcnn_R_50_FPN_1x",
    "jw/vgg16",
    "mm/mask-rcnn_r50_fpn_1x",
    "mm/faster-rcnn_r50-caffe_fpn_1x",
    pytest.param("mm/faster-rcnn_r50_fpn_1x", marks=pytest.mark.full),
    pytest.param("mm/faster-rcnn_r50_fpn_giou_1x", marks=pytest.mark.full),
]


@pytest.fixture(scope="module")
def parity(repository):
    """tools/check_parity.py as a module."""
    sys.path.insert(0, str(repository / "tools"))
    import check_parity

    yield check_parity
    sys.path.remove(str(repository / "tools"))


@pytest.fixture(scope="module")
def fixture_module(parity) -> ModuleType:
    return sys.modules["parity_fixture"]


@pytest.mark.parametrize("name", FIXTURES)
def test_every_stage_is_within_its_tolerance(parity, shared_dir, capsys, name):
    code = parity.main([str(shared_dir / "parity" / name)])
    table = capsys.readouterr().out
    assert code == 0, table
    rows = {line.split()[0] for line in table.splitlines()[2:] if line.startswith("  ") and len(line.split()) > 3}
    stages = {"input", "feat", "rpn", "anchor", "fixed", "prop", "det", "batch", "loss", "grad", "loss_fixed"}
    stages |= {"mask", "mask_target"} if "mask" in name else set()
    stages |= {"kp"} if "keypoint" in name else set()
    stages -= {"fixed", "prop", "loss_fixed"} if "retinanet" in name else set()
    stages = (stages - {"loss_fixed"}) | {"roi_target"} if name.startswith("jw") else stages
    assert stages <= {row.split(".")[0] for row in rows}, "a stage was left out"


@pytest.mark.full
@pytest.mark.parametrize("name", FIXTURES)
def test_the_static_graph_gives_the_same(parity, shared_dir, capsys, name):
    code = parity.main([str(shared_dir / "parity" / name), "--opts", "MODEL.STATIC_SHAPES", "True"])
    assert code == 0, capsys.readouterr().out


def test_gradients_of_a_shared_layer_are_found_by_either_name(parity, monkeypatch):
    shared, other = torch.nn.Linear(2, 1, bias=False), torch.nn.Linear(2, 1, bias=False)
    model = torch.nn.ModuleDict({"box": shared, "mask": shared, "rpn": other})
    (shared(torch.tensor([3.0, 4.0])) + other(torch.tensor([0.0, 12.0]))).sum().backward()

    class Recorded(dict):
        arrays = {"grad.names": np.array(["theirs.mask", "rpn.weight"])}

        def noise(self, name):
            return 0.0

    check = parity.Check.__new__(parity.Check)
    check.model, check.rows, check.our_names = model, [], {"theirs.mask": "mask.weight"}
    check.fixture = Recorded({"grad.norms": np.array([5.0, 12.0]), "grad.total": 13.0})
    check.check_gradients()
    assert [row.difference for row in check.rows] == [0, 0]


def test_a_wrong_number_is_found(parity, shared_dir, capsys):
    """Another rule for the RoIs' corners must show in the box head, and not before."""
    check = parity.Check(parity.Fixture(shared_dir / "parity" / FIXTURES[0]), [])
    check.load()
    check.model.roi_heads.box.feature_extractor.pooler.shift = 0.5
    check.prepare_input()
    with torch.no_grad():
        check.check_features()
        check.check_box_head()
    assert {row.stage for row in check.rows if not row.ok} == {"fixed.logits", "fixed.deltas"}


def test_unknown_folders_and_projects_are_named(parity, tmp_path, capsys):
    for words in ("expected a fixture folder with spec.json", "got 'xx' (another)"):
        with pytest.raises(SystemExit):
            parity.main([str(tmp_path)])
        assert words in capsys.readouterr().err
        (tmp_path / "spec.json").write_text(json.dumps({"short": "xx", "peer": "another"}))


def test_damaged_arrays_are_named(parity, tmp_path, capsys):
    (tmp_path / "spec.json").write_text(json.dumps({"short": "mb", "peer": ""}))
    np.savez(tmp_path / "whole.npz", a=np.zeros(99))
    (tmp_path / "expected.npz").write_bytes((tmp_path / "whole.npz").read_bytes()[:-50])
    with pytest.raises(SystemExit):
        parity.main([str(tmp_path)])
    assert f"{tmp_path}: expected.npz is damaged" in capsys.readouterr().err


def test_detections_that_the_project_dropped_have_no_row(parity):
    boxes = torch.tensor([[0, 0, 2, 2], [0, 3, 5, 3], [1, 1, 4, 4.0]])
    assert parity.places_among(boxes, 2).tolist() == [0, -1, 1]
    assert parity.places_among(boxes, 3).tolist() == [0, 1, 2]


def test_a_fixture_that_cannot_be_checked_does_not_stop_the_next(parity, fixture_module, tmp_path, monkeypatch, capsys):
    for name, config in (("first", "none.yaml"), ("second", "faster_rcnn_R_50_FPN_1x.yaml")):
        (tmp_path / name).mkdir()
        fixture_of(fixture_module, tmp_path / name, config, {"peer": "detectron2"})
    monkeypatch.setattr(parity.Check, "run", lambda check: check.rows + [parity.Row("feat", 0.0, 1e-4)])
    monkeypatch.setattr(parity, "build_detection_model", lambda cfg: torch.nn.Identity())
    monkeypatch.setattr(fixture_module.Fixture, "options", lambda fixture: [])
    assert parity.main([str(tmp_path / "first"), str(tmp_path / "second")]) == 1
    first, *_, last = capsys.readouterr().out.splitlines()
    assert first.startswith(f"{tmp_path / 'first'}: ERROR ValueError: ") and "expected none.yaml" in first
    assert last == "  1 stages, 0 outside the tolerance"


def test_a_batch_without_detections_is_checked_for_its_size_alone(parity, monkeypatch):
    check = parity.Check.__new__(parity.Check)
    recorded = {"batch.crop": torch.tensor([0, 0, 2, 2]), "batch.padded_hw": torch.tensor([32, 32])}
    check.fixture, check.rows, check.image = recorded, [], torch.zeros(3, 4, 4)
    images = parity.to_image_list([check.image], 32)
    monkeypatch.setattr(parity.Check, "image_list", lambda check, tensors: images)
    check.check_batch()
    assert [(row.stage, row.ok) for row in check.rows] == [("batch.padded_hw", True)]


def test_joined_detections_of_several_versions_are_refused(parity, fixture_module, tmp_path):
    fixture = fixture_of(fixture_module, tmp_path, "e2e_mask_rcnn_R_50_FPN_1x.yaml", {"TEST.BBOX_AUG.ENABLED": True}, "mb")
    with pytest.raises(ValueError, match="TEST.BBOX_AUG.ENABLED: expected False"):
        parity.Check(fixture, [])


def fixture_of(fixture_module, folder, config, overrides, short="d2"):
    spec = {"short": short, "peer": "", "config": config, "overrides": overrides, "tensors": []}
    (folder / "spec.json").write_text(json.dumps(spec))
    for name in ("stored.npz", "expected.npz"):
        np.savez(folder / name)
    return fixture_module.Fixture(folder)


def test_our_configuration_is_found_by_its_name_and_whatever_its_schedule(fixture_module, tmp_path):
    for name, ours in (
        ("COCO-Detection/faster_rcnn_R_50_FPN_3x", "faster_rcnn_R_50_FPN_3x"),
        ("COCO-Keypoints/keypoint_rcnn_R_101_FPN_1x", "keypoint_rcnn_R_101_FPN_3x"),
        ("PascalVOC-Detection/faster_rcnn_R_50_C4", "faster_rcnn_R_50_C4"),
    ):
        assert fixture_of(fixture_module, tmp_path, f"{name}.yaml", {}).config_file().stem == ours
    with pytest.raises(ValueError, match="expected sparse_rcnn_R_50.yaml .* add the file"):
        fixture_of(fixture_module, tmp_path, "sparse_rcnn_R_50.yaml", {}).config_file()
    for name in ("r50-caffe_fpn_90k_coco", "r50-caffe_fpn_ms-90k_coco", "r50_fpn_soft-nms_1x_coco"):
        config = fixture_of(fixture_module, tmp_path, f"faster_rcnn/faster-rcnn_{name}.py", {}, "mm").config_file()
        assert config.stem == f"faster-rcnn_{name}".replace("ms-90k", "1x").replace("90k", "1x")


def test_namesakes_in_other_folders_are_other_models(fixture_module, tmp_path):
    files = [
        fixture_of(fixture_module, tmp_path, f"{folder}/keypoint_rcnn_R_50_FPN_1x.yaml", {}).config_file()
        for folder in ("COCO-Keypoints", "Detectron1-Comparisons")
    ]
    first, second = (load_config(file).MODEL.ROI_KEYPOINT_HEAD for file in files)
    assert (first.POOLER_TYPE, first.POOLER_SAMPLING_RATIO) == ("ROIAlign", 0)
    assert (second.POOLER_TYPE, second.POOLER_SAMPLING_RATIO) == ("ROIAlignV1", 2)
    with pytest.raises(ValueError, match="LVISv1/mask_rcnn_R_50_FPN_1x.yaml is not in .*; add the file"):
        fixture_of(fixture_module, tmp_path, "LVISv1/mask_rcnn_R_50_FPN_1x.yaml", {}).config_file()


def test_detectron2s_overrides_in_our_words(fixture_module, tmp_path):
    theirs = {
        "MODEL.WEIGHTS": "",
        "MODEL.ROI_HEADS.NUM_CLASSES": 20,
        "MODEL.RPN.IOU_THRESHOLDS": [0.3, 0.7],
        "MODEL.RPN.POST_NMS_TOPK_TEST": 9,
    }
    options = fixture_of(fixture_module, tmp_path, "x.yaml", theirs).options()
    assert dict(zip(options[::2], options[1::2])) == {
        "MODEL.ROI_BOX_HEAD.NUM_CLASSES": 21,
        "MODEL.RPN.BG_IOU_THRESHOLD": 0.3,
        "MODEL.RPN.FG_IOU_THRESHOLD": 0.7,
        "MODEL.RPN.POST_NMS_TOP_N_TEST": 9,
        "MODEL.RPN.FPN_POST_NMS_TOP_N_TEST": 9,
    }


# Their override: what it is here.
OVERRIDES = [
    ("d2", "MODEL.RETINANET.BBOX_REG_LOSS_TYPE", "giou", {"MODEL.RETINANET.BOX_REG_LOSS": "giou"}),
    ("d2", "MODEL.PROPOSAL_GENERATOR.MIN_SIZE", 4, {"MODEL.RPN.MIN_SIZE": 4}),
    ("d2", "MODEL.RPN.BOUNDARY_THRESH", 0, {"MODEL.RPN.STRADDLE_THRESH": 0}),
    ("d2", "MODEL.FPN.OUT_CHANNELS", 64, {"MODEL.RESNETS.BACKBONE_OUT_CHANNELS": 64}),
    ("d2", "MODEL.RESNETS.DEFORM_NUM_GROUPS", 4, {"MODEL.RESNETS.DEFORMABLE_GROUPS": 4}),
    ("d2", "MODEL.ROI_BOX_HEAD.FC_DIM", 64, {"MODEL.ROI_BOX_HEAD.MLP_HEAD_DIM": 64}),
    ("d2", "MODEL.ROI_BOX_HEAD.CONV_DIM", 64, {"MODEL.ROI_BOX_HEAD.CONV_HEAD_DIM": 64}),
    ("d2", "MODEL.ROI_BOX_HEAD.NUM_CONV", 2, {"MODEL.ROI_BOX_HEAD.NUM_STACKED_CONVS": 2}),
    ("d2", "MODEL.ROI_BOX_HEAD.NORM", "SyncBN", {"MODEL.ROI_BOX_HEAD.NORM": "BN"}),
    ("d2", "MODEL.ROI_MASK_HEAD.NORM", "GN", {"MODEL.ROI_MASK_HEAD.NORM": "GN"}),
    ("d2", "MODEL.ROI_MASK_HEAD.POOLER_TYPE", "ROIAlign", {"MODEL.ROI_MASK_HEAD.POOLER_TYPE": "ROIAlignV1"}),
    ("d2", "MODEL.ROI_BOX_HEAD.POOLER_TYPE", "ROIAlignV2", {"MODEL.ROI_BOX_HEAD.POOLER_TYPE": "ROIAlignV2"}),
    ("mb", "MODEL.ROI_BOX_HEAD.POOLER_TYPE", "ROIAlign", {"MODEL.ROI_BOX_HEAD.POOLER_TYPE": "ROIAlign"}),
    ("mm", "test_pipeline Resize.scale", [300, 1333], {"INPUT.MAX_SIZE_TEST": 1333, "INPUT.MIN_SIZE_TEST": 300}),
    ("mm", "test_pipeline Resize.scale", [1333, 300], {"INPUT.MAX_SIZE_TEST": 1333, "INPUT.MIN_SIZE_TEST": 300}),
    *(
        ("mm", f"model.train_cfg.rcnn{stage}.sampler.num", 7, {"MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": 7})
        for stage in ("", ".1", ".*", "[*]", "[2]", "[0..2]")
    ),
]


@pytest.mark.parametrize("short, key, value, expected", OVERRIDES, ids=[f"{o[1]} {o[2]}" for o in OVERRIDES])
def test_overrides_in_our_words(fixture_module, tmp_path, short, key, value, expected):
    options = fixture_of(fixture_module, tmp_path, "x.yaml", {key: value}, short).options()
    assert dict(zip(options[::2], options[1::2])) == expected
    load_config(opts=options)


def test_two_of_their_keys_that_are_one_here_must_agree(fixture_module, tmp_path):
    train, test = "model.train_cfg.rpn_proposal.nms.iou_threshold", "model.test_cfg.rpn.nms.iou_threshold"
    assert fixture_of(fixture_module, tmp_path, "x.py", {train: 0.6, test: 0.6}, "mm").options() == ["MODEL.RPN.NMS_THRESH", 0.6]
    for overrides in ({train: 0.6, test: 0.5}, {test: 0.6}):
        with pytest.raises(ValueError, match=f"{train} and {test} are one key here"):
            fixture_of(fixture_module, tmp_path, "x.py", overrides, "mm").options()
    with pytest.raises(ValueError, match="says 8 for MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE, another override 7"):
        stages = {f"model.train_cfg.rcnn.{stage}.sampler.num": 7 + stage for stage in range(2)}
        fixture_of(fixture_module, tmp_path, "x.py", stages, "mm").options()


def test_weights_follow_from_their_names(fixture_module, tmp_path):
    spec = {
        "short": "mb",
        "tensors": [["a", [2, 3], "float32", "normal", 0.5], ["b", [2], "float32", "stored", None], ["c", [2, 3], "float32", "same", "a"]],
    }
    (tmp_path / "spec.json").write_text(json.dumps(spec))
    np.savez(tmp_path / "stored.npz", b=np.ones(2, np.float32))
    np.savez(tmp_path / "expected.npz", **{"gt.labels": np.zeros(0)})
    state = fixture_module.Fixture(tmp_path).state_dict()
    drawn = np.random.Generator(np.random.PCG64(zlib.crc32(b"a"))).standard_normal((2, 3), dtype=np.float32) * np.float32(0.5)
    assert np.array_equal(state["a"].numpy(), drawn) and state["c"] is state["a"] and state["b"].tolist() == [1, 1]


def test_overrides_of_one_value_stay_lists_where_the_key_is_a_list(fixture_module, tmp_path):
    overrides = {"MODEL.RPN.ANCHOR_STRIDE": [16], "INPUT.MIN_SIZE_TRAIN": [300], "INPUT.MIN_SIZE_TEST": 300}
    (tmp_path / "spec.json").write_text(json.dumps({"short": "mb", "config": "e2e_mask_rcnn_R_50_C4_1x.yaml", "overrides": overrides}))
    np.savez(tmp_path / "expected.npz")
    fixture = fixture_module.Fixture(tmp_path)
    config = load_config(fixture.config_file(), fixture.options())
    assert (config.MODEL.RPN.ANCHOR_STRIDE, config.INPUT.MIN_SIZE_TRAIN, config.INPUT.MIN_SIZE_TEST) == ((16,), (300,), 300)


def scored(boxes, scores, labels=None):
    labels = torch.tensor(labels) if labels else torch.ones(len(boxes))
    return Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4), torch.tensor(scores), labels, 0)


def judge(theirs, ours):
    return pair(theirs, ours, Limits(0.001, 1e-4, 0.5, 0.05))


FAR = [500.0, 500.0, 600.0, 600.0]


def test_pairs_do_not_depend_on_the_order():
    boxes, scores, labels = [[0, 0, 100, 100], [0, 0, 100, 100], FAR], [0.9, 0.8, 0.7], [1, 2, 1]
    theirs = scored(boxes, scores, labels)
    ours = scored(boxes[::-1], scores[::-1], labels[::-1])
    found = judge(theirs, ours)
    assert dict(zip(found.theirs, found.ours)) == {0: 2, 1: 1, 2: 0}
    assert not found.swapped and not found.lost


@pytest.mark.parametrize(
    "box, score, label",
    [([0, 0, 101, 100], 0.9, 1), ([0, 0, 100, 100], 0.89, 1), ([0, 0, 100, 100], 0.9, 2)],
    ids=["moved", "other score", "other label"],
)
def test_a_box_that_differs_is_lost_on_both_sides(box, score, label):
    theirs = scored([[0, 0, 100, 100], FAR], [0.9, 0.3], [1, 1])
    ours = scored([box, FAR], [score, 0.3], [label, 1])
    found = judge(theirs, ours)
    assert len(found.lost) == 2 and not found.swapped


def test_boxes_at_a_threshold_are_excused_with_a_reason():
    box = [0, 0, 100, 100]
    far = scored([FAR], [0.3])
    for boxes, scores, reason in (
        ([FAR, box], [0.3, 0.05005], "score threshold"),
        ([FAR, box], [0.3, 0.30004], "end of the list"),
        ([FAR, [500, 500, 600, 700.0]], [0.3, 0.9], "overlap of suppression"),
    ):
        found = judge(scored(boxes, scores), far)
        assert not found.lost and len(found.swapped) == 1 and reason in found.swapped[0]


def test_rivals_and_what_they_suppress_may_change_places():
    """Two boxes of equal score: one implementation keeps the tall one, which suppresses a third; the other keeps the low one."""
    tall, low, third = [0, 0, 100, 100], [0, 0, 100, 60], [0, 0, 100, 170]
    theirs = scored([tall, FAR], [0.8, 0.2])
    ours = scored([low, third, FAR], [0.8, 0.4, 0.2])
    found = judge(theirs, ours)
    assert not found.lost
    assert sorted(text.rsplit(": ")[1] for text in found.swapped) == [
        "free of a box that was exchanged",
        *["scores as much as a rival that it overlaps"] * 2,
    ]
    # Without the exchange the third box has no excuse.
    assert len(judge(theirs, scored([tall, third, FAR], [0.8, 0.4, 0.2])).lost) == 1
