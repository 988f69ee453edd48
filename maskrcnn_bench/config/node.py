"""The config tree: yacs' CfgNode with strict types and with errors that say what to write instead."""

from __future__ import annotations

import os
import re
from ast import literal_eval
from collections.abc import Iterable, Iterator, Mapping, Sequence
from math import inf, isfinite
from typing import Any, NamedTuple

from yacs.config import CfgNode as YacsNode

from .yaml_files import nearest, read_chain

_ALTERNATIVES = "_alternatives"
_RANGES = "_ranges"
_EXAMPLES = "_examples"
_EPOCHS = "_epochs"
_IN_EPOCHS = re.compile(r"\d+(\.\d+)?e")
_KEY_EQUALS_VALUE = re.compile(r"([A-Za-z_][\w.]*)=(.*)", re.DOTALL)
_KIND_NAMES = {bool: "True or False", int: "a whole number", float: "a number", str: "a text", tuple: "a list", list: "a list"}


class _Range(NamedTuple):
    """Numbers from `low`, itself left out when `beyond`, to `high`."""

    low: float
    high: float
    beyond: bool
    empty: bool

    def __str__(self) -> str:
        if self.beyond:
            return f"more than {self.low}"
        return f"{self.low} or more" if self.high == inf else f"a number from {self.low} to {self.high}"

    def check(self, value: Any, key: str, source: str) -> None:
        several = isinstance(value, (tuple, list))
        if several and not value and not self.empty:
            raise ValueError(f"{source}: {key} expects at least one number, each {self}, got {value!r}")
        for number in _flatten(value if several else (value,)):
            if not (self.low <= number <= self.high) or (self.beyond and number == self.low):
                raise ValueError(f"{source}: {key} expects {self}, got {number!r}" + f" in {value!r}" * several)


class CfgNode(YacsNode):
    """A section of the config. Keys are attributes; a merge changes known keys only and checks their type."""

    def limit(self, key: str, *alternatives: Any) -> None:
        """Declares the only values that `key` may take."""
        self.__dict__.setdefault(_ALTERNATIVES, {})[key] = alternatives

    def within(self, key: str, low: float, high: float = inf, *, empty: bool = True) -> None:
        """Declares the smallest and the largest number that `key`, or each element of it, may be, and whether a list may be empty."""
        self.__dict__.setdefault(_RANGES, {})[key] = _Range(low, high, False, empty)

    def above(self, key: str, low: float, *, empty: bool = True) -> None:
        """Declares the number that `key`, or each element of it, has to exceed, and whether a list may be empty."""
        self.__dict__.setdefault(_RANGES, {})[key] = _Range(low, inf, True, empty)

    def example(self, key: str, value: Sequence) -> None:
        """Declares what an element of a list looks like whose default is empty."""
        self.__dict__.setdefault(_EXAMPLES, {})[key] = value

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
        value = _as_kind_of(old, raw, key, source, self.__dict__.get(_EXAMPLES, {}).get(key))
        if (numbers := self.__dict__.get(_RANGES, {}).get(key)) is not None:
            numbers.check(value, key, source)
        return section, name, value

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
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
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


def _as_kind_of(old: Any, raw: Any, key: str, source: str, example: Sequence | None = None) -> Any:
    value = _decode(raw)
    kind = type(old)
    if kind is str:
        # A folder named 2024 or a JSON text is meant as it stands, not as the literal it could be.
        value = value if isinstance(value, str) else raw
    elif kind is float and type(value) is int:
        value = float(value)
    elif kind in (tuple, list) and isinstance(value, (tuple, list)):
        value = _nested(value, kind)
        _check_elements(old if example is None else example, value, key, source)
    if any(isinstance(x, float) and not isfinite(x) for x in _flatten((value,))):
        raise ValueError(f"{source}: {key} expects finite numbers, got {raw!r}")
    if old is not None and type(value) is not kind:
        raise ValueError(f"{source}: {key} expects {_KIND_NAMES[kind]} such as {_example(old, example)}, got {raw!r}")
    return value


def _nested(value: Any, kind: type) -> Any:
    """Lists and tuples in each other as those of one kind."""
    return kind(_nested(element, kind) for element in value) if isinstance(value, (tuple, list)) else value


def _example(old: Any, example: Sequence | None) -> str:
    if example is not None or old == ():
        # In quotes, since shells take brackets for their own.
        return f'"{example or ("name",)!r}"'
    return repr(old)


def _check_elements(like: Sequence, value: Sequence, key: str, source: str) -> None:
    """All elements must be numbers (or texts, or flags) as in the default or example; an empty one allows anything."""
    wanted = {_family(x) for x in _flatten(like)}
    for element in _flatten(value):
        if wanted and _family(element) not in wanted:
            kinds = " and ".join(sorted(f"{family}s" for family in wanted))
            raise ValueError(f"{source}: {key} expects a list of {kinds} such as {like!r}, got {element!r} in {value!r}")


def _flatten(values: Sequence) -> Iterator[Any]:
    for value in values:
        if isinstance(value, (tuple, list)):
            yield from _flatten(value)
        else:
            yield value


def _family(value: Any) -> str:
    if isinstance(value, bool):
        return "flag"
    if isinstance(value, str):
        return "text"
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
