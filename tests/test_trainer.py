"""The loop on a small model: exact resume, accumulation, mixed precision, overflow, the best checkpoint, the logs."""

import io
import json
import logging
import math
import re
import sys

import pytest
import torch
from PIL import Image
from torch import nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from maskrcnn_bench.config import load_config
from maskrcnn_bench.engine.board import Board, make_board
from maskrcnn_bench.engine.nonfinite import NonFiniteLoss
from maskrcnn_bench.engine.progress import Progress, Record, cut_back
from maskrcnn_bench.engine.trainer import AveragedWeights, LossScale, Step, do_train
from maskrcnn_bench.solver import make_lr_scheduler, make_optimizer
from maskrcnn_bench.structures.bounding_box import BoxList
from maskrcnn_bench.utils.checkpoint import DetectronCheckpointer, read_checkpoint
from maskrcnn_bench.utils.counter import counter_key, stage_number, uniform
from maskrcnn_bench.utils.logger import close_handlers, setup_logger


class Net(nn.Module):
    """Answers a dict of losses; chooses pixels by the images' keys, as samplers do."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.head = nn.Linear(8, 2)

    def forward(self, images, targets):
        weights = uniform(images.keys, stage_number("choice"), 8)
        out = self.head(self.conv(images.tensors).float().mean((2, 3)) * weights)
        return {"loss_a": (out - targets).square().mean(), "loss_b": 0.1 * out.abs().mean()}


class Images:
    def __init__(self, tensors, keys):
        self.tensors, self.keys = tensors, keys

    def to(self, device, non_blocking=False):
        return Images(self.tensors.to(device), self.keys.to(device))


class Data:
    def __len__(self):
        return 100

    def get_img_info(self, i):
        return {"id": 1000 + i, "file_name": f"{i:03d}.jpg", "height": 6, "width": 6}


class Loader:
    """Batches as functions of the iteration; `spoil` puts NaN into the images of one iteration (counted from 1)."""

    dataset = Data()

    def __init__(self, end, start=0, batch=4, parts=1, spoil=None):
        self.start, self.end, self.batch, self.parts, self.spoil = start, end, batch, parts, spoil

    def __len__(self):
        return (self.end - self.start) * self.parts

    def __iter__(self):
        for iteration in range(self.start, self.end):
            for part in range(self.parts):
                indices = [(iteration * self.batch * self.parts + part * self.batch + k) % 100 for k in range(self.batch)]
                keys = [counter_key(0, iteration, i) for i in indices]
                pixels = torch.stack([torch.randn(3, 6, 6, generator=torch.Generator().manual_seed(k % 2**31)) for k in keys])
                if self.spoil == iteration + 1:
                    pixels[1] = float("nan")
                yield Images(pixels, torch.tensor(keys)), torch.tensor([[float(i), 1.0] for i in indices]) / 100, tuple(indices)


class Run:
    """Everything `do_train` wants, on the CPU."""

    def __init__(self, folder, opts=(), seed=0, resume=False, **step):
        torch.manual_seed(seed)
        cfg = load_config(None, ["SOLVER.BASE_LR", "0.05", "SOLVER.WARMUP_ITERS", "10", "SOLVER.STEPS", "(60,)", *opts])
        self.model = Net()
        optimizer = make_optimizer(cfg, self.model)
        self.scheduler = make_lr_scheduler(cfg, optimizer)
        if step.pop("decay", None):
            step["ema"] = AveragedWeights(self.model, 0.9)
        if step.get("dtype") is torch.float16:
            step["scaler"] = LossScale("cpu", growth_interval=20)
        self.step = Step(self.model, optimizer, "cpu", **step)
        self.folder = str(folder)
        self.checkpointer = DetectronCheckpointer(cfg, self.model, optimizer, self.scheduler, self.folder, True)
        self.checkpointer.ema, self.checkpointer.scaler = self.step.ema, self.step.scaler
        self.arguments = {"iteration": 0, **(self.checkpointer.load() if resume else {})}

    def train(self, end, period=50, loader=None, log_period=20, **options):
        start = self.arguments["iteration"]
        loader = loader or Loader(end, start, parts=self.step.accumulate)
        progress = options.pop("progress", None) or Progress(self.folder, end, log_period, 4, 100, live=False)
        parts = (self.model, loader, self.step.optimizer, self.scheduler, self.checkpointer, "cpu", period, self.arguments)
        return do_train(*parts, step=self.step, progress=progress, **options)

    def metrics(self):
        with open(f"{self.folder}/metrics.jsonl") as file:
            return [json.loads(line) for line in file]


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def losses(run):
    return {row["iteration"]: row["loss"] for row in run.metrics()}


# resume


@pytest.mark.parametrize("options", [{}, {"accumulate": 2, "decay": True}, {"dtype": torch.bfloat16}, {"dtype": torch.float16}])
def test_fifty_and_fifty_more_equal_a_hundred_to_the_bit(tmp_path, options):
    straight = Run(tmp_path / "straight", **options)
    straight.train(100)
    Run(tmp_path / "halves", **options).train(50)
    resumed = Run(tmp_path / "halves", seed=9, resume=True, **options)
    assert resumed.arguments["iteration"] == 50
    resumed.train(100)
    assert same(straight.model, resumed.model)
    if straight.step.ema is not None:
        assert same(straight.step.ema.module, resumed.step.ema.module)
    assert losses(straight)[100] == losses(resumed)[100]


def test_a_stop_saves_and_the_rest_equals_an_uninterrupted_run(tmp_path):
    straight = Run(tmp_path / "straight")
    straight.train(30)
    stopped = Run(tmp_path / "stopped")
    assert stopped.train(30, stop=lambda: stopped.arguments["iteration"] >= 12) is False
    assert read_checkpoint(tmp_path / "stopped" / "model_0000013.pth")["iteration"] == 13
    resumed = Run(tmp_path / "stopped", seed=3, resume=True)
    assert resumed.train(30) is True
    assert same(straight.model, resumed.model)


def test_a_changed_rate_holds_from_the_first_resumed_iteration(tmp_path):
    Run(tmp_path).train(20)
    resumed = Run(tmp_path, opts=["SOLVER.BASE_LR", "0.0007"], resume=True)
    resumed.train(30)
    assert [row["lr"] for row in resumed.metrics() if row["iteration"] > 20] == pytest.approx([0.0007, 0.0007])


def test_the_call_of_the_reference_still_works(tmp_path):
    run = Run(tmp_path)
    do_train(run.model, Loader(25), run.step.optimizer, run.scheduler, run.checkpointer, torch.device("cpu"), 10, run.arguments)
    assert {p.name for p in tmp_path.glob("*.pth")} == {"model_0000010.pth", "model_0000020.pth", "model_final.pth"}
    assert run.arguments == {"iteration": 25}


# the step


def test_accumulated_parts_equal_one_batch(tmp_path):
    whole, parts = Run(tmp_path / "a"), Run(tmp_path / "b", accumulate=4)
    # The same images a step, and with them the same keys.
    whole.train(20, loader=Loader(20, batch=8))
    parts.train(20, loader=Loader(20, batch=2, parts=4))
    for a, b in zip(whole.model.parameters(), parts.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_a_last_step_with_fewer_parts_counts_as_a_whole_one(tmp_path):
    run, other = Run(tmp_path / "a", accumulate=2), Run(tmp_path / "b", accumulate=2)
    batches = list(Loader(2, parts=2))[:3]
    run.train(2, loader=batches)
    assert run.arguments["iteration"] == 2 and (tmp_path / "a" / "model_final.pth").exists()
    other.train(2, loader=[*batches, batches[2]])
    # The mean of a batch and the same batch is the batch.
    for a, b in zip(run.model.parameters(), other.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_the_gradient_is_clipped_to_its_norm(tmp_path):
    opts = ["SOLVER.MOMENTUM", "0.0", "SOLVER.WEIGHT_DECAY", "0.0", "SOLVER.BIAS_LR_FACTOR", "1.0", "SOLVER.WARMUP_ITERS", "0"]
    run = Run(tmp_path, opts, clip_norm=0.01)
    before = [p.detach().clone() for p in run.model.parameters()]
    row = run.step([next(iter(Loader(1)))], 1).row
    moved = torch.cat([(a - b).detach().flatten() for a, b in zip(before, run.model.parameters(), strict=True)])
    assert float(row[-2]) > 0.01, "the gradient itself is longer"
    assert float(moved.norm()) == pytest.approx(0.05 * 0.01, rel=1e-4)


def test_mixed_precision_stays_close_to_float32(tmp_path):
    runs = {dtype: Run(tmp_path / str(dtype), dtype=dtype) for dtype in (torch.float32, torch.bfloat16, torch.float16)}
    for run in runs.values():
        run.train(50)
    final = {dtype: losses(run)[50] for dtype, run in runs.items()}
    assert final[torch.bfloat16] == pytest.approx(final[torch.float32], rel=0.05)
    assert final[torch.float16] == pytest.approx(final[torch.float32], rel=0.02)


def test_an_overflow_of_the_loss_scale_skips_the_step_and_halves_the_scale(tmp_path):
    run = Run(tmp_path, dtype=torch.float16)
    run.step.scaler.scale.fill_(1e38)
    before = [p.detach().clone() for p in run.model.parameters()]
    run.train(1)
    assert all(torch.equal(a, b) for a, b in zip(before, run.model.parameters(), strict=True))
    assert float(run.step.scaler.scale) == pytest.approx(5e37)
    assert run.metrics()[-1]["skipped"] == 1


def test_skipped_steps_and_the_scale_are_logged_where_asked(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("maskrcnn_bench"), "propagate", True)
    run = Run(tmp_path, dtype=torch.float16)
    run.step.scaler.scale.fill_(2.0**126)
    progress = Progress(str(tmp_path), 4, 2, live=False)
    progress.loss_scale = run.step.scaler.scale
    with caplog.at_level(logging.INFO):
        run.train(4, progress=progress)
    assert re.search(r"loss scale [\d.e+]+; skipped iterations 1\b", caplog.text)
    assert run.metrics()[0]["amp_scale"] == 2.0**125


def test_the_loss_scale_doubles_after_enough_good_steps():
    scaler = LossScale("cpu", start=4.0, growth_interval=3)
    scales = []
    for overflow in (0, 0, 0, 0, 0, 1, 0, 0, 0):
        scaler.update(torch.tensor(float(overflow)))
        scales.append(float(scaler.scale))
    assert scales == [4, 4, 8, 8, 8, 4, 4, 4, 8]


def test_optimizers_that_cannot_skip_by_themselves_are_skipped_for(tmp_path):
    run = Run(tmp_path)
    run.step.optimizer = torch.optim.SGD(run.model.parameters(), lr=0.1, foreach=True)
    before = [p.detach().clone() for p in run.model.parameters()]
    run.step([next(iter(Loader(1, spoil=1)))], 1)
    assert all(torch.equal(a, b) for a, b in zip(before, run.model.parameters(), strict=True))
    run.step([next(iter(Loader(1)))], 1)
    assert not torch.equal(before[0], run.model.conv.weight)


def test_averaged_weights_are_the_average(tmp_path):
    model = nn.Linear(1, 1)
    average = AveragedWeights(model, 0.75)
    start, value = average.module.weight.item(), None
    for iteration in range(1, 60):
        with torch.no_grad():
            model.weight.fill_(float(iteration))
        average.update(model, iteration)
        decay = min(0.75, (1 + iteration) / (10 + iteration))
        value = decay * (start if value is None else value) + (1 - decay) * iteration
    assert average.module.weight.item() == pytest.approx(value, rel=1e-5)


class HostReads(TorchDispatchMode):
    """Counts operations that a GPU would make the host wait for."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket.__name__ in ("_local_scalar_dense", "nonzero", "equal", "is_nonzero"):
            self.found.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("options", [{}, {"dtype": torch.float16, "clip_norm": 1.0, "accumulate": 2}, {"decay": True}])
def test_a_step_never_asks_the_device(tmp_path, options):
    run = Run(tmp_path, **options)
    batch = next(iter(Loader(1)))
    run.step([batch], 1)
    with HostReads() as reads:
        run.scheduler.step(1)
        run.step([batch] * run.step.accumulate, 2)
    assert reads.found == []
    with HostReads() as reads:
        assert float(torch.ones(())) == 1
    assert len(reads.found) == 1, "reading a number is noticed"


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_an_update_runs_on_tensors_without_values(kind, device):
    # Reading a number from a fake tensor raises, also where there is no GPU.
    with FakeTensorMode(), torch.device(device):
        model = Net()
        cfg = load_config(None, ["SOLVER.OPTIMIZER", kind])
        optimizer = make_optimizer(cfg, model)
        scheduler = make_lr_scheduler(cfg, optimizer)
        step = Step(model, optimizer, device, torch.float16, clip_norm=1.0, scaler=LossScale(device))
        if device == "cuda":
            # The fused kernel itself knows no fake tensors with a rate that is a tensor.
            optimizer.step = lambda: None
        for iteration in range(2):
            scheduler.step(iteration)
            for parameter in model.parameters():
                parameter.grad = torch.ones_like(parameter)
            norm, overflow = step._update()
        assert norm.device.type == overflow.device.type == device
        assert isinstance(optimizer.param_groups[0]["lr"], torch.Tensor) == (device == "cuda")
        with pytest.raises(DataDependentOutputException):
            float(norm)


@pytest.mark.gpu
@pytest.mark.parametrize("options", [{}, {"dtype": torch.float16, "clip_norm": 1.0}, {"decay": True, "dtype": torch.bfloat16}])
def test_a_step_on_a_gpu_does_not_wait(options):
    cfg = load_config(None, ["SOLVER.BASE_LR", "0.05", "SOLVER.WARMUP_ITERS", "0"])
    model = Net().cuda()
    optimizer = make_optimizer(cfg, model)
    scheduler = make_lr_scheduler(cfg, optimizer)
    ema = AveragedWeights(model, 0.9) if options.pop("decay", None) else None
    scaler = LossScale("cuda", start=4.0) if options.get("dtype") is torch.float16 else None
    step = Step(model, optimizer, "cuda", ema=ema, scaler=scaler, **options)
    images, targets, indices = next(iter(Loader(1)))
    batch = (images.to("cuda"), targets.cuda(), indices)
    before = model.conv.weight.detach().clone()
    step([batch], 1)
    torch.cuda.set_sync_debug_mode("error")
    try:
        scheduler.step(1)
        row = step([batch], 2).row
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.isfinite(row).all() and not torch.equal(before, model.conv.weight)


# losses that are not finite


def test_a_loss_that_is_not_finite_stops_within_a_log_period_and_leaves_a_dump(tmp_path):
    run = Run(tmp_path)
    with pytest.raises(NonFiniteLoss, match=r"iteration 23: loss nan, loss_a nan.*Learning rate 0.05.*091.jpg.*nan_dump.json"):
        run.train(100, loader=Loader(100, spoil=23))
    assert run.arguments["iteration"] == 40
    dump = json.loads((tmp_path / "nan_dump.json").read_text())
    assert dump["iteration"] == 23 and dump["lr"] == 0.05 and dump["grad_norm"] == "nan"
    assert dump["losses"] == {"loss": "nan", "loss_a": "nan", "loss_b": "nan"}
    assert [(i["index"], i["id"], i["file_name"]) for i in dump["images"]] == [(88 + k, 1088 + k, f"0{88 + k}.jpg") for k in range(4)]
    state = torch.load(tmp_path / "nan_dump.pt", weights_only=True)
    assert all(torch.isfinite(value).all() for value in state["model"].values())


def test_overflows_without_end_stop_the_run(tmp_path):
    run = Run(tmp_path, dtype=torch.float16)
    run.step.scaler.update = lambda overflow: None
    run.step.scaler.scale.fill_(1e38)
    with pytest.raises(NonFiniteLoss, match="gradient norm (inf|nan)"):
        run.train(100)
    assert run.arguments["iteration"] == 40


def test_no_checkpoint_is_saved_after_a_bad_loss(tmp_path):
    run = Run(tmp_path)
    with pytest.raises(NonFiniteLoss):
        run.train(100, period=5, loader=Loader(100, spoil=23))
    assert run.arguments["iteration"] == 25
    assert read_checkpoint(tmp_path / "model_0000020.pth")["iteration"] == 20
    assert not (tmp_path / "model_0000025.pth").exists()


# evaluation


def scripted(run, values):
    """An evaluation that reports the next of some values, and where it did."""
    seen = []

    def evaluate():
        seen.append(run.arguments["iteration"])
        return {"bbox/AP": values[len(seen) - 1]}

    return evaluate, seen


def test_the_best_checkpoint_and_the_early_stop(tmp_path):
    run = Run(tmp_path)
    evaluate, seen = scripted(run, [0.1, 0.3, 0.2, 0.25, 0.9])
    assert run.train(50, period=10, evaluate=evaluate, eval_period=10, patience=2) is True
    assert seen == [10, 20, 30, 40]
    best = torch.load(tmp_path / "model_best.pth", weights_only=True)
    assert best["best"] == {"metric": "bbox/AP", "value": 0.3, "iteration": 20, "without_gain": 0}
    assert best["iteration"] == 20 and "optimizer" not in best
    assert read_checkpoint(tmp_path / "model_final.pth")["iteration"] == 40


def test_the_best_loss_is_the_smallest(tmp_path):
    run = Run(tmp_path)
    evaluate, seen = scripted(run, [2.5, 2.0, 2.2, 2.1, 1.0])
    assert run.train(
        50, period=10, evaluate=lambda: {"val/loss": evaluate()["bbox/AP"]}, eval_period=10, best_metric="val/loss", patience=2
    )
    assert seen == [10, 20, 30, 40] and torch.load(tmp_path / "model_best.pth", weights_only=True)["best"]["value"] == 2.0


def test_an_undefined_metric_is_worse_than_any(tmp_path):
    run = Run(tmp_path)
    run.train(30, period=10, evaluate=scripted(run, [float("nan"), 0.1, float("nan")])[0], eval_period=10)
    assert run.arguments["best"]["value"] == 0.1


def test_patience_survives_a_resume(tmp_path):
    run = Run(tmp_path)
    evaluate, _ = scripted(run, [0.5, 0.4])
    run.train(20, period=10, evaluate=evaluate, eval_period=10, patience=2)
    resumed = Run(tmp_path, resume=True)
    evaluate, seen = scripted(resumed, [0.3, 0.9])
    resumed.train(50, period=10, evaluate=evaluate, eval_period=10, patience=2)
    assert seen == [30]
    assert torch.load(tmp_path / "model_best.pth", weights_only=True)["iteration"] == 10


def test_an_evaluation_that_a_kill_cut_off_is_made_up_for(tmp_path):
    straight = Run(tmp_path / "straight")
    straight.train(40, period=10, evaluate=scripted(straight, [0.5, 0.4, 0.3])[0], eval_period=10, patience=2)

    def killed():
        raise KeyboardInterrupt

    run = Run(tmp_path / "killed")
    with pytest.raises(KeyboardInterrupt):
        run.train(40, period=10, evaluate=killed, eval_period=10, patience=2)
    run = Run(tmp_path / "killed", resume=True)
    evaluate, seen = scripted(run, [0.5, 0.4, 0.3])
    run.train(40, period=10, evaluate=evaluate, eval_period=10, patience=2)
    assert seen == [10, 20, 30] and same(straight.model, run.model)
    assert straight.arguments.items() <= run.arguments.items()
    # What ended by patience stays so.
    run = Run(tmp_path / "killed", resume=True)
    evaluate, seen = scripted(run, [0.9])
    assert run.train(40, period=10, evaluate=evaluate, eval_period=10, patience=2) is True
    assert seen == [] and run.arguments["iteration"] == 30


def test_a_stop_does_not_wait_for_an_evaluation(tmp_path):
    run = Run(tmp_path)
    evaluate, seen = scripted(run, [])
    assert run.train(30, period=10, evaluate=evaluate, eval_period=10, stop=lambda: run.arguments["iteration"] >= 9) is False
    assert seen == [] and read_checkpoint(tmp_path / "model_0000010.pth")["iteration"] == 10


def test_without_a_period_only_the_end_is_tested_and_only_after_it_is_saved(tmp_path):
    run = Run(tmp_path)
    saved = []

    def evaluate():
        saved.append((tmp_path / "model_final.pth").exists())
        return {"bbox/AP": 0.1}

    run.train(25, evaluate=evaluate)
    assert saved == [True]
    assert read_checkpoint(tmp_path / "model_final.pth")["best"]["iteration"] == 25


def test_a_metric_that_is_not_evaluated_is_told_and_does_not_end_the_run(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("maskrcnn_bench"), "propagate", True)
    assert Run(tmp_path).train(10, evaluate=lambda: {"bbox/AP": 0.1}, best_metric="box/AP", patience=1)
    assert "'box/AP' was not evaluated; there are: bbox/AP" in caplog.text


# progress

METER = r"\d+\.\d{4} \(\d+\.\d{4}\)"
LINE = re.compile(
    rf"eta: \d+:\d\d:\d\d  iter: (?P<iter>\d+)  loss: {METER}  loss_a: {METER}  loss_b: {METER}"
    rf"  time: {METER}  data: {METER}  lr: \d\.\d{{6}}  max mem: \d+"
)


@pytest.fixture
def logged(tmp_path):
    """The console of a run whose log goes to tmp_path."""
    stream = io.StringIO()
    logger = setup_logger(save_dir=tmp_path, stream=stream)
    yield stream
    close_handlers(logger)


def test_lines_have_the_reference_s_form_and_first_and_last_are_there(tmp_path, logged):
    Run(tmp_path).train(47)
    for text in (logged.getvalue(), (tmp_path / "log.txt").read_text()):
        assert [int(m["iter"]) for m in LINE.finditer(text)] == [1, 20, 40, 47]
    rows = [row for row in (json.loads(line) for line in (tmp_path / "metrics.jsonl").open())]
    assert [row["iteration"] for row in rows] == [1, 20, 40, 47]
    numbers = "iteration epoch lr loss loss_a loss_b grad_norm skipped time data images_per_second max_mem"
    assert set(rows[0]) == set(numbers.split())
    assert rows[-1]["epoch"] == pytest.approx(47 * 4 / 100)


def test_losses_of_a_line_are_means_of_all_its_iterations(tmp_path):
    coarse, fine = Run(tmp_path / "a"), Run(tmp_path / "b")
    coarse.train(40)
    fine.train(40, log_period=1)
    each = losses(fine)
    assert losses(coarse)[40] == pytest.approx(sum(each[i] for i in range(21, 41)) / 20, rel=1e-6)


def test_a_terminal_gets_one_live_line_and_the_file_all(tmp_path, logged):
    bar = io.StringIO()
    Run(tmp_path).train(40, progress=Progress(str(tmp_path), 40, 20, 4, 100, live=True, stream=bar))
    assert "iter: 20" not in logged.getvalue() and "iter: 20" in (tmp_path / "log.txt").read_text()
    assert "saving" in logged.getvalue()
    for part in ("40/40", "loss 0.", "lr 0.05", "img/s", "data ", "mem "):
        assert part in bar.getvalue()


def test_a_slow_loader_is_named_once(tmp_path, logged):
    progress = Progress(None, 100, 20, live=False)
    watch = progress.start(0)
    for iteration in range(20, 101, 20):
        watch.begin -= 10.0
        watch.waited(6.0)
        progress.report([Record(iteration, {"loss": 1.0, "skipped": 0.0}, 0.1, ())])
        watch.restart()
    assert logged.getvalue().count("waiting for data: raise DATALOADER.NUM_WORKERS") == 1
    assert "60 % of the time" in logged.getvalue()


def test_logs_are_cut_back_to_the_checkpoint(tmp_path, logged):
    run = Run(tmp_path)
    run.train(60, period=20)
    before = (tmp_path / "log.txt").stat().st_size
    logging.getLogger("maskrcnn_bench").info("the resumed run says hello")
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"iteration": 61, "lo')
    cut_back(str(tmp_path), 20, before)
    assert [json.loads(line)["iteration"] for line in (tmp_path / "metrics.jsonl").open()] == [1, 20]
    log = (tmp_path / "log.txt").read_text()
    assert [int(m["iter"]) for m in LINE.finditer(log)] == [1, 20]
    assert log.endswith("the resumed run says hello\n")
    logging.getLogger("maskrcnn_bench").info("and goes on")
    assert (tmp_path / "log.txt").read_text() == log + (tmp_path / "log.txt").read_text().splitlines()[-1] + "\n"


def test_the_time_of_an_evaluation_is_not_the_time_of_a_step(tmp_path):
    run = Run(tmp_path)
    now = {"offset": 0.0}
    from maskrcnn_bench.engine import progress as module

    real = module.time.perf_counter

    class Clock:
        @staticmethod
        def perf_counter():
            return real() + now["offset"]

    def evaluate():
        now["offset"] += 1000.0
        return {"bbox/AP": 0.0}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "time", Clock)
        run.train(40, evaluate=evaluate, eval_period=20)
    assert all(row["time"] < 10 for row in run.metrics() if "time" in row)
    assert math.isfinite(losses_of_last(run))


def losses_of_last(run):
    return [row["loss"] for row in run.metrics() if "loss" in row][-1]


# TensorBoard


class Written:
    """Looks like torch's SummaryWriter."""

    def __init__(self):
        self.scalars, self.images = {}, {}

    def add_scalar(self, name, value, iteration):
        self.scalars[name, iteration] = value

    def add_image(self, name, pixels, iteration, dataformats):
        assert dataformats == "HWC"
        self.images[name, iteration] = pixels

    def flush(self):
        pass


class Pictures:
    """Three grey images with one object each."""

    class_names = ("__background__", "thing")

    def __len__(self):
        return 3

    def __getitem__(self, i):
        target = BoxList([[5.0, 5, 25, 20]], (40, 30), pixel=0)
        target.add_field("labels", torch.ones(1, dtype=torch.int64))
        return Image.new("RGB", (40, 30), (128, 128, 128)), target, i


def test_a_board_shows_what_the_file_says_and_pictures_with_the_truth(tmp_path):
    run = Run(tmp_path)
    progress = Progress(str(tmp_path), 40, 20, 4, 100, live=False)
    board = progress.board = Board(Written())

    def evaluate():
        found = Pictures()[0][1]
        found.add_field("scores", torch.tensor([0.9]))
        board.shows(lambda: run.arguments["iteration"])(Pictures(), [found, None, found[:0]])
        return {"bbox/AP": 0.25}

    run.train(40, progress=progress, evaluate=evaluate)
    for row in run.metrics():
        for name, value in row.items():
            if name not in ("iteration", "epoch"):
                assert board.writer.scalars[name if "/" in name else f"train/{name}", row["iteration"]] == value
    assert board.writer.scalars["bbox/AP", 40] == 0.25
    both = board.writer.images["detections/0", 40]
    assert both.shape == (30, 80, 3) and (both[:, :40] != 128).any() and (both[:, 40:] != 128).any()
    without = board.writer.images["detections/1", 40]
    assert (without[:, :40] != 128).any() and (without[:, 40:] == 128).all()


def test_without_tensorboard_one_line_says_so(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("maskrcnn_bench"), "propagate", True)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    assert make_board(str(tmp_path), 0) is None
    assert "tensorboard is not installed (pip install tensorboard); metrics.jsonl has the same numbers" in caplog.text
