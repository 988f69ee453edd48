"""The config tree: yacs' CfgNode with strict types and with errors that say what to write instead."""

from __future__ import annotations

import os
import re
from ast import literal_eval
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from yacs.config import CfgNode as YacsNode

from .yaml_files import nearest, read_chain

_ALTERNATIVES = "_alternatives"
_EPOCHS = "_epochs"
_IN_EPOCHS = re.compile(r"\d+(\.\d+)?e")
_KEY_EQUALS_VALUE = re.compile(r"([A-Za-z_][\w.]*)=(.*)", re.DOTALL)
_KIND_NAMES = {bool: "True or False", int: "a whole number", float: "a number", str: "a text", tuple: "a list", list: "a list"}


class CfgNode(YacsNode):
    """A section of the config. Keys are attributes; a merge changes known keys only and checks their type."""

    def limit(self, key: str, *alternatives: Any) -> None:
        """Declares the only values that `key` may take."""
        self.__dict__.setdefault(_ALTERNATIVES, {})[key] = alternatives

    def allow_epochs(self, *keys: str) -> None:
        """Lets a number of iterations, or each one of a list, be said in epochs too: "8e"."""
        self.__dict__.setdefault(_EPOCHS, set()).update(keys)

    def merge_from_file(self, cfg_filename: str | os.PathLike) -> None:
        """Merges a YAML file, together with the files that its `_BASE_` lines name."""
        for path, tree in read_chain(cfg_filename):
            self.merge_leaves(leaves(tree), path)

    def merge_from_list(self, cfg_list: Sequence[Any]) -> None:
        """Merges `KEY, VALUE` pairs and `KEY=VALUE` words, in any mixture."""
        self.merge_leaves(parse_overrides(cfg_list), "command line")

    def merge_from_other_cfg(self, cfg_other: Mapping[str, Any]) -> None:
        """Merges another tree, plain or CfgNode."""
        self.merge_leaves(leaves(cfg_other), "other config")

    def merge_leaves(self, items: Iterable[tuple[str, Any]], source: str) -> None:
        """Merges full keys with raw values: all of them, or none when one is wrong.

        Args:
            items: pairs such as ("SOLVER.BASE_LR", "0.02").
            source: where they stand, for error messages: a file, or "command line".
        """
        if self.is_frozen():
            raise ValueError(f"{source}: this config is frozen. Use a copy: config = config.clone(); config.defrost()")
        checked = [self._check(key, value, source) for key, value in items]
        for section, name, value in checked:
            section[name] = value

    def _check(self, key: str, raw: Any, source: str) -> tuple[CfgNode, str, Any]:
        section, name = self._find(key, source)
        if name not in section:
            return section, name, raw
        old = section[name]
        if isinstance(old, YacsNode):
            raise ValueError(f"{source}: {key} is a section with the keys {', '.join(sorted(old))}; got {raw!r}")
        alternatives = self.__dict__.get(_ALTERNATIVES, {}).get(key)
        if alternatives is not None:
            return section, name, _one_of(alternatives, raw, key, source)
        if key in self.__dict__.get(_EPOCHS, ()):
            if (value := _in_epochs(raw, isinstance(old, (tuple, list)))) is not None:
                return section, name, value
            old = 0 if isinstance(old, str) else old
        return section, name, _as_kind_of(old, raw, key, source)

    def _find(self, key: str, source: str) -> tuple[CfgNode, str]:
        """The section that holds `key`, and the key's last word."""
        section: CfgNode = self
        *sections, name = key.split(".")
        for word in sections:
            if not isinstance(section.get(word), YacsNode):
                raise ValueError(self._unknown(key, source))
            section = section[word]
        if name not in section and not section.is_new_allowed():
            raise ValueError(self._unknown(key, source))
        return section, name

    def _unknown(self, key: str, source: str) -> str:
        known = [full_key for full_key, _ in leaves(self)]
        names = nearest(key.upper(), known)
        names += [k for k in known if k.rpartition(".")[2] == key.upper().rpartition(".")[2] and k not in names]
        hint = f"Did you mean {' or '.join(names[:4])}?" if names else "`maskrcnn-bench config keys` lists all keys."
        return f"{source}: unknown key {key}. {hint}"


def leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields (full key, value) of every key below `tree`."""
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def parse_overrides(words: Sequence[Any]) -> list[tuple[str, Any]]:
    """Reads `KEY VALUE` and `KEY=VALUE`, mixed, as (key, raw value) pairs in the order given."""
    pairs = []
    rest = iter(words)
    for word in rest:
        match = _KEY_EQUALS_VALUE.fullmatch(word) if isinstance(word, str) else None
        if match:
            pairs.append((match[1], match[2]))
            continue
        value = next(rest, None)
        if not isinstance(word, str) or value is None:
            raise ValueError(f"command line: expected KEY VALUE or KEY=VALUE, got {word!r} and nothing after it")
        pairs.append((word, value))
    return pairs


def _decode(raw: Any) -> Any:
    """A YAML or command-line value as a Python value: "(4, 8)" is a tuple, "true" is True, a bare word stays text."""
    if not isinstance(raw, str):
        return raw
    if raw.lower() in ("true", "false"):
        return raw.lower() == "true"
    try:
        return literal_eval(raw.strip())
    except (ValueError, SyntaxError):
        return raw


def _in_epochs(raw: Any, several: bool) -> Any:
    """A number, or a tuple of numbers, of which at least one is in epochs; None for anything else."""
    value = _decode(raw)
    if several and isinstance(value, str):
        value = [_decode(word.strip(" '\"")) for word in value.strip("()[] ").split(",") if word.strip()]
    elements = value if several and isinstance(value, (tuple, list)) else [value]
    epochs = [isinstance(x, str) and _IN_EPOCHS.fullmatch(x) is not None for x in elements]
    if not any(epochs) or not all(said or type(x) is int for said, x in zip(epochs, elements)):
        return None
    return tuple(elements) if several else value


def _as_kind_of(old: Any, raw: Any, key: str, source: str) -> Any:
    value = _decode(raw)
    kind = type(old)
    if kind is str:
        # A folder named 2024 or a JSON text is meant as it stands, not as the literal it could be.
        value = value if isinstance(value, str) else raw
    elif kind is float and type(value) is int:
        value = float(value)
    elif kind in (tuple, list) and isinstance(value, (tuple, list)):
        value = kind(value)
        _check_elements(old, value, key, source)
    if old is not None and type(value) is not kind:
        raise ValueError(f"{source}: {key} expects {_KIND_NAMES[kind]} such as {_example(old)}, got {raw!r}")
    return value


def _example(old: Any) -> str:
    return "\"('name',)\"" if old in ((), []) else repr(old)


def _check_elements(old: Sequence, value: Sequence, key: str, source: str) -> None:
    """All elements must be numbers (or texts, or flags) as in the default; an empty default allows anything."""
    wanted = {_family(x) for x in _flatten(old)}
    for element in _flatten(value):
        if wanted and _family(element) not in wanted:
            raise ValueError(f"{source}: {key} expects a list of {wanted.pop()}s such as {old!r}, got {element!r} in {value!r}")


def _flatten(values: Sequence) -> Iterator[Any]:
    for value in values:
        if isinstance(value, (tuple, list)):
            yield from _flatten(value)
        else:
            yield value


def _family(value: Any) -> str:
    if isinstance(value, bool):
        return "flag"
    return "number" if isinstance(value, (int, float)) else type(value).__name__


def _one_of(alternatives: tuple, raw: Any, key: str, source: str) -> Any:
    for value in (raw, _decode(raw)):
        for alternative in alternatives:
            if type(value) is type(alternative) and value == alternative:
                return value
    hint = nearest(str(raw), [str(a) for a in alternatives], 1)
    did_you_mean = f" Did you mean {hint[0]}?" if hint else ""
    known = ", ".join(str(value) if value != "" else '""' for value in alternatives)
    raise ValueError(f"{source}: {key} expects one of {known}; got {raw!r}.{did_you_mean}")
