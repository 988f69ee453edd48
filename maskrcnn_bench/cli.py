"""The command `maskrcnn-bench`: its verbs. What a verb does is in the module that VERBS names, imported when it is called."""

from __future__ import annotations

import argparse
import difflib
import importlib
import os
import sys
from collections.abc import Sequence
from typing import NamedTuple

from . import __version__


class Verb(NamedTuple):
    """What a verb does, in words, and the function that takes the rest of the command line."""

    summary: str
    module: str
    function: str


VERBS = {
    "train": Verb("train a model, and test it at the end", "engine.arguments", "train_main"),
    "test": Verb("test a model on data sets", "engine.arguments", "test_main"),
    "predict": Verb("find objects in images, folders of images and videos", "demo.predict", "predict_main"),
    "demo": Verb("train, test and draw on generated scenes: all in minutes; --serve: a page for the camera", "demo.toy", "demo_main"),
    "data": Verb("check a data set, print its statistics, or draw its images", "data.check", "main"),
    "convert": Verb("turn weights of any known project into this one's, detectron2's or torchvision's", "weights.command", "convert_main"),
    "config": Verb("show a config, what it changes, or all keys with their meaning", "config.command", "config_main"),
    "doctor": Verb("report versions, devices and operators, and how to repair what is broken", "doctor", "doctor_main"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one verb.

    Args:
        argv: the words after the command's name; None takes those of this process.
    Returns:
        The exit code: 0 when the verb did what it was asked.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0].startswith("-"):
        return _without_verb(words)
    name, *rest = words
    if name not in VERBS:
        return _unknown_verb(name)
    verb = VERBS[name]
    # Parsers of the verbs name themselves after the command.
    sys.argv[0] = f"maskrcnn-bench {name}"
    module = importlib.import_module(f"{__package__}.{verb.module}")
    try:
        result = getattr(module, verb.function)(rest)
        sys.stdout.flush()
    except BrokenPipeError:
        # Who read the output, such as `head`, has enough. Python writes the rest when it ends; that goes nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + 13
    return result if isinstance(result, int) else 0


def _without_verb(words: list[str]) -> int:
    verbs = "\n".join(f"  {name:<9}{verb.summary}" for name, verb in VERBS.items())
    parser = argparse.ArgumentParser(
        prog="maskrcnn-bench",
        usage="maskrcnn-bench VERB ...",
        description="The R-CNN family on PyTorch: train, test, predict.",
        epilog=f"verbs:\n{verbs}\n\n`maskrcnn-bench VERB --help` explains a verb. First thing to try: `make demo` in a checkout.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"maskrcnn-bench {__version__}")
    parser.parse_args(words)
    parser.print_help()
    return 0 if words else 2


def _unknown_verb(name: str) -> int:
    similar = difflib.get_close_matches(name, VERBS, n=1, cutoff=0.5)
    hint = f"Did you mean {similar[0]}?" if similar else f"There are: {', '.join(VERBS)}."
    print(f"maskrcnn-bench: no verb {name!r}. {hint}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
