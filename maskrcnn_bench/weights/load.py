"""Putting a checkpoint's tensors into a model, with a report that leaves nothing out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from ..layers.blocks import share_channels
from .anchor_order import anchor_grid, in_order
from .classes import pick_classes
from .convert import load_weights
from .names import FOLDED, NO_COUNTERPART, Loaded, matches

MIN_LOADED = 0.5  # of a detector's parameters, else the weights are of another model
MIN_BACKBONE = 0.9  # of the trunk's parameters, from an ImageNet classifier
_TRUNK = "backbone.body."
_C4_HEAD = "roi_heads.box.feature_extractor.head."
_ANCHORS = "**.cell_anchors.*"  # restored, these buffers would silently win over the configuration
_COUNTER = "**.num_batches_tracked"  # frozen norms have none
_AVERAGE = "rpn.normalizer.average"  # of RetinaNet's loss, which files of other projects lack
# Why a tensor of the checkpoint is unused, where that means that something is wrong.
_NO_PLACE = "the model has no such tensor"
_DIFFERS = "the model has one tensor for this and another name, whose values differ"
SERIOUS = (NO_COUNTERPART, _NO_PLACE, _DIFFERS)


@dataclass
class Report:
    """What became of every tensor of a model and of a checkpoint.

    Args:
        source: the file and its kind.
        expects: the input these weights were trained on, in words; empty when the kind does not tell.
        total: tensors the model has.
        loaded: names of the model's tensors that took the checkpoint's values.
        renamed: (its name, our name) of those that were called otherwise.
        reinitialised: (name, expected shape, got shape); kept at the model's initial values.
        unused: (its name, why) of the checkpoint's tensors without a place in the model.
        missing: names of the model's tensors which the checkpoint lacks; kept at their initial values.
        inflated: first convolutions for RGB whose values the channels of the model's images share.
        reordered: layers whose rows came in another order of the anchors.
        classes: where the heads have other classes, those whose rows came over; the others keep their initial values.
    """

    source: str
    expects: str = ""
    total: int = 0
    loaded: list[str] = field(default_factory=list)
    renamed: list[tuple[str, str]] = field(default_factory=list)
    reinitialised: list[tuple[str, tuple, tuple]] = field(default_factory=list)
    unused: list[tuple[str, str]] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    classes: list[str] = field(default_factory=list)
    inflated: list[str] = field(default_factory=list)
    reordered: list[str] = field(default_factory=list)

    def summary(self, limit: int = 8) -> str:
        """Text for the log: a line of counts, then each list, cut at ``limit`` names."""
        lines = [f"loaded {len(self.loaded)}/{self.total} tensors from {self.source}, {len(self.renamed)} of them renamed"]
        if self.expects:
            lines.append(f"  they expect images as {self.expects}")
        shapes = [f"{name} (model {_by(want)}, file {_by(got)})" for name, want, got in self.reinitialised]
        lines += _listed("of other classes, taken over by name", self.classes, limit)
        lines += _listed("for RGB, shared by the channels of the images", self.inflated, limit)
        lines += _listed("put in the model's order of anchors", self.reordered, limit)
        lines += _listed("re-initialised", shapes, limit)
        lines += _listed("not in the file, kept at their initial values", self.missing, limit)
        lines += _listed("unused", [f"{name} ({why})" for name, why in self.unused], limit)
        return "\n".join(lines)

    def __str__(self) -> str:
        return self.summary()


def _by(shape: tuple) -> str:
    return "x".join(map(str, shape)) or "scalar"


def _listed(title: str, items: list[str], limit: int) -> list[str]:
    if not items:
        return []
    more = f", and {len(items) - limit} more" if len(items) > limit else ""
    return [f"  {title} {len(items)}: {', '.join(items[:limit])}{more}"]


def load_into(model: nn.Module, weights: str | Path | Loaded, strict: bool = False, class_names: Sequence[str] = ()) -> Report:
    """Copy a checkpoint's tensors into a model. The model is untouched when an error is raised.

    Args:
        model: a detector of this library, or anything with the same names.
        weights: a file, or what `load_weights` made of one.
        strict: tensors of another shape, missing and unknown ones are an error. Otherwise those of another shape keep the model's
            initial values, which is what fine-tuning on other classes needs.
        class_names: the model's classes, background first. Where a head has other classes than the model, rows of equal names come over.
    Raises:
        ValueError: fewer than half of the model's parameters were found (of an ImageNet classifier: 90 % of the trunk's), or,
            with `strict`, not everything fits.
    """
    loaded = weights if isinstance(weights, Loaded) else load_weights(weights)
    model = model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model
    groups = _shared_tensors(model)
    loaded = _place_deformable(_place_last_stage(loaded, groups), groups)
    loaded, classes = pick_classes(loaded, {name: tensor for name, (tensor, _) in groups.items()}, () if strict else class_names)
    loaded, inflated = _share_channels(groups, loaded)
    loaded, reordered = _order_anchors(groups, loaded)
    report, copies = _plan(groups, loaded)
    report.classes, report.inflated, report.reordered = classes, inflated, reordered
    if strict:
        _require_all(report, loaded)
    _require_most(model, copies, report, loaded)
    with torch.no_grad():
        for target, source in copies:
            target.copy_(source)
        _fill_folded_norms(model, loaded)
    return report


def _shared_tensors(model: nn.Module) -> dict[str, tuple[Tensor, list[str]]]:
    """{name: (tensor, all its names)}: heads that share a module have one tensor under two names."""
    state = model.state_dict(keep_vars=True)
    names: dict[int, list[str]] = {}
    for name, tensor in state.items():
        names.setdefault(id(tensor), []).append(name)
    return {name: (tensor, names[id(tensor)]) for name, tensor in state.items()}


def _place_last_stage(loaded: Loaded, groups: dict) -> Loaded:
    """A classifier's last stage belongs to the box head in C4 models, which have none in their trunk."""
    trunk, head = _TRUNK + "layer4.", _C4_HEAD + "layer4."
    names = [name for name in groups if name.startswith((trunk, head))]
    if not loaded.meta.get("backbone_only") or not names or any(name.startswith(trunk) for name in names):
        return loaded

    def place(name: str) -> str:
        return head + name.removeprefix(trunk) if name.startswith(trunk) else name

    return _renamed(loaded, place)


def _place_deformable(loaded: Loaded, groups: dict) -> Loaded:
    """A plain kernel starts the deformable convolution that the model has in its place."""

    def place(name: str) -> str:
        inner = name.removesuffix("weight") + "conv.weight"
        return inner if name not in groups and inner in groups else name

    return _renamed(loaded, place)


def _share_channels(groups: dict, loaded: Loaded) -> tuple[Loaded, list[str]]:
    """The weights with first convolutions that fit the model's images, and the names of those that were for RGB and are not now."""
    shapes = {name: target.shape for name, (target, _) in groups.items() if name in loaded.state_dict and target.dim() == 4}
    changed = [
        name
        for name, shape in shapes.items()
        for theirs in [loaded.state_dict[name].shape]
        if len(theirs) == 4 and theirs[1] == 3 != shape[1] and (theirs[0], *theirs[2:]) == (shape[0], *shape[2:])
    ]
    state = loaded.state_dict | {name: share_channels(loaded.state_dict[name], shapes[name][1]) for name in changed}
    return (Loaded(loaded.kind, state, loaded.meta), changed) if changed else (loaded, [])


def _order_anchors(groups: dict, loaded: Loaded) -> tuple[Loaded, list[str]]:
    """The weights with their rows in the model's order of anchors, and the names of those that were in another."""
    ours, theirs = anchor_grid({name: tensor for name, (tensor, _) in groups.items()}), anchor_grid(loaded.state_dict)
    order = theirs.order if theirs else loaded.meta.get("anchor_order")
    if ours is None or not order:
        return loaded, []
    state = in_order(loaded.state_dict, replace(ours, order=order), ours.order)
    changed = [name for name, value in state.items() if value is not loaded.state_dict[name]]
    return Loaded(loaded.kind, state, loaded.meta), changed


def _renamed(loaded: Loaded, place: Callable[[str], str]) -> Loaded:
    meta = {**loaded.meta, "source": {place(name): theirs for name, theirs in loaded.meta.get("source", {}).items()}}
    return Loaded(loaded.kind, {place(name): value for name, value in loaded.state_dict.items()}, meta)


def _plan(groups: dict, loaded: Loaded) -> tuple[Report, list[tuple[Tensor, Tensor]]]:
    """Decide for every tensor of both sides what happens to it; nothing is copied yet."""
    state, meta = loaded.state_dict, loaded.meta
    source = {name: meta.get("source", {}).get(name, name) for name in state}
    wanted = {name: group for name, group in groups.items() if not _is_needless(name, state)}
    report = Report(f"{meta.get('file', 'memory')} ({loaded.kind})", meta.get("expects", ""), len(wanted))
    copies: dict[int, tuple[Tensor, Tensor]] = {}
    for name, (target, aliases) in wanted.items():
        found = next((alias for alias in [name, *aliases] if alias in state), None)
        if found is None:
            report.missing.append(name)
        elif state[found].shape != target.shape:
            report.reinitialised.append((name, tuple(target.shape), tuple(state[found].shape)))
        elif not torch.equal(copies.setdefault(id(target), (target, state[found]))[1], state[found]):
            report.unused.append((source[found], _DIFFERS))
        else:
            report.loaded.append(name)
            report.renamed += [(source[found], name)] if source[found] != name else []
    left = [name for name in state if name not in wanted and not _is_held(name, groups, state)]
    report.unused += [(source[name], _why_unused(name, groups, state)) for name in left]
    report.unused += list(meta.get("unused", {}).items())
    return report, list(copies.values())


def _fill_folded_norms(model: nn.Module, loaded: Loaded) -> None:
    """A folded norm divides by 1, so its variance is what the model's epsilon leaves of 1."""
    for name, module in model.named_modules():
        variance = f"{name}.running_var"
        if loaded.meta.get("source", {}).get(variance, "").endswith(FOLDED) and hasattr(module, "eps"):
            module.running_var.fill_(1 - module.eps)


def _is_needless(name: str, state: dict[str, Tensor]) -> bool:
    """Whether a buffer of the model stays as it is."""
    return matches(_ANCHORS, name) or (name not in state and (matches(_COUNTER, name) or name == _AVERAGE))


def _is_held(name: str, groups: dict, state: dict[str, Tensor]) -> bool:
    """Whether a tensor that is not restored says what the model has anyway."""
    return matches(_ANCHORS, name) and name in groups and torch.equal(groups[name][0].cpu(), state[name].cpu())


def _why_unused(name: str, groups: dict, state: dict[str, Tensor]) -> str:
    """Why a tensor of the checkpoint found no place in the model."""
    twin = name.replace("roi_heads.mask.feature_extractor.head.", _C4_HEAD)
    if twin != name and twin in groups and twin in state and torch.equal(state[name], state[twin]):
        return f"the same as {twin}"
    if matches(_ANCHORS, name):
        return "anchors follow the configuration"
    return "the model's norms count no steps" if matches(_COUNTER, name) else _NO_PLACE


def _require_all(report: Report, loaded: Loaded) -> None:
    """The strict rule; an ImageNet classifier answers for the trunk only."""
    wrong = [f"{name}: model {_by(want)}, file {_by(got)}" for name, want, got in report.reinitialised]
    heads = loaded.meta.get("backbone_only", False)
    wrong += [f"{name}: missing in the file" for name in report.missing if not heads or name.startswith(_TRUNK)]
    wrong += [f"{name}: {why}" for name, why in report.unused if why in SERIOUS]
    if wrong:
        raise ValueError(f"{report.source} does not fit the model in {len(wrong)} tensors (strict):\n  " + "\n  ".join(wrong))


def _require_most(model: nn.Module, copies: list[tuple[Tensor, Tensor]], report: Report, loaded: Loaded) -> None:
    """Weights that hardly touch the model give an AP of 0 after hours; better an error now."""
    backbone_only = loaded.meta.get("backbone_only", False)
    wanted = [p for name, p in model.named_parameters() if not backbone_only or name.startswith(_TRUNK)]
    touched = {id(target) for target, _ in copies}
    total = sum(p.numel() for p in wanted)
    share = sum(p.numel() for p in wanted if id(p) in touched) / max(total, 1)
    least = MIN_BACKBONE if backbone_only else MIN_LOADED
    if share < least:
        part = "the backbone's" if backbone_only else "the model's"
        raise ValueError(
            f"{report.source}: only {share:.0%} of {part} parameters are in it, expected at least {least:.0%}. "
            f"Do the weights belong to another architecture than the configuration?\n{report.summary()}"
        )
