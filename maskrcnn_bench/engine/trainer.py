"""The training loop, and what one step of it is.

A step never waits for the device. Losses stay there, in the rows of a `History`, and are read every few iterations; an
overflow is a number on the device that turns the update into a no-op. So a loss that is not finite is noticed late, but no
later than one log period, with weights that it has not touched.
"""

from __future__ import annotations

import contextlib
import copy
import itertools
import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import get_ema_multi_avg_fn

from maskrcnn_bench.engine.graphs import Recordings, StaticGradients, make_recordable
from maskrcnn_bench.engine.nonfinite import require_finite
from maskrcnn_bench.engine.progress import Progress, Record
from maskrcnn_bench.utils.comm import get_world_size, mean_over_processes, plain_model

logger = logging.getLogger("maskrcnn_bench.trainer")
COLUMNS = ("grad_norm", "skipped", "stop")
"""Columns of a row behind the losses."""


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
        arguments: `iteration`, how many are done; `tested`, the one evaluated last; `best`, about the best checkpoint; kept up to date.
        step: one optimizer step; None takes `Step` in float32.
        progress: where losses are told; None tells the log every 20 iterations.
        evaluate: metrics by name, called every `eval_period` iterations (0: never) and at the end, in every process.
        best_metric: the larger the better, a loss ("val/loss") the smaller; the best checkpoint is kept as `model_best`.
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

    def test() -> None:
        _test(evaluate, best_metric, checkpointer, arguments, progress)
        model.train()

    if evaluate is not None and start > 0:
        # A kill between a checkpoint and the evaluation of the same iteration must not make that evaluation go missing.
        missed = arguments.get("tested") != start and (start == last or (eval_period > 0 and start % eval_period == 0))
        if missed:
            scheduler.step(start - 1)
            test()
        elif start == last:
            evaluate()
        if start == last or _out_of_patience(arguments, best_metric, patience):
            if missed or start < last:
                checkpointer.save("model_final", **arguments)
            progress.close()
            return True
        watch.restart()
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
            if history.stopping and not ends:
                logger.warning("asked to stop: saved iteration %d; start again to go on from there", iteration)
                progress.close()
                return False
            if tests:
                test()
                if saves:
                    checkpointer.save(name, **arguments)
                if not ends and _out_of_patience(arguments, best_metric, patience):
                    checkpointer.save("model_final", **arguments)
                    break
            watch.restart()
    progress.close()
    return True


def _test(evaluate: Callable, best_metric: str, checkpointer: Any, arguments: dict[str, Any], progress: Progress) -> None:
    """Evaluates, keeps the best checkpoint, and notes in `arguments` how many evaluations in a row have brought nothing better."""
    iteration = arguments["iteration"]
    metrics = evaluate()
    arguments["tested"] = iteration
    progress.event(iteration, metrics)
    if best_metric not in metrics:
        logger.warning("SOLVER.BEST_METRIC %r was not evaluated; there are: %s", best_metric, ", ".join(metrics) or "none")
        return
    best = arguments.get("best")
    if best is None or best["metric"] != best_metric or _better(best_metric, metrics[best_metric], best["value"]):
        arguments["best"] = {"metric": best_metric, "value": float(metrics[best_metric]), "iteration": iteration, "without_gain": 0}
        logger.info("best %s so far: %.4f", best_metric, metrics[best_metric])
        checkpointer.save("model_best", training_state=False, **arguments)
    else:
        arguments["best"] = {**best, "without_gain": best["without_gain"] + 1}


def _better(name: str, value: float, best: float) -> bool:
    """Whether a metric got better; those of further data sets have their names in front."""
    if math.isnan(best):
        return not math.isnan(value)
    return value < best if "val/" in name else value > best


def _out_of_patience(arguments: dict[str, Any], best_metric: str, patience: int) -> bool:
    best = arguments.get("best") or {}
    no_gain = best.get("without_gain", 0) if best.get("metric") == best_metric else 0
    if not 0 < patience <= no_gain:
        return False
    logger.info("stopping at iteration %d: no better %s in %d evaluations", arguments["iteration"], best_metric, no_gain)
    return True


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
        if buffers := list(model.buffers()):
            torch._foreach_copy_(list(self.module.buffers()), buffers)

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
        recordings: replays backward passes and the update; the model is then not wrapped, whatever the number of processes.
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
        recordings: Recordings | None = None,
    ):
        self.model = model
        self.optimizer = optimizer
        self.device = torch.device(device)
        self.dtype = dtype
        self.accumulate = accumulate
        self.clip_norm = clip_norm
        self.scaler = scaler
        self.ema = ema
        self.recordings = recordings
        self.gradients = StaticGradients(model) if recordings is not None else None

    def __call__(self, parts: Sequence[tuple], iteration: int) -> Losses:
        """Does the step of an iteration, counted from 1."""
        self._clear_gradients()
        rows = []
        backward = partial(self._backward, len(parts))
        for k, (images, targets, *_) in enumerate(parts):
            with self._sync_at(k == len(parts) - 1):
                names, row = self._do(("the backward pass", len(parts)), backward, images, targets)
            rows.append(row)
        norm, overflow = self._averaged_update()
        if self.ema is not None:
            # Not recorded: its decay is a number that changes with the iteration.
            self.ema.update(plain_model(self.model), iteration)
        row = torch.cat([torch.stack(rows).mean(dim=0), torch.stack([norm, overflow])])
        return Losses(names, row)

    def _do(self, name: Any, work: Callable, *inputs: Any) -> Any:
        return work(*inputs) if self.recordings is None else self.recordings(name, work, *inputs)

    def _clear_gradients(self) -> None:
        if self.gradients is None:
            self.optimizer.zero_grad(set_to_none=True)
        else:
            self.gradients.clear()

    def _backward(self, parts: int, images: Any, targets: Any) -> tuple[tuple[str, ...], Tensor]:
        """Adds to the gradients what one of `parts` batches contributes; returns the names and the values of its losses."""
        losses = self._losses(images, targets)
        total = sum(losses.values())
        self._scaled(total / parts).backward()
        return ("loss", *losses), torch.stack([total.detach(), *(loss.detach() for loss in losses.values())]).float()

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

    def _averaged_update(self) -> tuple[Tensor, Tensor]:
        """The update, by the gradients of all processes."""
        if self.gradients is not None:
            self.gradients.average()
        if not getattr(self.optimizer, "_step_supports_amp_scaling", False):
            return self._update()
        if self.recordings is not None:
            make_recordable(self.optimizer, self.device)
        return self._do("the update", self._update)

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
