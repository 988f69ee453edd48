"""The arguments of the programs that train and test, and their entries: torch is imported once the arguments are read."""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

DEBUG = "MASKRCNN_BENCH_DEBUG"
_KEY = re.compile(r"[A-Z][A-Z0-9_]*(\.[A-Z0-9_]+)*(=.*)?", re.DOTALL)


def train_main(argv: Sequence[str] | None = None) -> int:
    """Trains a model, then tests it; returns the exit code."""
    parser = train_parser()
    words = list(sys.argv[1:] if argv is None else argv)
    args = parse(parser, words)
    if args.config_file is None:
        example = "--config-file e2e_mask_rcnn_R_50_FPN_1x.yaml"
        parser.error(f"no --config-file: name one, e.g. {example}; for the defaults give --config-file ''")
    from maskrcnn_bench.engine import launch

    return launch.run(partial(start_processes, "train", words) if wants_processes(args) else launch.train, args)


def test_main(argv: Sequence[str] | None = None) -> int:
    """Tests a model; returns the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    args = parse(test_parser(), words)
    from maskrcnn_bench.engine import launch

    return launch.run(partial(start_processes, "test", words) if wants_processes(args) else launch.test, args)


def wants_processes(args: argparse.Namespace) -> bool:
    """Whether this process is to start others, and is not one of them."""
    return args.gpus > 1 and "LOCAL_RANK" not in os.environ


def start_processes(verb: str, words: Sequence[str], args: argparse.Namespace) -> int:
    """Becomes torchrun with `--gpus` processes of the same command.

    Raises:
        ValueError: when there are not as many GPUs.
    """
    import torch

    from maskrcnn_bench.config import load_config

    file = config_beside(getattr(args, "ckpt", "")) if args.config_file is None else args.config_file
    device, seen = load_config(file or None, overrides(args)).MODEL.DEVICE, torch.cuda.device_count()
    if device != "cpu" and seen < args.gpus:
        raise ValueError(f"--gpus {args.gpus}, but torch sees {seen} GPU(s); MODEL.DEVICE cpu takes processors instead")
    # A user's own program must run again itself, since it may have registered parts.
    own = sys.argv[0].endswith(".py") and os.path.isfile(sys.argv[0])
    program = [sys.argv[0]] if own else ["-m", "maskrcnn_bench.cli", verb]
    os.environ.setdefault("OMP_NUM_THREADS", str(max((os.cpu_count() or 1) // args.gpus, 1)))
    sys.stdout.flush()
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={args.gpus}"]
    os.execv(sys.executable, [*torchrun, *program, *words])


def _parser(description: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description, epilog=f"{DEBUG}=1 in the environment shows where an error comes from.")
    config = "YAML file, or the name of a shipped one; '' takes the defaults"
    parser.add_argument("--config-file", default=None, metavar="FILE", help=config)
    parser.add_argument("--data", default="", metavar="FOLDER", help="data set (COCO, VOC, YOLO, ...), instead of DATASETS.TRAIN and TEST")
    parser.add_argument("--output", default="", metavar="FOLDER", help="where everything is written; the same as OUTPUT_DIR")
    processes = "start N processes on this machine, one a GPU (or N on the processors, with MODEL.DEVICE cpu)"
    parser.add_argument("--gpus", type=int, default=0, metavar="N", help=processes)
    # Launchers give it; the environment says the same.
    parser.add_argument("--local_rank", "--local-rank", type=int, default=None, help=argparse.SUPPRESS)
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="changes of the config, as KEY VALUE or KEY=VALUE")
    return parser


def train_parser() -> argparse.ArgumentParser:
    """Arguments of training."""
    parser = _parser("Train a detection model and test it at the end.")
    weights = "start at iteration 0 from these weights, '' from random numbers; the same as MODEL.WEIGHT"
    parser.add_argument("--weights", default=None, metavar="FILE", help=weights)
    resume = "go on where the run in the output folder (or the run of a checkpoint) stopped"
    parser.add_argument("--resume", nargs="?", const="auto", default="", metavar="FILE", help=resume)
    parser.add_argument("--skip-test", action="store_true", help="do not test at all")
    parser.add_argument("--print-schedule", action="store_true", help="print what becomes of the schedule, and end")
    return parser


def test_parser() -> argparse.ArgumentParser:
    """Arguments of testing."""
    parser = _parser("Test a detection model.")
    weights = "weights to test: a file, the output folder of a training, an address, or a catalog:// name"
    weights += "; without it the output folder's last checkpoint, else MODEL.WEIGHT"
    parser.add_argument("--ckpt", "--weights", dest="ckpt", default="", metavar="FILE", help=weights)
    return parser


def parse(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> argparse.Namespace:
    """Reads a command line, None meaning this process's; options and overrides may stand in any order."""
    words = list(sys.argv[1:] if argv is None else argv)
    for k, word in enumerate(words):
        # Its file is optional; a key that follows is not that file.
        if word == "--resume" and (k + 1 == len(words) or words[k + 1].startswith("-") or _KEY.fullmatch(words[k + 1])):
            words[k] = "--resume=auto"
    args = parser.parse_intermixed_args(words)
    if getattr(args, "weights", None) is not None and getattr(args, "resume", ""):
        parser.error("--weights starts a new run and --resume goes on with an old one; give one of them")
    return args


def overrides(args: argparse.Namespace) -> list[str]:
    """The options with a key of their own, in the form of the other overrides, which win."""
    opts = []
    if args.data:
        opts += ["DATASETS.DATA", args.data, "DATASETS.TRAIN", "()", "DATASETS.TEST", "()"]
        opts += ["DATASETS.PROPOSAL_FILES_TRAIN", "()", "DATASETS.PROPOSAL_FILES_TEST", "()"]  # they belong to the data
    if args.output:
        opts += ["OUTPUT_DIR", args.output]
    if getattr(args, "weights", None) is not None:
        opts += ["MODEL.WEIGHT", args.weights]
    return opts + args.opts


def config_beside(checkpoint: str) -> str:
    """The config.yml of the run that a checkpoint, or an output folder, is from."""
    path = (Path(checkpoint) if Path(checkpoint).is_dir() else Path(checkpoint).parent) / "config.yml"
    return str(path) if checkpoint and path.is_file() else ""
