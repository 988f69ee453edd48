"""Losses on data that is not trained on, measured in evaluation mode."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from maskrcnn_bench.utils.comm import all_gather


@torch.no_grad()
def validation_losses(
    model: nn.Module, data_loader: Any, device: torch.device | str, dtype: torch.dtype = torch.float32
) -> dict[str, float]:
    """Means over all images of a data set and all processes, as "val/loss" (the sum) and "val/loss_classifier" and the like.

    Nothing in the model changes: norms use what they know, and random choices follow from the keys of the images.

    Args:
        model: answers (detections, losses) in evaluation mode for (images, targets, return_losses=True).
        data_loader: yields (images, targets, indices); over all processes each image comes once.
        dtype: float32, or bfloat16 and float16 under autocast.
    """
    device = torch.device(device)
    was_training = model.training
    model.eval()
    sums: dict[str, float] = {}
    count = 0
    for images, targets, indices in data_loader:
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            losses = model(images.to(device, non_blocking=True), targets.to(device, non_blocking=True), return_losses=True)[1]
        for name, value in losses.items():
            sums[name] = sums.get(name, 0.0) + float(value) * len(indices)
        count += len(indices)
    model.train(was_training)
    return _joined(all_gather((sums, count)))


def _joined(shares: list[tuple[dict[str, float], int]]) -> dict[str, float]:
    count = sum(n for _, n in shares)
    names = list(dict.fromkeys(name for sums, _ in shares for name in sums))
    means = {name: sum(sums.get(name, 0.0) for sums, _ in shares) / max(count, 1) for name in names}
    return {f"val/{name}": value for name, value in {"loss": sum(means.values()), **means}.items()}
