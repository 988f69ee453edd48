"""Checkpoints: what they hold, that a kill never leaves half of one, and what is said about files that are none."""

import logging
import os

import pytest
import torch
from torch import nn

from maskrcnn_bench.config import load_config
from maskrcnn_bench.engine.trainer import AveragedWeights, LossScale
from maskrcnn_bench.solver import make_lr_scheduler, make_optimizer
from maskrcnn_bench.utils import checkpoint as module
from maskrcnn_bench.utils.checkpoint import (
    Checkpointer,
    DetectronCheckpointer,
    config_changes,
    describe_checkpoint,
    last_checkpoint,
    read_checkpoint,
)

CLASSES = ("__background__", "cat", "dog")
LOGGER = logging.getLogger("maskrcnn_bench.test")


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Conv2d(3, 8, 3)
        self.head = nn.Linear(8, 2)

    def forward(self, x):
        return self.head(self.body(x).mean((2, 3))).square().sum()


def build(folder, seed=0, opts=(), **options):
    """(model, checkpointer) of a small run."""
    torch.manual_seed(seed)
    cfg = load_config(None, ["MODEL.DEVICE", "cpu", *opts])
    model = Net().to(memory_format=torch.channels_last)
    optimizer = make_optimizer(cfg, model)
    scheduler = make_lr_scheduler(cfg, optimizer)
    return model, DetectronCheckpointer(cfg, model, optimizer, scheduler, str(folder), True, class_names=CLASSES, **options)


def train(model, checkpointer, start, end):
    for i in range(start, end):
        checkpointer.scheduler.step(i)
        checkpointer.optimizer.zero_grad()
        model(torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(i))).backward()
        checkpointer.optimizer.step()


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


# content


def test_a_file_describes_itself_and_needs_no_trust(tmp_path):
    model, checkpointer = build(tmp_path, scaler=LossScale("cpu"))
    checkpointer.ema = AveragedWeights(model, 0.9)
    checkpointer.save("model_0000003", iteration=3)
    content = torch.load(tmp_path / "model_0000003.pth", weights_only=True)
    assert set(content) == {
        *("format", "model", "optimizer", "scheduler", "ema", "scaler", "iteration"),
        *("config", "class_names", "dialect", "versions", "ops"),
    }
    assert list(content["model"]) == ["body.weight", "body.bias", "head.weight", "head.bias"]
    assert content["class_names"] == list(CLASSES) and content["dialect"] == "maskrcnn_benchmark"
    assert content["versions"]["torch"] == torch.__version__ and content["ops"] in ("csrc", "torchvision", "torch")
    assert "IMS_PER_BATCH: 16" in content["config"]
    assert describe_checkpoint(tmp_path / "model_0000003.pth")["iteration"] == 3


def test_the_wrapper_for_several_gpus_is_not_in_the_names(tmp_path):
    model = Net()
    wrapped = nn.parallel.DistributedDataParallel.__new__(nn.parallel.DistributedDataParallel)
    nn.Module.__init__(wrapped)
    wrapped.module = model
    Checkpointer(wrapped, save_dir=str(tmp_path), save_to_disk=True).save("x")
    assert "body.weight" in torch.load(tmp_path / "x.pth", weights_only=True)["model"]


def test_only_the_process_that_should_writes(tmp_path):
    model = Net()
    Checkpointer(model, save_dir=str(tmp_path), save_to_disk=False).save("x")
    Checkpointer(model, save_dir="", save_to_disk=True).save("x")
    assert list(tmp_path.iterdir()) == []


# resume


def test_resume_goes_on_to_the_bit(tmp_path):
    straight, checkpointer = build(tmp_path / "a")
    train(straight, checkpointer, 0, 10)
    half, checkpointer = build(tmp_path / "b")
    train(half, checkpointer, 0, 5)
    checkpointer.save("model_0000005", iteration=5, best={"metric": "bbox/AP", "value": 0.5})
    resumed, checkpointer = build(tmp_path / "b", seed=1)
    extra = checkpointer.load("ignored.pth")
    assert (extra["iteration"], extra["best"]["value"]) == (5, 0.5)
    train(resumed, checkpointer, 5, 10)
    assert same(straight, resumed)


def test_new_hyperparameters_win_over_saved_ones(tmp_path):
    model, checkpointer = build(tmp_path, opts=["SOLVER.BASE_LR", "0.1", "SOLVER.WEIGHT_DECAY", "0.5", "SOLVER.WARMUP_ITERS", "0"])
    train(model, checkpointer, 0, 2)
    checkpointer.save("model_0000002", iteration=2)
    momentum = {id(p): s["momentum_buffer"] for p, s in checkpointer.optimizer.state.items()}
    model, checkpointer = build(tmp_path, opts=["SOLVER.BASE_LR", "0.001", "SOLVER.WARMUP_ITERS", "0"])
    checkpointer.load()
    assert [(g["lr"], g["weight_decay"]) for g in checkpointer.optimizer.param_groups] == [(0.001, 0.0005), (0.002, 0.0)]
    restored = [s["momentum_buffer"] for s in checkpointer.optimizer.state.values()]
    assert all(torch.equal(a, b) for a, b in zip(momentum.values(), restored, strict=True))


def test_optimizer_state_follows_names_not_places(tmp_path):
    model, checkpointer = build(tmp_path)
    train(model, checkpointer, 0, 2)
    checkpointer.save("model_0000002", iteration=2)
    # Another group for biases moves every parameter's place.
    other, resumed = build(tmp_path, opts=["SOLVER.BIAS_LR_FACTOR", "1", "SOLVER.WEIGHT_DECAY_BIAS", "0.0005"])
    assert len(resumed.optimizer.param_groups) == 1
    resumed.load()
    for name, parameter in other.named_parameters():
        was = checkpointer.optimizer.state[dict(model.named_parameters())[name]]["momentum_buffer"]
        assert torch.equal(resumed.optimizer.state[parameter]["momentum_buffer"], was)


def test_averages_and_loss_scale_come_back(tmp_path):
    model, checkpointer = build(tmp_path)
    checkpointer.ema, checkpointer.scaler = AveragedWeights(model, 0.5), LossScale("cpu")
    train(model, checkpointer, 0, 3)
    checkpointer.ema.update(model, 100)
    checkpointer.scaler.update(torch.ones(()))
    checkpointer.save("model_0000003", iteration=3)
    fresh, resumed = build(tmp_path, seed=1)
    resumed.ema, resumed.scaler = AveragedWeights(fresh, 0.5), LossScale("cpu")
    resumed.load()
    assert same(resumed.ema.module, checkpointer.ema.module) and not same(resumed.ema.module, fresh)
    assert float(resumed.scaler.scale) == 32768


def test_weights_alone_start_anew(tmp_path):
    model, checkpointer = build(tmp_path / "a")
    train(model, checkpointer, 0, 3)
    checkpointer.save("model_final", iteration=3)
    fresh, other = build(tmp_path / "b", seed=1)
    assert other.load(str(tmp_path / "a" / "model_final.pth")) == {}
    assert same(model, fresh)
    assert all(not s["momentum_buffer"].any() for s in other.optimizer.state.values())
    assert other.load_weights(str(tmp_path / "a" / "model_final.pth"))["class_names"] == list(CLASSES)


def test_weights_are_the_averaged_ones_where_there_are_some(tmp_path):
    model, checkpointer = build(tmp_path)
    checkpointer.ema = AveragedWeights(model, 0.5)
    train(model, checkpointer, 0, 3)
    checkpointer.save("model_final", iteration=3)
    fresh, other = build(tmp_path / "b", seed=1)
    other.load_weights(str(tmp_path / "model_final.pth"))
    assert same(fresh, checkpointer.ema.module) and not same(fresh, model)


def test_changed_keys_are_told_on_resume(tmp_path, caplog, monkeypatch):
    _, checkpointer = build(tmp_path)
    checkpointer.save("model_0000001", iteration=1)
    monkeypatch.setattr(logging.getLogger("maskrcnn_bench"), "propagate", True)
    with caplog.at_level(logging.INFO, "maskrcnn_bench"):
        build(tmp_path, opts=["SOLVER.STEPS", "(7,)"])[1].load()
    assert "the new value holds: SOLVER.STEPS: [30000] -> [7]" in caplog.text


def test_differences_of_two_configs():
    assert config_changes("A: {B: 1, C: 2}\n", "A: {B: 1, C: 3, D: 4}\n") == ["A.C: 2 -> 3", "A.D: None -> 4"]


# names of files


def test_last_checkpoint_survives_a_move_of_its_folder(tmp_path):
    _, checkpointer = build(tmp_path / "old")
    checkpointer.save("model_0000001", iteration=1)
    assert last_checkpoint(tmp_path / "old") == str(tmp_path / "old" / "model_0000001.pth")
    (tmp_path / "old").rename(tmp_path / "new")
    assert last_checkpoint(tmp_path / "new") == str(tmp_path / "new" / "model_0000001.pth")
    assert last_checkpoint(tmp_path) == ""


def test_n_numbered_ones_stay_and_so_do_best_and_final(tmp_path):
    _, checkpointer = build(tmp_path, keep_last=2)
    checkpointer.save("model_best", training_state=False, iteration=1)
    for i in range(1, 11):
        checkpointer.save(f"model_{i:07d}", iteration=i)
    _, resumed = build(tmp_path, keep_last=2)
    resumed.load()
    resumed.save("model_0000011", iteration=11)
    resumed.save("model_final", iteration=12)
    names = sorted(p.name for p in tmp_path.glob("*"))
    assert names == ["last_checkpoint", "model_0000010.pth", "model_0000011.pth", "model_best.pth", "model_final.pth"]
    assert last_checkpoint(tmp_path).endswith("model_final.pth")


def test_a_new_run_in_the_folder_of_one_that_was_further_keeps_its_own(tmp_path):
    for first in (5, 1):
        _, checkpointer = build(tmp_path, keep_last=2)
        for i in range(first, first + 3):
            checkpointer.save(f"model_{i:07d}", iteration=i)
            assert os.path.isfile(last_checkpoint(tmp_path))
    assert sorted(p.name for p in tmp_path.glob("model_*")) == ["model_0000002.pth", "model_0000003.pth"]


@pytest.mark.parametrize("moment", ["write", "rename"])
def test_a_kill_while_saving_leaves_the_old_file(tmp_path, monkeypatch, moment):
    model, checkpointer = build(tmp_path)
    checkpointer.save("model_final", iteration=1)
    before = (tmp_path / "model_final.pth").read_bytes()

    class Killed(BaseException):
        pass

    def kill_writing(content, file):
        file.write(before[:100])
        raise Killed

    def kill_renaming(*names):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(module.torch, "save", kill_writing) if moment == "write" else patch.setattr(os, "replace", kill_renaming)
        with pytest.raises(Killed):
            checkpointer.save("model_final", iteration=2)
    assert (tmp_path / "model_final.pth").read_bytes() == before
    assert build(tmp_path)[1].load()["iteration"] == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["last_checkpoint", "model_final.pth"]


# wrong files


def wrong_files(folder):
    _, checkpointer = build(folder)
    checkpointer.save("good", iteration=1)
    good = (folder / "good.pth").read_bytes()
    contents = {"cut.pth": good[: len(good) // 2], "page.pth": b"<!DOCTYPE html><html>Not found</html>", "empty.pth": b""}
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    return ["missing.pth", *contents]


def test_files_that_are_no_checkpoints_give_one_clear_error(tmp_path):
    said = {"missing.pth": "does not exist", "cut.pth": "truncated or damaged", "page.pth": "a web page", "empty.pth": "is empty"}
    for name in wrong_files(tmp_path):
        for read in (read_checkpoint, build(tmp_path)[1].load_weights):
            with pytest.raises((ValueError, FileNotFoundError)) as error:
                read(str(tmp_path / name))
            assert name in str(error.value) and said[name] in str(error.value)


def test_weights_cannot_be_resumed(tmp_path):
    _, checkpointer = build(tmp_path)
    checkpointer.save("model_best", training_state=False, iteration=4)
    with pytest.raises(ValueError, match="has no optimizer, so no run can go on from it.*--weights"):
        read_checkpoint(tmp_path / "model_best.pth")


def test_the_run_of_another_model_is_refused(tmp_path):
    _, checkpointer = build(tmp_path)
    checkpointer.save("model_final", iteration=4)
    _, other = build(tmp_path)
    other.model.head = nn.Linear(8, 5)
    with pytest.raises(ValueError, match="another model than the config describes.*head.weight"):
        other.load()


def test_changed_keys_of_the_model_are_named(tmp_path):
    _, checkpointer = build(tmp_path)
    checkpointer.about["config"] = "MODEL: {WIDTH: 4}\nSEED: 1"
    checkpointer.save("model_final", iteration=4)
    _, other = build(tmp_path)
    other.about["config"] = "MODEL: {WIDTH: 5}\nSEED: 2"
    other.model.head = nn.Linear(8, 5)
    with pytest.raises(ValueError, match=r"changed since: MODEL.WIDTH: 4 -> 5. Put it back, or .*--weights FILE and another OUTPUT_DIR$"):
        other.load()


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), RuntimeError("enforce fail at inline_container.cc\nmore")])
def test_a_full_disk_is_one_message_and_leaves_the_old_checkpoint(tmp_path, monkeypatch, error):
    _, checkpointer = build(tmp_path)
    checkpointer.save("model_final", iteration=4)

    def fills(content, file):
        file.write(b"half")
        raise error

    monkeypatch.setattr(torch, "save", fills)
    before = sorted(p.name for p in tmp_path.iterdir())
    with pytest.raises(
        OSError, match=r"cannot write .*model_final.pth \(.*\): \d+ MB free, about \d+ MB needed; free space and .*--resume$"
    ):
        checkpointer.save("model_final", iteration=5)
    assert sorted(p.name for p in tmp_path.iterdir()) == before
    assert read_checkpoint(tmp_path / "model_final.pth")["iteration"] == 4
