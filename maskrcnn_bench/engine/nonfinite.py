"""Losses that are not finite: what they end, what they leave behind for the search, and what is said."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from maskrcnn_bench.engine.progress import Record
from maskrcnn_bench.utils.comm import all_gather, is_main_process, plain_model
from maskrcnn_bench.utils.files import write_atomically

MOST_OVERFLOWS = 20
"""So many in a row are no matter of the loss scale: it would be a millionth of what it was."""


class NonFiniteLoss(RuntimeError):
    """The loss became NaN or infinite."""


def require_finite(records: Sequence[Record], scales: bool, model: nn.Module, data_loader: Any, checkpointer: Any) -> None:
    """Ends the training at the first loss that is not finite, and at gradients that are not.

    A loss scale copes with some overflows, but not with one after the other.

    Raises:
        NonFiniteLoss: in all processes; the main one has written the dump before.
    """
    hopeless = len(records) >= MOST_OVERFLOWS and all(record.values["skipped"] for record in records)
    for record in records:
        losses = {k: v for k, v in record.values.items() if k.startswith("loss")}
        if all(math.isfinite(v) for v in losses.values()) and not (record.values["skipped"] and (hopeless or not scales)):
            continue
        images = [image for part in all_gather(_describe(record.indices, data_loader)) for image in part]
        dump = {"iteration": record.iteration, "lr": record.rate, "grad_norm": record.values["grad_norm"]}
        dump |= {"losses": losses, "images": images}
        folder = getattr(checkpointer, "save_dir", "") or "."
        if is_main_process():
            _write_dump(folder, dump, model)
        raise NonFiniteLoss(_diagnosis(dump, folder))


def _describe(indices: Sequence[int], data_loader: Any) -> list[dict[str, Any]]:
    describe = getattr(getattr(data_loader, "dataset", None), "get_img_info", None)
    wanted = ("id", "file_name")
    return [{"index": i, **({k: v for k, v in describe(i).items() if k in wanted} if describe else {})} for i in indices]


def _write_dump(folder: str, dump: dict[str, Any], model: nn.Module) -> None:
    # NaN is no JSON: numbers that are not finite become text.
    text = {"losses": {k: _json_number(v) for k, v in dump["losses"].items()}, "grad_norm": _json_number(dump["grad_norm"])}
    write_atomically(os.path.join(folder, "nan_dump.json"), lambda file: file.write(json.dumps(dump | text, indent=1).encode()))
    content = dump | {"model": plain_model(model).state_dict()}
    write_atomically(os.path.join(folder, "nan_dump.pt"), lambda file: torch.save(content, file))


def _json_number(value: float) -> float | str:
    return value if math.isfinite(value) else str(value)


def _diagnosis(dump: dict[str, Any], folder: str) -> str:
    bad = [f"{name} {value}" for name, value in dump["losses"].items() if not math.isfinite(value)]
    bad = bad or [f"gradient norm {dump['grad_norm']}"]
    images = ", ".join(str(image.get("file_name", image["index"])) for image in dump["images"][:8])
    return (
        f"training stopped at iteration {dump['iteration']}: {', '.join(bad)}. Learning rate {dump['lr']:.6g}, images {images}. "
        f"All values are in {os.path.join(folder, 'nan_dump.json')}. Usual causes: a learning rate too high for the batch (lower "
        "SOLVER.BASE_LR, lengthen SOLVER.WARMUP_ITERS, set SOLVER.CLIP_GRADIENTS), faulty boxes (`maskrcnn-bench data check`), or "
        "DTYPE float16 (try bfloat16)"
    )
