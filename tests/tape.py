"""A recorder for the CPU that behaves as CUDA graphs do: what is replayed are operations on addresses, not Python."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only


class _Tape(TorchDispatchMode):
    """Notes every operation with the tensors that it read, wrote and made, and what it overwrote."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[tuple[Callable, tuple, dict, list[Tensor]]] = []
        self.overwritten: list[tuple[Tensor, Tensor]] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if function in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default):
            raise RuntimeError(f"{function} in a recording: the host would wait for the device")
        written = _written(function, args, kwargs)
        self.overwritten += [(t, t.clone()) for t in written]
        out = function(*args, **kwargs)
        # Wrapped tensors of autograd may change under us; the tape keeps their plain data.
        args, kwargs = (tree_map_only(Tensor, lambda t: t.detach(), x) for x in (args, kwargs))
        mutated_or_view = bool(written) or any(a.alias_info is not None for a in function._schema.arguments)
        made = [] if mutated_or_view else [t.detach() for t in tree_leaves(out) if isinstance(t, Tensor)]
        self.operations.append((function, args, kwargs, made))
        return out

    def undo(self) -> None:
        """Recording launches nothing, so nothing has changed behind it."""
        for tensor, before in reversed(self.overwritten):
            tensor.copy_(before)
        self.overwritten = []

    @torch.inference_mode()  # as a replay, it writes into tensors of any kind
    def replay(self) -> None:
        for function, args, kwargs, made in self.operations:
            out = function(*args, **kwargs)
            for mine, new in zip(made, [t for t in tree_leaves(out) if isinstance(t, Tensor)], strict=bool(made)):
                mine.copy_(new)


def _written(function: Any, args: tuple, kwargs: dict) -> list[Tensor]:
    """The arguments that an operation changes."""
    found = []
    for i, argument in enumerate(function._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            value = args[i] if i < len(args) else kwargs.get(argument.name)
            found += [t for t in tree_leaves(value) if isinstance(t, Tensor)]
    return found


class TapeRecorder:
    """Records on a tape; counts what it did."""

    def __init__(self) -> None:
        self.warmed = 0
        self.recorded = 0

    def warm_up(self, work: Callable[[], Any]) -> Any:
        self.warmed += 1
        return work()

    def record(self, work: Callable[[], Any]) -> Callable[[], Any]:
        self.recorded += 1
        tape = _Tape()
        with tape:
            out = work()
        with torch.no_grad():
            tape.undo()

        @torch.no_grad()
        def replay() -> Any:
            tape.replay()
            return out

        return replay
