"""The programs as users start them: arguments, errors, a whole small run, several processes, and what testing hands over."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
import yaml
from models import narrow_model, scene
from torch import nn
from torch._utils import ExceptionWrapper

from maskrcnn_bench.data.datasets.toy import generate
from maskrcnn_bench.engine.arguments import overrides, parse, test_parser, train_parser, wants_processes
from maskrcnn_bench.engine.inference import (
    UnexpectedResults,
    collect,
    flat_metrics,
    inference,
    predict,
    save_predictions,
    short_names,
    to_original,
)
from maskrcnn_bench.engine.launch import resolve_device, test_main, train_main
from maskrcnn_bench.engine.surroundings import StopRequest, fitting_workers, without_traceback
from maskrcnn_bench.engine.validation import validation_losses
from maskrcnn_bench.structures.bounding_box import BoxList, Detections
from maskrcnn_bench.structures.image_list import to_image_list
from maskrcnn_bench.utils import comm
from maskrcnn_bench.utils.checkpoint import read_checkpoint

# pytest would take these for tests.
test_parser.__test__ = test_main.__test__ = False

NARROW = """
_BASE_: {base}
MODEL:
  DEVICE: cpu
  WEIGHT: ""
  BACKBONE: {{FREEZE_CONV_BODY_AT: 0}}
  RESNETS: {{NORM: GN, STEM_OUT_CHANNELS: 8, WIDTH_PER_GROUP: 8, RES2_OUT_CHANNELS: 32, BACKBONE_OUT_CHANNELS: 16}}
  GROUP_NORM: {{NUM_GROUPS: 4}}
  RPN: {{PRE_NMS_TOP_N_TRAIN: 100, PRE_NMS_TOP_N_TEST: 100, POST_NMS_TOP_N_TRAIN: 50, POST_NMS_TOP_N_TEST: 20, FPN_POST_NMS_TOP_N_TEST: 20}}
  ROI_HEADS: {{BATCH_SIZE_PER_IMAGE: 16}}
  ROI_BOX_HEAD: {{MLP_HEAD_DIM: 16}}
  ROI_MASK_HEAD: {{CONV_LAYERS: [8]}}
INPUT: {{MIN_SIZE_TRAIN: [64], MIN_SIZE_TEST: 64}}
DATALOADER: {{NUM_WORKERS: 0}}
SOLVER: {{IMS_PER_BATCH: 4, BASE_LR: 0.005, MAX_ITER: 6, STEPS: [4], WARMUP_ITERS: 2, LOG_PERIOD: 2, CHECKPOINT_PERIOD: 3}}
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory, repository):
    """A folder with a tiny data set `toy` and a narrow config `narrow.yaml`."""
    folder = tmp_path_factory.mktemp("launch")
    generate(folder / "toy", 12, 5, 64)
    base = repository / "configs" / "e2e_mask_rcnn_R_50_FPN_1x.yaml"
    (folder / "narrow.yaml").write_text(NARROW.format(base=base))
    return folder


def words(place, output, *opts):
    return ["--config-file", str(place / "narrow.yaml"), "--data", str(place / "toy"), "--output", str(place / output), *opts]


def weights(place, output, name="model_final.pth"):
    return torch.load(place / output / name, weights_only=True)["model"]


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def trained(place):
    """A run of six iterations, tested at the end, in place/"straight"."""
    assert train_main(words(place, "straight")) == 0
    return place


def test_names_of_keypoints_come_from_the_data_and_stay_with_the_weights(place, repository):
    (place / "points.yaml").write_text(NARROW.format(base=repository / "configs" / "e2e_keypoint_rcnn_R_50_FPN_1x.yaml"))
    opts = ["MODEL.ROI_KEYPOINT_HEAD.CONV_LAYERS", "(8,)", "SOLVER.MAX_ITER", "1", "SOLVER.WARMUP_ITERS", "0"]
    given = ["--config-file", str(place / "points.yaml"), "--data", str(place / "toy"), "--output", str(place / "points")]
    assert train_main([*given, "--skip-test", *opts]) == 0
    head = yaml.safe_load(read_checkpoint(place / "points" / "model_final.pth")["config"])["MODEL"]["ROI_KEYPOINT_HEAD"]
    names = json.loads((place / "toy/annotations/keypoints_train.json").read_text())["categories"][0]["keypoints"]
    assert head["NAMES"] == names and head["NUM_CLASSES"] == 3
    assert head["SKELETON"] == [names[:2], names[1:], [names[2], names[0]]] and head["FLIP_PAIRS"] == [names[1:]]


# arguments


def test_keys_and_options_in_any_order():
    args = parse(train_parser(), ["SOLVER.IMS_PER_BATCH", "2", "--config-file", "x.yaml", "SEED=3", "--skip-test", "SOLVER.STEPS", "(1,)"])
    assert args.config_file == "x.yaml" and args.skip_test
    assert overrides(args) == ["SOLVER.IMS_PER_BATCH", "2", "SEED=3", "SOLVER.STEPS", "(1,)"]


def test_options_become_keys_and_keys_win():
    args = parse(train_parser(), ["--data", "d", "--output", "o", "--weights", "w.pth", "OUTPUT_DIR", "p"])
    data = ["DATASETS.DATA", "d", "DATASETS.TRAIN", "()", "DATASETS.TEST", "()"]
    data += ["DATASETS.PROPOSAL_FILES_TRAIN", "()", "DATASETS.PROPOSAL_FILES_TEST", "()"]
    assert overrides(args) == [*data, "OUTPUT_DIR", "o", "MODEL.WEIGHT", "w.pth", "OUTPUT_DIR", "p"]
    assert overrides(parse(train_parser(), ["--weights", ""])) == ["MODEL.WEIGHT", ""]


@pytest.mark.parametrize("given", ["--local_rank=1", "--local-rank=1"])
def test_both_spellings_of_the_launcher_s_option(given):
    assert parse(test_parser(), [given, "--ckpt", "x.pth"]).local_rank == 1


@pytest.mark.parametrize(
    "given,resume,opts",
    [
        (["--resume"], "auto", []),
        (["--resume", "SOLVER.MAX_ITER", "9"], "auto", ["SOLVER.MAX_ITER", "9"]),
        (["--resume", "SEED=4"], "auto", ["SEED=4"]),
        (["--resume", "out/model_0000050.pth", "SEED", "4"], "out/model_0000050.pth", ["SEED", "4"]),
        (["SEED", "4"], "", ["SEED", "4"]),
    ],
)
def test_the_file_of_resume_is_optional(given, resume, opts):
    args = parse(train_parser(), given)
    assert (args.resume, args.opts) == (resume, opts)


def test_weights_and_resume_are_two_actions(capsys):
    with pytest.raises(SystemExit) as stop:
        parse(train_parser(), ["--resume", "--weights", "x.pth"])
    assert stop.value.code == 2 and "give one of them" in capsys.readouterr().err


# devices and processes


def test_devices():
    assert resolve_device("cpu") == torch.device("cpu")
    with pytest.raises(ValueError, match="expected auto, cpu or cuda, got 'gpu'"):
        resolve_device("gpu")
    with pytest.raises(ValueError, match="got 'mps'; Apple's mps is not supported"):
        resolve_device("mps")


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_cuda_without_a_gpu_is_one_line_with_a_remedy(place, capsys):
    assert resolve_device("auto") == torch.device("cpu")
    assert train_main(words(place, "none", "MODEL.DEVICE", "cuda")) == 1
    message = capsys.readouterr().err
    assert message.startswith("error: MODEL.DEVICE cuda, but ") and "MODEL.DEVICE auto or cpu" in message and message.count("\n") == 1


@pytest.mark.parametrize(
    "env,expected",
    [
        ({}, (0, 1, 0)),
        ({"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1"}, (3, 4, 1)),
        ({"SLURM_STEP_ID": "0", "SLURM_PROCID": "5", "SLURM_STEP_NUM_TASKS": "8", "SLURM_LOCALID": "2"}, (5, 8, 2)),
        # A batch script without srun: one process, whatever the job asked for.
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "8"}, (0, 1, 0)),
    ],
)
def test_launchers(monkeypatch, env, expected):
    for name in [name for name in os.environ if name.startswith("SLURM") or name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")]:
        monkeypatch.delenv(name)
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    assert comm.launched_processes() == expected


@pytest.mark.parametrize(
    "nodes,first", [("gpu[003-005,7],login", "gpu003"), ("a1,b2", "a1"), ("node7", "node7"), ("r[1-2]-ib", "r1-ib"), ("n-[08,11]", "n-08")]
)
def test_the_first_machine_of_a_slurm_list(nodes, first):
    assert comm.first_host(nodes) == first


def test_slurm_says_where_to_meet(monkeypatch):
    for name in ("MASTER_ADDR", "MASTER_PORT", "SLURM_STEP_NODELIST", "SLURM_STEP_NUM_NODES"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"SLURM_JOB_NODELIST": "gpu[12-15]", "SLURM_NNODES": "4", "SLURM_JOB_ID": "31234"}.items():
        monkeypatch.setenv(name, value)
    comm._address_of_slurm()
    assert (os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"]) == ("gpu12", "31234")
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        # Else they would outlive the test.
        monkeypatch.setenv(name, "")


@pytest.mark.parametrize("main,verb", [(train_main, "train"), (test_main, "test")])
def test_gpus_becomes_a_launcher(place, monkeypatch, main, verb):
    started = []
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    monkeypatch.setattr(os, "execv", lambda program, command: started.append(command) or 0)
    monkeypatch.setattr(sys, "argv", ["maskrcnn-bench " + verb])
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    given = words(place, "several", "--gpus", "3", "MODEL.DEVICE", "cpu")
    main(given)
    assert started == [
        [sys.executable, *"-m torch.distributed.run --standalone --nproc_per_node=3 -m maskrcnn_bench.cli".split(), verb, *given]
    ]
    # The processes that it starts have the same words.
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert not wants_processes(parse(train_parser(), given))


def test_more_gpus_than_there_are(place, monkeypatch, capsys):
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    given = words(place, "several", "--gpus", "64", "MODEL.DEVICE", "cuda")
    assert train_main(given) == 1
    assert re.search(r"error: --gpus 64, but torch sees \d+ GPU\(s\); MODEL.DEVICE cpu takes", capsys.readouterr().err)


def test_small_shared_memory_is_told_and_takes_fewer_workers(tmp_path):
    disk = shutil.disk_usage(tmp_path)._replace(free=64 * 2**20)
    batch = 2 * 800 * 1333 * 3
    workers, said = fitting_workers(16, batch, str(tmp_path), lambda folder: disk)
    assert workers == 3 and "64 MB free, 16 loading processes may need 293 MB: 3 of them work" in said and "--shm-size=8g" in said
    assert fitting_workers(3, batch, str(tmp_path), lambda folder: disk) == (3, "")
    assert fitting_workers(16, batch, str(tmp_path / "none")) == (16, "")


# a whole run


def test_a_run_leaves_what_it_promises(trained):
    folder = trained / "straight"
    names = {p.name for p in folder.iterdir()}
    assert names == {
        *("config.yml", "log.txt", "metrics.jsonl", "results.json", "inference", "last_checkpoint"),
        *("model_0000003.pth", "model_best.pth", "model_final.pth"),
    }
    results = json.loads((folder / "results.json").read_text())
    assert {"bbox", "segm"} <= set(results) and 0 <= results["bbox"]["AP"] <= 1
    assert [row["iteration"] for row in lines(folder / "metrics.jsonl")] == [1, 2, 3, 4, 6, 6]
    checkpoint = read_checkpoint(folder / "model_final.pth")
    assert checkpoint["iteration"] == 6
    assert checkpoint["class_names"] == ["__background__", "circle", "square", "triangle", "star", "ring", "cross"]
    log = (folder / "log.txt").read_text()
    assert log.count("/model_final.pth") == 1, "saved before and after the test, but told once"
    assert "MODEL.ROI_BOX_HEAD.NUM_CLASSES: 7, from the data" in log and "M trainable" in log and "6 classes: circle" in log


def test_a_second_start_goes_on_and_says_so(trained):
    assert train_main(words(trained, "halves", "--skip-test", "SOLVER.MAX_ITER", "3")) == 0
    assert train_main(words(trained, "halves")) == 0
    log = (trained / "halves" / "log.txt").read_text()
    assert "model_final.pth after iteration 3; for a new run give --weights, or another --output" in log
    assert "SOLVER.MAX_ITER: 3 -> 6" in log
    straight, resumed = weights(trained, "straight"), weights(trained, "halves")
    assert all(torch.equal(straight[name], resumed[name]) for name in straight)
    assert train_main(words(trained, "halves", "--resume", "--skip-test")) == 0
    assert "nothing left to train: 6 iterations are done" in (trained / "halves" / "log.txt").read_text()


def test_the_same_file_as_weights_starts_at_iteration_zero(trained):
    given = str(trained / "straight" / "model_final.pth")
    assert train_main(words(trained, "anew", "--weights", given, "--skip-test", "SOLVER.MAX_ITER", "1")) == 0
    assert [row["iteration"] for row in lines(trained / "anew" / "metrics.jsonl")] == [1]
    assert read_checkpoint(trained / "anew" / "model_final.pth")["iteration"] == 1


def test_testing_finds_the_config_beside_the_weights_and_gives_the_same_numbers(trained):
    trained_results = json.loads((trained / "straight" / "results.json").read_text())
    given = ["--ckpt", str(trained / "straight" / "model_final.pth"), "--output", str(trained / "tested"), "--data", str(trained / "toy")]
    assert test_main(given) == 0
    assert json.loads((trained / "tested" / "results.json").read_text()) == trained_results
    predictions = torch.load(trained / "tested" / "inference" / "toy" / "predictions.pth", weights_only=True)
    assert len(predictions) == 5 and predictions[0]["size"] == (64, 64)
    assert test_main([*given, "TEST.PICTURES", "True", "TEST.EXPECTED_RESULTS", "[['bbox', 'AP', 0.9, 0.01]]"]) == 1
    pictures = {path.name for path in (trained / "tested" / "inference" / "toy").glob("*.png")}
    assert pictures == {"confusion.png", "bbox_precision_recall.png", "segm_precision_recall.png"}


def test_weights_are_matched_with_the_data_by_name(trained, tmp_path, capsys):
    shutil.copytree(trained / "toy", tmp_path / "toy")
    file = tmp_path / "toy" / "annotations" / "instances_test.json"
    content = json.loads(file.read_text())
    numbers = sorted(c["id"] for c in content["categories"])
    turned = dict(zip(numbers, reversed(numbers), strict=True))
    for part, key in (("categories", "id"), ("annotations", "category_id")):
        content[part] = [{**entry, key: turned[entry[key]]} for entry in content[part]]
    file.write_text(json.dumps(content))
    given = ["--ckpt", str(trained / "straight" / "model_final.pth"), "--data", str(tmp_path / "toy")]
    assert test_main([*given, "--output", str(tmp_path / "out")]) == 0
    results = [json.loads((folder / "results.json").read_text()) for folder in (trained / "straight", tmp_path / "out")]
    assert results[0]["bbox"]["AP"] == pytest.approx(results[1]["bbox"]["AP"])
    assert "matched by name" in (tmp_path / "out" / "log.txt").read_text()
    content["categories"][0]["name"] = "hexagon"
    file.write_text(json.dumps(content))
    assert test_main([*given, "--output", str(tmp_path / "other")]) == 1
    message = capsys.readouterr().err
    assert "knows 6 classes: circle" in message and "hexagon" in message and "--weights" in message


def test_classes_that_the_data_lacks_do_not_end_the_test(place):
    more = ("MODEL.ROI_BOX_HEAD.NUM_CLASSES=30", "MODEL.ROI_HEADS.SCORE_THRESH=0.0", "SOLVER.MAX_ITER=1", "SOLVER.WARMUP_ITERS=1")
    assert train_main(words(place, "more", *more)) == 0
    log = (place / "more" / "log.txt").read_text()
    assert "of classes that the data lacks; they are left out" in log
    assert "the learning rate never gets to SOLVER.BASE_LR" in log and "epochs of your 12 images" in log


def test_print_schedule_ends_before_anything_is_built(place):
    assert train_main(words(place, "schedule", "--print-schedule", "SOLVER.IMS_PER_BATCH", "2", "SOLVER.MAX_EPOCHS", "2")) == 0
    log = (place / "schedule" / "log.txt").read_text()
    assert "SOLVER.BASE_LR: 0.005 -> 0.0025" in log
    assert "SOLVER.MAX_EPOCHS 2 x 12 images / 2 a step = 12 iterations" in log
    assert not (place / "schedule" / "config.yml").exists()


def test_repeated_images_lengthen_an_epoch(place, capsys):
    given = (
        "--print-schedule",
        "SOLVER.MAX_EPOCHS",
        "4",
        "DATALOADER.DATASET_REPEATS",
        "(3.0,)",
        "DATASETS.TRAIN",
        f"({str(place / 'toy')!r},)",
    )
    assert train_main(words(place, "repeats", *given)) == 0
    said = capsys.readouterr().out
    assert "SOLVER.MAX_EPOCHS 4 x 36 images / 4 a step = 36 iterations" in said
    assert "SOLVER.MAX_ITER 36 x 4 images = 4 epochs of your 12 images, which occur 36 times in each" in said


def test_a_schedule_in_iterations_needs_no_data(place, capsys):
    given = words(
        place, "schedule", "--data", "no/such/folder", "--print-schedule", "SOLVER.LR_SCHEDULE", "cosine", "SOLVER.IMS_PER_BATCH", "2"
    )
    assert train_main(given) == 0
    said = capsys.readouterr().out
    assert "SOLVER: BASE_LR 0.0025, MAX_ITER 12, LR_SCHEDULE cosine" in said and "STEPS" not in said
    assert train_main([*given, "SOLVER.MAX_EPOCHS", "2"]) == 1
    assert "no folder or file no/such/folder" in capsys.readouterr().err


def test_a_folder_is_tested_and_says_where_the_name_of_its_data_is_from(trained, tmp_path, capsys):
    shutil.copytree(trained / "straight", tmp_path / "straight")
    config = tmp_path / "straight" / "config.yml"
    config.write_text(config.read_text().replace(f"DATA: {trained / 'toy'}", "DATA: gone/toy"))
    given = ["--ckpt", str(tmp_path / "straight"), "--output", str(tmp_path / "out")]
    assert test_main(given) == 1
    message = capsys.readouterr().err
    assert f"no folder or file gone/toy, and no data set of the catalog has that name. The name is from {config}" in message
    assert "--data FOLDER gives another" in message
    assert test_main([*given, "--data", str(trained / "toy")]) == 0
    for missing, said in ((tmp_path, "is a folder without last_checkpoint"), (tmp_path / "x.pth", "does not exist")):
        assert test_main(["--ckpt", str(missing), "--config-file", str(trained / "narrow.yaml"), "--output", str(tmp_path / "out")]) == 1
        assert f"error: --ckpt: {missing} {said}" in capsys.readouterr().err


def test_losses_on_the_test_data_are_measured_without_a_trace(trained):
    # One batch of all images, in one order.
    same = ("SOLVER.IMS_PER_BATCH", "12", "SOLVER.REFERENCE_IMS_PER_BATCH", "12", "SOLVER.MAX_ITER", "2", "SOLVER.WARMUP_ITERS", "1")
    for folder, more in (("plain", ()), ("measured", ("TEST.LOSSES", "True", "SOLVER.TEST_PERIOD", "1"))):
        assert train_main(words(trained, folder, *same, *more)) == 0
    plain, measured = weights(trained, "plain"), weights(trained, "measured")
    assert all(torch.equal(plain[name], measured[name]) for name in plain)
    rows = [row for row in lines(trained / "measured" / "metrics.jsonl") if "val/loss" in row]
    assert [row["iteration"] for row in rows] == [1, 2]
    parts = ("objectness", "rpn_box_reg", "classifier", "box_reg", "mask")
    for row in rows:
        assert row["val/loss"] == pytest.approx(sum(row[f"val/loss_{part}"] for part in parts)) and row["val/loss"] > 0


def test_losses_on_data_that_numbers_its_classes_otherwise(trained, tmp_path):
    """Losses compare classes by name, as metrics do; and test-time augmentation does not change them."""
    shutil.copytree(trained / "toy", tmp_path / "toy")
    annotations = tmp_path / "toy" / "annotations" / "instances_test.json"
    content = json.loads(annotations.read_text())
    last = len(content["categories"]) + 1
    content["categories"] = [one | {"id": last - one["id"]} for one in content["categories"]]
    content["annotations"] = [one | {"category_id": last - one["category_id"]} for one in content["annotations"]]
    annotations.write_text(json.dumps(content))
    given = ("SOLVER.MAX_ITER", "1", "SOLVER.WARMUP_ITERS", "0", "TEST.LOSSES", "True")
    train = f"('{trained / 'toy'}',)"
    augmented = ("TEST.BBOX_AUG.ENABLED", "True", "TEST.BBOX_AUG.H_FLIP", "True")
    rows = []
    for data, more in ((trained / "toy", ()), (tmp_path / "toy", ()), (trained / "toy", augmented)):
        output = tmp_path / f"out{len(rows)}"
        sets = ("DATASETS.TRAIN", train, "DATASETS.TEST", f"('{data}',)", "--output", str(output))
        assert train_main(["--config-file", str(trained / "narrow.yaml"), *sets, *given, *more]) == 0
        rows.append({key: value for key, value in lines(output / "metrics.jsonl")[-1].items() if key.startswith("val/")})
    assert len(rows[0]) > 4 and rows[1] == rows[0]
    assert rows[2] == pytest.approx(rows[0], rel=1e-4)


def test_test_data_of_other_classes_is_refused_before_training(trained, tmp_path, capsys):
    shutil.copytree(trained / "toy", tmp_path / "other")
    annotations = tmp_path / "other" / "annotations" / "instances_test.json"
    annotations.write_text(annotations.read_text().replace('"name":"cross"', '"name":"spiral"'))
    sets = ("DATASETS.TRAIN", f"('{trained / 'toy'}',)", "DATASETS.TEST", f"('{tmp_path / 'other'}',)", "--output", str(tmp_path / "out"))
    assert train_main(["--config-file", str(trained / "narrow.yaml"), *sets]) == 1
    assert "other has classes that the training data has not: spiral. Name those" in capsys.readouterr().err


def test_results_of_data_sets_of_one_name_stay_apart(monkeypatch, tmp_path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "a" / "b")
    assert short_names(["x/toy", "y/toy", "..", ".", "coco_2014_minival"]) == ["toy", "toy_2", "a", "b", "coco_2014_minival"]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_losses_in_evaluation_mode_are_those_of_training(dtype):
    model = narrow_model("mask_fpn", *("MODEL.RPN.FPN_POST_NMS_PER_BATCH", False))
    images, targets = scene()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    dtype = getattr(torch, dtype)
    with torch.no_grad(), torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        expected = model.train()(images, targets)
    measured = validation_losses(model, [(images, targets, (0, 1))], "cpu", dtype)
    assert model.training
    assert {f"val/{name}" for name in expected} | {"val/loss"} == set(measured)
    for name, value in expected.items():
        assert measured[f"val/{name}"] == pytest.approx(float(value), rel=1e-6)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_two_deterministic_runs_write_the_same_bytes(place):
    written = []
    try:
        for copy in ("first", "second"):
            given = ("DETERMINISTIC", "True", "DATALOADER.NUM_WORKERS", "2", "SOLVER.MAX_ITER", "3", "--skip-test")
            assert train_main(words(place, "again", *given)) == 0
            written.append((place / "again" / "model_final.pth").read_bytes())
            (place / "again").rename(place / copy)
            torch.manual_seed(len(copy))
        assert torch.are_deterministic_algorithms_enabled()
    finally:
        torch.use_deterministic_algorithms(False)
    assert written[0] == written[1]


def test_tensorboard_gets_numbers_and_pictures(trained):
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    assert train_main(words(trained, "board", "SOLVER.MAX_ITER", "3", "SOLVER.TENSORBOARD", "True")) == 0
    events = reader.EventAccumulator(str(trained / "board" / "tensorboard")).Reload()
    assert {"train/loss", "train/lr", "bbox/AP", "segm/AP"} <= set(events.Tags()["scalars"])
    assert len(events.Tags()["images"]) == 4
    rows = {row["iteration"]: row["loss"] for row in lines(trained / "board" / "metrics.jsonl") if "loss" in row}
    assert {event.step: event.value for event in events.Scalars("train/loss")} == pytest.approx(rows, rel=1e-6)


@pytest.mark.full
def test_fifty_steps_in_bfloat16_stay_finite(place):
    assert train_main(words(place, "half", "DTYPE", "bfloat16", "SOLVER.MAX_ITER", "50", "SOLVER.LOG_PERIOD", "1")) == 0
    losses = [row["loss"] for row in lines(place / "half" / "metrics.jsonl") if "loss" in row]
    assert len(losses) == 50 and max(losses) < 100 and sum(losses[-5:]) < sum(losses[:5])


# what users do wrong


@pytest.mark.parametrize(
    "given,said",
    [
        (["SOLVER.BASE_RL", "0.1"], "unknown key SOLVER.BASE_RL. Did you mean SOLVER.BASE_LR"),
        (["--config-file", "no_such.yaml"], "no config file no_such.yaml"),
        (["--data", "no/such/folder"], "no folder or file no/such/folder"),
        (["SOLVER.IMS_PER_BATCH", "5", "SOLVER.ACCUMULATE", "2"], "does not divide"),
        (["MODEL.ROI_BOX_HEAD.NUM_CLASSES", "4"], "NUM_CLASSES is 4; the data has 7"),
        (["MODEL.WEIGHT", "no_such.pth"], "no_such.pth does not exist"),
        (["--resume", "no_such.pth"], "no_such.pth does not exist"),
        (["MODEL.WEIGHT", "catalog://ImageNetPretrained/MSRA/R-51"], "no weights catalog://ImageNetPretrained/MSRA/R-51"),
    ],
)
def test_mistakes_give_one_message_and_leave_nothing(place, capsys, tmp_path, given, said):
    assert train_main([*words(place, "wrong"), "--output", str(tmp_path), *given]) == 1
    message = capsys.readouterr().err
    assert message.startswith("error: ") and said in message and "Traceback" not in message
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("given", [["SOLVER.MAX_ITER", "0"], ["--data", "no/such/folder"], ["MODEL.WEIGHT", "no_such.pth"]])
def test_errors_before_training_make_no_folder(place, tmp_path, given):
    assert train_main([*words(place, "wrong"), "--output", str(tmp_path / "a" / "b"), *given]) == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("split", "verb"), [("train", train_main), ("test", train_main), ("test", test_main)])
def test_a_data_set_without_images(trained, tmp_path, capsys, split, verb):
    shutil.copytree(trained / "toy", tmp_path / "toy")
    annotations = tmp_path / "toy" / "annotations" / f"instances_{split}.json"
    annotations.write_text(json.dumps(json.loads(annotations.read_text()) | {"images": [], "annotations": []}))
    weights = ["--ckpt", str(trained / "straight" / "model_final.pth")] if verb is test_main else []
    given = [*words(trained, "none"), "--data", str(tmp_path / "toy"), "--output", str(tmp_path / "out"), *weights]
    assert verb(given) == 1
    said = capsys.readouterr().err
    assert len(said.splitlines()) == 1 and re.search(r"error: .*(the data set has no images|`images` is empty|no image)", said)


def test_missing_weights_are_told_before_the_data_is_read(place, tmp_path, capsys):
    wrong = ["--output", str(tmp_path), "--data", "no/such/folder", "MODEL.WEIGHT", "no_such.pth"]
    assert train_main([*words(place, "wrong"), *wrong]) == 1
    assert "no_such.pth does not exist" in capsys.readouterr().err


def test_a_folder_that_cannot_be_written(place, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    for folder, said in (("", "OUTPUT_DIR is empty"), (str(tmp_path / "file" / "sub"), "file is a file); name another")):
        assert train_main(words(place, "wrong", "OUTPUT_DIR", folder)) == 1
        assert said in capsys.readouterr().err


def test_the_message_of_a_worker_stands_alone():
    try:
        raise FileNotFoundError("a.jpg: no such image\nfetch it")
    except FileNotFoundError:
        caught = ExceptionWrapper(where="in DataLoader worker process 0")
    with pytest.raises(FileNotFoundError) as error:
        caught.reraise()
    assert "Traceback" in str(error.value)
    assert without_traceback(str(error.value)) == "a.jpg: no such image\nfetch it"
    assert without_traceback("plain: text") == "plain: text"


@pytest.mark.parametrize("number,end", [(signal.SIGTERM, SystemExit), (signal.SIGINT, KeyboardInterrupt)])
def test_a_second_signal_ends_at_once_and_an_echo_does_not(monkeypatch, number, end):
    with StopRequest() as stop:
        signal.raise_signal(number)
        signal.raise_signal(number)
        assert stop() and stop.signal == number
        monkeypatch.setattr(StopRequest, "ECHO", -1.0)
        with pytest.raises(end):
            signal.raise_signal(number)


def test_debug_shows_where(place, monkeypatch):
    monkeypatch.setenv("MASKRCNN_BENCH_DEBUG", "1")
    with pytest.raises(ValueError, match="unknown key"):
        train_main(words(place, "wrong", "NO.KEY", "1"))


def test_nothing_to_test(tmp_path, place, capsys):
    assert test_main(["--config-file", str(place / "narrow.yaml"), "--data", str(place / "toy"), "--output", str(tmp_path)]) == 1
    assert "no weights to test: give --ckpt FILE" in capsys.readouterr().err


# several processes, and signals


class Program:
    """A Python program in a process of its own, which does not outlive its `with`."""

    def __init__(self, repository, command):
        env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(repository)}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        self.process = subprocess.Popen([sys.executable, *command], cwd=repository, env=env, start_new_session=True, **pipes)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)

    def end(self):
        """(exit code, what it printed)."""
        output = self.process.communicate(timeout=90)[0]
        return self.process.returncode, output


def launched(processes, *command):
    return ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}", *command]


def test_two_processes_equal_one_with_two_parts(trained, repository):
    with Program(repository, launched(2, "tools/train_net.py", *words(trained, "two"), "SOLVER.MAX_EPOCHS", "0.5")) as both:
        assert train_main(words(trained, "parts", "SOLVER.ACCUMULATE", "2", "SOLVER.MAX_EPOCHS", "0.5")) == 0
        code, output = both.end()
    assert code == 0, output
    assert [read_checkpoint(trained / folder / "model_final.pth")["iteration"] for folder in ("two", "parts")] == [2, 2], (
        "12 images / 2 / 4"
    )
    two, parts = weights(trained, "two"), weights(trained, "parts")
    for name in parts:
        torch.testing.assert_close(two[name], parts[name], rtol=1e-5, atol=1e-6)
    losses = [[row["loss"] for row in lines(trained / folder / "metrics.jsonl") if "loss" in row] for folder in ("two", "parts")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    # Five images among two processes.
    results = [json.loads((trained / folder / "results.json").read_text()) for folder in ("two", "parts")]
    assert results[0]["images"] == 5 and results[0]["bbox"] == pytest.approx(results[1]["bbox"])


def test_epochs_are_as_many_steps_on_any_number_of_processes(place, repository, tmp_path, capsys):
    generate(tmp_path / "toy", 100, 1, 64)
    file = tmp_path / "toy" / "annotations" / "instances_train.json"
    content = json.loads(file.read_text())
    content["annotations"].append({**content["annotations"][0], "id": 10**6, "bbox": [5, 5, -5, 5]})
    file.write_text(json.dumps(content))
    short = ("SOLVER.IMS_PER_BATCH", "4", "SOLVER.MAX_EPOCHS", "3", "SOLVER.WARMUP_ITERS", "75")
    given = words(place, "schedule", "--data", str(tmp_path / "toy"), "--print-schedule", *short)
    with Program(repository, launched(2, "tools/train_net.py", *given)) as both:
        assert train_main(given) == 0
        code, output = both.end()
    assert code == 0, output
    for said in (output, capsys.readouterr().out):
        assert "SOLVER.MAX_EPOCHS 3 x 100 images / 4 a step = 75 iterations" in said and "MAX_ITER 75," in said
        assert said.count("[drop]") == said.count("never gets to SOLVER.BASE_LR") == 1, "what all processes find, one says"


COLLECT = """
import sys, time, torch
from maskrcnn_bench.utils import comm
comm.start(torch.device("cpu"), timeout=3)
rank = comm.get_rank()
shards = [[f"{r}-{k}" for k in range(n)] for r, n in enumerate((0, 150, 3))]
found = comm.gather_items(shards[rank], chunk=64)
assert sorted(found) == (sorted(sum(shards, [])) if rank == 0 else []), found
assert comm.all_gather(rank) == [0, 1, 2] and comm.broadcast(rank) == 0
assert comm.mean_over_processes(torch.tensor([float(rank), float("nan") if rank == 1 else 0.0])).tolist()[0] == 1.0
comm.synchronize("everything so far")
if rank == 2:
    time.sleep(8)
    sys.exit(3)
try:
    comm.synchronize("the end of the test")
except RuntimeError as error:
    print(f"CAUGHT {error}\\n", end="")  # in one piece, beside the other processes
"""


def test_shards_of_any_size_and_a_process_that_is_missing(repository, tmp_path):
    (tmp_path / "collect.py").write_text(COLLECT)
    with Program(repository, launched(3, str(tmp_path / "collect.py"))) as program:
        code, output = program.end()
    assert code != 0 and "AssertionError" not in output, output
    assert re.search(r"exitcode *: 3\b", output), "the launcher tells which process failed\n" + output
    assert re.search(r"CAUGHT rank 0 lost rank 2, which died or did not come for 3 s, during the end of the test", output), output


def test_sigterm_saves_and_a_new_start_goes_on(trained, repository):
    endless = ("SOLVER.MAX_ITER", "10000", "SOLVER.CHECKPOINT_PERIOD", "10000")
    with Program(repository, ["tools/train_net.py", *words(trained, "killed", "--skip-test", *endless)]) as program:
        metrics, deadline = trained / "killed" / "metrics.jsonl", time.monotonic() + 180
        while not (metrics.exists() and len(lines(metrics)) >= 2) and time.monotonic() < deadline:
            time.sleep(0.1)
        program.process.send_signal(signal.SIGTERM)
        code, output = program.end()
    assert code == 143, output
    (saved,) = (trained / "killed").glob("model_*.pth")
    iteration = read_checkpoint(saved)["iteration"]
    assert saved.name == f"model_{iteration:07d}.pth"
    assert train_main(words(trained, "killed", "--skip-test", "SOLVER.MAX_ITER", str(iteration + 1))) == 0
    assert read_checkpoint(trained / "killed" / "model_final.pth")["iteration"] == iteration + 1


# testing


class Photographs:
    """Images of different sizes with one known object each."""

    class_names = ("__background__", "thing")
    categories = {1: "thing"}
    sizes = [(200, 100), (50, 80), (120, 120)]

    def __len__(self):
        return 3

    def get_img_info(self, i):
        return {"width": self.sizes[i][0], "height": self.sizes[i][1], "id": i + 10, "file_name": f"{i}.jpg"}

    def get_groundtruth(self, i):
        width, height = self.sizes[i]
        target = BoxList([[0.1 * width, 0.2 * height, 0.5 * width, 0.7 * height]], (width, height), pixel=0)
        target.add_field("labels", torch.ones(1, dtype=torch.int64))
        return target


class Halves:
    """A loader of images at half their size; its order is not the data set's."""

    dataset = Photographs()

    def __iter__(self):
        for indices in ((2, 0), (1,)):
            images = [torch.zeros(3, self.dataset.sizes[i][1] // 2, self.dataset.sizes[i][0] // 2) for i in indices]
            yield to_image_list(images), None, indices


class Oracle(nn.Module):
    """Finds a box at the same fractions of every image; `beyond` makes it reach out of the image."""

    def __init__(self, beyond=0.0):
        super().__init__()
        self.beyond = beyond

    def forward(self, images):
        assert not self.training and not torch.is_grad_enabled()
        size = images.sizes[:, None]
        corners = torch.tensor([0.1 - self.beyond, 0.2, 0.5, 0.7])
        boxes = torch.cat([size * corners[:2], size * corners[2:]], dim=-1).repeat(1, 2, 1)
        valid = torch.tensor([[True, False]]).repeat(len(images), 1)
        fields = {"scores": torch.full(valid.shape, 0.9), "labels": torch.ones(valid.shape, dtype=torch.int64)}
        return Detections(boxes, valid, images.sizes, fields, pixel=0)


def test_detections_come_in_pixels_of_the_original_and_by_index():
    model = Oracle().train()
    found = predict(model, Halves(), "cpu")
    assert model.training, "the mode is given back"
    for i, (width, height) in enumerate(Photographs.sizes):
        assert found[i].size == (width, height) and len(found[i]) == 1
        expected = torch.tensor([[0.1 * width, 0.2 * height, 0.5 * width, 0.7 * height]])
        torch.testing.assert_close(found[i].bbox, expected)


def test_boxes_are_cut_to_the_original_where_asked():
    boxlist = BoxList([[-4.0, 2, 10, 8], [-4, 2, -1, 8]], (20, 10), pixel=0)
    info = {"width": 40, "height": 20}
    assert to_original(boxlist, info).bbox.tolist() == [[-8, 4, 20, 16], [-8, 4, -2, 16]]
    assert to_original(boxlist, info, clip=True).bbox.tolist() == [[0, 4, 20, 16]]


def test_images_without_a_prediction_are_counted():
    assert collect({2: "c", 0: "a"}, 3) == ["a", None, "c"]


def test_a_perfect_model_gets_all_of_it(tmp_path):
    results = inference(Oracle(), Halves(), "photographs", device="cpu", output_folder=str(tmp_path))
    assert results["bbox"]["AP"] == pytest.approx(1.0)
    assert flat_metrics(results)["bbox/AP50"] == pytest.approx(1.0)
    assert json.loads((tmp_path / "results.json").read_text())["bbox"] == results["bbox"]
    with pytest.raises(UnexpectedResults, match="bbox/AP"):
        inference(Oracle(), Halves(), "photographs", device="cpu", expected_results=[("bbox", "AP", 0.5, 0.01)])


def test_saved_predictions_are_plain(tmp_path):
    save_predictions([None, Photographs().get_groundtruth(1)], str(tmp_path))
    none, one = torch.load(tmp_path / "predictions.pth", weights_only=True)
    assert none is None and one["size"] == (50, 80) and one["labels"].tolist() == [1] and one["bbox"].tolist() == [[5.0, 16.0, 25.0, 56.0]]
