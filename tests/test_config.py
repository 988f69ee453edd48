"""The config: defaults, YAML files, overrides, errors and catalogs."""

import json
import os
import re

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from maskrcnn_bench.config import CfgNode, cfg, diff, explicit_keys, get_defaults, load_config, resolved
from maskrcnn_bench.config.command import key_comments
from maskrcnn_bench.config.node import leaves, parse_overrides
from maskrcnn_bench.config.paths_catalog import DatasetCatalog, ModelCatalog, import_file
from maskrcnn_bench.config.yaml_files import shipped_configs

YAMLS = sorted(p.relative_to(shipped_configs()).as_posix() for p in shipped_configs().rglob("*.yaml"))

# Where a YAML of detectron2 says the same as one of ours, by detectron2's name of the key.
DETECTRON2_KEYS = {
    "MODEL.MASK_ON": "MODEL.MASK_ON",
    "MODEL.PIXEL_MEAN": "INPUT.PIXEL_MEAN",
    "MODEL.PIXEL_STD": "INPUT.PIXEL_STD",
    "MODEL.BACKBONE.FREEZE_AT": "MODEL.BACKBONE.FREEZE_CONV_BODY_AT",
    "MODEL.RPN.BOUNDARY_THRESH": "MODEL.RPN.STRADDLE_THRESH",
    "MODEL.RPN.BATCH_SIZE_PER_IMAGE": "MODEL.RPN.BATCH_SIZE_PER_IMAGE",
    "MODEL.RPN.POSITIVE_FRACTION": "MODEL.RPN.POSITIVE_FRACTION",
    "MODEL.RPN.PRE_NMS_TOPK_TRAIN": "MODEL.RPN.PRE_NMS_TOP_N_TRAIN",
    "MODEL.RPN.PRE_NMS_TOPK_TEST": "MODEL.RPN.PRE_NMS_TOP_N_TEST",
    "MODEL.RPN.POST_NMS_TOPK_TRAIN": "MODEL.RPN.POST_NMS_TOP_N_TRAIN",
    "MODEL.RPN.POST_NMS_TOPK_TEST": "MODEL.RPN.POST_NMS_TOP_N_TEST",
    "MODEL.RPN.NMS_THRESH": "MODEL.RPN.NMS_THRESH",
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE",
    "MODEL.ROI_HEADS.POSITIVE_FRACTION": "MODEL.ROI_HEADS.POSITIVE_FRACTION",
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST": "MODEL.ROI_HEADS.SCORE_THRESH",
    "MODEL.ROI_HEADS.NMS_THRESH_TEST": "MODEL.ROI_HEADS.NMS",
    "MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS": "MODEL.ROI_HEADS.BBOX_REG_WEIGHTS",
    "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION": "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION",
    "MODEL.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO": "MODEL.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO",
    "MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION": "MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION",
    "MODEL.ROI_MASK_HEAD.POOLER_SAMPLING_RATIO": "MODEL.ROI_MASK_HEAD.POOLER_SAMPLING_RATIO",
    "MODEL.RESNETS.STRIDE_IN_1X1": "MODEL.RESNETS.STRIDE_IN_1X1",
    "INPUT.MIN_SIZE_TRAIN": "INPUT.MIN_SIZE_TRAIN",
    "INPUT.MAX_SIZE_TRAIN": "INPUT.MAX_SIZE_TRAIN",
    "INPUT.MIN_SIZE_TEST": "INPUT.MIN_SIZE_TEST",
    "INPUT.MAX_SIZE_TEST": "INPUT.MAX_SIZE_TEST",
    "DATASETS.TRAIN": "DATASETS.TRAIN",
    "DATASETS.TEST": "DATASETS.TEST",
    "MODEL.LOAD_PROPOSALS": "MODEL.LOAD_PROPOSALS",
    "DATASETS.PROPOSAL_FILES_TRAIN": "DATASETS.PROPOSAL_FILES_TRAIN",
    "DATASETS.PROPOSAL_FILES_TEST": "DATASETS.PROPOSAL_FILES_TEST",
    "DATASETS.PRECOMPUTED_PROPOSAL_TOPK_TRAIN": "DATASETS.PRECOMPUTED_PROPOSAL_TOPK_TRAIN",
    "DATASETS.PRECOMPUTED_PROPOSAL_TOPK_TEST": "DATASETS.PRECOMPUTED_PROPOSAL_TOPK_TEST",
    "DATALOADER.ASPECT_RATIO_GROUPING": "DATALOADER.ASPECT_RATIO_GROUPING",
    "SOLVER.MAX_ITER": "SOLVER.MAX_ITER",
    "SOLVER.BASE_LR": "SOLVER.BASE_LR",
    "SOLVER.MOMENTUM": "SOLVER.MOMENTUM",
    "SOLVER.WEIGHT_DECAY": "SOLVER.WEIGHT_DECAY",
    "SOLVER.GAMMA": "SOLVER.GAMMA",
    "SOLVER.STEPS": "SOLVER.STEPS",
    "SOLVER.WARMUP_FACTOR": "SOLVER.WARMUP_FACTOR",
    "SOLVER.WARMUP_ITERS": "SOLVER.WARMUP_ITERS",
    "SOLVER.WARMUP_METHOD": "SOLVER.WARMUP_METHOD",
    "SOLVER.CHECKPOINT_PERIOD": "SOLVER.CHECKPOINT_PERIOD",
    "SOLVER.IMS_PER_BATCH": "SOLVER.IMS_PER_BATCH",
    "SOLVER.BIAS_LR_FACTOR": "SOLVER.BIAS_LR_FACTOR",
    "TEST.DETECTIONS_PER_IMAGE": "TEST.DETECTIONS_PER_IMG",
}


def plain(value):
    """Tuples as lists, all the way down."""
    return [plain(v) for v in value] if isinstance(value, (tuple, list)) else value


def values(config) -> dict:
    return {key: plain(value) for key, value in leaves(config)}


def golden(repository, name: str) -> dict:
    return json.loads((repository / "tests" / "golden" / name).read_text())


# Defaults


def test_defaults_are_those_of_maskrcnn_benchmark_but_for_the_device(repository):
    reference = golden(repository, "config_keys.json")
    ours = values(get_defaults())
    assert len(reference) == 170  # the 171st is PATHS_CATALOG, a path
    assert reference.pop("MODEL.DEVICE") == "cuda" and ours["MODEL.DEVICE"] == "auto"
    assert {key: ours[key] for key in reference} == reference
    assert os.path.isfile(ours["PATHS_CATALOG"])


def test_golden_defaults_are_the_recorded_facts(repository, shared_dir):
    facts = json.loads((shared_dir / "facts" / "maskrcnn_benchmark_keys.json").read_text())
    assert len(facts) == 171
    facts.pop("PATHS_CATALOG")
    assert golden(repository, "config_keys.json") == facts


def test_every_key_is_explained_and_every_count_says_of_what():
    comments = key_comments()
    config = dict(leaves(get_defaults()))
    assert [key for key in config if len(comments.get(key, "")) < 10] == []
    counts = [k for k in config if re.search(r"TOP_N|IMS_PER_BATCH|PER_IMG|SIZE_PER_IMAGE|NUM_WORKERS", k)]
    assert len(counts) >= 15
    assert [k for k in counts if not re.search(r"per image|per GPU|one GPU|over all GPUs", comments[k])] == []


# YAML files


@pytest.mark.parametrize("name", YAMLS)
def test_yaml_gives_the_golden_values(repository, name):
    config = load_config(name)
    expected = golden(repository, "config_yamls.json")[name]
    assert {key: plain(value) for key, _, value in diff(config)} == expected
    first_line = (shipped_configs() / name).read_text().splitlines()[0]
    assert first_line.startswith("# ") and first_line.endswith((".", ":", ")"))


def test_golden_yamls_are_all_shipped_ones(repository):
    assert sorted(golden(repository, "config_yamls.json")) == YAMLS


def test_yamls_merge_to_what_the_originals_say(shared_dir):
    trees = json.loads((shared_dir / "facts" / "maskrcnn_benchmark_yamls.json").read_text())
    for name in sorted(set(trees) & set(YAMLS)):
        original = get_defaults()
        original.merge_from_other_cfg(CfgNode(trees[name]))
        assert values(load_config(name)) == values(original), name
        assert explicit_keys(name)[0] == {key for key, _ in leaves(trees[name])}, name


def test_every_original_yaml_merges_unchanged(shared_dir, tmp_path):
    trees = json.loads((shared_dir / "facts" / "maskrcnn_benchmark_yamls.json").read_text())
    assert len(trees) == 66
    for tree in trees.values():
        path = tmp_path / "original.yaml"
        path.write_text(yaml.safe_dump(tree))
        config = load_config(path)
        # The originals write tuples as text; a merge must have read them.
        assert not any(isinstance(v, str) and v.startswith("(") for _, v in leaves(config))
        assert config.SOLVER.STEPS and all(isinstance(step, int) for step in config.SOLVER.STEPS)


# detectron2's configurations without a file here: of a base, and of pixels without objects.
DETECTRON2_LEFT_OUT = {"Base-Keypoint-RCNN-FPN", "panoptic_fpn_R_101_dconv_cascade_gn_3x", "semantic_R_50_FPN_1x"}
# How it calls data sets that have another name here, or are two.
DETECTRON2_DATA = {
    "voc_2007_trainval": ["voc_2007_train", "voc_2007_val"],
    "voc_2012_trainval": ["voc_2012_train", "voc_2012_val"],
    "cityscapes_fine_instance_seg_train": ["cityscapes_poly_instance_train"],
    "cityscapes_fine_instance_seg_val": ["cityscapes_poly_instance_val"],
}


def test_every_detectron2_yaml_says_what_detectron2_says(shared_dir):
    facts = json.loads((shared_dir / "facts" / "detectron2_configs.json").read_text())
    models = {name.split("/")[-1].removesuffix(".yaml"): changes for name, changes in facts["configs"].items()}
    assert len(models) == 48
    for model in sorted(models.keys() - DETECTRON2_LEFT_OUT):
        says_what_detectron2_says(model, {**facts["defaults"], **models[model]})


def says_what_detectron2_says(model, theirs):
    ours = values(load_config(f"detectron2/{model}.yaml"))
    for key in ("DATASETS.TRAIN", "DATASETS.TEST"):
        theirs[key] = [name for known in theirs[key] for name in DETECTRON2_DATA.get(known, [known])]
    unused = ("MODEL.RPN.", "MODEL.ROI_") if "retinanet" in model else ()
    keys = {t: k for t, k in DETECTRON2_KEYS.items() if not t.startswith(unused)}
    assert {k: ours[k] for k in keys.values()} == {k: theirs[t] for t, k in keys.items()}, model
    classes = "MODEL.RETINANET.NUM_CLASSES" if "retinanet" in model else "MODEL.ROI_HEADS.NUM_CLASSES"
    assert ours[classes.replace("ROI_HEADS", "ROI_BOX_HEAD")] == theirs[classes] + 1, model
    # Biases decay like weights there unless told otherwise.
    assert theirs["SOLVER.WEIGHT_DECAY_BIAS"] is None and ours["SOLVER.WEIGHT_DECAY_BIAS"] == theirs["SOLVER.WEIGHT_DECAY"]
    assert ours["MODEL.DIALECT"] == "detectron2"
    if "FPN" in model and "retinanet" not in model:
        assert ours["MODEL.RPN.FPN_POST_NMS_TOP_N_TRAIN"] == theirs["MODEL.RPN.POST_NMS_TOPK_TRAIN"]
        assert ours["MODEL.RPN.FPN_POST_NMS_TOP_N_TEST"] == theirs["MODEL.RPN.POST_NMS_TOPK_TEST"]
        assert not ours["MODEL.RPN.FPN_POST_NMS_PER_BATCH"]
    assert ours["DATALOADER.SIZE_DIVISIBILITY"] == (32 if "FPN" in model else 0)


def test_base_is_relative_to_the_file_that_names_it_and_later_files_win(tmp_path):
    (tmp_path / "deep").mkdir()
    (tmp_path / "root.yaml").write_text("SOLVER: {MAX_ITER: 1, BASE_LR: 0.5, STEPS: '(3, 4)'}\nMODEL: {MASK_ON: True}\n")
    (tmp_path / "deep" / "middle.yaml").write_text("_BASE_: ../root.yaml\nSOLVER: {MAX_ITER: 2}\n")
    leaf = tmp_path / "deep" / "leaf.yaml"
    leaf.write_text("_BASE_: middle.yaml\nSOLVER: {STEPS: [5]}\n")
    config = load_config(leaf)
    assert (config.SOLVER.MAX_ITER, config.SOLVER.BASE_LR, config.SOLVER.STEPS, config.MODEL.MASK_ON) == (2, 0.5, (5,), True)
    assert explicit_keys(leaf, ["SEED=4"]) == ({"SOLVER.MAX_ITER", "SOLVER.BASE_LR", "SOLVER.STEPS", "MODEL.MASK_ON"}, {"SEED"})


def test_base_that_leads_back_or_nowhere_is_reported(tmp_path):
    (tmp_path / "a.yaml").write_text("_BASE_: b.yaml\n")
    (tmp_path / "b.yaml").write_text("_BASE_: a.yaml\n")
    with pytest.raises(ValueError, match="lead back to itself: a.yaml -> b.yaml"):
        load_config(tmp_path / "a.yaml")
    (tmp_path / "c.yaml").write_text("_BASE_: bb.yaml\n")
    with pytest.raises(FileNotFoundError, match=r"c\.yaml: its _BASE_ file .*bb\.yaml does not exist.*b\.yaml"):
        load_config(tmp_path / "c.yaml")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("SOLVER: {BASE_RL: 0.1}", "unknown key SOLVER.BASE_RL. Did you mean SOLVER.BASE_LR"),
        ("SOLVERS: {BASE_LR: 0.1}", "unknown key SOLVERS.BASE_LR. Did you mean SOLVER.BASE_LR"),
        ("SOLVER: 3", "SOLVER is a section with the keys"),
        ("SOLVER: {BASE_LR: fast}", "SOLVER.BASE_LR expects a number such as 0.001, got 'fast'"),
        ("MODEL: {MASK_ON: 1}", "MODEL.MASK_ON expects True or False such as False, got 1"),
        ("MODEL: {WEIGHT: }", "MODEL.WEIGHT expects a text such as '', got None"),
        ("SOLVER: {STEPS: 100}", "SOLVER.STEPS expects a list such as (30000,), got 100"),
        ("SOLVER: {STEPS: [a, b]}", "SOLVER.STEPS expects a list of numbers such as (30000,), got 'a'"),
        ("SOLVER: {IMS_PER_BATCH: 2.5}", "SOLVER.IMS_PER_BATCH expects a whole number such as 16, got 2.5"),
        ("DTYPE: float61", "DTYPE expects one of float32, float16, bfloat16; got 'float61'. Did you mean float16?"),
        ("- a\n- b", "expected sections and keys such as 'MODEL:', got a list"),
        ("SOLVER: {BASE_LR: [", "not a YAML file"),
    ],
)
def test_faulty_yaml_is_reported_with_file_key_and_remedy(tmp_path, text, message):
    path = tmp_path / "faulty.yaml"
    path.write_text(text)
    with pytest.raises(ValueError) as caught:
        load_config(path)
    assert str(caught.value).startswith(f"{path}: ") and message in str(caught.value)


def test_missing_file_names_similar_ones(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"Did you mean \S*e2e_mask_rcnn_R_50_FPN_1x.yaml"):
        load_config("configs/e2e_mask_rcn_R_50_FPN_1x.yaml")
    (tmp_path / "mine.yaml").write_text("SEED: 1")
    with pytest.raises(FileNotFoundError, match=r"Did you mean .*mine\.yaml"):
        load_config(tmp_path / "mime.yaml")
    with pytest.raises(FileNotFoundError, match="is a folder"):
        load_config(tmp_path)


def test_shipped_configs_are_found_by_name_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    by_name = load_config("e2e_mask_rcnn_R_50_FPN_1x.yaml")
    assert by_name == load_config("configs/e2e_mask_rcnn_R_50_FPN_1x.yaml") and by_name.MODEL.MASK_ON
    (tmp_path / "e2e_mask_rcnn_R_50_FPN_1x.yaml").write_text("SEED: 9")
    assert load_config("e2e_mask_rcnn_R_50_FPN_1x.yaml").SEED == 9


# Overrides


def test_overrides_of_both_forms_mix_and_the_last_one_wins():
    words = ["SOLVER.BASE_LR", "1e-2", "MODEL.MASK_ON=true", "OUTPUT_DIR=runs/a=b", "SOLVER.STEPS", "(1, 2)", "SEED", 7]
    words += ["DATASETS.TRAIN=('a',)", "SOLVER.BASE_LR=1", "MODEL.STATIC_SHAPES=False", "TEST.BBOX_AUG.SCALES=[400]"]
    config = load_config(None, words)
    assert type(config.SOLVER.BASE_LR) is float and config.SOLVER.BASE_LR == 1.0
    assert (config.MODEL.MASK_ON, config.OUTPUT_DIR, config.SEED, config.MODEL.STATIC_SHAPES) == (True, "runs/a=b", 7, False)
    assert (config.SOLVER.STEPS, config.DATASETS.TRAIN, config.TEST.BBOX_AUG.SCALES) == ((1, 2), ("a",), (400,))


def test_texts_stay_texts():
    config = load_config(None, ["OUTPUT_DIR", "2024", "MODEL.FBNET.ARCH_DEF", '{"a": 1}', "DTYPE", '"float16"', "MODEL.WEIGHT=None"])
    assert (config.OUTPUT_DIR, config.MODEL.FBNET.ARCH_DEF, config.DTYPE, config.MODEL.WEIGHT) == ("2024", '{"a": 1}', "float16", "None")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["SOLVER.LR", "1"], "command line: unknown key SOLVER.LR. Did you mean SOLVER.BASE_LR"),
        (["solver.base_lr=1"], "Did you mean SOLVER.BASE_LR"),
        (["MODEL.RPN.NMS=0.5"], "MODEL.ROI_HEADS.NMS"),
        (["SEED", "1", "DTYPE"], "expected KEY VALUE or KEY=VALUE, got 'DTYPE' and nothing after it"),
        (["QQ.ZZZZZZ", "1"], "`maskrcnn-bench config keys` lists all keys"),
        (["MODEL.STATIC_SHAPES=yes"], "expects one of auto, True, False; got 'yes'"),
        (["MODEL.STATIC_SHAPES=1"], "expects one of auto, True, False; got '1'"),
        (["SOLVER.BASE_LR=None"], "SOLVER.BASE_LR expects a number"),
        (["MODEL.RPN.NMS_THRESH=7"], "command line: MODEL.RPN.NMS_THRESH expects a number from 0 to 1, got 7.0"),
        (["SOLVER.BASE_LR=-0.1"], "SOLVER.BASE_LR expects 0 or more, got -0.1"),
        (["SOLVER.BASE_LR", "1e999"], "SOLVER.BASE_LR expects finite numbers, got '1e999'"),
        (["INPUT.PIXEL_MEAN", "(1e999, 1, 1)"], "INPUT.PIXEL_MEAN expects finite numbers"),
        (["SOLVER.WARMUP_ITERS=-3"], "SOLVER.WARMUP_ITERS expects 0 or more, got -3"),
        (["TEST.SOFT_NMS.SIGMA=0"], "TEST.SOFT_NMS.SIGMA expects more than 0, got 0.0"),
        (["INPUT.MIN_SIZE_TRAIN=(800, 0)"], "INPUT.MIN_SIZE_TRAIN expects 1 or more, got 0 in (800, 0)"),
        (["INPUT.MIN_SIZE_TRAIN=()"], "INPUT.MIN_SIZE_TRAIN expects at least one number, each 1 or more, got ()"),
        (["SOLVER.CHECKPOINT_PERIOD=0"], "SOLVER.CHECKPOINT_PERIOD expects 1 or more, got 0"),
        (["DATASETS.TRAIN=a"], "DATASETS.TRAIN expects a list such as \"('name',)\", got 'a'"),
        (["DATALOADER.DATASET_REPEATS=2"], "DATALOADER.DATASET_REPEATS expects a list such as \"(1.0, 0.25)\", got '2'"),
        (["DATALOADER.DATASET_REPEATS=('a',)"], "DATALOADER.DATASET_REPEATS expects a list of numbers such as (1.0, 0.25), got 'a'"),
        (["TEST.CLASS_SCORE_THRESH={'a': 0.3}"], "TEST.CLASS_SCORE_THRESH expects a list such as \"[['person', 0.3]]\""),
    ],
)
def test_faulty_overrides_are_reported(words, message):
    with pytest.raises(ValueError) as caught:
        load_config(None, words)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "words",
    [
        ["SOLVER.CHECKPOINT_PERIOD=2e", "SOLVER.TEST_PERIOD=0", "SOLVER.STEPS=()", "SOLVER.MAX_EPOCHS=0"],
        ["MODEL.RPN.STRADDLE_THRESH=-1", "MODEL.RPN.SMOOTH_L1_BETA=-1", "SOLVER.WEIGHT_DECAY_NORM=-1", "MODEL.GROUP_NORM.DIM_PER_GP=-1"],
        [
            "INPUT.SCALE_JITTER=(0.1, 2)",
            "INPUT.SCALE_JITTER=()",
            "DATALOADER.SHAPE_BUCKETS=[[64, 96]]",
            "MODEL.FBNET.DET_HEAD_LAST_SCALE=-1",
        ],
    ],
)
def test_values_that_mean_off_are_taken(words):
    load_config(None, words)
    copy = get_defaults().clone()
    with pytest.raises(ValueError, match="HUE expects a number from 0 to 0.5"):
        copy.merge_from_list([*words, "INPUT.HUE", 0.6])


@given(st.lists(st.tuples(st.sampled_from(["SEED", "SOLVER.MAX_ITER", "TEST.IMS_PER_BATCH"]), st.integers(1, 10**9), st.booleans())))
def test_overrides_mean_the_same_in_either_form(items):
    words = [word for key, value, joined in items for word in ([f"{key}={value}"] if joined else [key, str(value)])]
    assert parse_overrides(words) == [(key, str(value)) for key, value, _ in items]
    config = load_config(None, words)
    assert {key: values(config)[key] for key, _, _ in items} == {key: value for key, value, _ in items}


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "SOLVER.BASE_LR": st.floats(1e-9, 10),
            "SOLVER.STEPS": st.lists(st.integers(0, 10**6), max_size=4).map(tuple),
            "MODEL.WEIGHT": st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs", "Zl", "Zp"]), max_size=12),
            "DATASETS.TRAIN": st.lists(st.from_regex(r"[a-z_0-9]{1,8}", fullmatch=True), max_size=3).map(tuple),
            "MODEL.STATIC_SHAPES": st.sampled_from(["auto", True, False]),
            "TEST.EXPECTED_RESULTS": st.just([["bbox", "AP", 0.3, 0.01]]),
        },
    )
)
def test_resolved_text_gives_the_same_config_again(tmp_path_factory, settings):
    config = get_defaults()
    config.merge_leaves(settings.items(), "test")
    path = tmp_path_factory.mktemp("resolved") / "config.yml"
    path.write_text(resolved(config), encoding="utf-8")
    assert load_config(path) == config
    changed = {key: value for key, value in settings.items() if dict(leaves(get_defaults()))[key] != value}
    assert {key: value for key, _, value in diff(config)} == changed


def test_resolved_text_names_no_place_on_this_machine():
    assert "PATHS_CATALOG" not in resolved(load_config())
    assert "PATHS_CATALOG: mine.py" in resolved(load_config(None, ["PATHS_CATALOG=mine.py"]))


# The classical interface


def test_classical_interface():
    ours = cfg.clone()
    ours.merge_from_file(shipped_configs() / "e2e_faster_rcnn_R_50_FPN_1x.yaml")
    ours.merge_from_list(["SOLVER.IMS_PER_BATCH", 2, "MODEL.DEVICE", "cpu"])
    ours.freeze()
    assert (ours.SOLVER.IMS_PER_BATCH, ours.MODEL.DEVICE, ours.MODEL.RPN.USE_FPN) == (2, "cpu", True)
    assert cfg == get_defaults()
    with pytest.raises(AttributeError):
        ours.SEED = 1
    with pytest.raises(ValueError, match="frozen"):
        ours.merge_from_list(["SEED", 1])
    assert ours.SEED == 0


def test_failed_merge_changes_nothing():
    config = get_defaults()
    with pytest.raises(ValueError):
        config.merge_from_list(["SEED", 5, "SOLVER.BASE_LR", "fast"])
    assert config == get_defaults()


def test_users_can_add_sections_of_their_own():
    config = get_defaults()
    config.MODEL.MY_HEAD = CfgNode({"WIDTH": 8, "NAME": None})
    config.merge_from_list(["MODEL.MY_HEAD.WIDTH", "16", "MODEL.MY_HEAD.NAME=wide"])
    assert (config.MODEL.MY_HEAD.WIDTH, config.MODEL.MY_HEAD.NAME) == (16, "wide")
    with pytest.raises(ValueError, match="MODEL.MY_HEAD.WIDTH"):
        config.merge_from_list(["MODEL.MY_HEAD.WITH=1"])


# Catalogs


def test_catalog_has_all_names_of_maskrcnn_benchmark(shared_dir):
    facts = json.loads((shared_dir / "facts" / "maskrcnn_benchmark_catalog.json").read_text())
    assert facts["datasets"].keys() <= DatasetCatalog.DATASETS.keys()
    for name, entry in facts["datasets"].items():
        assert DatasetCatalog.DATASETS[name] == {k: v.rstrip("/") if isinstance(v, str) else v for k, v in entry.items()}
    models = facts["models"]
    assert models["C2_IMAGENET_MODELS"] == ModelCatalog.C2_IMAGENET_MODELS
    assert models["C2_DETECTRON_MODELS"] == ModelCatalog.C2_DETECTRON_MODELS
    assert models["C2_DETECTRON_SUFFIX"].replace("{}", "") == ModelCatalog.C2_DETECTRON_SUFFIX.format("")


@pytest.mark.parametrize(
    ("name", "factory", "args"),
    [
        ("coco_2014_minival", "COCODataset", {"root": "R/coco/val2014", "ann_file": "R/coco/annotations/instances_minival2014.json"}),
        ("voc_2007_test", "PascalVOCDataset", {"data_dir": "R/voc/VOC2007", "split": "test"}),
        ("voc_2012_val_cocostyle", "COCODataset", {"ann_file": "R/voc/VOC2012/Annotations/pascal_val2012.json"}),
        ("cityscapes_mask_instance_minival", "CityScapesDataset", {"ann_dir": "R/cityscapes/gtFine", "mode": "mask", "mini": 10}),
        ("vg_train", "VisualGenomeDataset", {"ann_file": "R/vg/objects.json", "image_list": "R/vg/train.txt"}),
        ("imagenet_det_val", "ImageNetDETDataset", {"map_file": "R/imagenet/map_det.txt", "split": "val"}),
    ],
)
def test_data_set_lookup(name, factory, args):
    entry = DatasetCatalog.get(name, root="R")
    assert entry["factory"] == factory and args.items() <= entry["args"].items()


def test_root_of_the_catalog(monkeypatch):
    monkeypatch.delenv("DATASETS", raising=False)
    assert DatasetCatalog.get("coco_2017_val")["args"]["root"] == "datasets/coco/val2017"
    monkeypatch.setenv("DATASETS", "/big/disk")
    assert DatasetCatalog.get("coco_2017_val")["args"]["root"] == "/big/disk/coco/val2017"
    assert DatasetCatalog.get("coco_2017_val", root="here")["args"]["root"] == "here/coco/val2017"


def test_absolute_paths_of_own_entries_stay(monkeypatch):
    monkeypatch.setitem(DatasetCatalog.DATASETS, "mine", {"img_dir": "/a/images", "ann_file": "b.json"})
    assert DatasetCatalog.get("mine", root="R")["args"] == {"root": "/a/images", "ann_file": "R/b.json"}


def test_model_addresses():
    base = "https://dl.fbaipublicfiles.com/detectron/"
    assert ModelCatalog.get("catalog://ImageNetPretrained/MSRA/R-50") == base + "ImageNetPretrained/MSRA/R-50.pkl"
    assert ModelCatalog.get("Caffe2Detectron/COCO/37697547/e2e_keypoint_rcnn_R-50-FPN_1x") == (
        base + "37697547/12_2017_baselines/e2e_keypoint_rcnn_R-50-FPN_1x.yaml.08_42_54.kdzV35ao/output/train/"
        "keypoints_coco_2014_train%3Akeypoints_coco_2014_valminusminival/generalized_rcnn/model_final.pkl"
    )
    assert "/output/train/coco_2014_train%3Acoco_2014_valminusminival/" in ModelCatalog.get(
        "Caffe2Detectron/COCO/35858933/e2e_mask_rcnn_R-50-FPN_1x"
    )


def test_weights_of_every_yaml_are_in_the_catalog():
    for name in YAMLS:
        weight = load_config(name).MODEL.WEIGHT
        assert not weight.startswith("catalog://") or ModelCatalog.get(weight).endswith((".pkl", ".pth"))
        for data_set in load_config(name).DATASETS.TRAIN + load_config(name).DATASETS.TEST:
            assert DatasetCatalog.get(data_set)


def test_unknown_names_suggest_the_nearest():
    with pytest.raises(ValueError, match="no data set 'coco_2014_mnival' in the catalog. Did you mean coco_2014_minival"):
        DatasetCatalog.get("coco_2014_mnival")
    with pytest.raises(ValueError, match="Did you mean ImageNetPretrained/MSRA/R-50"):
        ModelCatalog.get("catalog://ImageNetPretrained/MSRA/R50")


def test_entries_added_by_a_program_are_found_through_the_key(monkeypatch):
    monkeypatch.setitem(DatasetCatalog.DATASETS, "mine", {"img_dir": "images", "ann_file": "b.json"})
    catalog = import_file("maskrcnn_bench.some_catalog", get_defaults().PATHS_CATALOG).DatasetCatalog
    assert catalog.get("mine", root="R")["args"]["root"] == "R/images"


def test_own_catalog_file(tmp_path):
    path = tmp_path / "my_catalog.py"
    path.write_text("class DatasetCatalog:\n    get = staticmethod(lambda name: {'factory': 'COCODataset', 'args': {'root': name}})\n")
    catalog = import_file("maskrcnn_bench.own_catalog", path)
    assert catalog.DatasetCatalog.get("x")["args"] == {"root": "x"}
    with pytest.raises(FileNotFoundError, match="PATHS_CATALOG"):
        import_file("maskrcnn_bench.own_catalog", tmp_path / "none.py")


def test_a_text_that_is_no_literal_stays_a_text():
    assert load_config(None, ["OUTPUT_DIR", "{[1]}"]).OUTPUT_DIR == "{[1]}"


def test_lists_in_lists_are_of_the_kind_of_the_default():
    sizes = load_config("torchvision/fasterrcnn_mobilenet_v3_large_fpn.yaml").MODEL.RPN.ANCHOR_SIZES
    assert isinstance(sizes, tuple) and all(isinstance(level, tuple) for level in sizes)
