"""Pictures of a data set's images with their ground truth."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from maskrcnn_bench.data.faults import Finding

# Longest side that small images are enlarged to, so that names can be read, pixels.
READABLE = 600


def view(
    name: str, output: str, count: int, root: str | None = None, masks: bool = False, faulty: bool = False, catalog: str | None = None
) -> list[str]:
    """Draw images of the training and of the test data that a name or path means, evenly picked.

    Args:
        name: folder, file or name of the catalog.
        output: folder of the pictures.
        count: how many pictures of each of the two.
        root: folder that paths of the catalog start from.
        masks: prefer annotations that have masks.
        faulty: only images in which the check found something; faulty boxes are drawn as far as they are boxes, and of images that
            cannot be drawn the lines say why.
        catalog: Python file with a DatasetCatalog, None for the usual one.
    Returns:
        What was drawn, as lines of text.
    Raises:
        ValueError, OSError: when the name means no data set; without `faulty`, also when an image cannot be read.
    """
    from maskrcnn_bench.data.build import make_dataset
    from maskrcnn_bench.data.datasets.layout import NoSplitError

    lines, missing = [], []
    options = {"root": root, "catalog": catalog, "masks": masks, "keep_empty": True, "channels": None}
    options |= {"on_fault": "ignore"} if faulty else {}
    for is_train in (True, False):
        try:
            dataset = make_dataset(name, is_train, **options)
        except NoSplitError as error:
            missing.append(error)
            continue
        folder = Path(output) / ("train" if is_train else "test")
        lines += [dataset.described, *_draw_some(dataset, folder, count, faulty)]
    if not lines:
        raise missing[0]
    return lines


def _draw_some(dataset: Any, folder: Path, count: int, faulty: bool) -> list[str]:
    chosen = [i for i in range(len(dataset)) if not faulty or _findings_of(dataset, i)]
    if len(chosen) > count:
        chosen = [chosen[k] for k in np.linspace(0, len(chosen) - 1, count).round().astype(int)]
    draw = _draw_or_say_why if faulty else _draw
    return [line for i in chosen for line in (draw(dataset, i, folder), *_notes(dataset, i))] or ["  nothing to draw"]


def _notes(dataset: Any, i: int) -> list[str]:
    return [f"    {finding}" for finding in _findings_of(dataset, i)] if hasattr(dataset, "findings") else []


def _findings_of(dataset: Any, i: int) -> list[Finding]:
    store, image = dataset.annotations, dataset.images[i]
    return [f for f in dataset.findings if f.image in (store.image_label(image), store.file_names[image])]


def _draw_or_say_why(dataset: Any, i: int, folder: Path) -> str:
    try:
        return _draw(dataset, i, folder)
    except (OSError, ValueError, IndexError) as error:
        return f"  {dataset.get_img_info(i).get('file_name', i)}: not drawn: {error}"


def _draw(dataset: Any, i: int, folder: Path) -> str:
    """Writes one picture; says which and what is in it."""
    from maskrcnn_bench.demo.draw import draw_detections

    image, target = dataset[i][:2]
    name = Path(dataset.get_img_info(i).get("file_name", f"{i}"))
    path = folder / f"{i:05d}_{name.stem}.jpg"
    folder.mkdir(parents=True, exist_ok=True)
    enlarge = max(READABLE // max(image.size), 1)
    draw_detections(image.convert("RGB"), target, dataset.class_names, enlarge=enlarge).save(path, quality=90)
    return f"  {path}: {len(target)} objects"
