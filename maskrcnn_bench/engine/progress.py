"""What a run tells about itself: a live line or log lines on the console, `log.txt` and `metrics.jsonl` in its folder."""

from __future__ import annotations

import datetime
import json
import logging
import os
import re
import sys
import time
from collections import deque
from collections.abc import Sequence
from statistics import median
from typing import Any, NamedTuple, TextIO

import torch

from maskrcnn_bench.utils.comm import is_main_process
from maskrcnn_bench.utils.logger import FILE_ONLY

logger = logging.getLogger("maskrcnn_bench.trainer")
METRICS = "metrics.jsonl"
SLOW_LOADER = 0.3
"""Share of the time spent waiting for data from which a warning is due."""
_LOGGED_ITERATION = re.compile(rb"\biter: (\d+)\b|\biteration (\d+):")


class Record(NamedTuple):
    """One iteration, read from the device.

    Attributes:
        iteration: counted from 1.
        values: losses by name, `loss` their sum; `grad_norm`; `skipped`, 1.0 for an update that overflowed.
        rate: learning rate.
        indices: which images it saw.
    """

    iteration: int
    values: dict[str, float]
    rate: float
    indices: Sequence[int]


class Meter:
    """A number over time: the median of the last ones, and the mean of all."""

    def __init__(self, window: int = 20):
        self.recent: deque[float] = deque(maxlen=window)
        self.total, self.count = 0.0, 0

    def add(self, value: float) -> None:
        self.recent.append(value)
        self.total, self.count = self.total + value, self.count + 1

    @property
    def mean(self) -> float:
        return self.total / max(self.count, 1)

    def __str__(self) -> str:
        return f"{median(self.recent):.4f} ({self.mean:.4f})"


class Watch:
    """Measures iterations, and how long they wait for data, between two readings; what happens elsewhere does not count."""

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        self.begin, self.waiting = time.perf_counter(), 0.0

    def waited(self, seconds: float) -> None:
        self.waiting += seconds

    def read(self, iterations: int) -> tuple[float, float]:
        """Seconds an iteration, and those of them that it waited."""
        elapsed = time.perf_counter() - self.begin
        return elapsed / iterations, min(self.waiting, elapsed) / iterations


class Progress:
    """Tells how a training goes.

    Args:
        output_dir: folder of `metrics.jsonl`; None writes none.
        max_iter: iterations of the whole training.
        log_period: iterations between two lines. The first and the last one always get theirs.
        images_per_step: over all GPUs.
        images_per_epoch: images of the data set; 0 leaves epochs out.
        live: one line that changes in place instead of log lines on the console; None: when it is a terminal.
    """

    def __init__(
        self,
        output_dir: str | None,
        max_iter: int,
        log_period: int = 20,
        images_per_step: int = 0,
        images_per_epoch: int = 0,
        live: bool | None = None,
        stream: TextIO | None = None,
    ):
        self.path = os.path.join(output_dir, METRICS) if output_dir and is_main_process() else None
        self.max_iter = max_iter
        self.log_period = log_period
        self.images_per_step = images_per_step
        self.images_per_epoch = images_per_epoch
        self.stream = stream or sys.stdout
        self.live = is_main_process() and (self.stream.isatty() if live is None else live)
        self.meters: dict[str, Meter] = {}
        self.skipped = 0
        self.board: Any = None
        """Where numbers are shown too."""
        self.loss_scale: torch.Tensor | None = None
        """Of float16; logged where it is given."""
        self._warned = False
        self._bar: Any = None
        self._watch = Watch()
        self._first = 1

    def start(self, iteration: int) -> Watch:
        """Begins after `iteration` iterations."""
        self._first = iteration + 1
        if self.live:
            from tqdm import tqdm

            self._bar = tqdm(total=self.max_iter, initial=iteration, unit="it", dynamic_ncols=True, file=self.stream, smoothing=0.1)
        self._watch = Watch()
        return self._watch

    def due(self, iteration: int) -> bool:
        """Whether losses are to be read after this iteration."""
        return iteration % self.log_period == 0 or iteration in (self._first, self.max_iter)

    def report(self, records: Sequence[Record]) -> None:
        """Tells the iterations since the last report."""
        last = records[-1]
        seconds, waiting = self._watch.read(len(records))
        for record in records:
            for name, value in record.values.items():
                if name.startswith("loss"):
                    self._meter(name).add(value)
        for _ in records:
            self._meter("time").add(seconds)
            self._meter("data").add(waiting)
        self.skipped += round(sum(record.values["skipped"] for record in records))
        row = self._row(records, seconds, waiting)
        self._write(row)
        logger.info("%s", self._line(last), extra=FILE_ONLY if self._bar is not None else None)
        if self.loss_scale is not None:
            skipped = [record.iteration for record in records if record.values["skipped"]]
            logger.info("loss scale %g%s", row["amp_scale"], f"; skipped iterations {', '.join(map(str, skipped))}" if skipped else "")
        self._warn_if_slow(last.iteration, seconds, waiting)
        if self._bar is not None:
            self._bar.set_postfix_str(self._live_text(row), refresh=False)
            self._bar.update(len(records))

    def event(self, iteration: int, metrics: dict[str, float]) -> None:
        """Tells the result of an evaluation."""
        self._write({"iteration": iteration, **metrics})
        main = {name: value for name, value in metrics.items() if name.endswith(("/AP", "/AP50", "/mAP", "val/loss"))} or metrics
        logger.info("iteration %d: %s", iteration, "  ".join(f"{name} {value:.4f}" for name, value in main.items()))

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _meter(self, name: str) -> Meter:
        return self.meters.setdefault(name, Meter())

    def _epoch(self, iteration: int) -> float | None:
        return iteration * self.images_per_step / self.images_per_epoch if self.images_per_epoch else None

    def _row(self, records: Sequence[Record], seconds: float, waiting: float) -> dict[str, Any]:
        """A line of metrics.jsonl: means over the iterations since the line before."""
        last = records[-1]
        row: dict[str, Any] = {"iteration": last.iteration, "epoch": self._epoch(last.iteration), "lr": last.rate}
        for name in last.values:
            numbers = [record.values[name] for record in records]
            # A step that overflowed has no norm; JSON has no infinity.
            numbers = [n for n in numbers if abs(n) != float("inf") and n == n]
            row[name] = sum(numbers) / len(numbers) if numbers else None
        row["skipped"] = self.skipped
        if self.loss_scale is not None:
            row["amp_scale"] = self.loss_scale.item()
        row |= {"time": seconds, "data": waiting, "images_per_second": self.images_per_step / seconds if seconds else None}
        row["max_mem"] = _peak_megabytes()
        return {name: value for name, value in row.items() if value is not None}

    def _line(self, last: Record) -> str:
        """A line as maskrcnn-benchmark writes it; the epoch stands behind, where it does not disturb those who parse it."""
        names = [name for name in self.meters if name not in ("time", "data")] + ["time", "data"]
        parts = [f"eta: {self._eta(last.iteration)}", f"iter: {last.iteration}"]
        parts += [f"{name}: {self.meters[name]}" for name in names]
        parts += [f"lr: {last.rate:.6f}", f"max mem: {_peak_megabytes():.0f}"]
        epoch = self._epoch(last.iteration)
        parts += [f"epoch: {epoch:.2f}"] if epoch is not None else []
        parts += [f"skipped: {self.skipped}"] if self.skipped else []
        return "  ".join(parts)

    def _eta(self, iteration: int) -> str:
        return str(datetime.timedelta(seconds=int(self.meters["time"].mean * max(self.max_iter - iteration, 0))))

    def _live_text(self, row: dict[str, Any]) -> str:
        meters = {name.removeprefix("loss_"): meter for name, meter in self.meters.items() if name.startswith("loss")}
        losses = "  ".join(f"{name} {median(meter.recent):.3f}" for name, meter in meters.items())
        speed = f"{row['images_per_second']:.1f} img/s" if self.images_per_step else ""
        wait = f"data {row['data'] / max(row['time'], 1e-9):.0%}"
        return "  ".join(filter(None, [losses, f"lr {row['lr']:.2g}", speed, wait, f"mem {row['max_mem']:.0f} MB"]))

    def _warn_if_slow(self, iteration: int, seconds: float, waiting: float) -> None:
        # The first iterations wait for the workers to start.
        if not self._warned and iteration >= self._first + self.log_period and waiting > SLOW_LOADER * seconds:
            self._warned = True
            logger.warning(
                "%.0f %% of the time goes by waiting for data: raise DATALOADER.NUM_WORKERS, or keep images: DATALOADER.CACHE ram or disk",
                100 * waiting / seconds,
            )

    def _write(self, row: dict[str, Any]) -> None:
        if self.path is not None:
            os.makedirs(os.path.dirname(self.path), exist_ok=True)
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
        if self.board is not None:
            self.board.scalars(row)


def _peak_megabytes() -> float:
    """Largest memory so far: of the GPU's tensors, else of the process."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated() / 2**20
    if sys.platform == "win32":
        return 0.0
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def cut_back(folder: str, iteration: int, log_size: int | None = None) -> None:
    """Takes back what a run wrote after the iteration that it is resumed from.

    Args:
        folder: with `metrics.jsonl` and `log.txt`, of which either may be missing.
        iteration: the last one that counts.
        log_size: bytes of `log.txt` that the earlier run wrote; what stands behind is of the present one. None: all.
    """
    metrics = os.path.join(folder, METRICS)
    if os.path.isfile(metrics):
        with open(metrics, "rb") as file:
            kept = [line for line in file if _iteration_of(line) <= iteration]
        # In place, since others may hold the file open.
        _overwrite(metrics, b"".join(kept))
    log = os.path.join(folder, "log.txt")
    if os.path.isfile(log):
        with open(log, "rb") as file:
            content = file.read()
        size = len(content) if log_size is None else log_size
        _overwrite(log, _up_to(content[:size], iteration) + content[size:])


def _iteration_of(line: bytes) -> float:
    """The iteration of a line of metrics; a line that a kill cut off counts as too late."""
    try:
        return json.loads(line)["iteration"]
    except (ValueError, KeyError, TypeError):
        return float("inf")


def _up_to(content: bytes, iteration: int) -> bytes:
    """A log until the line before the first one of a later iteration."""
    for match in _LOGGED_ITERATION.finditer(content):
        if int(match[1] or match[2]) > iteration:
            return content[: content.rfind(b"\n", 0, match.start()) + 1]
    return content


def _overwrite(path: str, content: bytes) -> None:
    with open(path, "r+b") as file:
        file.write(content)
        file.truncate()
