"""Recorded steps and recorded inference: the same numbers as without, for every batch of the recorded shapes."""

from __future__ import annotations

import copy
import os
import subprocess
import sys

import pytest
import torch
from models import narrow_config, narrow_model, scene_of
from tape import TapeRecorder
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend

from maskrcnn_bench.data.collate import BatchCollator
from maskrcnn_bench.engine import launch
from maskrcnn_bench.engine.graphs import CudaRecorder, Recordings, ReplayedModel, StaticGradients, signature
from maskrcnn_bench.engine.trainer import AveragedWeights, LossScale, Step
from maskrcnn_bench.modeling.detector import compile_parts
from maskrcnn_bench.solver import LearningRateSchedule
from maskrcnn_bench.structures.bounding_box import BoxList
from maskrcnn_bench.structures.image_list import to_image_list

OTHER = {"sizes": ((64, 128), (64, 96))}


def recordings(limit=8, warm_up=1):
    return Recordings(TapeRecorder(), "cpu", required=True, limit=limit, warm_up=warm_up)


def make_step(model, replays, kind="sgd", device="cpu", **options):
    parameters = [p for p in model.parameters() if p.requires_grad]
    if kind == "adamw":
        optimizer = torch.optim.AdamW([{"params": parameters, "lr_factor": 1.0}], lr=1e-4, fused=True)
    else:
        optimizer = torch.optim.SGD([{"params": parameters, "lr_factor": 1.0}], lr=1e-3, momentum=0.9, weight_decay=1e-4, fused=True)
        for parameter in parameters:
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    for group in optimizer.param_groups:
        group["lr"] = torch.tensor(group["lr"], device=device)  # as on CUDA
    ema = AveragedWeights(model, 0.9)
    return Step(model, optimizer, device, ema=ema, recordings=replays, **options), LearningRateSchedule(optimizer, 1e-3, max_iter=20)


def train(family, replays, batches, **options):
    """Rows of losses, weights, averaged weights after a training whose learning rate changes with every step."""
    model = narrow_model(family, "MODEL.STATIC_SHAPES", True).to(memory_format=torch.channels_last)
    step, schedule = make_step(model, replays, **options)
    rows = []
    for iteration, parts in enumerate(batches, start=1):
        schedule.step(iteration - 1)
        rows.append(step(parts, iteration).row)
    return rows, [*model.state_dict().values()], [*step.ema.state_dict().values()]


def assert_equal(first, second):
    for mine, other in zip(first, second, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(mine, other, strict=True))


def batches_of(family, count, **options):
    return [[scene_of(family, seed=seed, **options)] for seed in range(count)]


@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("mask_fpn", {}),
        ("mask_fpn", {"clip_norm": 1.0, "dtype": torch.bfloat16}),
        ("keypoint_fpn", {"kind": "adamw"}),
        ("retinanet", {"scaled": True}),
    ],
)
def test_replays_equal_a_training_without_to_the_bit(family, options):
    options = dict(options)
    scaled = options.pop("scaled", False)
    batches = batches_of(family, 5)
    assert len({signature(targets) for ((_, targets),) in batches}) == 1
    outcomes = []
    for replays in (None, recordings()):
        scaler = LossScale("cpu", start=1e30, growth_interval=2) if scaled else None  # overflows, so that it moves
        outcomes.append(train(family, replays, batches, scaler=scaler, **options))
    assert_equal(*outcomes)
    assert len(replays) == 2 and replays.replayed == 8  # backward pass and update, in all steps but the first
    losses = [row[0].item() for row in outcomes[0][0]]
    assert len(set(losses)) == 5


def test_accumulated_batches_and_a_shorter_last_step():
    one, two = batches_of("mask_fpn", 2)
    batches = [[*one, *two], [*two, *one], [*one, *one], [*two]]
    replays = recordings()
    assert_equal(train("mask_fpn", None, batches, accumulate=2), train("mask_fpn", replays, batches, accumulate=2))
    assert len(replays) == 2  # the last step, of one batch, is another piece of work


def test_other_shapes_run_as_they_come_and_recordings_are_few():
    known, other = batches_of("mask_fpn", 3), batches_of("mask_fpn", 3, **OTHER)
    batches = [known[0], known[1], other[0], other[1], known[2], other[2]]
    replays = recordings(limit=2)
    assert_equal(train("mask_fpn", None, batches), train("mask_fpn", replays, batches))
    assert len(replays) == 2 and replays.recorder.recorded == 2
    assert replays.replayed == 2 + 5  # the known shape twice, the update five times


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_a_resumed_optimizer_is_recordable(kind):
    """Its saved state has a learning rate that is a number, which a recording would keep for ever."""
    model = narrow_model("retinanet", "MODEL.STATIC_SHAPES", True)
    step, schedule = make_step(model, recordings(warm_up=0), kind)
    saved = step.optimizer.state_dict()
    saved["param_groups"][0] |= {"lr": 7.0, "capturable": False}
    step.optimizer.load_state_dict(saved)
    step(batches_of("retinanet", 1)[0], 1)
    before = [p.detach().clone() for p in model.parameters()]
    for group in step.optimizer.param_groups:
        group["lr"].fill_(0.0)  # as the schedule does
        group["weight_decay"] = 0.0
    step(batches_of("retinanet", 1)[0], 2)
    assert step.recordings.replayed == 4
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))


def test_what_is_no_batch_of_fixed_shapes_is_not_recorded():
    images, targets = scene_of("mask_fpn")
    model = narrow_model("mask_fpn", "MODEL.STATIC_SHAPES", True)
    replays = recordings(warm_up=0)
    step, _ = make_step(model, replays)
    images.keys = None
    step([(images, targets)], 1)
    step([(scene_of("mask_fpn")[0], list(targets))], 2)
    assert len(replays) == 1  # the update


class Waiting(nn.Module):
    """A user's part that reads a number."""

    def forward(self, x):
        return x * float(x.sum())


def test_work_that_waits_is_told(caplog):
    model = Waiting()
    replays = recordings(warm_up=0)
    with pytest.raises(RuntimeError, match=r"the detections of \(3,\) can't be recorded: .*CUDA_GRAPH False"):
        replays("the detections", model, torch.ones(3))
    replays = Recordings(TapeRecorder(), "cpu", warm_up=0)
    for _ in range(2):
        assert replays("the detections", model, torch.ones(3)).tolist() == [3, 3, 3]
    assert len(replays) == 0 and caplog.text.count("can't be recorded, so everything further") == 1


def test_gradients_stay_where_they_are():
    model = nn.Sequential(nn.Conv2d(3, 5, 3), nn.Conv2d(5, 7, 1)).to(memory_format=torch.channels_last)
    reference = copy.deepcopy(model)
    gradients = StaticGradients(model)
    places = [p.grad.data_ptr() for p in model.parameters()]
    x = torch.randn(2, 3, 6, 6)
    for _ in range(2):
        gradients.clear()
        model(x).square().sum().backward()
    reference(x).square().sum().backward()
    for p, q, place in zip(model.parameters(), reference.parameters(), places, strict=True):
        assert p.grad.data_ptr() == place and place % 16 == 0 and p.grad.stride() == p.stride()
        assert torch.equal(p.grad, q.grad)


@pytest.mark.parametrize("family", ["mask_fpn", "retinanet", "keypoint_fpn", "d2_fast_fpn"])
def test_detections_are_replayed(family):
    model = narrow_model(family, "MODEL.STATIC_SHAPES", True).for_inference()
    replays = recordings(limit=1)
    replayed = ReplayedModel(model, replays).eval()
    held = []
    with torch.no_grad():
        for seed in range(4):
            held.append((model(scene_of(family, seed=seed)[0]), replayed(scene_of(family, seed=seed)[0])))
        other = scene_of(family, seed=9, **OTHER)[0]
        held.append((model(other), replayed(other)))
    assert len(replays) == 1 and replays.replayed == 3
    for expected, found in held:  # an answer is not overwritten by the next
        assert_same_detections(expected, found)


def test_recordings_of_inference_mode_serve_outside_of_it():
    replays = Recordings(TapeRecorder(), "cpu", required=True, warm_up=0)
    with torch.inference_mode():
        replays("square", torch.square, torch.tensor([2.0]))
    with torch.no_grad():
        assert replays("square", torch.square, torch.tensor([3.0])).tolist() == [9]
    assert replays.replayed == 2 and len(replays) == 1


def assert_same_detections(expected, found):
    assert torch.equal(expected.boxes, found.boxes) and torch.equal(expected.valid, found.valid)
    assert torch.equal(expected.truncated, found.truncated)
    assert expected.at_handover == found.at_handover or [f.func for f in expected.at_handover] == [f.func for f in found.at_handover]
    for name, value in expected.fields.items():
        assert torch.equal(value, found.fields[name]), name


# several processes


PROCESS = """
import os, sys, torch, torch.distributed as dist
sys.path.insert(0, "tests")
from torch.nn.parallel import DistributedDataParallel
from maskrcnn_bench.engine.graphs import Recordings
from maskrcnn_bench.engine.trainer import Step
from maskrcnn_bench.utils.comm import stop
from tape import TapeRecorder
rank = int(os.environ["RANK"])
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method="file://" + sys.argv[1], rank=rank, world_size=2)

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 4, 3)
        self.norm = torch.nn.BatchNorm2d(4)
        self.last = torch.nn.Conv2d(4, 1, 1)

    def forward(self, images, targets):
        return {"loss_a": (self.last(self.norm(self.conv(images))) - targets).square().mean()}

def outcome(recorded):
    torch.manual_seed(rank if recorded else 0)  # the first process decides
    net = Net()
    optimizer = torch.optim.SGD(net.parameters(), lr=torch.tensor(.1), momentum=.9, fused=True)
    for p in net.parameters():
        optimizer.state[p]["momentum_buffer"] = torch.zeros_like(p)
    recordings = Recordings(TapeRecorder(), "cpu", True, warm_up=1) if recorded else None
    step = Step(net if recorded else DistributedDataParallel(net), optimizer, "cpu", recordings=recordings)
    generator = torch.Generator().manual_seed(7 + rank)
    for iteration in range(6):
        side = 6 + (iteration * (1 + rank)) % 3  # the processes meet their shapes at different times
        step([(torch.randn(2, 3, side, side, generator=generator), torch.ones(()))], iteration + 1)
    return [*net.parameters()], recordings

(mine, recordings), (reference, _) = outcome(True), outcome(False)
for a, b in zip(mine, reference):
    torch.testing.assert_close(a, b)
print(len(recordings), recordings.replayed)
stop()
threads = [open(f"/proc/self/task/{thread}/comm").read() for thread in os.listdir("/proc/self/task")]
assert not [name for name in threads if "gloo" in name], "a thread of the group would abort the program when it ends"
"""


def test_several_processes_average_as_ddp_does(tmp_path, repository):
    environments = [{**os.environ, "RANK": str(rank), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(repository)} for rank in (0, 1)]
    command = [sys.executable, "-c", PROCESS, str(tmp_path / "meet")]
    running = [subprocess.Popen(command, env=env, cwd=repository, stdout=subprocess.PIPE, stderr=subprocess.PIPE) for env in environments]
    spoken = [process.communicate(timeout=120) for process in running]
    assert [process.returncode for process in running] == [0, 0], spoken
    assert all(int(out.split()[1]) >= 8 for out, _ in spoken)


# few shapes


def test_batches_are_padded_to_the_smallest_shape_that_holds_them():
    images = [torch.ones(3, 50, 80, dtype=torch.uint8), torch.ones(3, 40, 90, dtype=torch.uint8)]
    shapes = [(96, 64), (64, 96), (96, 96)]
    padded = to_image_list(images, 32, shapes)
    assert padded.tensors.shape == (2, 3, 64, 96) and padded.image_sizes == [(50, 80), (40, 90)]
    assert padded.tensors.sum() == 3 * (50 * 80 + 40 * 90)
    assert to_image_list([torch.ones(3, 100, 20)], 32, shapes).tensors.shape == (1, 3, 128, 32)  # larger than all
    target = BoxList(torch.tensor([[1.0, 1, 5, 5]] * 3), (80, 50))
    batch = [(images[0], target, 0, 1), (images[1], target, 1, 2)]
    collated, targets, _ = BatchCollator(32, shapes, target_slots=10)(batch)
    assert collated.tensors.shape == (2, 3, 64, 96) and targets.valid.shape == (2, 10) and int(targets.valid.sum()) == 6
    assert BatchCollator(32, shapes, target_slots=2)(batch)[1].valid.shape == (2, 4)


@pytest.mark.parametrize(
    ("key", "overrides", "message"),
    [
        ("SOLVER.CUDA_GRAPH", (), "SOLVER.CUDA_GRAPH True, but the device is cpu"),
        ("TEST.CUDA_GRAPH", ("MODEL.STATIC_SHAPES", False), "TEST.CUDA_GRAPH True, but with MODEL.STATIC_SHAPES False"),
    ],
)
def test_recording_where_it_cannot_be(key, overrides, message):
    cfg = narrow_config("mask_fpn", *overrides)
    for wanted in (False, "auto"):
        assert launch._recordings(cfg, key, wanted, torch.device("cpu")) is None
    with pytest.raises(ValueError, match=message):
        launch._recordings(cfg, key, True, torch.device("cpu"))


# other ways to be fast


SIZES = (((96, 128), (112, 96)), ((64, 96), (64, 64)), ((96, 64), (90, 60)))


@pytest.mark.parametrize(("part", "backend", "shapes"), [("backbone", "aot_eager", 3), ("model", "eager", 2)])
def test_compiled_models_find_the_same_with_one_graph_a_shape(part, backend, shapes):
    """Mixed sizes inside a batch, and other batches of the same padded shape, compile nothing anew."""
    model = narrow_model("mask_fpn", "MODEL.STATIC_SHAPES", True).for_inference()
    compiled = copy.deepcopy(model)
    torch._dynamo.reset()
    counter = CompileCounterWithBackend(backend)
    compile_parts(compiled, part, counter)
    assert compiled.state_dict().keys() == model.state_dict().keys()
    with torch.no_grad():
        for sizes in (*SIZES[:shapes], SIZES[0][::-1], *SIZES[:shapes]):
            images = scene_of("mask_fpn", sizes=sizes, seed=len(sizes[0]))[0]
            expected, found = model(images), compiled(images)
            torch.testing.assert_close(found.boxes, expected.boxes, rtol=1e-5, atol=1e-3)
            torch.testing.assert_close(found.fields, expected.fields, rtol=1e-4, atol=1e-5)
    assert counter.frame_count == shapes
    plain = compiled.for_inference()
    assert all(m._compiled_call_impl is None for m in plain.modules())


def test_bfloat16_weights_answer_as_autocast_does():
    model = narrow_model("mask_fpn", "MODEL.STATIC_SHAPES", True)
    exact, rounded = model.for_inference(), model.for_inference(torch.bfloat16)
    assert rounded.backbone.body.layer1[0].conv1.weight.dtype == torch.bfloat16
    assert rounded.backbone.body.layer1[0].conv1.bias.dtype == torch.bfloat16
    images = scene_of("mask_fpn")[0]
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        expected, found = exact(images), rounded(images)
    assert_same_detections(expected, found)
    assert found.boxes.dtype == found.fields["scores"].dtype == torch.float32
    with torch.no_grad():
        full = exact(images)
    assert not torch.equal(full.fields["scores"], found.fields["scores"])
    torch.testing.assert_close(full.fields["scores"][:, :3], found.fields["scores"][:, :3], rtol=0.05, atol=0.01)


@pytest.mark.parametrize("family", ["mask_fpn", "retinanet"])
def test_checkpointed_activations_give_the_same_gradients(family):
    outcomes, kept = [], []
    for on in (False, True):
        model = narrow_model(family, "MODEL.STATIC_SHAPES", True, "MODEL.CHECKPOINT_ACTIVATIONS", on)
        images, targets = scene_of(family)
        saved = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, s=saved: s.append(t.numel()) or t, lambda t: t):
            losses = model(images, targets)
        sum(losses.values()).backward()
        outcomes.append([*losses.values(), *(p.grad for p in model.parameters())])
        kept.append(sum(saved))
    assert_equal(*[[outcome] for outcome in outcomes])
    assert kept[1] < 0.8 * kept[0]


def test_checkpointed_activations_and_moving_statistics_do_not_fit():
    with pytest.raises(ValueError, match="CHECKPOINT_ACTIVATIONS.*NORM BN twice"):
        narrow_model("mask_fpn", "MODEL.CHECKPOINT_ACTIVATIONS", True, "MODEL.RESNETS.NORM", "BN")


# on a GPU


def on_cuda(family, replays, batches, **options):
    """A training on the GPU with its shape-independent parts as `train` has them."""
    model = narrow_model(family, "MODEL.STATIC_SHAPES", True).to("cuda", memory_format=torch.channels_last)
    step, schedule = make_step(model, replays, device="cuda", **options)
    rows = []
    for iteration, parts in enumerate(batches, start=1):
        schedule.step(iteration - 1)
        rows.append(step(parts, iteration).row)
    return rows


@pytest.mark.gpu
@pytest.mark.parametrize("family", ["mask_fpn", "faster_c4", "keypoint_fpn", "retinanet"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_cuda_replays_equal_a_training_without(family, dtype):
    """As close as two trainings without recordings are: additions of gradients come in any order."""
    known, other = batches_of(family, 8), batches_of(family, 4, **OTHER)
    batches = [part for pair in zip(known, [*other, *other]) for part in pair]
    replays = Recordings(CudaRecorder(), "cuda", required=True)
    loose = {torch.float32: 1e-3, torch.bfloat16: 5e-2}[dtype]
    for mine, theirs in zip(on_cuda(family, replays, batches, dtype=dtype), on_cuda(family, None, batches, dtype=dtype), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=loose, atol=loose)
    assert len(replays) == 3 and replays.replayed >= 20


@pytest.mark.gpu
def test_cuda_recordings_that_fail_leave_nothing_behind():
    """Work that waits for the device runs unrecorded, and other work can be recorded afterwards."""
    failing = Recordings(CudaRecorder(), "cuda", warm_up=0)
    values = torch.arange(4.0)
    assert failing("waits", lambda x: x * x.sum().item(), values).tolist() == [0, 6, 12, 18]
    assert len(failing) == 0 and torch.cuda.current_stream() == torch.cuda.default_stream()
    torch.cuda.empty_cache()
    sound = Recordings(CudaRecorder(), "cuda", required=True, warm_up=0)
    assert [sound("works", torch.square, values + k).sum().item() for k in (0, 1)] == [14, 30] and sound.replayed == 2


@pytest.mark.gpu
def test_cuda_replays_do_not_wait():
    pinned = [[(images.pin_memory(), targets.pin_memory())] for ((images, targets),) in batches_of("mask_fpn", 8)]
    model = narrow_model("mask_fpn", "MODEL.STATIC_SHAPES", True).to("cuda", memory_format=torch.channels_last)
    step, schedule = make_step(model, Recordings(CudaRecorder(), "cuda", required=True), device="cuda", dtype=torch.bfloat16)
    for iteration, parts in enumerate(pinned[:5], start=1):
        step(parts, iteration)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for iteration, parts in enumerate(pinned[5:], start=6):
            schedule.step(iteration)
            row = step(parts, iteration).row
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.isfinite(row).all() and step.recordings.replayed >= 6


@pytest.mark.gpu
@pytest.mark.parametrize("family", ["mask_fpn", "faster_c4", "keypoint_fpn", "retinanet"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_cuda_detections_are_replayed(family, dtype):
    model = narrow_model(family, "MODEL.STATIC_SHAPES", True).to("cuda").for_inference(dtype)
    replays = Recordings(CudaRecorder(), "cuda", required=True, limit=2)
    replayed = ReplayedModel(model, replays).eval()
    held = []
    with torch.no_grad(), torch.autocast("cuda", dtype, enabled=dtype != torch.float32):
        for seed in range(8):
            images = scene_of(family, seed=seed, **(OTHER if seed % 2 else {}))[0]
            held.append((model(images.to("cuda")), replayed(images)))
    assert len(replays) == 2 and replays.replayed == 2
    for expected, found in held:
        torch.testing.assert_close(expected.fields["scores"], found.fields["scores"], rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(expected.boxes, found.boxes, rtol=1e-2, atol=0.5)
