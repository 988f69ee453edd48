"""Killed at any moment and started again, a run ends with the bits of one that nobody disturbed.

The programs are real processes and get a real SIGKILL. To start quickly they are forked from one that has imported everything.
"""

import json
import os
import subprocess
import sys

import pytest
import torch

from maskrcnn_bench.data.datasets.toy import generate

NARROW = """
_BASE_: {base}
MODEL:
  DEVICE: cpu
  WEIGHT: ""
  BACKBONE: {{FREEZE_CONV_BODY_AT: 0}}
  RESNETS: {{NORM: BN, STEM_OUT_CHANNELS: 8, WIDTH_PER_GROUP: 8, RES2_OUT_CHANNELS: 16, BACKBONE_OUT_CHANNELS: 8}}
  RPN: {{PRE_NMS_TOP_N_TRAIN: 100, PRE_NMS_TOP_N_TEST: 100, POST_NMS_TOP_N_TRAIN: 50, POST_NMS_TOP_N_TEST: 20, FPN_POST_NMS_TOP_N_TEST: 20}}
  ROI_HEADS: {{BATCH_SIZE_PER_IMAGE: 16}}
  ROI_BOX_HEAD: {{MLP_HEAD_DIM: 16}}
  ROI_MASK_HEAD: {{CONV_LAYERS: [8]}}
INPUT: {{MIN_SIZE_TRAIN: [48, 64], MIN_SIZE_TEST: 64}}
DTYPE: float16
DATALOADER: {{NUM_WORKERS: 2}}
SOLVER:
  {{IMS_PER_BATCH: 4, BASE_LR: 0.005, MAX_ITER: 18, STEPS: [12], WARMUP_ITERS: 4, LOG_PERIOD: 5, EMA: 0.9, ACCUMULATE: 2,
   CHECKPOINT_PERIOD: 2, KEEP_LAST: 2, TEST_PERIOD: 6, PATIENCE: 3, BEST_METRIC: bbox/AR100}}
"""

DRIVER = """
import os, random, signal, sys, time
import torch
from maskrcnn_bench.engine import launch
from maskrcnn_bench.engine.launch import train_main

torch.set_num_threads(1)
kills, seed, output, words = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4:]

def start(folder):
    child = os.fork()
    if child == 0:
        os.setsid()
        random.seed(time.time_ns())
        torch.manual_seed(time.time_ns() % 2**31)
        sys.stdout = open(folder + ".out", "a")
        os._exit(train_main([*words, "--output", folder]))
    return child

begin = time.monotonic()
assert os.waitpid(start(output + "/straight"), 0)[1] == 0
length = time.monotonic() - begin
moments = random.Random(seed)
done = resumable = 0
for attempt in range(20 * kills):
    child = start(output + "/killed")
    # The later ones have less left to do; half of a whole run's time meets starts, steps, saves and tests.
    limit, begin, status = moments.uniform(0.05, 0.6) * length, time.monotonic(), None
    while time.monotonic() - begin < limit and not (ended := os.waitpid(child, os.WNOHANG))[0]:
        time.sleep(0.005)
    if not ended[0]:
        os.killpg(child, signal.SIGKILL)
        os.waitpid(child, 0)
        done += 1
        resumable += os.path.exists(output + "/killed/last_checkpoint")
        if done >= kills and resumable:
            break
        continue
    # Came to its end before: begin anew, so that every kill meets a run.
    assert ended[1] == 0
    os.rename(output + "/killed", output + f"/whole{attempt}")
assert done >= kills and resumable
assert os.waitpid(start(output + "/killed"), 0)[1] == 0
print("kills", done)
"""


def differing(a, b, path=""):
    """Names of the values in which two nested states differ in a bit."""
    if isinstance(a, dict) and isinstance(b, dict):
        return [name for key in {**a, **b} for name in differing(a.get(key), b.get(key), f"{path}.{key}")]
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)) and len(a) == len(b):
        return [name for k, (x, y) in enumerate(zip(a, b)) for name in differing(x, y, f"{path}.{k}")]
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return [] if torch.equal(a, b) else [path]
    return [] if type(a) is type(b) and a == b else [path]


@pytest.mark.parametrize("kills", [3, pytest.param(20, marks=pytest.mark.full)])
def test_kills_at_random_moments_do_not_change_a_bit(tmp_path, repository, kills):
    generate(tmp_path / "toy", 12, 3, 64)
    (tmp_path / "narrow.yaml").write_text(NARROW.format(base=repository / "configs" / "e2e_mask_rcnn_R_50_FPN_1x.yaml"))
    (tmp_path / "driver.py").write_text(DRIVER)
    words = ["--config-file", str(tmp_path / "narrow.yaml"), "--data", str(tmp_path / "toy")]
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(repository)}
    command = [sys.executable, str(tmp_path / "driver.py"), str(kills), "0", str(tmp_path), *words]
    ended = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60 + 30 * kills)
    said = (tmp_path / "killed.out").read_text() if (tmp_path / "killed.out").exists() else ""
    assert ended.returncode == 0, ended.stderr + said[-3000:]
    finals = sorted(folder for folder in tmp_path.iterdir() if folder.is_dir() and folder.name.startswith(("killed", "whole")))
    for folder in finals:
        for name in ("model_final.pth", "model_best.pth"):
            straight, killed = (torch.load(place / name, weights_only=True) for place in (tmp_path / "straight", folder))
            assert {"ema", "model"} <= set(straight) and (name == "model_best.pth" or {"optimizer", "scaler", "best"} <= set(straight))
            assert differing(straight, {**killed, "config": straight["config"]}) == [], f"{folder.name}/{name}"
        tests = [json.loads((place / "results.json").read_text()) for place in (tmp_path / "straight", folder)]
        assert tests[0]["bbox"] == tests[1]["bbox"]
        assert len(list(folder.glob("model_0*.pth"))) == 2 and not list(folder.glob("*.tmp"))
    assert "resuming" in said, "a kill came after a checkpoint"
