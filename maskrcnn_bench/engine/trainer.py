"""The training loop, and what one step of it is.

A step never waits for the device. Losses stay there, in the rows of a `History`, and are read every few iterations; an
overflow is a number on the device that turns the update into a no-op. So a loss that is not finite is noticed late, but no
later than one log period, with weights that it has not touched.
"""

from __future__ import annotations

import contextlib
import copy
import itertools
import json
import logging
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import get_ema_multi_avg_fn

from maskrcnn_bench.engine.progress import Progress, Record
from maskrcnn_bench.utils.comm import all_gather, get_world_size, is_main_process, mean_over_processes

logger = logging.getLogger("maskrcnn_bench.trainer")
COLUMNS = ("grad_norm", "skipped", "stop")
"""Columns of a row behind the losses."""
MOST_OVERFLOWS = 20
"""So many in a row are no matter of the loss scale: it would be a millionth of what it was."""


class NonFiniteLoss(RuntimeError):
    """The loss became NaN or infinite."""


def do_train(
    model: nn.Module,
    data_loader: Any,
    optimizer: torch.optim.Optimizer,
    scheduler: Any,
    checkpointer: Any,
    device: torch.device | str,
    checkpoint_period: int,
    arguments: dict[str, Any],
    *,
    step: Callable | None = None,
    progress: Progress | None = None,
    evaluate: Callable[[], dict[str, float]] | None = None,
    eval_period: int = 0,
    best_metric: str = "bbox/AP",
    patience: int = 0,
    stop: Callable[[], bool] = lambda: False,
) -> bool:
    """Trains until the loader ends.

    Args:
        model: answers a dict of losses for (images, targets).
        data_loader: yields (images, targets, image indices), `step.accumulate` times an iteration.
        scheduler: `step(n)` sets the learning rate of the iteration that n iterations precede.
        checkpointer: `save(name, **arguments)` is called every `checkpoint_period` iterations, at the end, and for the best.
        arguments: `iteration`, how many are done, and the state of the best checkpoint; kept up to date.
        step: one optimizer step; None takes `Step` in float32.
        progress: where losses are told; None tells the log every 20 iterations.
        evaluate: metrics by name, called every `eval_period` iterations (0: never) and at the end, in every process.
        best_metric: the larger the better; the best checkpoint is kept as `model_best`.
        patience: evaluations in a row that may bring nothing better; 0 sets no limit.
        stop: asked after each iteration; True saves and ends.
    Returns:
        Whether the training came to its end, by length or by patience.
    Raises:
        NonFiniteLoss: after writing nan_dump.json and nan_dump.pt into the folder of the checkpoints.
    """
    step = step or Step(model, optimizer, device)
    start = arguments.setdefault("iteration", 0)
    last = start + math.ceil(len(data_loader) / step.accumulate)
    progress = progress or Progress(None, last)
    history = History()
    watch = progress.start(start)
    model.train()
    for iteration, parts in enumerate(grouped(data_loader, step.accumulate, watch), start + 1):
        scheduler.step(iteration - 1)
        history.add(step(parts, iteration), iteration, image_indices(parts), scheduler.get_lr()[0], stop())
        arguments["iteration"] = iteration

        ends = iteration == last
        tests = evaluate is not None and (ends or (eval_period > 0 and iteration % eval_period == 0))
        saves = ends or iteration % checkpoint_period == 0
        name = "model_final" if ends else f"model_{iteration:07d}"
        if tests or saves or history.stopping or progress.due(iteration):
            records = history.read()
            require_finite(records, step.scaler is not None, model, data_loader, checkpointer)
            progress.report(records)
            if saves or history.stopping:
                checkpointer.save(name, **arguments)
            if tests:
                no_gain = _test(evaluate, best_metric, checkpointer, arguments, progress)
                if saves:
                    checkpointer.save(name, **arguments)
                model.train()
                if 0 < patience <= no_gain and not ends:
                    logger.info("stopping at iteration %d: no better %s in %d evaluations", iteration, best_metric, no_gain)
                    checkpointer.save("model_final", **arguments)
                    break
            if history.stopping and not ends:
                logger.warning("asked to stop: saved iteration %d; start again to go on from there", iteration)
                progress.close()
                return False
            watch.restart()
    progress.close()
    return True


def _test(evaluate: Callable, best_metric: str, checkpointer: Any, arguments: dict[str, Any], progress: Progress) -> int:
    """Evaluates, and keeps the best checkpoint; returns how many evaluations in a row have brought nothing better."""
    iteration = arguments["iteration"]
    metrics = evaluate()
    progress.event(iteration, metrics)
    if best_metric not in metrics:
        logger.warning("SOLVER.BEST_METRIC %r was not evaluated; there are: %s", best_metric, ", ".join(metrics) or "none")
        return 0
    best = arguments.get("best")
    if best is None or best["metric"] != best_metric or metrics[best_metric] > best["value"]:
        arguments["best"] = {"metric": best_metric, "value": float(metrics[best_metric]), "iteration": iteration, "without_gain": 0}
        logger.info("best %s so far: %.4f", best_metric, metrics[best_metric])
        checkpointer.save("model_best", training_state=False, **arguments)
    else:
        arguments["best"] = {**best, "without_gain": best["without_gain"] + 1}
    return arguments["best"]["without_gain"]


class LossScale:
    """A factor on float16 losses that keeps small gradients from vanishing; it lives on the device.

    It is halved after an overflow and doubled after `growth_interval` steps without one.
    """

    def __init__(self, device: torch.device | str, start: float = 65536.0, growth_interval: int = 2000):
        self.scale = torch.full((), start, device=device)
        self.steps = torch.zeros((), device=device)
        self.growth_interval = growth_interval

    def update(self, overflow: Tensor) -> None:
        """Notes whether a step overflowed: 1.0 or 0.0."""
        steps = torch.where(overflow > 0, 0.0, self.steps + 1)
        grows = steps >= self.growth_interval
        factor = torch.where(overflow > 0, 0.5, torch.where(grows, 2.0, 1.0))
        self.scale.mul_(factor)
        self.steps.copy_(torch.where(grows, 0.0, steps))

    def state_dict(self) -> dict[str, Tensor]:
        return {"scale": self.scale, "steps": self.steps}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.scale.copy_(state["scale"])
        self.steps.copy_(state["steps"])


class AveragedWeights:
    """An exponential moving average of a model's weights; buffers are those of the model.

    Args:
        model: plain, not wrapped.
        decay: how much of the average a step keeps. The first steps keep less, so that a short run does not test its
            random numbers of the beginning.
    """

    def __init__(self, model: nn.Module, decay: float):
        self.module = copy.deepcopy(model).eval().requires_grad_(False)
        self.decay = decay

    @torch.no_grad()
    def update(self, model: nn.Module, iteration: int) -> None:
        average = get_ema_multi_avg_fn(min(self.decay, (1 + iteration) / (10 + iteration)))
        average(list(self.module.parameters()), list(model.parameters()), iteration)
        for mine, theirs in zip(self.module.buffers(), model.buffers(), strict=True):
            mine.copy_(theirs)

    def state_dict(self) -> dict[str, Tensor]:
        return self.module.state_dict()

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.module.load_state_dict(state)


class Losses(NamedTuple):
    """What a step leaves on the device: a row with one column for each of `names`."""

    names: tuple[str, ...]
    row: Tensor


class Step:
    """One optimizer step, without waiting for the device.

    Args:
        model: plain, or wrapped for several GPUs.
        device: where batches go.
        dtype: float32, or bfloat16 and float16 under autocast.
        accumulate: batches a step; their gradients are averaged.
        clip_norm: largest norm of the whole gradient; 0 does not clip.
        scaler: loss scale, for float16.
        ema: averaged weights to keep.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        device: torch.device | str,
        dtype: torch.dtype = torch.float32,
        accumulate: int = 1,
        clip_norm: float = 0.0,
        scaler: LossScale | None = None,
        ema: AveragedWeights | None = None,
    ):
        self.model = model
        self.optimizer = optimizer
        self.device = torch.device(device)
        self.dtype = dtype
        self.accumulate = accumulate
        self.clip_norm = clip_norm
        self.scaler = scaler
        self.ema = ema

    def __call__(self, parts: Sequence[tuple], iteration: int) -> Losses:
        """Does the step of an iteration, counted from 1."""
        self.optimizer.zero_grad(set_to_none=True)
        rows = []
        for k, (images, targets, *_) in enumerate(parts):
            with self._sync_at(k == len(parts) - 1):
                losses = self._losses(images, targets)
                total = sum(losses.values())
                self._scaled(total / len(parts)).backward()
            rows.append(torch.stack([total.detach(), *(loss.detach() for loss in losses.values())]).float())
        norm, overflow = self._update()
        if self.ema is not None:
            self.ema.update(_plain(self.model), iteration)
        row = torch.cat([torch.stack(rows).mean(dim=0), torch.stack([norm, overflow])])
        return Losses(("loss", *losses), row)

    def _losses(self, images: Any, targets: Any) -> dict[str, Tensor]:
        images = images.to(self.device, non_blocking=True)
        if isinstance(targets, (list, tuple)):
            targets = [target.to(self.device) for target in targets]
        else:
            targets = targets.to(self.device, non_blocking=True)
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            return self.model(images, targets)

    def _sync_at(self, is_last: bool) -> contextlib.AbstractContextManager:
        """Gradients travel between GPUs once a step, with the last of its batches."""
        wrapped = isinstance(self.model, DistributedDataParallel)
        return self.model.no_sync() if wrapped and not is_last else contextlib.nullcontext()

    def _scaled(self, loss: Tensor) -> Tensor:
        return loss if self.scaler is None else loss * self.scaler.scale

    @torch.no_grad()
    def _update(self) -> tuple[Tensor, Tensor]:
        """Moves the parameters, unless a gradient is not finite; returns the gradient's norm and 1.0 if it is not, else 0.0."""
        gradients = [p.grad for group in self.optimizer.param_groups for p in group["params"] if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients, foreach=True).float()
        divisor = None
        if self.scaler is not None:
            divisor = self.scaler.scale.clone()
            norm = norm / divisor
        overflow = 1.0 - torch.isfinite(norm).float()
        if self.clip_norm > 0:
            excess = torch.clamp(norm / self.clip_norm, min=1.0)
            divisor = excess if divisor is None else divisor * excess
        self._step(gradients, divisor, overflow)
        if self.scaler is not None:
            self.scaler.update(overflow)
        return norm, overflow

    def _step(self, gradients: list[Tensor], divisor: Tensor | None, overflow: Tensor) -> None:
        """The optimizer's step on gradients / divisor; fused optimizers of torch look at `overflow` themselves."""
        if getattr(self.optimizer, "_step_supports_amp_scaling", False):
            self.optimizer.grad_scale, self.optimizer.found_inf = divisor, overflow
            self.optimizer.step()
        elif not overflow.item():
            if divisor is not None:
                torch._foreach_div_(gradients, divisor)
            self.optimizer.step()


class History:
    """Rows of losses that wait on the device to be read, together with what the host knows about each iteration."""

    def __init__(self) -> None:
        self.names: tuple[str, ...] = ()
        self.stopping = False
        self._rows: list[Tensor] = []
        self._known: list[tuple[int, Any, float]] = []

    def add(self, losses: Losses, iteration: int, indices: Any, rate: float, stop: bool) -> None:
        """Notes an iteration.

        Args:
            losses: row of the step.
            indices: which images it saw.
            rate: its learning rate.
            stop: whether this process was asked to stop. Several processes agree on it when they read.
        """
        self.names = losses.names
        self._rows.append(torch.cat([losses.row, losses.row.new_full((1,), float(stop))]))
        self._known.append((iteration, indices, rate))
        self.stopping = stop and get_world_size() == 1

    def read(self) -> list[Record]:
        """What was noted since the last reading, averaged over all processes. Waits for the device."""
        rows = mean_over_processes(torch.stack(self._rows)).tolist()
        names = (*self.names, *COLUMNS)
        records = []
        for row, (iteration, indices, rate) in zip(rows, self._known, strict=True):
            values = dict(zip(names, row, strict=True))
            self.stopping |= values.pop("stop") > 0
            records.append(Record(iteration, values, rate, indices))
        self._rows, self._known = [], []
        return records


def grouped(batches: Iterable, size: int, watch: Any) -> Iterator[list]:
    """Takes `size` batches a time, the last time maybe fewer; `watch` measures how long that takes."""
    iterator = iter(batches)
    while True:
        before = time.perf_counter()
        group = list(itertools.islice(iterator, size))
        watch.waited(time.perf_counter() - before)
        if not group:
            return
        yield group


def image_indices(parts: Sequence[tuple]) -> list[int]:
    """The indices in the data set of a step's images."""
    return [int(index) for part in parts for index in (part[2] if len(part) > 2 else ())]


def require_finite(records: Sequence[Record], scales: bool, model: nn.Module, data_loader: Any, checkpointer: Any) -> None:
    """Ends the training at the first loss that is not finite, and at gradients that are not.

    A loss scale copes with some overflows, but not with one after the other.

    Raises:
        NonFiniteLoss: in all processes; the main one has written the dump before.
    """
    hopeless = len(records) >= MOST_OVERFLOWS and all(record.values["skipped"] for record in records)
    for record in records:
        losses = {k: v for k, v in record.values.items() if k.startswith("loss")}
        if all(math.isfinite(v) for v in losses.values()) and not (record.values["skipped"] and (hopeless or not scales)):
            continue
        images = [image for part in all_gather(_describe(record.indices, data_loader)) for image in part]
        dump = {"iteration": record.iteration, "lr": record.rate, "grad_norm": record.values["grad_norm"]}
        dump |= {"losses": losses, "images": images}
        folder = getattr(checkpointer, "save_dir", "") or "."
        if is_main_process():
            _write_dump(folder, dump, model)
        raise NonFiniteLoss(_diagnosis(dump, folder))


def _describe(indices: Sequence[int], data_loader: Any) -> list[dict[str, Any]]:
    describe = getattr(getattr(data_loader, "dataset", None), "get_img_info", None)
    wanted = ("id", "file_name")
    return [{"index": i, **({k: v for k, v in describe(i).items() if k in wanted} if describe else {})} for i in indices]


def _write_dump(folder: str, dump: dict[str, Any], model: nn.Module) -> None:
    os.makedirs(folder, exist_ok=True)
    # NaN is no JSON: numbers that are not finite become text.
    text = {"losses": {k: _json_number(v) for k, v in dump["losses"].items()}, "grad_norm": _json_number(dump["grad_norm"])}
    with open(os.path.join(folder, "nan_dump.json"), "w", encoding="utf-8") as file:
        json.dump(dump | text, file, indent=1)
    torch.save(dump | {"model": _plain(model).state_dict()}, os.path.join(folder, "nan_dump.pt"))


def _json_number(value: float) -> float | str:
    return value if math.isfinite(value) else str(value)


def _diagnosis(dump: dict[str, Any], folder: str) -> str:
    bad = [f"{name} {value}" for name, value in dump["losses"].items() if not math.isfinite(value)]
    bad = bad or [f"gradient norm {dump['grad_norm']}"]
    images = ", ".join(str(image.get("file_name", image["index"])) for image in dump["images"][:8])
    return (
        f"training stopped at iteration {dump['iteration']}: {', '.join(bad)}. Learning rate {dump['lr']:.6g}, images {images}. "
        f"All values are in {os.path.join(folder, 'nan_dump.json')}. Usual causes: a learning rate too high for the batch (lower "
        "SOLVER.BASE_LR, lengthen SOLVER.WARMUP_ITERS, set SOLVER.CLIP_GRADIENTS), faulty boxes (`maskrcnn-bench data check`), or "
        "DTYPE float16 (try bfloat16)"
    )


def _plain(model: nn.Module) -> nn.Module:
    return model.module if isinstance(model, DistributedDataParallel) else model
