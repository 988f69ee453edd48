"""Processes of one run: who am I, wait for the others, collect what they have. All of it works without processes too.

Collectives run on CPU tensors (gloo) unless said otherwise, and a process that does not come is named in the error.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

# An evaluation keeps the other processes waiting for the first one.
TIMEOUT = timedelta(minutes=30)


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
        ValueError: under SLURM on several machines without MASTER_ADDR.
    """
    rank, world_size, local_rank = launched_processes()
    if world_size == 1 or _initialised():
        return
    _address_of_slurm()
    os.environ.setdefault("LOCAL_RANK", str(local_rank))
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, rank=rank, world_size=world_size, timeout=TIMEOUT)


def _address_of_slurm() -> None:
    """Where the processes meet, where no launcher says so."""
    env = os.environ
    if "MASTER_ADDR" not in env:
        if int(env.get("SLURM_NNODES", 1)) > 1:
            first = 'scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1'
            raise ValueError(f"several machines under SLURM need to know where to meet: export MASTER_ADDR=$({first})")
        env["MASTER_ADDR"] = "127.0.0.1"
    # A port of its own for every job, so that two jobs on one machine do not meet.
    env.setdefault("MASTER_PORT", str(20000 + int(env.get("SLURM_JOB_ID", 0)) % 20000))


def stop() -> None:
    """Leaves the process group."""
    if _initialised():
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
        raise RuntimeError(f"rank {get_rank()} waited {TIMEOUT} in vain{f' for: {phase}' if phase else ''}. {error}") from error


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
