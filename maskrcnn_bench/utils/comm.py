"""Processes of one run: who am I, wait for the others, collect what they have. All of it works without processes too.

Collectives run on CPU tensors (gloo) unless said otherwise, and a process that does not come is named in the error.
"""

from __future__ import annotations

import contextlib
import gc
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

if dist.is_available():
    # Its functions keep the process group that is there when they are defined, for good. The constructor of DistributedDataParallel
    # would import them while there is one; then the threads of the group live on and abort the program when it ends.
    import torch.distributed.nn.functional  # noqa: F401

TIMEOUT = 1800.0
"""Seconds that processes wait for each other where nothing else is said: an evaluation keeps all waiting for the first one."""
TO_ANSWER = 3.0
"""Seconds in which processes that lost another one tell so, to be told from the lost one."""
_LOST = re.compile(r"gloo|nccl|monitored_?barrier|connection (closed|reset|refused)|broken pipe|timed? ?out", re.IGNORECASE)
"""How the errors of a process read whose partner is gone: torch has no class of its own for them with gloo."""


class ProcessLost(RuntimeError):
    """Another process of the run died, or did not come in time."""


def _initialised() -> bool:
    return dist.is_available() and dist.is_initialized()


def get_world_size() -> int:
    return dist.get_world_size() if _initialised() else 1


def get_rank() -> int:
    return dist.get_rank() if _initialised() else 0


def is_main_process() -> bool:
    return get_rank() == 0


def launched_processes() -> tuple[int, int, int]:
    """(rank, number of processes, rank on this machine) as torchrun or SLURM say it in the environment; (0, 1, 0) without."""
    env = os.environ
    if "WORLD_SIZE" in env and "RANK" in env:
        return int(env["RANK"]), int(env["WORLD_SIZE"]), int(env.get("LOCAL_RANK", 0))
    # `sbatch` alone sets the number of tasks too; only `srun` starts them, and then a step has an id and a task a number.
    if "SLURM_STEP_ID" in env and "SLURM_PROCID" in env and int(env.get("SLURM_STEP_NUM_TASKS", 1)) > 1:
        return int(env["SLURM_PROCID"]), int(env["SLURM_STEP_NUM_TASKS"]), int(env.get("SLURM_LOCALID", 0))
    return 0, 1, 0


class _Meeting:
    """What the processes of a run agree on when they start: where they leave words for each other, and how long they wait."""

    store: Any = None
    timeout = timedelta(seconds=TIMEOUT)


def start(device: torch.device, timeout: float = TIMEOUT) -> None:
    """Joins the processes that a launcher started: gloo for CPU tensors, NCCL for CUDA tensors.

    Args:
        device: of this process.
        timeout: seconds that a process waits for the others before it ends.
    Raises:
        ProcessLost: when they do not find each other.
    """
    if not timeout > 0:
        raise ValueError(f"PROCESS_TIMEOUT: expected seconds, more than 0, got {timeout}")
    rank, world_size, local_rank = launched_processes()
    if world_size == 1 or _initialised():
        return
    _address_of_slurm()
    os.environ.setdefault("LOCAL_RANK", str(local_rank))
    _Meeting.timeout = timedelta(seconds=timeout)
    # Programs need a while until they are here, however short they wait for each other afterwards.
    joining = timedelta(seconds=max(timeout, 120.0))
    try:
        store = next(dist.rendezvous("env://", rank, world_size, timeout=joining))[0]
        # A launcher may keep its store when it starts processes once more; addresses of those that died must not be found there.
        _Meeting.store = store = dist.PrefixStore(f"attempt {os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)
        _wait_for_all(rank, world_size, joining.total_seconds())
        if device.type == "cuda":
            # NCCL ends a program without a word about who is missing, so what runs on the CPU is to notice first.
            dist.init_process_group("cpu:gloo,cuda:nccl", store=store, rank=rank, world_size=world_size, timeout=2 * _Meeting.timeout)
        else:
            dist.init_process_group("gloo", store=store, rank=rank, world_size=world_size, timeout=_Meeting.timeout)
    except RuntimeError as error:
        place = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        why = str(error).partition("\n")[0][:300]
        raise ProcessLost(f"rank {rank} does not find the other {world_size - 1} process(es) at {place} ({why})") from error


def _wait_for_all(rank: int, world_size: int, seconds: float) -> None:
    _Meeting.store.set(f"here {rank}", "")
    if missing := _without_word("here", range(world_size), seconds):
        raise RuntimeError(f"{_ranks(missing)} did not start within {seconds:g} s")


def _without_word(about: str, ranks: Sequence[int], seconds: float) -> list[int]:
    """Those of `ranks` that say nothing about something in the store for so long."""
    deadline = time.monotonic() + seconds
    while True:
        ranks = [rank for rank in ranks if not _Meeting.store.check([f"{about} {rank}"])]
        if not ranks or time.monotonic() > deadline:
            return ranks
        time.sleep(0.05)


def _ranks(ranks: Sequence[int]) -> str:
    return f"rank{'s' if len(ranks) > 1 else ''} {', '.join(map(str, ranks))}"


def _address_of_slurm() -> None:
    """Where the processes meet, where no launcher says so."""
    env = os.environ
    nodes = env.get("SLURM_STEP_NODELIST") or env.get("SLURM_JOB_NODELIST") or ""
    several = int(env.get("SLURM_STEP_NUM_NODES") or env.get("SLURM_NNODES") or 1) > 1
    env.setdefault("MASTER_ADDR", first_host(nodes) if nodes and several else "127.0.0.1")
    # A port of its own for every job, so that two jobs on one machine do not meet.
    env.setdefault("MASTER_PORT", str(20000 + int(env.get("SLURM_JOB_ID", 0)) % 20000))


def first_host(nodes: str) -> str:
    """The first machine of a list in SLURM's short form: "gpu[003-005,7],login" begins with gpu003."""
    name, first, rest = re.match(r"([^,\[]*)(?:\[(\d+)[^\]]*\])?([^,\[]*)", nodes).groups()
    return name + (first or "") + rest


def is_restart() -> bool:
    """Whether a launcher started these processes once more, after one had died or its machine was taken away."""
    return any(int(os.environ.get(name) or 0) > 0 for name in ("TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT"))


def stop() -> None:
    """Leaves the process group."""
    _Meeting.store = None
    if _initialised():
        # Wrappers of models are in cycles, and would keep the threads of the group too.
        gc.collect()
        dist.destroy_process_group()


def leave_word(message: str) -> None:
    """Tells the other processes why this one ends: "" because it lost another one."""
    if _Meeting.store is not None:
        with contextlib.suppress(RuntimeError):
            _Meeting.store.set(f"end {get_rank()}", message.partition("\n")[0][:300])


def synchronize(phase: str = "") -> None:
    """Waits until all processes are here.

    Args:
        phase: what they wait for, in words, for the error; "" leaves that to `during` around it.
    Raises:
        ProcessLost: naming the processes that did not come in time.
    """
    if get_world_size() == 1:
        return
    with during(lambda: phase) if phase else contextlib.nullcontext():
        dist.monitored_barrier(_object_group(), timeout=_Meeting.timeout, wait_all_ranks=True)


@contextlib.contextmanager
def during(phase: Callable[[], str]) -> Iterator[None]:
    """Says what this process was doing when it lost another one, and which one.

    Args:
        phase: what is done, in words; called when it is needed.
    Raises:
        ProcessLost: naming this process, the lost one, and the phase.
    """
    try:
        yield
    except ProcessLost:
        raise
    except RuntimeError as error:
        if get_world_size() == 1 or not _LOST.search(str(error)):
            raise
        why = str(error).partition("\n")[0][:300]
        raise ProcessLost(f"rank {get_rank()} lost {_who_is_lost()} during {phase()} ({why})") from error


def _who_is_lost() -> str:
    """The processes that ended with an error of their own, with that error; else those that do not answer any more."""
    others = [rank for rank in range(get_world_size()) if rank != get_rank()]
    leave_word("")
    try:
        silent = _without_word("end", others, TO_ANSWER)
        words = {rank: _Meeting.store.get(f"end {rank}").decode() for rank in others if rank not in silent}
    except (RuntimeError, AttributeError):
        return "another process (an error above, or the launcher, says which)"
    if failed := {rank: word for rank, word in words.items() if word}:
        return ", ".join(f"rank {rank}, which ended with: {word}," for rank, word in failed.items())
    if silent:
        return f"{_ranks(silent)}, which died or did not come for {_Meeting.timeout.total_seconds():g} s,"
    return "another process (an error above, or the launcher, says which)"


_groups: dict[Any, Any] = {}


def _object_group() -> Any:
    """A gloo group of all processes; the default one where it is gloo already."""
    default = dist.group.WORLD
    if dist.get_backend() == "gloo":
        return default
    if default not in _groups:
        _groups.clear()
        _groups[default] = dist.new_group(backend="gloo", timeout=_Meeting.timeout)
    return _groups[default]


def all_gather(value: Any) -> list[Any]:
    """The value of every process, in every process, by rank. For small things."""
    if get_world_size() == 1:
        return [value]
    values: list[Any] = [None] * get_world_size()
    dist.all_gather_object(values, value, group=_object_group())
    return values


def gather_items(items: Sequence[Any], chunk: int = 64) -> list[Any]:
    """All items of all processes in the main one, and [] in the others.

    They travel in chunks, so that no process ever holds a pickle of all of them.

    Args:
        items: any number, different ones or none in each process.
        chunk: items a message.
    """
    if get_world_size() == 1:
        return list(items)
    rounds = -(-max(all_gather(len(items))) // chunk)
    gathered: list[Any] = []
    for k in range(rounds):
        received = [None] * get_world_size() if is_main_process() else None
        dist.gather_object(list(items[k * chunk : (k + 1) * chunk]), received, dst=0, group=_object_group())
        for part in received or ():
            gathered.extend(part)
    return gathered


def broadcast(value: Any) -> Any:
    """The main process's value, in all of them."""
    if get_world_size() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0, group=_object_group())
    return box[0]


def mean_over_processes(values: Tensor) -> Tensor:
    """The mean of a tensor over all processes; NaN in one of them is NaN in all. Any shape, unchanged device."""
    if get_world_size() == 1:
        return values
    if values.is_cuda:
        # A process that waits for its GPU cannot be told which other one is missing; here it can.
        synchronize()
    values = values.clone()
    dist.all_reduce(values)
    return values / get_world_size()


def plain_model(model: nn.Module) -> nn.Module:
    """The model inside the wrapper for several processes."""
    return model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model
