"""`maskrcnn-bench config show|diff|keys`: what a config says, what it changes, and what the keys mean."""

from __future__ import annotations

import argparse
import difflib
import inspect
import re
import sys
from collections.abc import Sequence

from . import defaults
from .loader import diff, load_config, resolved
from .node import leaves

_DECLARATIONS = ("_C.limit", "_C.within", "_C.above", "_C.example", "_C.allow_epochs")
_ASSIGNMENT = re.compile(r"_C\.([A-Z]\w*(?:\.\w+)*) = (?!CfgNode)")


def config_main(argv: Sequence[str]) -> int:
    """Runs the verb; `argv` is what follows the word `config`."""
    parser = _parser()
    args = parser.parse_intermixed_args(argv)
    if args.action is None:
        parser.error("say what to print: show, diff or keys")
    if args.action == "keys":
        return _print_keys(" ".join(args.words))
    try:
        config = load_config(args.config_file or None, args.words)
    except (ValueError, FileNotFoundError) as error:
        print(f"maskrcnn-bench config: {error}", file=sys.stderr)
        return 1
    if args.action == "show":
        print(resolved(config), end="")
    else:
        for key, default, value in diff(config):
            print(f"{key}: {default!r} -> {value!r}")
    return 0


def key_comments() -> dict[str, str]:
    """What the comments of defaults.py say about each key; keys of one block share the comment above them."""
    comments: dict[str, str] = {}
    block: list[str] = []
    after_key = False
    for line in inspect.getsource(defaults).splitlines():
        match = _ASSIGNMENT.match(line)
        if match:
            comments[match[1]] = " ".join(block)
        elif line.startswith("# ") and not line.startswith("# ---"):
            block = [*([] if after_key else block), line[2:]]
        elif not line.startswith(_DECLARATIONS):
            block = []
        after_key = bool(match) or line.startswith(_DECLARATIONS)
    return comments


def _print_keys(pattern: str) -> int:
    comments = key_comments()
    config = dict(leaves(defaults.get_defaults()))
    chosen = [key for key in config if pattern.upper() in key]
    if not chosen:
        similar = difflib.get_close_matches(pattern.upper(), config, n=3, cutoff=0.4)
        print(f"no key contains {pattern!r}. Nearest: {', '.join(similar) or 'none'}", file=sys.stderr)
        return 1
    for key in chosen:
        together = [other for other in comments if _section(other) == _section(key) and comments[other] == comments[key]]
        names = f"{', '.join(other.rpartition('.')[2] for other in together)}: " * (len(together) > 1)
        print(f"{key} = {config[key]!r}\n    {names}{comments[key]}")
    return 0


def _section(key: str) -> str:
    return key.rpartition(".")[0]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Show a config, what it changes, or all keys with their meaning.")
    # Not required here, else the parser would claim that the words behind it are required too.
    parser.add_argument(
        "action", nargs="?", choices=("show", "diff", "keys"), help="the whole config; only what differs from the defaults; the keys"
    )
    parser.add_argument("--config-file", default="", metavar="FILE", help="a YAML file, or the name of a shipped one")
    parser.add_argument("words", nargs="*", help="show, diff: overrides KEY VALUE or KEY=VALUE; keys: part of a key's name")
    return parser
