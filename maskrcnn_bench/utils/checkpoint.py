"""Checkpoints: written so that a kill never leaves half a file, read so that nothing in them is executed.

Two actions that look alike are kept apart. `resume` takes everything and goes on after the saved iteration; `load_weights`
takes the weights of any supported project and leaves the run at iteration 0.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import nn

from maskrcnn_bench import __version__
from maskrcnn_bench.config.loader import resolved
from maskrcnn_bench.config.node import leaves
from maskrcnn_bench.layers import _ops
from maskrcnn_bench.utils.comm import is_main_process, plain_model
from maskrcnn_bench.utils.download import find_weights
from maskrcnn_bench.utils.files import write_atomically
from maskrcnn_bench.weights import Loaded, load_into
from maskrcnn_bench.weights.reader import read_file

FORMAT = "maskrcnn_bench"
_HALF = re.compile(r".+\.\d+\.tmp")
_NUMBERED = re.compile(r"model_(\d{7,})\.pth")


class Checkpointer:
    """Saves and restores a model together with what its training needs.

    Args:
        model: plain, or wrapped for several GPUs; names are saved without the wrapper.
        optimizer, scheduler: left out for testing.
        save_dir: folder of the checkpoints; "" saves nothing.
        save_to_disk: only the main process should; None asks which process this is.
        ema: averaged weights, with the names of the model.
        scaler: loss scaler.
        keep_last: numbered checkpoints that stay; 0 keeps all. `model_final` and `model_best` always stay.
        about: small values that describe the run; saved in every checkpoint.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer | None = None,
        scheduler: Any = None,
        save_dir: str = "",
        save_to_disk: bool | None = None,
        logger: logging.Logger | None = None,
        *,
        ema: Any = None,
        scaler: Any = None,
        keep_last: int = 0,
        about: Mapping[str, Any] | None = None,
    ):
        self.model = model
        self.optimizer = optimizer
        self.scheduler = scheduler
        self.save_dir = save_dir
        self.save_to_disk = is_main_process() if save_to_disk is None else save_to_disk
        self.logger = logger or logging.getLogger(__name__)
        self.ema = ema
        self.scaler = scaler
        self.keep_last = keep_last
        self.about = dict(about or {})
        self._announced: set[tuple[str, int | None]] = set()

    # writing

    def save(self, name: str, training_state: bool = True, **extra: Any) -> None:
        """Writes `name`.pth and names it in the file `last_checkpoint`.

        Args:
            training_state: with False, only what testing needs is written, and `last_checkpoint` stays.
            extra: values to save too, `iteration` among them.
        """
        if not self.save_dir or not self.save_to_disk:
            return
        path = os.path.join(self.save_dir, f"{name}.pth")
        # What is saved again, with the outcome of a test, was announced already.
        state = (path, extra.get("iteration"))
        self.logger.log(logging.DEBUG if state in self._announced else logging.INFO, "saving %s", path)
        self._announced.add(state)
        content = self._content(training_state) | extra
        try:
            write_atomically(path, lambda file: torch.save(content, file), durable=True)
        except (OSError, RuntimeError) as error:
            raise OSError(_no_room(path, content, error)) from None
        if training_state:
            self.tag_last_checkpoint(path)
            self._remove_old()

    def _content(self, training_state: bool) -> dict[str, Any]:
        content = {"format": FORMAT, "model": plain_model(self.model).state_dict(), **self.about}
        if self.ema is not None:
            content["ema"] = self.ema.state_dict()
        if training_state:
            parts = {"optimizer": self.optimizer, "scheduler": self.scheduler, "scaler": self.scaler}
            content |= {name: part.state_dict() for name, part in parts.items() if part is not None}
        return content

    def tag_last_checkpoint(self, last_filename: str) -> None:
        path = os.path.join(self.save_dir, "last_checkpoint")
        write_atomically(path, lambda file: file.write(last_filename.encode()), durable=True)

    def forget_last_checkpoint(self) -> None:
        """Begins a new run in a folder: when its processes are started once more, they must not go on with the old one."""
        if self.save_to_disk:
            Path(self.save_dir, "last_checkpoint").unlink(missing_ok=True)

    def _remove_old(self) -> None:
        # Halves of files that a kill left.
        for path in Path(self.save_dir).rglob("*.tmp"):
            if _HALF.fullmatch(path.name):
                path.unlink(missing_ok=True)
        if self.keep_last > 0:
            # By time, since a new run may have taken over the folder of one that was further.
            numbered = [p for p in Path(self.save_dir).glob("model_*.pth") if _NUMBERED.fullmatch(p.name)]
            for path in sorted(numbered, key=lambda p: (p.stat().st_mtime_ns, p.name))[: -self.keep_last]:
                path.unlink(missing_ok=True)

    # reading

    def has_checkpoint(self) -> bool:
        return self.get_checkpoint_file() != ""

    def get_checkpoint_file(self) -> str:
        """The file that `last_checkpoint` names; "" when there is none."""
        return last_checkpoint(self.save_dir) if self.save_dir else ""

    def load(self, f: str | None = None, use_latest: bool = True) -> dict[str, Any]:
        """Resumes the run in `save_dir` when there is one and `use_latest`; else takes the weights `f`; else does nothing.

        Returns:
            What was saved besides: the `iteration` after a resume, nothing otherwise.
        """
        if use_latest and self.has_checkpoint():
            return self.resume(self.get_checkpoint_file())
        if not f:
            self.logger.info("no weights given: the model starts from random numbers")
            return {}
        self.load_weights(f)
        return {}

    def load_weights(self, name: str) -> dict[str, Any]:
        """Takes weights alone, from a checkpoint of any supported project.

        Args:
            name: a file, an http(s) address, or a catalog:// name.
        Returns:
            The small values saved beside them.
        """
        path = self.find(name)
        content = read_file(path)
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            self.logger.info("%s", load_into(self.model, path, class_names=self.about.get("class_names", ())))
            return {}
        # The averaged weights are the ones that were tested.
        averaged = content.get("ema")
        state = averaged or content["model"]
        kind = f"{FORMAT}, averaged weights" if averaged else FORMAT
        meta = {"file": path, "class_names": content.get("class_names", ())}
        self.logger.info("%s", load_into(self.model, Loaded(kind, dict(state), meta), class_names=self.about.get("class_names", ())))
        return _about(content)

    def find(self, name: str) -> str:
        """The local file that a name means."""
        return os.fspath(name)

    def resume(self, checkpoint: str | os.PathLike | Mapping[str, Any]) -> dict[str, Any]:
        """Takes all state of a run that was interrupted.

        Learning rate, weight decay and schedule stay those of the present config.

        Args:
            checkpoint: a file, or what `read_checkpoint` made of one.
        Returns:
            What was saved besides, `iteration` among it.
        Raises:
            ValueError: when the file does not hold the state of a run, or belongs to another model.
        """
        content = checkpoint if isinstance(checkpoint, Mapping) else read_checkpoint(checkpoint)
        changes = config_changes(content["config"], self.about.get("config", "")) if "config" in content else []
        _load_model(plain_model(self.model), content["model"], [line for line in changes if line.startswith("MODEL.")])
        if self.optimizer is not None:
            _load_optimizer(self.optimizer, content["optimizer"])
        if self.scheduler is not None:
            self.scheduler.step(int(content["iteration"]))
        if self.ema is not None:
            self.ema.load_state_dict(content.get("ema", content["model"]))
        if self.scaler is not None and "scaler" in content:
            self.scaler.load_state_dict(content["scaler"])
        return _about(content)


class DetectronCheckpointer(Checkpointer):
    """A Checkpointer that knows the catalog of weights, and whose files describe themselves.

    Args:
        class_names: names of the labels, background first.
    """

    def __init__(
        self,
        cfg: Any,
        model: nn.Module,
        optimizer: torch.optim.Optimizer | None = None,
        scheduler: Any = None,
        save_dir: str = "",
        save_to_disk: bool | None = None,
        logger: logging.Logger | None = None,
        *,
        class_names: tuple[str, ...] = (),
        **options: Any,
    ):
        about = {
            "config": resolved(cfg),
            "class_names": list(class_names),
            "dialect": cfg.MODEL.DIALECT,
            "versions": {"maskrcnn_bench": __version__, "torch": str(torch.__version__)},
            "ops": _ops.load(),
        }
        super().__init__(model, optimizer, scheduler, save_dir, save_to_disk, logger, about=about, **options)
        self.paths_catalog = cfg.PATHS_CATALOG

    def find(self, name: str) -> str:
        return find_weights(name, self.paths_catalog, self.logger)

    def resume(self, checkpoint: str | os.PathLike | Mapping[str, Any]) -> dict[str, Any]:
        content = checkpoint if isinstance(checkpoint, Mapping) else read_checkpoint(checkpoint)
        for line in config_changes(content.get("config", ""), self.about["config"]):
            self.logger.info("changed since the checkpoint, the new value holds: %s", line)
        if content.get("ops") != self.about["ops"]:
            self.logger.warning(
                "the checkpoint was trained with the operators %s, this run has %s: it goes on, but not to the last bit as without a stop",
                content.get("ops"),
                self.about["ops"],
            )
        return super().resume(content)


def last_checkpoint(folder: str | os.PathLike) -> str:
    """The file that `last_checkpoint` in a folder names, also after the folder was moved; "" when there is none."""
    tag = Path(folder, "last_checkpoint")
    if not tag.is_file():
        return ""
    named = Path(tag.read_text(encoding="utf-8").strip())
    beside = tag.parent / named.name
    return str(beside if beside.is_file() else named)


def checkpoint_of(path: str) -> str:
    """The last checkpoint of an output folder; anything but a folder as it is.

    Raises:
        FileNotFoundError: the folder has none.
    """
    if not os.path.isdir(path):
        return path
    found = last_checkpoint(path)
    if not found:
        raise FileNotFoundError(f"{path} is a folder without last_checkpoint; name a file of weights")
    return found


def describe_checkpoint(path: str | os.PathLike) -> dict[str, Any]:
    """What one of our checkpoints says about itself: config, class names, versions, iteration; {} for foreign weights."""
    content = read_file(path)
    return _about(content) if isinstance(content, dict) and content.get("format") == FORMAT else {}


def read_checkpoint(path: str | os.PathLike) -> dict[str, Any]:
    """The content of a checkpoint that a run can go on from.

    Raises:
        FileNotFoundError: no such file.
        ValueError: damaged, or weights without the state of a run.
    """
    content = read_file(path)
    needed = ("model", "optimizer", "iteration")
    missing = [key for key in needed if not isinstance(content, dict) or key not in content]
    if missing:
        raise ValueError(f"{path} has no {', '.join(missing)}, so no run can go on from it. To start from its weights: --weights {path}")
    return content


def config_changes(old: str, new: str) -> list[str]:
    """A line "key: old -> new" for each key that differs in two config texts."""
    before, after = (dict(leaves(yaml.safe_load(text) or {})) for text in (old, new))
    names = [name for name in {**before, **after} if before.get(name) != after.get(name)]
    return [f"{name}: {before.get(name)} -> {after.get(name)}" for name in names]


def _about(content: Mapping[str, Any]) -> dict[str, Any]:
    state = {"format", "model", "optimizer", "scheduler", "ema", "scaler"}
    return {key: value for key, value in content.items() if key not in state}


def _load_model(model: nn.Module, state: Mapping[str, Any], changes: list[str]) -> None:
    """Takes all weights; where they do not fit, `changes` of the config are named as the reason."""
    own = {name: value.shape for name, value in model.state_dict().items()}
    theirs = {name: value.shape for name, value in state.items()}
    differing = [name for name in {**own, **theirs} if own.get(name) != theirs.get(name)]
    if differing:
        why = f"; changed since: {', '.join(changes)}" if changes else ""
        raise ValueError(
            f"the checkpoint belongs to another model than the config describes ({len(differing)} tensors, such as {differing[0]}){why}. "
            "Put it back, or start anew with --weights FILE and another OUTPUT_DIR"
        )
    model.load_state_dict(state)


def _load_optimizer(optimizer: torch.optim.Optimizer, saved: Mapping[str, Any]) -> None:
    """Takes the state of each parameter by its name, and no hyperparameter: those are the config's."""
    names = [name for group in saved["param_groups"] for name in group.get("param_names", ())]
    places = [place for group in saved["param_groups"] for place in group["params"]]
    if len(names) != len(places):
        raise ValueError("the checkpoint's optimizer does not name its parameters (written by another program?); use --weights instead")
    state_of = {name: saved["state"].get(place) for name, place in zip(names, places, strict=True)}
    current = optimizer.state_dict()
    ours = [(name, place) for group in current["param_groups"] for name, place in zip(group["param_names"], group["params"], strict=True)]
    unknown = [name for name, _ in ours if name not in state_of]
    if unknown:
        some = f"{len(unknown)} parameters that train now, such as {unknown[0]}"
        raise ValueError(f"the checkpoint's optimizer has no state of {some}; use --weights")
    state = {place: state_of[name] for name, place in ours if state_of[name] is not None}
    optimizer.load_state_dict({"state": state, "param_groups": current["param_groups"]})


# files


def _no_room(path: str, content: Mapping[str, Any], error: Exception) -> str:
    free, needed = (size / 2**20 for size in (shutil.disk_usage(os.path.dirname(path) or ".").free, _bytes(content)))
    why = str(error).partition("\n")[0][:200]
    return f"cannot write {path} ({why}): {free:.0f} MB free, about {needed:.0f} MB needed; free space and start again with --resume"


def _bytes(content: Any) -> int:
    """Of all tensors in nested dicts and lists."""
    if isinstance(content, torch.Tensor):
        return content.numel() * content.element_size()
    inner = content.values() if isinstance(content, Mapping) else content if isinstance(content, (list, tuple)) else ()
    return sum(map(_bytes, inner))
