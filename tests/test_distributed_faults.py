"""Processes of a run that hang or fail, and processes without work: a run ends soon, and says which one it was and what was missing."""

import json
import os
import signal
import socket
import subprocess
import sys
import time

import pytest
from models import FPN_WIDTH, NARROW

from maskrcnn_bench.data.datasets.toy import generate
from maskrcnn_bench.engine.launch import train_main

PROGRAM = """
import os, sys, time
from maskrcnn_bench.engine import inference, trainer
from maskrcnn_bench.engine.launch import train_main

fault = os.environ["FAULT"]

def go_wrong():
    if os.environ["RANK"] != "1":
        return
    if fault.startswith("hang"):
        time.sleep(7)
    elif fault == "raise":
        raise ValueError("a picture of rank 1 is broken")

step, collect = trainer.Step.__call__, inference.gather_items

def faulty_step(self, parts, iteration):
    if iteration == 3 and fault != "hang in the test":
        go_wrong()
    return step(self, parts, iteration)

def faulty_collect(items):
    if fault == "hang in the test":
        go_wrong()
    return collect(items)

trainer.Step.__call__ = faulty_step
inference.gather_items = faulty_collect
sys.exit(train_main())
"""
SMALL = ["MODEL.RESNETS.NORM", "GN", "MODEL.GROUP_NORM.NUM_GROUPS", 4, "INPUT.MIN_SIZE_TRAIN", "(64,)", "INPUT.MIN_SIZE_TEST", 64]


def config_words(data, output, *given):
    """A small training on a data set, as words of a command."""
    words = ["--config-file", "configs/e2e_faster_rcnn_R_50_FPN_1x.yaml", "--data", data, "--output", output, *NARROW, *FPN_WIDTH, *SMALL]
    usual = [
        "SOLVER.WARMUP_ITERS=1",
        "DATALOADER.NUM_WORKERS=0",
        "MODEL.WEIGHT=",
        "MODEL.ROI_BOX_HEAD.NUM_CLASSES=7",
        "SOLVER.LOG_PERIOD=1",
    ]
    return [str(word) for word in (*words, *usual, *given)]


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def together(repository, count, *command, **env):
    """(exit code, output, seconds) of each process; they find each other without a launcher, which would end those that are left."""
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(repository), "WORLD_SIZE": str(count), "LOCAL_RANK": "0"} | env
    env |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "start_new_session": True}
    begin = time.monotonic()
    words = [sys.executable, *map(str, command)]
    ranks = [subprocess.Popen(words, cwd=repository, env=env | {"RANK": str(rank)}, **pipes) for rank in range(count)]
    try:
        return [(process, process.communicate(timeout=90)[0], time.monotonic() - begin) for process in ranks]
    finally:
        for process in ranks:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("hang", "rank 0 lost rank 1, which died or did not come for 3 s, during the training, in iteration 3"),
        ("hang in the test", "rank 0 lost rank 1, which died or did not come for 3 s, during the test on"),
        ("raise", "rank 0 lost rank 1, which ended with: a picture of rank 1 is broken, during the training, in iteration 3"),
    ],
)
def test_a_process_that_is_lost_is_named_and_all_end(repository, tmp_path, fault, said):
    generate(tmp_path / "toy", 4, 2, 64)
    (tmp_path / "faulty.py").write_text(PROGRAM)
    given = ["SOLVER.IMS_PER_BATCH=2", "SOLVER.MAX_ITER=4", "PROCESS_TIMEOUT=3"]
    words = config_words(tmp_path / "toy", tmp_path / "out", *given)
    (first, told, seconds), (second, _, _) = together(repository, 2, tmp_path / "faulty.py", *words, FAULT=fault)
    assert first.returncode == 1 and second.returncode not in (0, None), told
    assert said in told
    assert "Traceback" not in told
    assert seconds < 60, "far from half an hour"


def test_more_processes_than_images_train_test_and_measure_losses_as_one(repository, tmp_path):
    generate(tmp_path / "toy", 1, 1, 64)
    given = ["SOLVER.IMS_PER_BATCH=3", "SOLVER.MAX_ITER=2", "TEST.LOSSES=True", "PROCESS_TIMEOUT=30"]
    ranks = together(repository, 3, "tools/train_net.py", *config_words(tmp_path / "toy", tmp_path / "three", *given))
    assert [process.returncode for process, _, _ in ranks] == [0, 0, 0], ranks[0][1]
    assert train_main(config_words(tmp_path / "toy", tmp_path / "one", *given, "SOLVER.ACCUMULATE=3")) == 0
    rows = [[json.loads(line) for line in (tmp_path / run / "metrics.jsonl").read_text().splitlines()] for run in ("three", "one")]
    for three, one in zip(*rows, strict=True):
        for name in [name for name in one if "loss" in name or "/" in name]:
            assert three[name] == pytest.approx(one[name], rel=1e-3, abs=1e-5), name
    assert "val/loss" in rows[0][-1] and "bbox/AP" in rows[0][-1]
