"""Finds config files and reads them together with the files that they build on."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

BASE_KEY = "_BASE_"
_PACKAGE = Path(__file__).resolve().parent.parent


def shipped_configs() -> Path:
    """The folder of the shipped YAMLs: inside an installed package, or beside the package in a checkout."""
    installed = _PACKAGE / "configs"
    return installed if installed.is_dir() else _PACKAGE.parent / "configs"


def find_config(path: str | os.PathLike) -> Path:
    """The file `path`, or the shipped one of that name (with or without a leading "configs/")."""
    wanted = Path(path).expanduser()
    if wanted.is_file():
        return wanted
    parts = wanted.parts[1:] if wanted.parts[:1] == ("configs",) else wanted.parts
    shipped = shipped_configs().joinpath(*parts)
    if not wanted.is_absolute() and shipped.is_file():
        return shipped
    if wanted.is_dir():
        raise FileNotFoundError(f"{wanted} is a folder; expected a YAML file in it")
    raise FileNotFoundError(f"no config file {wanted}. {_similar_files(wanted)}")


def read_chain(path: str | os.PathLike) -> list[tuple[str, dict[str, Any]]]:
    """Reads a config file and the files that its `_BASE_` lines name, each relative to the file that names it.

    Returns:
        (path, tree) of each file, the root of the chain first, so that later ones win. The trees are without `_BASE_`.
    """
    chain: list[tuple[str, dict[str, Any]]] = []
    seen: list[Path] = []
    current: Path | None = find_config(path)
    while current is not None:
        if current.resolve() in seen:
            raise ValueError(f"{current}: its {BASE_KEY} lines lead back to itself: {' -> '.join(p.name for p in seen)}")
        seen.append(current.resolve())
        tree = _read_yaml(current)
        base = tree.pop(BASE_KEY, None)
        chain.insert(0, (str(current), tree))
        current = _base_of(current, base)
    return chain


def nearest(name: str, known: Iterable[str], count: int = 3) -> list[str]:
    """The names most like `name`, best first; none when nothing is similar."""
    return difflib.get_close_matches(name, list(known), n=count, cutoff=0.6)


def _base_of(path: Path, base: Any) -> Path | None:
    if base is None:
        return None
    if not isinstance(base, str):
        raise ValueError(f"{path}: {BASE_KEY} expects one file name, got {base!r}")
    wanted = path.parent / Path(base).expanduser()
    if not wanted.is_file():
        raise FileNotFoundError(f"{path}: its {BASE_KEY} file {wanted} does not exist. {_similar_files(wanted)}")
    return wanted


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not a YAML file: {error}") from error
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise ValueError(f"{path}: expected sections and keys such as 'MODEL:', got a {type(tree).__name__}")
    return tree


def _similar_files(wanted: Path) -> str:
    """A sentence that names files like the missing one: those beside it, then the shipped ones."""
    beside = {p.name: str(p) for p in wanted.parent.glob("*.y*ml")} if wanted.parent.is_dir() else {}
    root = shipped_configs()
    shipped = {p.name: str(p.relative_to(root)) for p in sorted(root.rglob("*.yaml"), reverse=True)}
    names = {**shipped, **beside}
    found = [names[name] for name in nearest(wanted.name, names)]
    return f"Did you mean {' or '.join(found)}?" if found else f"Shipped configs are in {root}."
