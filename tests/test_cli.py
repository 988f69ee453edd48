"""The command `maskrcnn-bench`: speed of its help, its verbs, and what it says to mistakes."""

import importlib
import importlib.metadata
import json
import re
import subprocess
import sys
import time

import pytest

from maskrcnn_bench import __version__, cli, doctor
from maskrcnn_bench.config import load_config


def test_help_is_quick_and_needs_no_torch(repository):
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        done = subprocess.run([sys.executable, "-m", "maskrcnn_bench.cli", "--help"], cwd=repository, capture_output=True, text=True)
        seconds.append(time.perf_counter() - start)
    assert done.returncode == 0 and all(verb in done.stdout for verb in cli.VERBS)
    assert min(seconds) < 0.3


@pytest.mark.parametrize("words", [["train"], ["test"], ["data"], ["data", "check"]])
def test_help_of_a_verb_needs_no_torch(repository, words):
    code = "import sys; from maskrcnn_bench.cli import main\ntry: main(sys.argv[1:])\nfinally: print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code, *words, "--help"], cwd=repository, capture_output=True, text=True, check=True)
    assert f"usage: maskrcnn-bench {' '.join(words)}" in done.stdout and done.stdout.endswith("\nFalse\n")


def test_training_without_a_config_file_is_an_error_at_once(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["train", "--data", "anything"])
    assert stop.value.code == 2 and "no --config-file: name one, e.g. --config-file e2e_mask_rcnn" in capsys.readouterr().err


def test_config_verb_needs_no_torch(repository):
    code = "import sys; from maskrcnn_bench.cli import main; main(['config', 'diff', 'SEED=3']); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=repository, capture_output=True, text=True, check=True)
    assert done.stdout == "SEED: 0 -> 3\nFalse\n"


def test_version(capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(["--version"])
    assert caught.value.code == 0 and capsys.readouterr().out == f"maskrcnn-bench {__version__}\n"


def test_no_verb_prints_the_help_and_fails(capsys):
    assert cli.main([]) == 2
    assert "doctor" in capsys.readouterr().out


@pytest.mark.parametrize(("word", "verb"), [("trian", "train"), ("tset", "test"), ("doktor", "doctor"), ("Predict", "predict")])
def test_misspelt_verb_suggests_the_nearest(capsys, word, verb):
    assert cli.main([word]) == 2
    assert capsys.readouterr().err == f"maskrcnn-bench: no verb '{word}'. Did you mean {verb}?\n"


def test_unlike_verb_lists_all(capsys):
    assert cli.main(["qqq"]) == 2
    assert ", ".join(cli.VERBS) in capsys.readouterr().err


@pytest.mark.parametrize("name", cli.VERBS)
def test_verb_exists_and_explains_itself(name, capsys):
    verb = cli.VERBS[name]
    assert callable(getattr(importlib.import_module(f"maskrcnn_bench.{verb.module}"), verb.function))
    with pytest.raises(SystemExit) as caught:
        cli.main([name, "--help"])
    assert caught.value.code == 0 and f"maskrcnn-bench {name}" in capsys.readouterr().out


# config


def test_config_show_loads_again(capsys, tmp_path):
    assert cli.main(["config", "show", "--config-file", "e2e_mask_rcnn_R_50_FPN_1x.yaml", "SOLVER.BASE_LR", "0.5", "SEED=2"]) == 0
    path = tmp_path / "shown.yaml"
    path.write_text(capsys.readouterr().out)
    assert load_config(path) == load_config("e2e_mask_rcnn_R_50_FPN_1x.yaml", ["SOLVER.BASE_LR", "0.5", "SEED=2"])


def test_config_diff_prints_old_and_new(capsys):
    assert cli.main(["config", "diff", "MODEL.MASK_ON=True", "SOLVER.STEPS", "(1, 2)"]) == 0
    assert capsys.readouterr().out == "MODEL.MASK_ON: False -> True\nSOLVER.STEPS: (30000,) -> (1, 2)\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--config-file", "e2e_mask_rcn_R_50_FPN_1x.yaml"], "Did you mean e2e_mask_rcnn_R_50_FPN_1x.yaml"),
        (["SOLVER.BASE_RL=1"], "Did you mean SOLVER.BASE_LR"),
        (["SOLVER.BASE_LR", "quick"], "expects a number"),
    ],
)
def test_config_mistakes_are_one_line(capsys, words, message):
    assert cli.main(["config", "show", *words]) == 1
    printed = capsys.readouterr()
    assert printed.out == "" and message in printed.err and printed.err.count("\n") == 1


def test_config_keys_explains_keys(capsys):
    assert cli.main(["config", "keys", "ims_per_batch"]) == 0
    printed = capsys.readouterr().out
    assert "SOLVER.IMS_PER_BATCH = 16\n    Images per optimizer step, over all GPUs" in printed
    assert "TEST.IMS_PER_BATCH = 8" in printed and "MASK_ON" not in printed
    assert cli.main(["config", "keys", "BASE_RL"]) == 1
    assert "SOLVER.BASE_LR" in capsys.readouterr().err


def test_config_keys_names_the_keys_of_a_shared_text(capsys):
    assert cli.main(["config", "keys", "rpn.bg_iou"]) == 0
    assert "FG_IOU_THRESHOLD, BG_IOU_THRESHOLD: An anchor is positive" in capsys.readouterr().out
    assert cli.main(["config", "keys", "soft_nms.sigma"]) == 0
    assert '\n    SIGMA of "gaussian"' in capsys.readouterr().out


def test_config_alone_asks_only_for_what_it_needs(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["config"])
    printed = capsys.readouterr().err
    assert stop.value.code == 2 and "error: say what to print: show, diff or keys" in printed and "required" not in printed


def test_a_reader_that_has_enough_is_no_error(repository):
    command = [sys.executable, "-m", "maskrcnn_bench.cli", "config", "keys"]
    with subprocess.Popen(command, cwd=repository, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as program:
        program.stdout.close()
        assert program.stderr.read() == b"" and program.wait() == 141


# doctor


def test_doctor_reports_as_json(capsys):
    code = cli.main(["doctor", "--json"])
    checks = {check["name"]: check for check in json.loads(capsys.readouterr().out)}
    ops = {f"op {op}" for op in (*doctor.OPS, *doctor.CUDA_OPS)}
    assert {"maskrcnn_bench", "python", "torch", "torchvision", "compiler", "ninja", "evaluator"} | ops <= checks.keys()
    assert checks["torch"]["value"] == importlib.metadata.version("torch")
    assert code == 0 and all(check["state"] != "broken" for check in checks.values())
    assert all(check["fix"] for check in checks.values() if check["state"] != "ok")
    way = "(csrc|torchvision|torch|pycocotools)"
    assert all(re.fullmatch(rf"cpu {way}, cuda ({way}|no device)", checks[f"op {op}"]["value"]) for op in doctor.OPS)


def test_doctor_prints_the_fix_under_each_bad_line(capsys, monkeypatch):
    monkeypatch.setattr(doctor, "examine", lambda: [doctor.Check("a", "1"), doctor.Check("bb", "bad", "broken", "do this")])
    assert cli.main(["doctor"]) == 1
    assert capsys.readouterr().out == "ok     a   1\nBROKEN bb  bad\n           -> do this\n\n1 broken.\n"


@pytest.mark.parametrize(
    ("version", "state"), [("2.10.1", "broken"), ("2.11.0", "ok"), ("2.15.0+cu130", "ok"), ("3.0", "ok"), (None, "broken")]
)
def test_doctor_judges_the_version_of_torch(monkeypatch, version, state):
    def installed(name):
        if version is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return version

    monkeypatch.setattr(importlib.metadata, "version", installed)
    check = doctor._package("torch")
    assert check.state == state and bool(check.fix) == (state != "ok")


def test_doctor_survives_a_library_that_fails(monkeypatch):
    def fails():
        raise RuntimeError("wrong shared object")
        yield

    monkeypatch.setattr(doctor, "_device", fails)
    broken = [check for check in doctor.examine() if check.state == "broken"]
    assert any("wrong shared object" in check.value for check in broken)


def test_doctor_sees_small_shared_memory(tmp_path):
    def usage(free):
        return lambda path: type("Usage", (), {"free": free})

    assert [c.state for c in doctor._shared_memory(str(tmp_path), usage(64 * 2**20))] == ["note"]
    assert [c.state for c in doctor._shared_memory(str(tmp_path), usage(8 * 2**30))] == ["ok"]
    assert list(doctor._shared_memory(str(tmp_path / "none"))) == []
