"""Which parameters train, for every norm and number of frozen stages, and how a run tells it."""

import pytest
import torch
from models import narrow_model, scene

from maskrcnn_bench.engine.launch import _describe_model, _distributed

GROUPS_OF_4 = ("MODEL.GROUP_NORM.NUM_GROUPS", 4)


@pytest.mark.parametrize("norm", ["FrozenBN", "FixedStatisticsBN", "BN", "SyncBN", "GN"])
@pytest.mark.parametrize("freeze_at", [-1, 0, 1, 2, 3, 4, 5])
def test_what_trains_is_what_is_not_frozen(norm, freeze_at):
    with torch.device("meta"):
        model = narrow_model("mask_fpn", "MODEL.BACKBONE.FREEZE_CONV_BODY_AT", freeze_at, "MODEL.RESNETS.NORM", norm, *GROUPS_OF_4)
    frozen = tuple(f"backbone.body.{part}." for part in ("stem", "layer1", "layer2", "layer3", "layer4")[: max(freeze_at, 0)])
    parameters = dict(model.named_parameters())
    assert {name for name, p in parameters.items() if p.requires_grad} == {name for name in parameters if not name.startswith(frozen)}
    # Weights of norms are parameters of these kinds, which train where their stage does, and constants of the other one.
    assert ("backbone.body.layer2.0.bn1.weight" in parameters) == (norm != "FrozenBN")
    state = model.state_dict()
    assert "backbone.body.layer2.0.bn1.weight" in state and ("backbone.body.layer2.0.bn1.running_mean" in state) == (norm != "GN")


def test_more_stages_than_there_are_cannot_be_frozen():
    with pytest.raises(ValueError, match="FREEZE_CONV_BODY_AT: expected 0 .none. to 5"):
        narrow_model("mask_fpn", "MODEL.BACKBONE.FREEZE_CONV_BODY_AT", 6)


@pytest.mark.parametrize("norm", ["FrozenBN", "FixedStatisticsBN", "GN"])
def test_frozen_stages_stay_to_the_bit(norm):
    model = narrow_model("mask_fpn", "MODEL.BACKBONE.FREEZE_CONV_BODY_AT", 3, "MODEL.RESNETS.NORM", norm, *GROUPS_OF_4)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.01, weight_decay=0.1)
    sum(model(*scene()).values()).backward()
    optimizer.step()
    moved = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert not any(name.startswith(("backbone.body.stem.", "backbone.body.layer1.", "backbone.body.layer2.")) for name in moved)
    assert "backbone.body.layer3.0.conv1.weight" in moved and ("backbone.body.layer3.0.bn1.weight" in moved) == (norm != "FrozenBN")


def test_the_table_of_a_run_has_a_line_for_each_stage_and_head():
    options = ("MODEL.BACKBONE.FREEZE_CONV_BODY_AT", 2, "MODEL.RESNETS.NORM", "BN")
    model = narrow_model("mask_fpn", *options)
    total, *lines = _describe_model(model)
    assert [line.split()[0] for line in lines] == [
        *(f"backbone.body.{stage}" for stage in ("stem", "layer1", "layer2", "layer3", "layer4")),
        *("backbone.fpn", "rpn.head", "roi_heads.box", "roi_heads.mask"),
    ]
    trains, fixed = ([float(line.split()[k]) for line in lines] for k in (1, 4))
    assert trains[:2] == [0, 0] and all(fixed[:2]) and all(trains[2:]) and not any(fixed[2:])
    whole = sum(p.numel() for p in model.parameters()) / 1e6
    assert sum(trains) + sum(fixed) == pytest.approx(whole, abs=0.01) and f"{sum(fixed):.3f} M frozen" in total
    # Of a frozen stage in this dialect, statistics still follow the images: that is said.
    assert (
        lines[1].endswith("BatchNorm2d (its statistics move)") and lines[2].endswith("frozen  BatchNorm2d") and lines[5].endswith("frozen")
    )
    assert _describe_model(narrow_model("d2_mask_fpn", *options))[2].endswith("FrozenBatchNorm2d")


def test_sync_batch_norm_is_refused_on_processes_of_the_cpu(monkeypatch):
    model = narrow_model("faster_fpn", "MODEL.RESNETS.NORM", "SyncBN")
    assert _distributed(model, torch.device("cpu")) is model, "one process counts its own images"
    assert all(torch.isfinite(loss) for loss in model(*scene()).values())
    monkeypatch.setattr("maskrcnn_bench.utils.comm.get_world_size", lambda: 2)
    with pytest.raises(
        ValueError, match="SyncBN counts over several GPUs and not over processes of the CPU; set MODEL.RESNETS.NORM .* GN or BN"
    ):
        _distributed(model, torch.device("cpu"))
