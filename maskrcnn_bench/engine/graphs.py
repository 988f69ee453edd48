"""Replaying work that was recorded once, so that a step costs the host one call instead of thousands (CUDA graphs).

A recording holds addresses, not names. So everything it reads or writes stays where it is: batches are copied into buffers of
the recording, gradients live in one tensor (`StaticGradients`), the learning rate and the loss scale are tensors, and random
keys are inputs like the images. A number of Python would be the same in every replay.

What records is exchangeable (`Recorder`): the tests drive the same classes on the CPU.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn

from maskrcnn_bench.structures.bounding_box import BoxListBatch
from maskrcnn_bench.structures.image_list import ImageList
from maskrcnn_bench.utils.comm import get_world_size

logger = logging.getLogger("maskrcnn_bench.graphs")
MOST_RECORDINGS = 8
"""A recording keeps its inputs and outputs; what it needs in between is shared by all."""
WARM_UP = 3
"""Libraries choose their kernels, and allocate, in the first calls of a shape."""


class Recorder(Protocol):
    """What runs and records work on a device."""

    def warm_up(self, work: Callable[[], Any]) -> Any:
        """Does the work as the recording will, and answers what it answers."""

    def record(self, work: Callable[[], Any]) -> Callable[[], Any]:
        """Notes what the work launches, without doing it; each call of the answer does it, and returns the same tensors."""


class CudaRecorder:
    """CUDA graphs that share one pool of memory.

    Recordings may be replayed in any order, since they never run at the same time and none reads what another one left: all
    that lasts (inputs, outputs, weights, gradients) has memory of its own.
    """

    def __init__(self) -> None:
        self.stream = torch.cuda.Stream()
        self.pool = torch.cuda.graph_pool_handle()

    def warm_up(self, work: Callable[[], Any]) -> Any:
        current = torch.cuda.current_stream()
        self.stream.wait_stream(current)
        with torch.cuda.stream(self.stream):
            out = work()
        current.wait_stream(self.stream)
        return out

    def record(self, work: Callable[[], Any]) -> Callable[[], Any]:
        graph = torch.cuda.CUDAGraph()
        # "thread_local": the loader's thread pins memory meanwhile, which the default would take for part of the recording.
        capture = torch.cuda.graph(graph, pool=self.pool, stream=self.stream, capture_error_mode="thread_local")
        # One that fails would leave its stream the current one.
        with torch.cuda.stream(torch.cuda.current_stream()), capture:
            out = work()

        def replay() -> Any:
            graph.replay()
            return out

        return replay


class _Recording:
    """One recording and the buffers that it reads."""

    def __init__(self, recorder: Recorder, work: Callable, inputs: Sequence[Any], device: torch.device):
        with torch.inference_mode(False):  # which would let no later batch be copied into them outside of it
            self.inputs = [_buffers_for(value, device) for value in inputs]
        self.load(inputs)
        self.replay = recorder.record(lambda: work(*self.inputs))

    def load(self, inputs: Sequence[Any]) -> None:
        """Copies a batch into the buffers; from pinned memory without waiting."""
        for mine, theirs in zip(tensors_of(*self.inputs), tensors_of(*inputs), strict=True):
            mine.copy_(theirs, non_blocking=True)


class Recordings:
    """Does work by replaying what was recorded for inputs of the same shapes.

    The first batches of a shape are worked on as they come, and that is the warm-up: no step is done for its sake. So is
    every batch of a shape that came when there were enough recordings, and everything that is no batch of fixed shapes.

    Args:
        recorder: runs and records.
        device: where inputs go.
        required: whether work that can't be recorded is an error; otherwise it is said and done unrecorded.
        limit: most recordings.
        warm_up: how often work is done for a shape before it is recorded.
    """

    def __init__(
        self,
        recorder: Recorder,
        device: torch.device | str,
        required: bool = False,
        limit: int = MOST_RECORDINGS,
        warm_up: int = WARM_UP,
    ):
        self.recorder = recorder
        self.device = torch.device(device)
        self.required = required
        self.limit = limit
        self.warm_up = warm_up
        self.replayed = 0
        """How often work was replayed."""
        self._recordings: dict[Hashable, _Recording] = {}
        self._seen: Counter[Hashable] = Counter()

    def __len__(self) -> int:
        return len(self._recordings)

    def __call__(self, name: Hashable, work: Callable, *inputs: Any) -> Any:
        """`work(*inputs)`, with inputs on the device; tensors of the answer are the caller's own.

        Args:
            name: of the work, or a tuple that begins with it. The same name and shapes must mean the same work.
            work: takes and answers tensors, ImageLists, BoxListBatches; strings, tuples and dicts of those as well. What else it
                reads or writes must stay where it is.
        """
        signatures = [signature(value) for value in inputs]
        key = (name, *signatures)
        recording = None if None in signatures else self._find(key, work, inputs)
        if recording is None:
            moved = [_moved(value, self.device) for value in inputs]
            return self.recorder.warm_up(lambda: work(*moved))
        self.replayed += 1
        return _map(torch.clone, recording.replay())

    def _find(self, key: Hashable, work: Callable, inputs: Sequence[Any]) -> _Recording | None:
        """The recording of these shapes, loaded with the inputs; made now if it is time."""
        recording = self._recordings.get(key)
        if recording is not None:
            recording.load(inputs)
            return recording
        self._seen[key] += 1
        if self._seen[key] <= self.warm_up or len(self) >= self.limit:
            return None
        what = f"{key[0] if isinstance(key[0], str) else key[0][0]}{_shapes(inputs)}"
        try:
            recording = _Recording(self.recorder, work, inputs, self.device)
        except RuntimeError as error:
            self._give_up(what, error)
            return None
        self._recordings[key] = recording
        logger.info("recorded %s (%d of at most %d recordings)", what, len(self), self.limit)
        if len(self) == self.limit:
            logger.info("further shapes run without recordings; DATALOADER.SHAPE_BUCKETS and TARGET_SLOTS make fewer shapes")
        return recording

    def _give_up(self, what: str, error: RuntimeError) -> None:
        """A part of the model, one of the user's maybe, waits for the device or copies to the host."""
        # Weights that autocast converted while recording were never computed.
        torch.clear_autocast_cache()
        if self.required:
            raise RuntimeError(f"{what} can't be recorded: {error}. CUDA_GRAPH False runs it unrecorded") from error
        logger.warning("%s can't be recorded, so everything further runs unrecorded: %s", what, error)
        self.limit = len(self)


def signature(value: Any) -> Hashable | None:
    """What two inputs must have in common to use one recording; None for what can't be recorded."""
    if isinstance(value, Tensor):
        return tuple(value.shape), value.dtype
    if isinstance(value, ImageList):
        # Without keys they would be drawn anew, and the recording would repeat those of the first batch.
        kind = ("images", value.scales is None, signature(value.proposals))
        return None if value.keys is None else (*kind, *map(signature, tensors_of(value)))
    if isinstance(value, BoxListBatch):
        return (*value.fields, value.pixel, *map(signature, tensors_of(value)))
    return None


def tensors_of(*values: Any) -> list[Tensor]:
    """All tensors of inputs, in an order that depends on their kind alone."""
    found: list[Tensor] = []

    def note(tensor: Tensor) -> Tensor:
        found.append(tensor)
        return tensor

    for value in values:
        _map(note, value)
    return found


def _map(function: Callable[[Tensor], Tensor], value: Any) -> Any:
    """The same thing with every tensor replaced."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, dict):
        return {name: _map(function, item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)([_map(function, item) for item in value])
    return value._map(function) if hasattr(value, "_map") else value


def _buffers_for(value: Any, device: torch.device) -> Any:
    """Room for inputs like these, without what a replay can't see: lists, and sizes that are numbers of Python."""
    out = _map(lambda t: torch.empty_like(t, device=device), value)
    if isinstance(out, BoxListBatch):
        out.lists = {}
    if isinstance(out, ImageList):
        out.image_sizes = []
    return out


def _moved(value: Any, device: torch.device) -> Any:
    if isinstance(value, (list, tuple)):
        return [item.to(device) for item in value]
    return value.to(device, non_blocking=True)


def _shapes(inputs: Sequence[Any]) -> str:
    """The shape of each input's first tensor: images, boxes."""
    shown = [str(tuple(t.shape)) for value in inputs for t in tensors_of(value)[:1]]
    return f" of {', '.join(shown)}" if shown else ""


class StaticGradients:
    """The gradients of all parameters as parts of one tensor, which recordings add to and which is cleared in one go.

    With several processes it is averaged over them in one go as well, between the recorded backward pass and the recorded
    update. The collective itself is not recorded, and the model is not wrapped in DistributedDataParallel: a recorded collective
    must be recorded in all processes at once, but processes meet their shapes at different times. What is lost is that DDP
    sends the first gradients while it computes the last ones; what a model of 44 million parameters sends takes about a
    hundredth of its step. Nor are there the eleven steps that DDP has to be warmed up with.

    Args:
        model: its parameters and buffers become those of the first process.
    """

    _ALIGNMENT = 64  # numbers; kernels over many tensors read 16 bytes at a time where they can

    def __init__(self, model: nn.Module):
        self.model = model
        parameters = [p for p in model.parameters() if p.requires_grad]
        starts, total = [], 0
        for parameter in parameters:
            starts.append(total)
            total += -(-parameter.numel() // self._ALIGNMENT) * self._ALIGNMENT
        self.flat = torch.zeros(total, dtype=parameters[0].dtype, device=parameters[0].device)
        for parameter, start in zip(parameters, starts, strict=True):
            parameter.grad = self.flat.as_strided(parameter.shape, parameter.stride(), start)
        self._moving = [b for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) for b in m.buffers(recurse=False)]
        if get_world_size() > 1:
            _broadcast([*model.parameters(), *model.buffers()])

    def clear(self) -> None:
        """Before the first backward pass of a step; batch norms of all processes start it with the same statistics, as in DDP."""
        self.flat.zero_()
        if get_world_size() > 1 and self._moving:
            _broadcast(self._moving)

    def average(self) -> None:
        """After the last backward pass of a step."""
        if get_world_size() > 1:
            dist.all_reduce(self.flat.div_(get_world_size()))


@torch.no_grad()
def _broadcast(tensors: Sequence[Tensor]) -> None:
    for tensor in tensors:
        dist.broadcast(tensor.detach(), 0)


def make_recordable(optimizer: torch.optim.Optimizer, device: torch.device) -> None:
    """Has an optimizer read its learning rates on the device, also after the state of an earlier run was loaded into it."""
    for group in optimizer.param_groups:
        if "capturable" in group:
            group["capturable"] = True
        if not isinstance(group["lr"], Tensor) or group["lr"].device.type != device.type:
            group["lr"] = torch.full((), float(group["lr"]), device=device)


class ReplayedModel(nn.Module):
    """A model in evaluation mode that answers images of known shapes by replaying.

    Args:
        model: answers Detections for images; its weights stay where they are, and may change there.
        recordings: the replaying.
    """

    def __init__(self, model: nn.Module, recordings: Recordings):
        super().__init__()
        self.model = model
        self.recordings = recordings

    def forward(self, images: Any) -> Any:
        if self.training or torch.is_grad_enabled() or not isinstance(images, ImageList):
            return self.model(images)
        # Nothing is drawn in evaluation: any keys will do.
        keys = torch.zeros(len(images), dtype=torch.int64)
        images = ImageList(images.tensors, images.image_sizes, keys, images.sizes, images.scales, images.proposals)
        kind = torch.get_autocast_dtype(self.recordings.device.type) if torch.is_autocast_enabled(self.recordings.device.type) else None
        return self.recordings(("detections", kind), self.model, images)
