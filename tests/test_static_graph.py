"""The proofs that the hot path is one static graph: fixed shapes, no wait for the host, nothing learnt from padding."""

from __future__ import annotations

import gc
import re
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from models import FAMILIES, narrow_model, scene, scene_of
from torch._subclasses.fake_tensor import FakeTensorMode

from maskrcnn_bench.modeling import matcher
from maskrcnn_bench.structures.bounding_box import BoxListBatch
from maskrcnn_bench.structures.image_list import ImageList
from maskrcnn_bench.utils.data_dependent import StaticGraphRecorder

OWN_OPS = {"nms", "roi_align", "roi_align_backward", "polygon_targets", "bitmap_targets", "match", "decode_boxes"}
OWN_OPS |= {"sigmoid_focal_loss", "sigmoid_focal_loss_backward", "roi_pool", "roi_pool_backward"}
OWN_OPS |= {"deform_psroi_pool", "deform_psroi_pool_backward"}


def train_step(model, optimizer, images, targets):
    losses = model(images, targets)
    sum(losses.values()).backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=False)
    return losses


def ready(family, *overrides, seed=0):
    model = narrow_model(family, "MODEL.STATIC_SHAPES", True, *overrides, seed=seed)
    return model, torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9)


@pytest.mark.parametrize("family", FAMILIES)
def test_no_operation_depends_on_data(family):
    model, optimizer = ready(family)
    images, targets = scene_of(family)
    with StaticGraphRecorder() as training:
        train_step(model, optimizer, images, targets)
    model.eval()
    with StaticGraphRecorder() as inference, torch.no_grad():
        model(images)
    assert not training.data_dependent and not inference.data_dependent
    assert set(training.own) | set(inference.own) <= OWN_OPS and "nms" in inference.own


@pytest.mark.parametrize("family", FAMILIES)
def test_no_gradient_asks_for_a_value(family):
    """Some gradients of torch look at the data, and take another way where a dispatch mode watches."""
    model, optimizer = ready(family)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        train_step(model, optimizer, *scene_of(family))
    ran = {event.name for event in profiler.events()}
    assert "aten::convolution_backward" in ran and not ran & {"aten::item", "aten::_local_scalar_dense", "aten::nonzero"}


def test_the_count_sees_what_it_should():
    """The same count, on the same model with padding dropped, is not zero; nor is it for torchvision's model."""
    from torchvision.models.detection import maskrcnn_resnet50_fpn

    images, targets = scene(((160, 160), (160, 160)))
    model = narrow_model("mask_fpn", "MODEL.STATIC_SHAPES", False)
    with StaticGraphRecorder() as dropped:
        model(images, targets)
    assert dropped.data_dependent["aten.nonzero.default"] >= 2
    peer = maskrcnn_resnet50_fpn(weights=None, weights_backbone=None, num_classes=5, box_detections_per_img=10).eval()
    with StaticGraphRecorder() as theirs, torch.no_grad():
        peer([images.tensors[0] / 255.0])
    assert sum(theirs.data_dependent.values()) > 10


@pytest.mark.parametrize("family", ["mask_fpn", "mask_c4", "retinanet", "d2_retinanet", "keypoint_fpn"])
def test_a_whole_step_runs_on_tensors_without_data(family):
    """FakeTensorMode raises on anything whose shape or host value depends on data."""
    images, targets = scene()
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        model, optimizer = ready(family)
        images, targets = images._map(mode.from_tensor), targets._map(mode.from_tensor)
        losses = train_step(model, optimizer, images, targets)
        assert all(loss.shape == () for loss in losses.values())
        model.eval()
        with torch.no_grad():
            detections = model(images)
    wanted = {"mask": "mask", "keypoint": "heat_maps"}.get(family.split("_")[0], "scores")
    assert detections.boxes.shape[0] == 2 and wanted in detections.fields


@pytest.mark.parametrize("family", ["mask_fpn", "mask_c4", "retinanet", "d2_retinanet", "keypoint_fpn"])
def test_nothing_crosses_between_host_and_cuda_device(family):
    """The same on tensors that pretend to be on a GPU: nothing comes back to the CPU,
    and no constant is carried there."""
    images, targets = scene()
    with FakeTensorMode(allow_non_fake_inputs=True):
        with torch.device("cuda"):
            model, _ = ready(family)
        images, targets = (x._map(lambda t: torch.empty(t.shape, dtype=t.dtype, device="cuda")) for x in (images, targets))
        with StaticGraphRecorder() as recorder:
            losses = model(images, targets)
            model.eval()
            with torch.no_grad():
                detections = model(images)
    assert not recorder.copies and not recorder.data_dependent
    assert {loss.device.type for loss in losses.values()} == {"cuda"} and detections.boxes.device.type == "cuda"


@pytest.mark.parametrize("family", ["mask_fpn", "faster_c4", "keypoint_fpn", "retinanet"])
def test_dynamo_sees_one_graph(family):
    model, _ = ready(family)
    images, targets = scene()

    def losses(tensors, sizes, keys, boxes, valid, labels):
        fields = {"labels": labels, "keypoints": targets.fields["keypoints"]}
        batch = BoxListBatch(boxes, valid, targets.sizes, fields, packed_masks=targets.packed_masks)
        return model(ImageList(tensors, images.image_sizes, keys, sizes), batch)

    arguments = (images.tensors, images.sizes, images.keys, targets.boxes, targets.valid, targets.fields["labels"])
    eager = losses(*arguments)
    compiled = torch.compile(losses, fullgraph=True, backend="eager")(*arguments)
    for name, value in eager.items():
        torch.testing.assert_close(compiled[name], value)


def test_a_captured_graph_replays_on_other_batches():
    """Traced once, the graph gives the eager losses on three other batches of the same shapes."""
    from torch.fx.experimental.proxy_tensor import make_fx

    model, _ = ready("mask_fpn")
    batches = [scene(seed=seed) for seed in range(4)]
    slots = [max(getattr(t.packed_masks, name).shape[0] for _, t in batches) for name in ("vertices", "ring_offsets", "object_offsets")]
    assert [len(getattr(batches[0][1].packed_masks, n)) for n in ("vertices", "ring_offsets", "object_offsets")] == slots

    def flat(images, targets):
        masks = targets.packed_masks
        return [
            images.tensors,
            images.sizes,
            images.keys,
            targets.boxes,
            targets.valid,
            targets.fields["labels"],
            masks.vertices,
            masks.ring_offsets,
            masks.object_offsets,
        ]

    def losses(tensors, sizes, keys, boxes, valid, labels, vertices, ring_offsets, object_offsets):
        masks = type(batches[0][1].packed_masks)(vertices, ring_offsets, object_offsets, None, None)
        targets = BoxListBatch(boxes, valid, sizes, {"labels": labels}, packed_masks=masks)
        return model(ImageList(tensors, batches[0][0].image_sizes, keys, sizes), targets)

    graph = make_fx(losses, tracing_mode="real")(*flat(*batches[0]))
    for batch in batches[1:]:
        replayed = graph(*flat(*batch))
        for name, value in losses(*flat(*batch)).items():
            torch.testing.assert_close(replayed[name], value)


@pytest.mark.parametrize("family", ["mask_fpn", "mask_c4", "d2_mask_fpn", "mm_mask_fpn", "mm_faster_giou", "keypoint_fpn", "retinanet"])
def test_padding_is_never_looked_at(family):
    """Random garbage in unused slots moves no loss, no gradient and no detection."""
    results = []
    for garbage in (None, 1, 2):
        model, _ = ready(family)
        images, targets = scene_of(family, counts=(3, 0))
        if garbage is not None:
            generator = torch.Generator().manual_seed(garbage)
            targets.boxes[~targets.valid] = torch.rand(int((~targets.valid).sum()), 4, generator=generator) * 1000 - 500
            targets.fields["labels"][~targets.valid] = 4
            targets.fields["keypoints"][~targets.valid] = torch.rand(int((~targets.valid).sum()), 3, 3, generator=generator) * 99
        losses = model(images, targets)
        sum(losses.values()).backward()
        results.append((losses, {name: p.grad for name, p in model.named_parameters()}))
    for losses, gradients in results[1:]:
        for name, value in results[0][0].items():
            assert torch.equal(losses[name], value), name
        for name, value in results[0][1].items():
            assert torch.equal(gradients[name], value), name


@pytest.mark.parametrize("family", FAMILIES)
def test_static_and_exact_shapes_agree(family):
    images, targets = scene_of(family)
    outcomes = []
    for static in (True, False):
        model = narrow_model(family, "MODEL.STATIC_SHAPES", static)
        losses = model(images, targets)
        model.eval()
        with torch.no_grad():
            outcomes.append((losses, model(images)))
    (losses1, detections1), (losses2, detections2) = outcomes
    for name, value in losses1.items():
        torch.testing.assert_close(losses2[name], value, rtol=1e-5, atol=1e-5)
    assert detections1.counts == detections2.counts
    torch.testing.assert_close(detections1.boxes, detections2.boxes, rtol=1e-5, atol=1e-3)
    for name, value in detections1.fields.items():
        torch.testing.assert_close(detections2.fields[name], value, rtol=1e-5, atol=1e-5)


def peak_of(work):
    """What work answers, and by how many bytes it needs more than was held before."""
    gc.collect()
    status = Path("/proc/self/status")
    Path("/proc/self/clear_refs").write_text("5")  # forgets the highest use of memory so far
    held = {line.split(":")[0]: line.split() for line in status.read_text().splitlines()}
    out = work()
    peak = {line.split(":")[0]: line.split() for line in status.read_text().splitlines()}
    return out, 1024 * (int(peak["VmHWM"][1]) - int(held["VmRSS"][1]))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads Linux's account of memory")
def test_a_thousand_objects_need_no_matrix(monkeypatch):
    """The step with 1,000 objects an image takes little more memory than with three, and learns what the whole matrix of overlaps says."""
    page = sys.modules["maskrcnn_bench.layers.match"]
    size, needed, losses = (320, 384), {}, {}
    for name, count in (("warm", 3), ("few", 3), ("many", 1000), ("matrix", 1000)):
        if name == "matrix":
            monkeypatch.setattr(page, "_CHUNK", 1 << 20)
            monkeypatch.setattr(matcher, "match", page._match_torch)
        model, optimizer = ready("faster_fpn")
        images, targets = scene((size,), (count,))
        losses[name], needed[name] = peak_of(partial(train_step, model, optimizer, images, targets))
    anchors = sum(side // s * (size[1] // s) * 3 for side, s in zip([size[0]] * 5, (4, 8, 16, 32, 64), strict=True))
    matrix = 4 * anchors * 1024
    assert needed["matrix"] > needed["few"] + 2 * matrix
    assert needed["many"] < needed["few"] + matrix / 4
    for loss, value in losses["many"].items():
        assert torch.equal(losses["matrix"][loss], value), loss


def test_kernels_do_not_wait():
    """No kernel hides a wait for the host."""
    root = Path(__file__).parent.parent / "csrc"
    found = [
        f"{path.name}:{number}: {line.strip()}"
        for path in sorted(root.rglob("*.c*")) + sorted(root.rglob("*.h"))
        for number, line in enumerate(path.read_text().splitlines(), start=1)
        if re.search(r"\bitem\b|cudaMemcpy|[sS]ynchronize|\.cpu\(\)|nonzero", line.split("//")[0])
    ]
    assert list(root.rglob("*.cpp")) and not found
