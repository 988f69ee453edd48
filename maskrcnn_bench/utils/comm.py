"""Processes of one run: who am I, wait for the others, collect what they have. All of it works without processes too.

Collectives run on CPU tensors (gloo) unless said otherwise, and a process that does not come is named in the error.
"""

from __future__ import annotations

import contextlib
import gc
import os
import re
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

# An evaluation keeps the other processes waiting for the first one.
TIMEOUT = timedelta(minutes=30)
_LOST = re.compile(r"gloo|nccl|connection (closed|reset|refused)|broken pipe|timed? ?out", re.IGNORECASE)
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


def start(device: torch.device) -> None:
    """Joins the processes that a launcher started: gloo for CPU tensors, NCCL for CUDA tensors.

    Raises:
        ProcessLost: when they do not find each other.
    """
    rank, world_size, local_rank = launched_processes()
    if world_size == 1 or _initialised():
        return
    _address_of_slurm()
    os.environ.setdefault("LOCAL_RANK", str(local_rank))
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    try:
        store = next(dist.rendezvous("env://", rank, world_size, timeout=TIMEOUT))[0]
        # A launcher may keep its store when it starts processes once more; addresses of those that died must not be found there.
        store = dist.PrefixStore(f"attempt {os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)
        dist.init_process_group(backend, store=store, rank=rank, world_size=world_size, timeout=TIMEOUT)
    except RuntimeError as error:
        place = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        why = str(error).partition("\n")[0][:300]
        raise ProcessLost(f"rank {rank} does not find the other {world_size - 1} process(es) at {place} ({why})") from error


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
    if _initialised():
        # Wrappers of models are in cycles and would keep the threads of the group, which then end the program with an abort.
        gc.collect()
        dist.destroy_process_group()


def synchronize(phase: str = "") -> None:
    """Waits until all processes are here.

    Args:
        phase: what they wait for, in words, for the error.
    Raises:
        RuntimeError: naming the processes that did not come in time.
    """
    if get_world_size() == 1:
        return
    try:
        dist.monitored_barrier(_object_group(), timeout=TIMEOUT, wait_all_ranks=True)
    except RuntimeError as error:
        raise ProcessLost(f"rank {get_rank()} waited {TIMEOUT} in vain{f' for: {phase}' if phase else ''}. {error}") from error


@contextlib.contextmanager
def during(phase: Callable[[], str]) -> Iterator[None]:
    """Says what this process was doing when it lost another one.

    Args:
        phase: what is done, in words; called when it is needed.
    Raises:
        ProcessLost: naming this process and the phase.
    """
    try:
        yield
    except ProcessLost:
        raise
    except RuntimeError as error:
        if get_world_size() == 1 or not _LOST.search(str(error)):
            raise
        why = str(error).partition("\n")[0][:300]
        said = f"rank {get_rank()} lost another process during {phase()}; an error above, or the launcher, says which ({why})"
        raise ProcessLost(said) from error


_groups: dict[Any, Any] = {}


def _object_group() -> Any:
    """A gloo group of all processes; the default one where it is gloo already."""
    default = dist.group.WORLD
    if dist.get_backend() == "gloo":
        return default
    if default not in _groups:
        _groups.clear()
        _groups[default] = dist.new_group(backend="gloo", timeout=TIMEOUT)
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
    values = values.clone()
    dist.all_reduce(values)
    return values / get_world_size()


def plain_model(model: nn.Module) -> nn.Module:
    """The model inside the wrapper for several processes."""
    return model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model
