"""Numbers on the command lines of the demos; argparse shows their messages beside the option's name."""

from __future__ import annotations

import argparse


def share(text: str) -> float:
    """A number from 0 to 1."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"expected a number from 0 to 1, got {text}")
    return value


def share_below_one(text: str) -> float:
    """A number from 0 to below 1."""
    if share(text) == 1:
        raise argparse.ArgumentTypeError(f"expected a number from 0 to below 1, got {text}")
    return share(text)


def count(text: str) -> int:
    """A whole number from 1 on."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number from 1 on, got {text}")
    return int(text)


def port(text: str) -> int:
    """The number of a port; 0 stands for any that is free."""
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"expected a number from 0 to 65535, got {text}")
    return int(text)
