"""How a run starts: its config, device, processes, folder and log. A border file."""

from __future__ import annotations

import argparse
import math
import os
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from maskrcnn_bench.config import explicit_keys, load_config
from maskrcnn_bench.engine.arguments import config_beside, overrides
from maskrcnn_bench.engine.surroundings import at_most_processors, fitting_workers, require_writable
from maskrcnn_bench.layers import _ops
from maskrcnn_bench.utils import comm
from maskrcnn_bench.utils.logger import log_lines, setup_logger


class Run(NamedTuple):
    """What both programs start from.

    Attributes:
        cfg: frozen.
        device: of this process.
        file_keys, command_keys: keys that the YAML, and that the command line set.
        log_size: bytes that log.txt had before.
        logger: of the package; silent in all processes but the first.
    """

    cfg: Any
    device: torch.device
    file_keys: set[str]
    command_keys: set[str]
    log_size: int
    logger: Any


def start_run(args: argparse.Namespace, check: Callable[[Any], None] = lambda cfg: None) -> Run:
    """Reads the config, and makes the output folder once `check` has nothing against it."""
    opts = overrides(args)
    config_file = config_beside(getattr(args, "ckpt", "")) if args.config_file is None else args.config_file
    cfg = load_config(config_file or None, opts)
    check(cfg)
    file_keys, command_keys = explicit_keys(config_file or None, opts)
    if args.local_rank is not None:
        os.environ.setdefault("LOCAL_RANK", str(args.local_rank))
    device = resolve_device(cfg.MODEL.DEVICE)
    require_writable(cfg.OUTPUT_DIR)
    comm.start(device, cfg.PROCESS_TIMEOUT)
    log = Path(cfg.OUTPUT_DIR, "log.txt")
    log_size = log.stat().st_size if log.is_file() else 0
    logger = setup_logger(save_dir=cfg.OUTPUT_DIR, distributed_rank=comm.get_rank())
    logger.info("config %s%s", config_file or "(defaults)", "".join(f" {word}" for word in opts))
    log_lines(logger, _describe_machine(device))
    wanted, workers = cfg.DATALOADER.NUM_WORKERS, at_most_processors(cfg.DATALOADER.NUM_WORKERS)
    if workers < wanted:
        logger.info("DATALOADER.NUM_WORKERS %d: there are %d processors, so that many work", wanted, workers)
    if too_small := loading_workers(cfg)[1]:
        logger.warning("%s", too_small)
    _seed(cfg.SEED)
    if cfg.DETERMINISTIC:
        _be_deterministic(device, logger)
    return Run(cfg, device, file_keys, command_keys, log_size, logger)


def resolve_device(name: str) -> torch.device:
    """The device that MODEL.DEVICE names, for this process.

    Raises:
        ValueError: when there is no such device.
    """
    local_rank = comm.launched_processes()[2]
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if not re.fullmatch(r"cpu|cuda(:\d+)?", name):
        apple = "; Apple's mps is not supported, take cpu" if name.startswith("mps") else ""
        raise ValueError(f"MODEL.DEVICE: expected auto, cpu or cuda, got {name!r}{apple}")
    device = torch.device(name)
    if device.type != "cuda":
        return device
    if device.index is not None and int(os.environ.get("LOCAL_WORLD_SIZE", 1)) > 1:
        raise ValueError(f"MODEL.DEVICE {name} names one GPU for several processes; take cuda, then each has its own")
    if not torch.cuda.is_available():
        why = "this build of torch has no CUDA" if torch.version.cuda is None else "torch sees no GPU (driver? CUDA_VISIBLE_DEVICES?)"
        raise ValueError(f"MODEL.DEVICE {name}, but {why}: take MODEL.DEVICE auto or cpu, or ask `maskrcnn-bench doctor`")
    device = torch.device("cuda", local_rank if device.index is None else device.index)
    if device.index >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        raise ValueError(f"process {local_rank} wants GPU {device.index}, but there are {count}; start fewer processes on this machine")
    torch.cuda.set_device(device)
    return device


def _describe_machine(device: torch.device) -> list[str]:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} thread(s)"
    processes = comm.get_world_size()
    several = f", {processes} processes" if processes > 1 else ""
    operators = comm.all_gather(_ops.load())
    if len(set(operators)) > 1:
        raise ValueError(f"the processes run on different operators, by rank {operators}; MASKRCNN_BENCH_OPS=torchvision makes them equal")
    return [f"torch {torch.__version__} on {device} ({name}){several}; operators: {operators[0]}"]


def _seed(seed: int) -> None:
    """For the weights drawn at random, and for users' code; the library's own choices follow from the seed without this."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def _be_deterministic(device: torch.device, logger: Any) -> None:
    """Has torch take operations that always give the same bits; it warns of each one that has no such form."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cudnn.benchmark = False
    if device.type == "cuda" and _ops.implementation("roi_align_backward", "cuda") != "csrc":
        logger.warning("DETERMINISTIC: the gradient of RoIAlign on a GPU is a sum in any order, so its last bits still vary")


def loading_workers(cfg: Any) -> tuple[int, str]:
    """Processes that load data, and what to say if shared memory is too small for those that are wanted."""
    shape = (max(cfg.INPUT.MIN_SIZE_TRAIN), max(cfg.INPUT.MAX_SIZE_TRAIN, 1), cfg.INPUT.CHANNELS)
    images = -(-cfg.SOLVER.IMS_PER_BATCH // max(cfg.SOLVER.ACCUMULATE, 1) // comm.get_world_size())
    return fitting_workers(at_most_processors(cfg.DATALOADER.NUM_WORKERS), images * math.prod(shape))
