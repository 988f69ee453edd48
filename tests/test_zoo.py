"""GroupNorm, deformable convolution and FBNet against slow references, the names of the reference's checkpoints, and MODEL_ZOO.md."""

from __future__ import annotations

import json
import math
import re

import pytest
import torch
import torch.nn.functional as F
from models import narrow_config, narrow_model, scene
from torch import nn

from maskrcnn_bench.config import load_config
from maskrcnn_bench.layers.deform_conv import DFConv2d
from maskrcnn_bench.layers.masked_norm import MaskedBatchNorm2d
from maskrcnn_bench.modeling.backbone.fbnet import FBNetBuilder, InvertedResidual, architecture, divisible
from maskrcnn_bench.modeling.backbone.fbnet_table import ARCHITECTURES
from maskrcnn_bench.modeling.detector import build_detection_model
from maskrcnn_bench.weights import Loaded, load_into


def parameters_of(config: str) -> dict[str, list[int]]:
    with torch.device("meta"):
        model = build_detection_model(load_config(config))
    return {name: list(value.shape) for name, value in model.state_dict().items()}


# GroupNorm


def test_group_norm_models_have_the_names_of_the_reference():
    names = parameters_of("gn_baselines/e2e_mask_rcnn_R_50_FPN_Xconv1fc_1x_gn.yaml")
    for name, shape in {
        "backbone.body.stem.bn1.weight": [64],
        "backbone.body.layer2.0.downsample.1.bias": [512],
        "backbone.fpn.fpn_inner1.0.weight": [256, 256, 1, 1],
        "backbone.fpn.fpn_layer4.1.weight": [256],
        "roi_heads.box.feature_extractor.xconvs.0.weight": [256, 256, 3, 3],
        "roi_heads.box.feature_extractor.xconvs.10.weight": [256],  # convolution, norm, ReLU, four times
        "roi_heads.box.feature_extractor.fc6.weight": [1024, 256 * 49],
        "roi_heads.mask.feature_extractor.mask_fcn4.1.bias": [256],
    }.items():
        assert names[name] == shape
    assert not [n for n in names if "running" in n or n.endswith(("fpn_inner1.0.bias", "xconvs.0.bias", "mask_fcn1.0.bias"))]
    plain = parameters_of("gn_baselines/e2e_faster_rcnn_R_50_FPN_1x_gn.yaml")
    assert plain["roi_heads.box.feature_extractor.fc6.1.weight"] == [1024] and "roi_heads.box.feature_extractor.fc7.0.bias" not in plain


@pytest.mark.parametrize(("scratch", "frozen"), [(True, 0), (False, 2)])
def test_from_scratch_trains_everything(scratch, frozen):
    name = "scratch_e2e_faster_rcnn_R_50_FPN_3x_gn" if scratch else "e2e_faster_rcnn_R_50_FPN_1x_gn"
    cfg = load_config(f"gn_baselines/{name}.yaml")
    assert cfg.MODEL.BACKBONE.FREEZE_CONV_BODY_AT == frozen and (cfg.MODEL.WEIGHT == "") == scratch
    with torch.device("meta"):
        model = build_detection_model(cfg)
    assert all(p.requires_grad for p in model.parameters()) == scratch


# Deformable convolution


def slow_deform_conv(x, weight, offset, mask, stride, padding, dilation, groups):
    """One sample at a time: the taps of every cell, moved, read between four neighbours, zero outside."""
    n, channels, height, width = x.shape
    size, out_height, out_width = weight.shape[-1], *offset.shape[-2:]
    sampled = x.new_zeros(n, channels, size * size, out_height, out_width)
    share = channels // groups
    for b in range(n):
        for g in range(groups):
            for tap in range(size * size):
                for i in range(out_height):
                    for j in range(out_width):
                        dy, dx = offset[b, 2 * (g * size * size + tap) : 2 * (g * size * size + tap) + 2, i, j].tolist()
                        y, z = i * stride - padding + tap // size * dilation + dy, j * stride - padding + tap % size * dilation + dx
                        value = torch.zeros(share, dtype=x.dtype)
                        for v in (math.floor(y), math.floor(y) + 1):
                            for u in (math.floor(z), math.floor(z) + 1):
                                if 0 <= v < height and 0 <= u < width:
                                    value += (1 - abs(y - v)) * (1 - abs(z - u)) * x[b, g * share : (g + 1) * share, v, u]
                        factor = 1.0 if mask is None else mask[b, g * size * size + tap, i, j].item()
                        sampled[b, g * share : (g + 1) * share, tap, i, j] = value * factor
    return torch.einsum("bctij,oct->boij", sampled, weight.flatten(2))


@pytest.mark.parametrize("modulated", [False, True])
@pytest.mark.parametrize(("stride", "dilation", "deformable_groups"), [(1, 1, 1), (2, 1, 2), (1, 2, 1)])
def test_deformable_convolution_equals_its_definition(modulated, stride, dilation, deformable_groups):
    torch.manual_seed(0)
    layer = DFConv2d(4, 3, 3, stride, dilation, 1, modulated, deformable_groups).double()
    x = torch.randn(2, 4, 6, 5, dtype=torch.float64)
    predicted = layer.offset(x)
    taps = 9 * deformable_groups
    offset = predicted[:, : 2 * taps]
    mask = predicted[:, 2 * taps :].sigmoid() if modulated else None
    assert predicted.shape[1] == (27 if modulated else 18) * deformable_groups
    expected = slow_deform_conv(x, layer.conv.weight, offset, mask, stride, dilation, dilation, deformable_groups)
    torch.testing.assert_close(layer(x), expected)


@pytest.mark.parametrize(("modulated", "factor"), [(False, 1.0), (True, 0.5)])
def test_without_offsets_it_is_a_plain_convolution(modulated, factor):
    layer = DFConv2d(8, 8, 3, 2, groups=4, modulated=modulated)
    nn.init.zeros_(layer.offset.weight)
    x = torch.randn(2, 8, 9, 7)
    torch.testing.assert_close(layer(x), factor * F.conv2d(x, layer.conv.weight, None, 2, 1, groups=4), rtol=1e-4, atol=1e-5)


def test_only_the_wanted_stages_are_deformable():
    names = parameters_of("dcn/e2e_mask_rcnn_mdconv_R_50_FPN_1x.yaml")
    assert "backbone.body.layer1.0.conv2.weight" in names
    for stage in (2, 3, 4):
        assert (
            names[f"backbone.body.layer{stage}.0.conv2.offset.weight"][0] == 27
            and f"backbone.body.layer{stage}.0.conv2.conv.bias" not in names
        )
        assert names[f"backbone.body.layer{stage}.0.conv2.conv.weight"] == [64 * 2 ** (stage - 1)] * 2 + [3, 3]
    assert parameters_of("dcn/e2e_faster_rcnn_dconv_R_50_FPN_1x.yaml")["backbone.body.layer4.2.conv2.offset.bias"] == [18]
    with pytest.raises(ValueError, match="50 layers or more, got 18"):
        narrow_model("faster_dcn", "MODEL.BACKBONE.CONV_BODY", "R-18-FPN")


def test_plain_weights_start_deformable_kernels():
    plain, deformable = narrow_model("faster_fpn", seed=1), narrow_model("faster_dcn", seed=2)
    report = load_into(deformable, Loaded("maskrcnn_benchmark", dict(plain.state_dict())))
    for stage in (2, 3, 4):
        kernel = getattr(plain.backbone.body, f"layer{stage}")[0].conv2.weight
        assert torch.equal(getattr(deformable.backbone.body, f"layer{stage}")[0].conv2.conv.weight, kernel)
    assert not report.unused or all("anchors" in why for _, why in report.unused)
    assert report.missing and all(".conv2.offset." in name for name in report.missing)


# Batch norm over rows that are in use


def test_masked_norm_is_batch_norm_of_the_rows_in_use():
    torch.manual_seed(0)
    valid = torch.tensor([True, False, True, True, False])
    x = torch.randn(5, 3, 4, 4)
    masked, plain = MaskedBatchNorm2d(3), nn.BatchNorm2d(3)
    for norm in (masked, plain):
        nn.init.uniform_(norm.weight, 0.5, 1.5, generator=torch.Generator().manual_seed(1))
    inputs = [x.clone().requires_grad_(), x.clone().requires_grad_()]
    factor = torch.randn(3, 3, 4, 4)
    out, expected = masked(inputs[0], valid)[valid], plain(inputs[1][valid])
    torch.testing.assert_close(out, expected)
    (out * factor).sum().backward()
    (expected * factor).sum().backward()
    torch.testing.assert_close(inputs[0].grad, inputs[1].grad, rtol=1e-4, atol=1e-5)
    assert inputs[0].grad[~valid].abs().max() == 0
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(masked.state_dict()[name], value)
    torch.testing.assert_close(masked.eval()(x, valid), plain.eval()(x))


@pytest.mark.parametrize("rows", [0, 4])
def test_masked_norm_without_rows_in_use_leaves_its_statistics(rows):
    norm = MaskedBatchNorm2d(3)
    out = norm(torch.full((rows, 3, 2, 2), 7.0), torch.zeros(rows, dtype=torch.bool))
    out.sum().backward()
    assert torch.isfinite(out).all() and torch.isfinite(norm.weight.grad).all()
    assert norm.running_mean.abs().max() == 0 and norm.running_var.eq(1).all()


# FBNet


def test_channels_are_multiples():
    assert [divisible(c, 8) for c in (0, 3, 8, 11, 12, 20, 100)] == [0, 8, 8, 8, 16, 24, 104]
    assert divisible(13, 1) == 13 and divisible(13.9, 0) == 13


@pytest.mark.parametrize("name", sorted(ARCHITECTURES))
def test_every_architecture_builds_its_parts(name):
    table = architecture(name)
    builder = FBNetBuilder(table, MaskedBatchNorm2d, 1.0, 8, False, False)
    blocks, channels = builder.blocks(table.part("backbone"), builder.width(table.first[0]))
    strides = [b.stride for b in table.part("backbone")]
    assert math.prod(strides) * table.first[1] == 16 and len(blocks) == len(strides)
    for part in set(table.parts) - {"backbone"}:
        assert len(builder.blocks(table.part(part), channels)[0]) == len(table.part(part))


def test_fbnet_has_the_names_and_shapes_of_the_reference():
    names = parameters_of("e2e_mask_rcnn_fbnet_xirb16d_dsmask.yaml")
    for name, shape in {
        "backbone.body.first.conv.weight": [16, 3, 3, 3],
        "backbone.body.first.bn.running_var": [16],
        "backbone.body.stages.xif0_0.pw.conv.weight": [16, 16, 1, 1],
        "backbone.body.stages.xif1_0.dw.conv.weight": [96, 1, 3, 3],
        "backbone.body.stages.xif3_6.pwl.bn.weight": [128],
        "rpn.head.0.head.xif6_2.pwl.conv.weight": [128, 768, 1, 1],
        "rpn.head.1.cls_logits.weight": [15, 128, 1, 1],
        "rpn.head.1.bbox_pred.bias": [60],
        "roi_heads.box.feature_extractor.head.blocks.xif4_3.pwl.conv.weight": [160, 768, 1, 1],
        "roi_heads.box.feature_extractor.head.last.conv.weight": [160, 160, 1, 1],
        "roi_heads.mask.feature_extractor.head.blocks.xif5_4.pw.conv.weight": [384, 128, 1, 1],
        "roi_heads.mask.predictor.mask_fcn_logits.weight": [81, 64, 1, 1],
    }.items():
        assert names[name] == shape, name
    assert not [n for n in names if ".dw.bn." in n or "mask.feature_extractor.head.last" in n]
    default = parameters_of("e2e_mask_rcnn_fbnet.yaml")
    assert "rpn.head.0.head.xif5_0.pw.conv.weight" in default and not [n for n in default if ".head.last." in n]


def test_a_block_equals_its_parts_and_enlarges():
    torch.manual_seed(0)
    block = InvertedResidual(4, 8, 4, 3, -2, MaskedBatchNorm2d, True, True, False).eval()
    x = torch.randn(2, 4, 5, 6)

    def convolved(part, x, groups=1, pad=0):
        return part.bn(F.conv2d(x, part.conv.weight, None, 1, pad, groups=groups))

    y = F.interpolate(convolved(block.pw, x).relu(), scale_factor=2.0)
    y = convolved(block.pwl, convolved(block.dw, y, 8, 1).relu())
    torch.testing.assert_close(block(x), y)
    same = InvertedResidual(4, 8, 4, 3, 1, None, False, False, True).eval()
    y = F.conv2d(F.conv2d(F.conv2d(x, same.pw.conv.weight).relu(), same.dw.conv.weight, padding=1, groups=8), same.pwl.conv.weight) + x
    torch.testing.assert_close(same(x), y * same.se4.op(y))


def test_faults_in_architectures_are_named():
    with pytest.raises(ValueError, match="MODEL.FBNET.ARCH: expected one of .*cham_v2.*got 'fbnet'"):
        narrow_config_of("MODEL.FBNET.ARCH", "fbnet")
    with pytest.raises(ValueError, match="no stages for 'mask'; it has some for .*bbox"):
        narrow_config_of("MODEL.FBNET.ARCH", "cham_v2")
    with pytest.raises(ValueError, match="MODEL.FBNET.BN_TYPE: expected one of"):
        narrow_config_of("MODEL.FBNET.BN_TYPE", "batch")
    with pytest.raises(ValueError, match="stage 0: its rows make 2 blocks, but 1 kinds"):
        architecture("", '{"block_cfg": {"first": [8, 2], "stages": [[[1, 8, 2, 1]]]}, "block_op_type": [["ir_k3"]]}')


def narrow_config_of(*overrides):
    return build_detection_model(narrow_config("mask_fbnet", *overrides))


def test_an_architecture_of_your_own_may_have_a_keypoint_head():
    table = json.loads(json.dumps(ARCHITECTURES["xirb16d_dsmask"]))
    table["block_cfg"]["kpts"] = table["block_cfg"].pop("mask")
    settings = ["MODEL.MASK_ON", False, "MODEL.KEYPOINT_ON", True, "MODEL.FBNET.ARCH_DEF", json.dumps(table)]
    settings += ["MODEL.ROI_KEYPOINT_HEAD.FEATURE_EXTRACTOR", "FBNet.roi_head_keypoints"]
    model = narrow_config_of(*settings, "MODEL.ROI_KEYPOINT_HEAD.SHARE_BOX_FEATURE_EXTRACTOR", False)
    assert list(model.roi_heads.keypoint.feature_extractor.head.blocks._modules) == [f"xif5_{k}" for k in range(5)]


@pytest.mark.parametrize("norm", ["af", "gn", "bn"])
def test_other_norms_and_head_settings(norm):
    settings = [
        "MODEL.FBNET.BN_TYPE",
        norm,
        "MODEL.GROUP_NORM.NUM_GROUPS",
        4,
        "MODEL.FBNET.RPN_HEAD_BLOCKS",
        1,
        "MODEL.FBNET.DET_HEAD_BLOCKS",
        [0, 1],
    ]
    model = narrow_model("mask_fbnet", *settings, "MODEL.FBNET.DET_HEAD_STRIDE", 1)
    head = model.roi_heads.box.feature_extractor.head.blocks
    assert len(head) == 2 and head[0].dw.conv.stride == (1, 1) and list(model.rpn.head[0].head._modules) == ["xif6_2"]
    images, targets = scene()
    assert all(torch.isfinite(v) for v in model(images, targets).values())


# MODEL_ZOO.md


@pytest.fixture(scope="module")
def zoo(repository) -> dict[str, list[str]]:
    """{configuration: the cells behind its name} of the lines of MODEL_ZOO.md; lists of several in one line have none."""
    found: dict[str, list[str]] = {}
    for line in (repository / "MODEL_ZOO.md").read_text().splitlines():
        names = re.findall(r"`([^`\s]+\.yaml)`", line)
        cells = [cell.strip() for cell in line.strip("|").split("|")][1:] if line.startswith("|") and len(names) == 1 else []
        for name in names:
            found.setdefault(name, cells)
    return found


def shipped_names(repository) -> set[str]:
    return {path.relative_to(repository / "configs").as_posix() for path in (repository / "configs").rglob("*.yaml")}


# Of these, no project published results.
OWN = ("bccd/", "toy/", "transfer/")


def test_every_configuration_has_its_line(zoo, repository):
    shipped = shipped_names(repository)
    assert sorted(name for name in shipped - set(zoo) if not name.startswith(OWN)) == []
    assert sorted(set(zoo) - shipped) == []


def test_every_configuration_of_the_references_is_shipped(shared_dir, repository):
    """Their values are compared in test_config, test_mmdetection and test_faster_rcnn_pytorch, all are built in test_modeling."""
    shipped, facts = shipped_names(repository), shared_dir / "facts"
    assert set(json.loads((facts / "maskrcnn_benchmark_yamls.json").read_text())) <= shipped
    linked = re.findall(r"\(\./(faster-rcnn_\S+?)\.py\)", (shared_dir / "documents" / "C_mmdetection_faster_rcnn.txt").read_text())
    assert {f"mmdetection/{name}.yaml" for name in linked} <= shipped


def test_published_numbers_are_those_of_maskrcnn_benchmark(zoo, shared_dir):
    listed = {cells[-1]: cells for cells in zoo.values() if cells}
    rows = [line.split(" | ") for line in (shared_dir / "facts" / "published.md").read_text().splitlines()]
    rows = [row for row in rows if re.fullmatch(r"f?\d{7,}", row[-1].strip()) and "(reference)" not in row[0]]
    assert len(rows) == 13
    for row in rows:
        published = {cell.strip().strip("*") for cell in row} | {"-"}
        assert set(listed[row[-1].strip()]) <= published, row
        assert {cell.strip() for cell in row[-3:]} <= set(listed[row[-1].strip()]), row


def test_published_numbers_are_those_of_mmdetection(zoo, shared_dir):
    text = (shared_dir / "documents" / "C_mmdetection_faster_rcnn.txt").read_text()
    for line in text.splitlines():
        linked = re.findall(r"\(\./(faster-rcnn_\S+?)\.py\)", line)
        if line.startswith("|") and linked:
            published = re.findall(r"\|\s+(\d\d\.\d)\s+\|\s+\[", line)
            assert zoo[f"mmdetection/{linked[-1]}.yaml"][2] == published[-1], line[:90]


def test_published_numbers_are_those_of_faster_rcnn_pytorch(zoo, shared_dir):
    from test_faster_rcnn_pytorch import ROWS, TABLES

    table, checked = None, 0
    for line in (shared_dir / "documents" / "A_faster-rcnn.pytorch.txt").read_text().replace("\xa0", " ").splitlines():
        table = TABLES.get(line[:2], table)
        row = re.match(r"(VGG-16|Res-101)\s+\d+ (?:P100 )?\s*(\d+)\s+\d+e-\d\s*(?:\d+ +)?(\d+) +[\d.]+ hr.* (\d+\.\d)\s*$", line)
        if row:
            cells = zoo[f"faster_rcnn_pytorch/{ROWS[table, row[1], int(row[2]), int(row[3])]}.yaml"]
            assert (cells[-2], cells[-1]) == (row[2], row[4])
            checked += 1
    assert checked == len(ROWS)


def test_published_numbers_are_those_of_torchvision(zoo):
    from torchvision.models import get_model_weights

    for name, cells in zoo.items():
        if name.startswith("torchvision/") and cells:
            (metrics,) = get_model_weights(name[12:-5])["COCO_V1"].meta["_metrics"].values()
            assert cells[0] == f"{metrics['box_map']:.1f}"
            assert all(f"{value:.1f}" in " ".join(cells) for value in metrics.values())
