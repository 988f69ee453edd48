"""One comparison of the benchmark, and how it is measured."""

from __future__ import annotations

import resource
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch


@dataclass
class Case:
    """`ours` and `peer` do the same work; `equal` says whether their results, compared before, are the same."""

    id: str
    what: str
    ours: Callable[[], object]
    peer: Callable[[], object]
    equal: bool
    device: str = "cpu"
    images: int = 0
    """Images of one call, for images/s; 0 where that means nothing."""


def take_turns(case: Case, repeats: int, warm: int = 1) -> dict:
    """Times A B A B ... and answers a row of the table; seconds."""
    for function in (case.ours, case.peer) * warm:
        function()
    times: dict[str, list[float]] = {"ours": [], "peer": []}
    for _ in range(repeats):
        for name in times:
            times[name].append(seconds(getattr(case, name), case.device))
    row = compared(times) | {"id": case.id, "what": case.what, "unit": "s", "equal": case.equal}
    if case.images:
        row["images_per_second"] = [case.images / row["ours"], case.images / row["peer"]]
    return row


def compared(values: dict[str, list[float]]) -> dict:
    """Medians of "ours" and "peer", the ratio of these, and the range of the ratios of single turns."""
    ours, peer = (statistics.median(values[name]) for name in ("ours", "peer"))
    ratios = [p / o for o, p in zip(values["ours"], values["peer"], strict=True)]
    return {"ours": ours, "peer": peer, "ratio": peer / ours, "spread": [min(ratios), max(ratios)]}


def seconds(function: Callable[[], object], device: str) -> float:
    """How long one call takes, on the device's own clock where it has one."""
    if device == "cpu":
        start = time.perf_counter()
        function()
        return time.perf_counter() - start
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    function()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1000


def peak_bytes(function: Callable[[], object], device: str) -> int:
    """By how much the memory in use grows at most during one call; on the CPU that of the process, in pages."""
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        function()
        return torch.cuda.max_memory_allocated() - before
    reset = Path("/proc/self/clear_refs")
    if not reset.exists():
        raise OSError("peak memory on the CPU is read from /proc, which this system has not; the rows P10 need Linux")
    reset.write_text("5")  # sets the highest resident size to the present one
    before = _status("VmRSS")
    function()
    return max(_status("VmHWM") - before, resource.getpagesize())


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith(name + ":")))
