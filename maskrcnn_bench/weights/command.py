"""`maskrcnn-bench convert SRC DST`: weights of any known project as a file of this library, of detectron2 or of torchvision."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .convert import load_weights
from .detectron2 import to_detectron2
from .load import SERIOUS, Report, load_into
from .names import Loaded
from .torchvision import to_torchvision

FORMATS: dict[str, Callable[[dict[str, Tensor]], Any]] = {
    "maskrcnn_bench": lambda state: {"model": state},
    "detectron2": lambda state: {"model": to_detectron2(state), "__author__": "maskrcnn_bench", "matching_heuristics": False},
    "torchvision": to_torchvision,
}
"""What each project's loader wants to find in a file, made of tensors in our names."""


def convert_main(argv: Sequence[str]) -> int:
    """Runs the verb; `argv` is what follows the word `convert`."""
    args = _parser().parse_intermixed_args(argv)
    try:
        print(convert_file(args.source, args.target, args.to, args.strict, args.config_file, args.opts).summary(args.limit))
    except (ValueError, OSError) as error:
        print(f"maskrcnn-bench convert: {error}", file=sys.stderr)
        return 1
    print(f"wrote {args.target}")
    return 0


def convert_file(
    source: str | Path,
    target: str | Path,
    to: str = "maskrcnn_bench",
    strict: bool = False,
    config_file: str = "",
    opts: Sequence[str] = (),
) -> Report:
    """Reads weights, writes them in another project's form, and says what became of every tensor.

    Args:
        source: a file of any known project.
        target: the new file, written in one step: it is whole or not there.
        to: a key of FORMATS.
        strict: tensors without a place are an error, and nothing is written.
        config_file: with a configuration, the weights go through its model: what does not fit keeps the model's initial values, and
            the new file has exactly the model's tensors.
        opts: overrides of the configuration, KEY VALUE.
    Raises:
        ValueError: unreadable or unknown weights, or weights that do not fit.
    """
    _check_target(source, target)
    loaded = load_weights(source)
    if config_file:
        model = _build(config_file, opts)
        report = load_into(model, loaded, strict)
        state = {name: value for name, value in model.state_dict().items() if ".cell_anchors." not in name}
    else:
        report, state = _report(loaded, strict), loaded.state_dict
    save_atomically(FORMATS[to](dict(state)), target)
    return report


def _check_target(source: str | Path, target: str | Path) -> None:
    if Path(target).suffix not in (".pth", ".pt"):
        raise ValueError(f"{target}: expected a name that ends in .pth or .pt")
    if not Path(target).absolute().parent.is_dir():
        raise FileNotFoundError(f"{target}: there is no folder {Path(target).absolute().parent}")
    if Path(target).exists() and Path(source).exists() and Path(target).samefile(source):
        raise ValueError(f"{target}: the new file would replace the one it is made from")


def _build(config_file: str, opts: Sequence[str]) -> torch.nn.Module:
    from ..config import load_config
    from ..modeling.detector import build_detection_model

    return build_detection_model(load_config(config_file, list(opts)))


def _report(loaded: Loaded, strict: bool) -> Report:
    """What the names alone tell: no model says whether shapes fit or tensors are missing."""
    source = loaded.meta["source"]
    unused = list(loaded.meta["unused"].items())
    report = Report(
        f"{loaded.meta['file']} ({loaded.kind})", loaded.meta["expects"], len(source) + len(unused), list(source), unused=unused
    )
    report.renamed = [(theirs, ours) for ours, theirs in source.items() if theirs != ours]
    lost = [f"{name}: {why}" for name, why in unused if why in SERIOUS]
    if strict and lost:
        raise ValueError(f"{report.source}: {len(lost)} tensors have no place (strict):\n  " + "\n  ".join(lost))
    return report


def save_atomically(content: Any, target: str | Path) -> None:
    """`torch.save` to a file that is either whole or not there."""
    target = Path(target).absolute()
    handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            torch.save(content, file)
        # A temporary file is private; the result has the rights of any new file.
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, target)
    except BaseException:
        os.unlink(temporary)
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Convert weights between projects. Nothing in a file is executed.")
    parser.add_argument("source", metavar="SRC", help="weights of maskrcnn-benchmark, Detectron, detectron2, torchvision, mmdetection, ...")
    parser.add_argument("target", metavar="DST", help="the new file, .pth")
    parser.add_argument("--to", choices=list(FORMATS), default="maskrcnn_bench", help="whose names and layout (default: %(default)s)")
    parser.add_argument("--strict", action="store_true", help="tensors without a place are an error")
    parser.add_argument(
        "--config-file", default="", metavar="FILE", help="the model that the weights are for: checks shapes, fills what is missing"
    )
    parser.add_argument("--limit", type=int, default=8, metavar="N", help="names shown of each list (default: %(default)s)")
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="overrides of the config")
    return parser
