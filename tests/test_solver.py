"""Learning rate, parameter groups, and the schedule that follows the batch."""

import sys
import types
from bisect import bisect_right

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from maskrcnn_bench.config import explicit_keys, get_defaults, load_config
from maskrcnn_bench.solver import (
    WarmupMultiStepLR,
    changed,
    check_schedule,
    describe_length,
    learning_rate,
    make_lr_scheduler,
    make_optimizer,
    scale_schedule,
    schedule_from_epochs,
)

YAML = "e2e_mask_rcnn_R_50_FPN_1x.yaml"


def scaled(*opts, world_size=1):
    """The config after scaling, and what is printed, as the training program does it."""
    reference = load_config(YAML).SOLVER.IMS_PER_BATCH
    return scale_schedule(load_config(YAML, opts), *explicit_keys(YAML, opts), world_size, reference)


# learning rate


def reference_rate(i, base, steps, gamma, factor, warmup, method):
    """The formula of maskrcnn-benchmark's scheduler, written out."""
    f = 1.0
    if i < warmup:
        f = factor if method == "constant" else factor * (1 - i / warmup) + i / warmup
    return base * f * gamma ** bisect_right(steps, i)


@settings(max_examples=200, deadline=None)
@given(
    st.integers(0, 1000),
    st.floats(1e-6, 1),
    st.lists(st.integers(0, 1000), max_size=4).map(sorted),
    st.floats(0.01, 1),
    st.floats(0, 1),
    st.integers(0, 300),
    st.sampled_from(["linear", "constant"]),
)
def test_rate_equals_the_reference_formula(i, base, steps, gamma, factor, warmup, method):
    ours = learning_rate(i, base, 1000, steps, gamma, factor, warmup, method)
    assert ours == pytest.approx(reference_rate(i, base, steps, gamma, factor, warmup, method), rel=1e-12)


def test_rates_that_the_reference_logs():
    # Its log says "iter: 20 ... lr: 0.007173" for a base of .02: the 20th iteration has number 19.
    rates = [learning_rate(i, 0.02, 90000, (60000, 80000)) for i in (0, 19, 499, 500, 59999, 60000, 80000)]
    assert rates == pytest.approx([0.02 / 3, 0.0071733333, 0.0199733333, 0.02, 0.02, 0.002, 0.0002])


def test_cosine_starts_at_the_base_and_ends_at_zero():
    rates = [learning_rate(i, 1.0, 100, warmup_iters=0, schedule="cosine") for i in range(101)]
    assert rates[0] == 1.0 and rates[50] == pytest.approx(0.5) and rates[100] == pytest.approx(0.0)
    assert rates == sorted(rates, reverse=True)


def test_scheduler_sets_all_groups_and_keeps_nothing_but_the_iteration():
    cfg = load_config(YAML, ["SOLVER.BASE_LR", "0.02"])
    optimizer = make_optimizer(cfg, nn.Conv2d(3, 4, 1))
    scheduler = make_lr_scheduler(cfg, optimizer)
    scheduler.step(60000)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.002, 0.004])
    assert scheduler.state_dict() == {"last_epoch": 60000}


def test_the_config_wins_over_the_schedule_that_was_saved():
    old = load_config(YAML, ["SOLVER.BASE_LR", "0.02"])
    new = load_config(YAML, ["SOLVER.BASE_LR", "0.004", "SOLVER.STEPS", "(10,)"])
    model = nn.Conv2d(3, 4, 1)
    saved = make_lr_scheduler(old, make_optimizer(old, model))
    saved.step(1000)
    scheduler = make_lr_scheduler(new, make_optimizer(new, model))
    # Also the table that maskrcnn-benchmark's own checkpoints hold.
    scheduler.load_state_dict(saved.state_dict() | {"base_lrs": [0.02, 0.04], "milestones": (60000, 80000)})
    assert scheduler.get_lr() == pytest.approx([0.0004, 0.0008])


def test_class_keeps_the_arguments_of_the_reference():
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)
    scheduler = WarmupMultiStepLR(optimizer, [3, 5], gamma=0.5, warmup_factor=0.1, warmup_iters=2, warmup_method="linear")
    rates = []
    for _ in range(6):
        rates.append(optimizer.param_groups[0]["lr"])
        scheduler.step()
    assert rates == pytest.approx([0.01, 0.055, 0.1, 0.05, 0.05, 0.025])
    with pytest.raises(ValueError, match=r"ascending iterations, got \(5, 3\)"):
        WarmupMultiStepLR(optimizer, [5, 3])


# optimizer


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = nn.GroupNorm(2, 4)
        self.fixed = nn.Linear(2, 2).requires_grad_(False)
        self.fc = nn.Linear(4, 2)

    def forward(self, x):
        return self.fc(self.norm(self.conv(x)).mean((2, 3))).square().sum()


def test_biases_have_their_own_rate_and_decay_and_groups_stay_few():
    cfg = load_config(YAML, ["SOLVER.BASE_LR", "0.02", "SOLVER.WEIGHT_DECAY", "0.0001", "SOLVER.BIAS_LR_FACTOR", "2"])
    groups = make_optimizer(cfg, Net()).param_groups
    found = {tuple(g["param_names"]): (g["lr"], g["weight_decay"]) for g in groups}
    assert found == {
        ("conv.weight", "norm.weight", "fc.weight"): (0.02, 0.0001),
        ("conv.bias", "norm.bias", "fc.bias"): (0.04, 0.0),
    }


def test_steps_equal_sgd_written_out():
    opts = ["SOLVER.BASE_LR", "0.01", "SOLVER.WEIGHT_DECAY", "0.1", "SOLVER.WEIGHT_DECAY_BIAS", "0.05", "SOLVER.MOMENTUM", "0.8"]
    torch.manual_seed(0)
    model, images = Net(), torch.randn(2, 3, 8, 8)
    expected = {n: p.detach().clone() for n, p in model.named_parameters()}
    momentum = {n: torch.zeros_like(p) for n, p in expected.items()}
    optimizer = make_optimizer(load_config(YAML, opts), model)
    for _ in range(3):
        optimizer.zero_grad()
        model(images).backward()
        for n, p in model.named_parameters():
            if p.requires_grad:
                rate, decay = (0.02, 0.05) if "bias" in n else (0.01, 0.1)
                momentum[n] = 0.8 * momentum[n] + p.grad + decay * expected[n]
                expected[n] = expected[n] - rate * momentum[n]
        optimizer.step()
    for n, p in model.named_parameters():
        torch.testing.assert_close(p.detach(), expected[n], rtol=1e-5, atol=1e-7)


def test_an_overflow_in_the_first_step_changes_nothing():
    model = Net()
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    optimizer = make_optimizer(load_config(YAML), model)
    model(torch.full((1, 3, 8, 8), float("nan"))).backward()
    optimizer.grad_scale, optimizer.found_inf = None, torch.ones(())
    optimizer.step()
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())
    buffers = [state["momentum_buffer"] for state in optimizer.state.values()]
    assert len(buffers) == 6 and all(torch.equal(b, torch.zeros_like(b)) for b in buffers)


def test_adamw_has_the_same_groups():
    optimizer = make_optimizer(load_config(YAML, ["SOLVER.OPTIMIZER", "adamw"]), Net())
    assert isinstance(optimizer, torch.optim.AdamW) and len(optimizer.param_groups) == 2


def test_apex_is_asked_for_by_name_and_its_absence_is_explained(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "apex", None)
    with pytest.raises(ImportError, match="apex_fused_sgd needs NVIDIA apex.*SOLVER.OPTIMIZER sgd"):
        make_optimizer(load_config(YAML, ["SOLVER.OPTIMIZER", "apex_fused_sgd"]), Net())


def test_apex_gets_the_groups_and_the_schedule(monkeypatch):
    class FusedSGD(torch.optim.SGD):
        pass

    optimizers = types.ModuleType("apex.optimizers")
    optimizers.FusedSGD = FusedSGD
    monkeypatch.setitem(sys.modules, "apex", types.ModuleType("apex"))
    monkeypatch.setitem(sys.modules, "apex.optimizers", optimizers)
    cfg = load_config(YAML, ["SOLVER.OPTIMIZER", "apex_fused_sgd", "SOLVER.WARMUP_ITERS", "0"])
    torch.manual_seed(0)
    mine, theirs = Net(), Net()
    theirs.load_state_dict(mine.state_dict())
    optimizer, usual = make_optimizer(cfg, mine), make_optimizer(load_config(YAML), theirs)
    assert isinstance(optimizer, FusedSGD) and len(optimizer.param_groups) == len(usual.param_groups)
    make_lr_scheduler(cfg, usual).step(0)
    make_lr_scheduler(cfg, optimizer).step(0)
    for _ in range(2):
        for parameter in (*mine.parameters(), *theirs.parameters()):
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()
        usual.step()
    for a, b in zip(mine.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-8)


def test_a_model_without_gradients_is_refused():
    with pytest.raises(ValueError, match="FREEZE_CONV_BODY_AT"):
        make_optimizer(load_config(YAML), Net().requires_grad_(False))


# schedule and batch


def test_a_batch_of_two_gets_the_numbers_of_the_single_gpu_rule():
    cfg, _ = scaled("SOLVER.IMS_PER_BATCH", "2")
    assert (cfg.SOLVER.BASE_LR, cfg.SOLVER.MAX_ITER, cfg.SOLVER.STEPS, cfg.SOLVER.WARMUP_ITERS) == (0.0025, 720000, (480000, 640000), 4000)


GOLDEN = {
    1: """\
batch: 2 images a step (1 process(es) x 2 image(s) x 1 accumulated), schedule for 16: factor 0.125; SOLVER.AUTO_SCALE False turns this off
SOLVER.BASE_LR: 0.02 -> 0.0025
SOLVER.STEPS: (60000, 80000) -> (480000, 640000)
SOLVER.MAX_ITER: 90000 -> 720000
SOLVER.WARMUP_ITERS: 500 -> 4000
MODEL.RPN.FPN_POST_NMS_TOP_N_TRAIN: 2000 (1000 x 2 image(s) of a process)""",
    3: """\
batch: 12 images a step (3 process(es) x 2 image(s) x 2 accumulated), schedule for 16: factor 0.75; SOLVER.AUTO_SCALE False turns this off
SOLVER.BASE_LR: 0.02 -> 0.015
SOLVER.STEPS: (60000, 80000) -> (80000, 106667)
SOLVER.MAX_ITER: 90000 -> 120000
SOLVER.WARMUP_ITERS: 500 -> 667
MODEL.RPN.FPN_POST_NMS_TOP_N_TRAIN: 2000 (1000 x 2 image(s) of a process)""",
    8: """\
batch: 32 images a step (8 process(es) x 4 image(s) x 1 accumulated), schedule for 16: factor 2; SOLVER.AUTO_SCALE False turns this off
SOLVER.BASE_LR: 0.02 -> 0.04
SOLVER.STEPS: (60000, 80000) -> (30000, 40000)
SOLVER.MAX_ITER: 90000 -> 45000
SOLVER.WARMUP_ITERS: 500 -> 250
MODEL.RPN.FPN_POST_NMS_TOP_N_TRAIN: 2000 -> 4000 (1000 x 4 image(s) of a process)""",
}


@pytest.mark.parametrize("world_size,opts", [(1, ["2", "1"]), (3, ["12", "2"]), (8, ["32", "1"])])
def test_printed_text(world_size, opts):
    _, lines = scaled("SOLVER.IMS_PER_BATCH", opts[0], "SOLVER.ACCUMULATE", opts[1], world_size=world_size)
    assert "\n".join(lines) == GOLDEN[world_size]


def test_nothing_changes_when_the_batch_is_the_file_s_or_all_is_given():
    cfg, lines = scaled("MODEL.RPN.FPN_POST_NMS_TOP_N_TRAIN", "1234", world_size=8)
    assert lines == [] and cfg == load_config(YAML, ["MODEL.RPN.FPN_POST_NMS_TOP_N_TRAIN", "1234"])
    given_all = [
        *("SOLVER.IMS_PER_BATCH", "2", "SOLVER.BASE_LR", "0.0025", "SOLVER.MAX_ITER", "720000", "SOLVER.STEPS", "(480000, 640000)"),
        *("SOLVER.WARMUP_ITERS", "500", "MODEL.RPN.FPN_POST_NMS_TOP_N_TRAIN", "2000"),
    ]
    cfg, lines = scaled(*given_all)
    assert lines == [] and cfg == load_config(YAML, given_all)


@pytest.mark.parametrize("key,value", [("BASE_LR", "0.001"), ("MAX_ITER", "100"), ("STEPS", "(7,)"), ("WARMUP_ITERS", "3")])
def test_a_key_of_the_command_line_stays_and_the_others_follow_the_batch(key, value):
    given_key = ["SOLVER." + key, value]
    cfg, lines = scaled("SOLVER.IMS_PER_BATCH", "2", *given_key)
    assert cfg.SOLVER[key] == load_config(YAML, given_key).SOLVER[key]
    assert sum(line.startswith("SOLVER.") for line in lines) == 3


def test_auto_scale_false_leaves_everything():
    opts = ["SOLVER.IMS_PER_BATCH", "2", "SOLVER.AUTO_SCALE", "False"]
    assert scaled(*opts) == (load_config(YAML, opts), [])


def test_the_reference_batch_can_be_named():
    cfg, _ = scaled("SOLVER.IMS_PER_BATCH", "2", "SOLVER.REFERENCE_IMS_PER_BATCH", "4")
    assert (cfg.SOLVER.BASE_LR, cfg.SOLVER.MAX_ITER) == (0.01, 180000)


def test_proposals_of_a_gpu_follow_its_images_only_where_they_are_counted_together():
    cfg, _ = scaled("SOLVER.IMS_PER_BATCH", "16")
    assert cfg.MODEL.RPN.FPN_POST_NMS_TOP_N_TRAIN == 16000
    cfg, lines = scaled("SOLVER.IMS_PER_BATCH", "16", "MODEL.RPN.FPN_POST_NMS_PER_BATCH", "False")
    assert cfg.MODEL.RPN.FPN_POST_NMS_TOP_N_TRAIN == 2000 and lines == []


@pytest.mark.parametrize("batch,world_size,accumulate", [(16, 3, 1), (2, 1, 4), (0, 1, 1)])
def test_a_batch_that_does_not_divide_is_refused(batch, world_size, accumulate):
    with pytest.raises(ValueError, match=f"SOLVER.IMS_PER_BATCH {batch} does not divide among {world_size} process"):
        scaled("SOLVER.IMS_PER_BATCH", str(batch), "SOLVER.ACCUMULATE", str(accumulate), world_size=world_size)


def test_epochs_become_iterations():
    cfg = load_config(YAML, ["SOLVER.IMS_PER_BATCH", "4", "SOLVER.MAX_EPOCHS", "3"])
    new, lines = schedule_from_epochs(cfg, ["SOLVER.MAX_EPOCHS"], 100)
    assert (new.SOLVER.MAX_ITER, new.SOLVER.STEPS, new.SOLVER.WARMUP_ITERS) == (75, (50, 67), 7)
    assert lines[0] == "SOLVER.MAX_EPOCHS 3 x 100 images / 4 a step = 75 iterations"
    assert lines[1] == "SOLVER.MAX_ITER: 90000 -> 75"
    kept, _ = schedule_from_epochs(cfg, ["SOLVER.STEPS", "SOLVER.WARMUP_ITERS"], 100)
    assert (kept.SOLVER.STEPS, kept.SOLVER.WARMUP_ITERS) == ((60000, 80000), 500)


def test_steps_and_periods_may_be_said_in_epochs():
    given = ["SOLVER.IMS_PER_BATCH", "4", "SOLVER.STEPS", "(8e, 11e)", "SOLVER.TEST_PERIOD", "0.5e", "SOLVER.CHECKPOINT_PERIOD", "1e"]
    cfg = load_config(YAML, [*given, "SOLVER.MAX_EPOCHS", "12"])
    check_schedule(cfg)
    cfg, _ = scale_schedule(cfg, (), ("SOLVER.IMS_PER_BATCH",), 1, 16)
    solver = schedule_from_epochs(cfg, (), 100)[0].SOLVER
    assert (solver.MAX_ITER, solver.STEPS, solver.TEST_PERIOD, solver.CHECKPOINT_PERIOD) == (300, (200, 275), 13, 25)
    mixed = load_config(YAML, ["SOLVER.STEPS", "['2e', 100]", "SOLVER.TEST_PERIOD", "3e", "SOLVER.TEST_PERIOD", "7"])
    new = schedule_from_epochs(mixed, (), 160)[0].SOLVER
    assert (new.STEPS, new.TEST_PERIOD, new.CHECKPOINT_PERIOD) == ((20, 100), 7, mixed.SOLVER.CHECKPOINT_PERIOD)
    for key, value in (("STEPS", "(8x,)"), ("TEST_PERIOD", "e"), ("MAX_ITER", "8e")):
        with pytest.raises(ValueError, match=f"SOLVER.{key} expects"):
            load_config(YAML, [f"SOLVER.{key}", value])


def test_changed_leaves_the_original_alone():
    cfg = load_config(YAML)
    new, lines = changed(cfg, {"SEED": 5, "SOLVER.MOMENTUM": cfg.SOLVER.MOMENTUM})
    assert (cfg.SEED, new.SEED, lines) == (0, 5, ["SEED: 0 -> 5"])
    assert new.is_frozen()


@pytest.mark.parametrize(
    "values,key",
    [
        ({"SOLVER.MAX_ITER": 0}, "SOLVER.MAX_ITER"),
        ({"SOLVER.IMS_PER_BATCH": 0}, "SOLVER.IMS_PER_BATCH"),
        ({"SOLVER.BASE_LR": 0.0}, "SOLVER.BASE_LR"),
        ({"SOLVER.BASE_LR": float("nan")}, "SOLVER.BASE_LR"),
        ({"SOLVER.STEPS": (5, 3)}, "SOLVER.STEPS"),
    ],
)
def test_values_that_no_training_can_have_are_named(values, key):
    with pytest.raises(ValueError, match=f"{key}: expected"):
        check_schedule(changed(get_defaults(), values)[0])


def test_epochs_stand_in_for_iterations_and_a_cosine_needs_no_steps():
    values = {"SOLVER.MAX_ITER": 0, "SOLVER.MAX_EPOCHS": 2.0, "SOLVER.STEPS": (5, 3), "SOLVER.LR_SCHEDULE": "cosine"}
    cfg = changed(get_defaults(), values)[0]
    check_schedule(cfg)
    cfg = schedule_from_epochs(cfg, (), 80)[0]
    assert cfg.SOLVER.MAX_ITER == 10
    assert describe_length(cfg, 80, 80) == "SOLVER.MAX_ITER 10 x 16 images = 2 epochs of your 80 images"
