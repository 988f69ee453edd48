"""Builds the config of a run from the defaults, a YAML file and the command line."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from .defaults import get_defaults
from .node import CfgNode, leaves, parse_overrides
from .yaml_files import read_chain


def load_config(path: str | os.PathLike | None = None, opts: Sequence[Any] = ()) -> CfgNode:
    """Builds a frozen config; the command line wins over the file, the file over the files it builds on.

    Args:
        path: a YAML file, or the name of a shipped one such as "e2e_mask_rcnn_R_50_FPN_1x.yaml"; None takes the defaults.
        opts: overrides, `KEY VALUE` and `KEY=VALUE` mixed.
    """
    config = get_defaults()
    if path:
        config.merge_from_file(path)
    config.merge_from_list(opts)
    config.freeze()
    return config


def explicit_keys(path: str | os.PathLike | None = None, opts: Sequence[Any] = ()) -> tuple[set[str], set[str]]:
    """The keys that somebody wrote down: those in the file or a file it builds on, and those in `opts`."""
    chain = read_chain(path) if path else []
    in_files = {key for _, tree in chain for key, _ in leaves(tree)}
    return in_files, {key for key, _ in parse_overrides(opts)}


def resolved(config: CfgNode) -> str:
    """The whole config as YAML text that gives the same config when it is loaded, on another machine too."""
    portable = config.clone()
    portable.defrost()
    if portable.PATHS_CATALOG == get_defaults().PATHS_CATALOG:
        # A path inside this machine's installation.
        del portable["PATHS_CATALOG"]
    return portable.dump(sort_keys=False)


def diff(config: CfgNode) -> list[tuple[str, Any, Any]]:
    """(key, default, value) of every key that is not at its default."""
    defaults = dict(leaves(get_defaults()))
    return [(key, defaults.get(key), value) for key, value in leaves(config) if defaults.get(key) != value]
