"""Losses on data that is not trained on, measured in evaluation mode."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from maskrcnn_bench.structures.bounding_box import BoxListBatch
from maskrcnn_bench.structures.image_list import ImageVersions
from maskrcnn_bench.utils.comm import all_gather


@torch.no_grad()
def validation_losses(
    model: nn.Module,
    data_loader: Any,
    device: torch.device | str,
    dtype: torch.dtype = torch.float32,
    class_names: Sequence[str] = (),
) -> dict[str, float]:
    """Means over all images of a data set and all processes, as "val/loss" (the sum) and "val/loss_classifier" and the like.

    Nothing in the model changes: norms use what they know, and random choices follow from the keys of the images.

    Args:
        model: answers (detections, losses) in evaluation mode for (images, targets, return_losses=True).
        data_loader: yields (images, targets, indices); over all processes each image comes once.
        dtype: float32, or bfloat16 and float16 under autocast.
        class_names: of the model, background first; the data set's labels become the model's by name. () takes them as they are.
    """
    device = torch.device(device)
    was_training = model.training
    model.eval()
    sums: dict[str, float] = {}
    count = 0
    table = _labels_of_model(data_loader.dataset.class_names, class_names) if class_names else None
    for images, targets, indices in data_loader:
        if table is not None:
            _relabel(targets, table)
        # The passes of test-time augmentation begin with the plain one.
        images = images.versions[0] if isinstance(images, ImageVersions) else images
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            losses = model(images.to(device, non_blocking=True), targets.to(device, non_blocking=True), return_losses=True)[1]
        for name, value in losses.items():
            sums[name] = sums.get(name, 0.0) + float(value) * len(indices)
        count += len(indices)
    model.train(was_training)
    return _joined(all_gather((sums, count)))


def _labels_of_model(names: Sequence[str], class_names: Sequence[str]) -> Tensor:
    """For each label of a data set the model's, by name; 0 for classes that it does not know. [labels] int64"""
    places = {name: label for label, name in enumerate(class_names)}
    return torch.tensor([0, *(places.get(name, 0) for name in names[1:])])


def _relabel(targets: BoxListBatch, table: Tensor) -> None:
    """Changes the labels of ground truth; objects that have none in the table are left out."""
    labels = table[targets.fields["labels"]]
    targets.fields["labels"] = labels
    targets.valid = targets.valid & (labels > 0)


def _joined(shares: list[tuple[dict[str, float], int]]) -> dict[str, float]:
    count = sum(n for _, n in shares)
    names = list(dict.fromkeys(name for sums, _ in shares for name in sums))
    means = {name: sum(sums.get(name, 0.0) for sums, _ in shares) / max(count, 1) for name in names}
    return {f"val/{name}": value for name, value in {"loss": sum(means.values()), **means}.items()}
