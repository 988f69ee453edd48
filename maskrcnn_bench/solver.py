"""Optimizer and learning rate: which parameters move, how far, and how the schedule follows the batch.

The learning rate is a function of the config and the iteration and of nothing else, so a run that is resumed with a
changed schedule follows the new one at once. `iteration` counts optimizer steps; the first one has number 0.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor, nn

SCALED_KEYS = ("SOLVER.BASE_LR", "SOLVER.STEPS", "SOLVER.MAX_ITER", "SOLVER.WARMUP_ITERS")
_TOP_N_KEY = "MODEL.RPN.FPN_POST_NMS_TOP_N_TRAIN"
_TOP_N_PER_IMAGE = 1000


def make_optimizer(cfg: Any, model: nn.Module) -> torch.optim.Optimizer:
    """Builds the optimizer over all parameters that require gradients.

    Parameters with the same learning-rate factor and weight decay share a group; biases have their own of both. On CUDA the
    learning rate is a tensor, so that changing it neither waits for the device nor breaks a captured graph.

    Raises:
        ImportError: when NVIDIA apex is asked for and missing.
        ValueError: when nothing in the model requires gradients.
    """
    solver = cfg.SOLVER
    groups = _parameter_groups(model, solver.WEIGHT_DECAY, solver.BIAS_LR_FACTOR, solver.WEIGHT_DECAY_BIAS, solver.WEIGHT_DECAY_NORM)
    for group in groups:
        group["lr"] = solver.BASE_LR * group["lr_factor"]
    if solver.OPTIMIZER == "apex_fused_sgd":
        return _apex_sgd(groups, solver.BASE_LR, solver.MOMENTUM)
    if solver.OPTIMIZER == "adamw":
        optimizer = torch.optim.AdamW(groups, lr=solver.BASE_LR, fused=True)
    else:
        optimizer = torch.optim.SGD(groups, lr=solver.BASE_LR, momentum=solver.MOMENTUM, fused=True)
        _start_momentum(optimizer, solver.MOMENTUM)
    for group in optimizer.param_groups:
        group["lr"] = _rate(group["lr"], group["params"][0].device)
    return optimizer


_NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm)


def _parameter_groups(model: nn.Module, decay: float, bias_lr_factor: float, bias_decay: float, norm_decay: float) -> list[dict[str, Any]]:
    """One group for each (learning-rate factor, weight decay), holding (name, parameter) pairs in the model's order."""
    groups: dict[tuple[float, float], list[tuple[str, nn.Parameter]]] = {}
    of_norms = {id(p) for module in model.modules() if isinstance(module, _NORMS) for p in module.parameters(recurse=False)}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            # The name decides, not the role: a norm's bias counts as a bias too, as in the reference.
            key = (float(bias_lr_factor), float(bias_decay)) if "bias" in name else (1.0, float(decay))
            if norm_decay >= 0 and id(parameter) in of_norms:
                key = (key[0], float(norm_decay))
            groups.setdefault(key, []).append((name.removeprefix("module."), parameter))
    if not groups:
        raise ValueError("no parameter of the model requires gradients; lower MODEL.BACKBONE.FREEZE_CONV_BODY_AT")
    return [{"params": named, "lr_factor": key[0], "weight_decay": key[1]} for key, named in groups.items()]


def _rate(value: float, device: torch.device) -> float | Tensor:
    return torch.tensor(value, dtype=torch.float32, device=device) if device.type == "cuda" else value


def _start_momentum(optimizer: torch.optim.SGD, momentum: float) -> None:
    """Gives each parameter a momentum of zero.

    SGD would otherwise allocate it in the first step, and leave it uninitialised when an overflow makes that step a no-op.
    """
    if momentum:
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)


def _apex_sgd(groups: list[dict[str, Any]], base_lr: float, momentum: float) -> torch.optim.Optimizer:
    try:
        from apex.optimizers import FusedSGD
    except ImportError:
        raise ImportError(
            "SOLVER.OPTIMIZER apex_fused_sgd needs NVIDIA apex, which is not installed; "
            "SOLVER.OPTIMIZER sgd is fused as well and needs nothing"
        ) from None
    for group in groups:
        group["param_names"] = [name for name, _ in group["params"]]
        group["params"] = [parameter for _, parameter in group["params"]]
    return FusedSGD(groups, lr=base_lr, momentum=momentum)


def learning_rate(
    iteration: int,
    base_lr: float,
    max_iter: int,
    steps: Sequence[int] = (),
    gamma: float = 0.1,
    warmup_factor: float = 1.0 / 3,
    warmup_iters: int = 500,
    warmup_method: str = "linear",
    schedule: str = "multistep",
) -> float:
    """The learning rate of one iteration.

    Args:
        iteration: optimizer steps done before this one.
        base_lr: the rate after the warm-up.
        max_iter: length of the training; only "cosine" depends on it.
        steps: iterations from which the rate is multiplied by `gamma` once more, ascending.
        warmup_factor: share of the rate that the warm-up starts at.
        warmup_iters: length of the warm-up.
        warmup_method: "linear" rises in a line, "constant" stays at `warmup_factor`.
        schedule: "multistep", or "cosine" that falls to 0 at `max_iter`.
    """
    if schedule == "cosine":
        rate = base_lr * 0.5 * (1.0 + math.cos(math.pi * min(iteration / max(max_iter, 1), 1.0)))
    else:
        rate = base_lr * gamma ** bisect_right(list(steps), iteration)
    if iteration >= warmup_iters:
        return rate
    if warmup_method == "constant":
        return rate * warmup_factor
    alpha = iteration / warmup_iters
    return rate * (warmup_factor * (1 - alpha) + alpha)


class LearningRateSchedule:
    """Sets the learning rate of an optimizer's groups from the number of the iteration.

    Args:
        optimizer: its groups may carry `lr_factor`, a factor on the common rate.
        base_lr: the common rate after the warm-up.
        shape: the other arguments of `learning_rate`.
    Raises:
        ValueError: for steps that do not ascend, and for an unknown warm-up.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, base_lr: float, **shape: Any):
        _require_ascending(shape.get("steps", ()))
        if shape.get("warmup_method", "linear") not in ("linear", "constant"):
            raise ValueError(f"SOLVER.WARMUP_METHOD: expected linear or constant, got {shape['warmup_method']!r}")
        self.optimizer = optimizer
        self.base_lr = base_lr
        self.shape = shape
        self.step(0)

    def at(self, iteration: int) -> float:
        """The common rate of an iteration."""
        return learning_rate(iteration, self.base_lr, **self.shape)

    def step(self, iteration: int | None = None) -> None:
        """Sets the rates for an iteration, or for the one after the last."""
        self.last_epoch = self.last_epoch + 1 if iteration is None else iteration
        for group, rate in zip(self.optimizer.param_groups, self.get_lr(), strict=True):
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate

    def get_lr(self) -> list[float]:
        """The rate of each group in the present iteration."""
        rate = self.at(self.last_epoch)
        return [rate * group.get("lr_factor", 1.0) for group in self.optimizer.param_groups]

    def state_dict(self) -> dict[str, int]:
        return {"last_epoch": self.last_epoch}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes the iteration and nothing else: the schedule is the config's."""
        self.step(int(state["last_epoch"]))


class WarmupMultiStepLR(LearningRateSchedule):
    """Warm-up, then a factor at every milestone, with maskrcnn-benchmark's arguments.

    Args:
        optimizer: the rate of its first group is the common one, unless `base_lr` gives it.
        milestones: iterations from which the rate is multiplied by `gamma` once more.
        last_epoch: iterations done already, minus one.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        milestones: Sequence[int],
        gamma: float = 0.1,
        warmup_factor: float = 1.0 / 3,
        warmup_iters: int = 500,
        warmup_method: str = "linear",
        last_epoch: int = -1,
        base_lr: float | None = None,
    ):
        first = optimizer.param_groups[0]
        rate = float(first["lr"]) / first.get("lr_factor", 1.0) if base_lr is None else base_lr
        warmup = {"warmup_factor": warmup_factor, "warmup_iters": warmup_iters, "warmup_method": warmup_method}
        super().__init__(optimizer, rate, max_iter=0, steps=tuple(milestones), gamma=gamma, **warmup)
        self.step(last_epoch + 1)


def make_lr_scheduler(cfg: Any, optimizer: torch.optim.Optimizer) -> LearningRateSchedule:
    """Builds the schedule that SOLVER describes."""
    solver = cfg.SOLVER
    warmup = {
        "warmup_factor": solver.WARMUP_FACTOR,
        "warmup_iters": solver.WARMUP_ITERS,
        "warmup_method": solver.WARMUP_METHOD,
    }
    if solver.LR_SCHEDULE == "cosine":
        return LearningRateSchedule(optimizer, solver.BASE_LR, max_iter=solver.MAX_ITER, schedule="cosine", **warmup)
    return WarmupMultiStepLR(optimizer, solver.STEPS, solver.GAMMA, base_lr=solver.BASE_LR, **warmup)


def check_schedule(cfg: Any) -> None:
    """Refuses values that no training can have.

    Raises:
        ValueError: naming the key.
    """
    solver = cfg.SOLVER
    if solver.MAX_ITER < 1 and solver.MAX_EPOCHS <= 0:
        raise ValueError(f"SOLVER.MAX_ITER: expected 1 or more (or SOLVER.MAX_EPOCHS), got {solver.MAX_ITER}")
    if solver.IMS_PER_BATCH < 1:
        raise ValueError(f"SOLVER.IMS_PER_BATCH: expected 1 or more, got {solver.IMS_PER_BATCH}")
    if not solver.BASE_LR > 0:
        raise ValueError(f"SOLVER.BASE_LR: expected more than 0, got {solver.BASE_LR}")
    if solver.LR_SCHEDULE == "multistep":
        _require_ascending(solver.STEPS)


def _require_ascending(steps: Sequence[int]) -> None:
    # What is said in epochs is compared once the data is known.
    if not any(isinstance(step, str) for step in steps) and list(steps) != sorted(steps):
        raise ValueError(f"SOLVER.STEPS: expected ascending iterations, got {tuple(steps)}")


def describe_length(cfg: Any, num_images: int, epoch_length: int) -> str:
    """How many epochs a training has, given the images of its data and those of an epoch, which repeats may make more or fewer."""
    solver = cfg.SOLVER
    epochs = solver.MAX_ITER * solver.IMS_PER_BATCH / epoch_length
    repeats = f", which occur {epoch_length} times in each" if epoch_length != num_images else ""
    return f"SOLVER.MAX_ITER {solver.MAX_ITER} x {solver.IMS_PER_BATCH} images = {epochs:.3g} epochs of your {num_images} images{repeats}"


def images_per_pass(cfg: Any, world_size: int) -> int:
    """Images of one backward pass on one GPU.

    Raises:
        ValueError: when SOLVER.IMS_PER_BATCH does not divide among processes and accumulated parts.
    """
    solver = cfg.SOLVER
    parts = world_size * solver.ACCUMULATE
    if solver.ACCUMULATE < 1 or solver.IMS_PER_BATCH < 1 or solver.IMS_PER_BATCH % parts:
        below = max(solver.IMS_PER_BATCH // max(parts, 1), 1) * max(parts, 1)
        raise ValueError(
            f"SOLVER.IMS_PER_BATCH {solver.IMS_PER_BATCH} does not divide among {world_size} process(es) x SOLVER.ACCUMULATE "
            f"{solver.ACCUMULATE}; take a multiple of {max(parts, 1)} such as {below}"
        )
    return solver.IMS_PER_BATCH // parts


def scale_schedule(
    cfg: Any, config_file_keys: Collection[str], command_line_keys: Collection[str], world_size: int, reference: int = 0
) -> tuple[Any, list[str]]:
    """Fits the schedule to the batch by the linear scaling rule (Goyal et al. 2017).

    With a batch f times as large the learning rate is multiplied by f, and iterations are divided by f. Keys of the command
    line stay as they are; so does everything with SOLVER.AUTO_SCALE False.

    Args:
        config_file_keys: keys that the YAML sets.
        command_line_keys: keys that the command line sets.
        world_size: number of GPUs (processes).
        reference: images per step that the schedule is meant for, where SOLVER.REFERENCE_IMS_PER_BATCH is 0: the
            IMS_PER_BATCH of the YAML. 0 takes the present one, that is, changes nothing.
    Returns:
        A frozen copy of the config, and what to print: the batch, then a line "key: old -> new" a change.
    """
    per_pass = images_per_pass(cfg, world_size)
    if not cfg.SOLVER.AUTO_SCALE:
        return cfg, []
    cfg, lines = _scale_with_batch(cfg, command_line_keys, world_size, per_pass, cfg.SOLVER.REFERENCE_IMS_PER_BATCH or reference)
    cfg, more = _scale_top_n(cfg, {*config_file_keys, *command_line_keys}, per_pass)
    return cfg, lines + more


def _scale_with_batch(cfg: Any, fixed: Collection[str], world_size: int, per_pass: int, reference: int) -> tuple[Any, list[str]]:
    solver = cfg.SOLVER
    factor = solver.IMS_PER_BATCH / (reference or solver.IMS_PER_BATCH)
    if factor == 1.0 or all(key in fixed for key in SCALED_KEYS):
        return cfg, []
    values = {
        "SOLVER.BASE_LR": float(f"{solver.BASE_LR * factor:.12g}"),
        "SOLVER.STEPS": tuple(step if isinstance(step, str) else round(step / factor) for step in solver.STEPS),
        "SOLVER.MAX_ITER": math.ceil(solver.MAX_ITER / factor),
        "SOLVER.WARMUP_ITERS": round(solver.WARMUP_ITERS / factor),
    }
    head = (
        f"batch: {solver.IMS_PER_BATCH} images a step ({world_size} process(es) x {per_pass} image(s) x {solver.ACCUMULATE} accumulated), "
        f"schedule for {reference}: factor {factor:.6g}; SOLVER.AUTO_SCALE False turns this off"
    )
    unused = ["SOLVER.STEPS"] if solver.LR_SCHEDULE != "multistep" else []
    new, lines = changed(cfg, {key: value for key, value in values.items() if key not in (*fixed, *unused)})
    return new, [head, *lines]


def _scale_top_n(cfg: Any, written: Collection[str], per_pass: int) -> tuple[Any, list[str]]:
    """The number of proposals that training keeps for all images of a GPU together grows with these images."""
    rpn = cfg.MODEL.RPN
    if _TOP_N_KEY in written or not (rpn.USE_FPN and rpn.FPN_POST_NMS_PER_BATCH) or cfg.MODEL.RETINANET_ON:
        return cfg, []
    new, lines = changed(cfg, {_TOP_N_KEY: _TOP_N_PER_IMAGE * per_pass})
    said = lines or [f"{_TOP_N_KEY}: {rpn.FPN_POST_NMS_TOP_N_TRAIN}"]
    return new, [f"{said[0]} ({_TOP_N_PER_IMAGE} x {per_pass} image(s) of a process)"]


def schedule_from_epochs(cfg: Any, command_line_keys: Collection[str], num_images: int) -> tuple[Any, list[str]]:
    """Turns epochs into iterations.

    MAX_EPOCHS passes over the data replace MAX_ITER, and STEPS and WARMUP_ITERS move in proportion. STEPS, CHECKPOINT_PERIOD and
    TEST_PERIOD may be said in epochs themselves ("8e").

    Args:
        command_line_keys: of these, STEPS and WARMUP_ITERS stay as they are.
        num_images: images of one epoch, repeated ones counted as often as they occur.
    Returns:
        A frozen copy of the config, and a line "key: old -> new" a change.
    """
    solver = cfg.SOLVER
    cfg, lines = _from_epochs(cfg, num_images)
    if solver.MAX_EPOCHS <= 0:
        return cfg, lines
    max_iter = _iterations(solver.MAX_EPOCHS, num_images, solver.IMS_PER_BATCH)
    factor = max_iter / max(solver.MAX_ITER, 1)
    values = {"SOLVER.MAX_ITER": max_iter}
    if "SOLVER.STEPS" not in command_line_keys and solver.LR_SCHEDULE == "multistep":
        pairs = zip(solver.STEPS, cfg.SOLVER.STEPS, strict=True)
        values["SOLVER.STEPS"] = tuple(known if isinstance(said, str) else round(said * factor) for said, known in pairs)
    if "SOLVER.WARMUP_ITERS" not in command_line_keys:
        # A warm-up is needed for its own sake, so a long run does not stretch it; a short one must still leave it.
        values["SOLVER.WARMUP_ITERS"] = min(solver.WARMUP_ITERS, max(max_iter // 10, 1))
    head = f"SOLVER.MAX_EPOCHS {solver.MAX_EPOCHS:g} x {num_images} images / {solver.IMS_PER_BATCH} a step = {max_iter} iterations"
    new, more = changed(cfg, values)
    return new, [*lines, head, *more]


def needs_epochs(cfg: Any) -> bool:
    """Whether the length of an epoch has to be known before the schedule is."""
    solver = cfg.SOLVER
    return solver.MAX_EPOCHS > 0 or any(isinstance(value, str) for value in (*solver.STEPS, solver.CHECKPOINT_PERIOD, solver.TEST_PERIOD))


def _iterations(epochs: float, num_images: int, images_per_step: int) -> int:
    return max(math.ceil(epochs * num_images / images_per_step - 1e-9), 1)


def _from_epochs(cfg: Any, num_images: int) -> tuple[Any, list[str]]:
    """Replaces each "8e"."""

    def known(value: Any) -> Any:
        if isinstance(value, (tuple, list)):
            return tuple(known(element) for element in value)
        return _iterations(float(value[:-1]), num_images, cfg.SOLVER.IMS_PER_BATCH) if isinstance(value, str) else value

    names = ("STEPS", "CHECKPOINT_PERIOD", "TEST_PERIOD")
    return changed(cfg, {f"SOLVER.{name}": known(cfg.SOLVER[name]) for name in names})


def changed(cfg: Any, values: dict[str, Any]) -> tuple[Any, list[str]]:
    """A frozen copy of a config with other values, and a line "key: old -> new" for each one that moved."""
    new, lines = cfg.clone(), []
    new.defrost()
    for key, value in values.items():
        node = new
        *sections, name = key.split(".")
        for section in sections:
            node = node[section]
        if node[name] != value:
            lines.append(f"{key}: {node[name]} -> {value}")
            node[name] = value
    new.freeze()
    return new, lines
