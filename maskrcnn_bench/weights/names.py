"""Tables of names: how one project calls the tensors that this library calls otherwise.

A template is a tensor's name with wildcards: ``#`` stands for digits, ``*`` for anything without a dot, ``**`` for anything.
Both templates of a pair hold the same wildcards in the same order, so that one table converts in both directions.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cache

from torch import Tensor

_WILDCARD = re.compile(r"\*\*|\*|#")
_PATTERNS = {"**": "(.+)", "*": "([^.]+)", "#": r"(\d+)"}


@cache
def _compiled(template: str) -> re.Pattern:
    parts = _WILDCARD.split(template)
    marks = _WILDCARD.findall(template)
    pattern = re.escape(parts[0])
    for mark, part in zip(marks, parts[1:]):
        pattern += _PATTERNS[mark] + re.escape(part)
    return re.compile(pattern)


def matches(template: str, name: str) -> bool:
    """Whether ``name`` has the form of ``template``."""
    return _compiled(template).fullmatch(name) is not None


def translate(name: str, source: str, target: str) -> str | None:
    """``name``, read by the template ``source``, written by ``target``; None when it does not have that form."""
    found = _compiled(source).fullmatch(name)
    if found is None:
        return None
    values = iter(found.groups())
    return _WILDCARD.sub(lambda _: next(values), target)


NO_COUNTERPART = "no counterpart in this library"
FOLDED = " (folded)"  # ends the source of statistics that a norm folded to scale and offset lacks


@dataclass(frozen=True)
class Layout:
    """A tensor whose rows stand in another order or number in the other project."""

    name: str
    to_ours: Callable[[Tensor], Tensor]
    to_theirs: Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Naming:
    """How one kind of checkpoint names and lays out its tensors.

    Args:
        kind: word for this kind in reports and errors.
        marks: templates; a checkpoint is of this kind when one of them occurs in it.
        names: pairs (their template, our template); the first that fits decides.
        dropped: pairs (their template, why no model needs such a tensor).
        layouts: tensors to reorder, by our template.
        backbone_only: an ImageNet classifier, of which a detector uses the trunk.
        expects: the input these weights were trained on, in words.
        anchor_order: how a cell's anchors are counted, one of anchor_order.ORDERS; empty where files of both kinds have these names.
    """

    kind: str
    marks: tuple[str, ...]
    names: tuple[tuple[str, str], ...]
    dropped: tuple[tuple[str, str], ...] = ()
    layouts: tuple[Layout, ...] = ()
    backbone_only: bool = False
    expects: str = ""
    anchor_order: str = "ratio_major"

    def recognises(self, names: Iterable[str]) -> bool:
        """Whether a checkpoint with these tensors is of this kind."""
        return any(matches(mark, name) for mark in self.marks for name in names)

    def our_name(self, name: str) -> str | None:
        """Our name of their tensor, or None when the table has none."""
        for theirs, ours in self.names:
            renamed = translate(name, theirs, ours)
            if renamed is not None:
                return renamed
        return None

    def their_name(self, name: str) -> str | None:
        """Their name of our tensor, or None when the table has none."""
        for theirs, ours in self.names:
            renamed = translate(name, ours, theirs)
            if renamed is not None:
                return renamed
        return None

    def reason_to_drop(self, name: str) -> str | None:
        """Why no model needs their tensor, or None when one might."""
        return next((reason for template, reason in self.dropped if matches(template, name)), None)

    def layout(self, our_name: str) -> Layout | None:
        """The reordering of one of our tensors, or None."""
        return next((layout for layout in self.layouts if matches(layout.name, our_name)), None)


@dataclass
class Loaded:
    """The content of a checkpoint in this library's names and layout.

    Args:
        kind: which project and sort of model wrote it.
        state_dict: tensors by our names.
        meta: "file", "expects" (its input in words), "backbone_only", "source" ({our name: theirs}), "anchor_order" (of its rows, or
            empty), "unused" ({their name: reason}), "extra" (small values that stood beside the tensors).
    """

    kind: str
    state_dict: dict[str, Tensor]
    meta: dict = field(default_factory=dict)


def to_ours(naming: Naming, tensors: dict[str, Tensor]) -> Loaded:
    """Rename and reorder a checkpoint's tensors by its table.

    Raises:
        ValueError: two of its tensors would get the same name.
    """
    state, source, unused = {}, {}, {}
    for theirs, tensor in tensors.items():
        reason = naming.reason_to_drop(theirs)
        ours = None if reason else naming.our_name(theirs)
        if ours is None:
            unused[theirs] = reason or NO_COUNTERPART
            continue
        if ours in state:
            raise ValueError(f"{source[ours]} and {theirs} both stand for {ours}: two models in one file?")
        layout = naming.layout(ours)
        state[ours] = layout.to_ours(tensor) if layout else tensor
        source[ours] = theirs
    meta = {"expects": naming.expects, "backbone_only": naming.backbone_only, "source": source, "unused": unused}
    meta["anchor_order"] = naming.anchor_order
    return Loaded(naming.kind, state, meta)


def to_theirs(naming: Naming, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of one of our models in another project's names and layout.

    Raises:
        ValueError: a tensor has no name there.
    """
    out, nameless = {}, []
    for ours, tensor in state.items():
        theirs = naming.their_name(ours)
        layout = naming.layout(ours)
        if theirs is None:
            nameless.append(ours)
        else:
            out[theirs] = layout.to_theirs(tensor) if layout else tensor
    if nameless:
        raise ValueError(f"{naming.kind} has no name for {len(nameless)} tensors: {', '.join(nameless[:5])}")
    return out
