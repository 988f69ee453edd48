"""Testing: a model over a data set, its detections in pixels of the original images, and their evaluation."""

from __future__ import annotations

import datetime
import logging
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from maskrcnn_bench.engine.validation import validation_losses
from maskrcnn_bench.evaluation import check_expected_results, evaluate
from maskrcnn_bench.structures.bounding_box import BoxList
from maskrcnn_bench.structures.boxlist_ops import boxlist_nms
from maskrcnn_bench.utils.comm import broadcast, during, gather_items, get_world_size, is_main_process, synchronize
from maskrcnn_bench.utils.files import write_atomically

logger = logging.getLogger("maskrcnn_bench.inference")
PREDICTIONS = "predictions.pth"


class UnexpectedResults(RuntimeError):
    """Results are not the ones that the config expects."""


def inference(
    model: nn.Module,
    data_loader: Any,
    dataset_name: str,
    iou_types: Sequence[str] = ("bbox",),
    box_only: bool = False,
    device: torch.device | str = "cuda",
    expected_results: Sequence[Sequence] = (),
    expected_results_sigma_tol: float = 4,
    output_folder: str | None = None,
    *,
    dtype: torch.dtype = torch.float32,
    clip: bool = False,
    live: bool = False,
    class_agnostic_nms: float = 0.0,
    class_names: Sequence[str] = (),
    show: Callable[[Any, Sequence[BoxList | None]], None] | None = None,
    **evaluation: Any,
) -> dict[str, Any]:
    """Tests a model on a data set.

    Args:
        model: answers Detections for images.
        data_loader: yields (images, targets, indices in the data set); over all processes each image comes once.
        dataset_name: for the log.
        box_only: the model answers proposals; only their recall is measured.
        expected_results: (task, number, mean, standard deviation) each.
        expected_results_sigma_tol: how many standard deviations a number may be away.
        output_folder: where predictions and results go; None writes nothing.
        dtype: float32, or bfloat16 and float16 under autocast.
        clip: cut boxes to the original image, and drop those without extent.
        live: show a progress bar.
        class_agnostic_nms: overlap above which a detection goes that a better one of whatever class covers; 0 keeps all.
        class_names: of the model, background first; its labels become the data set's by name. () compares labels by number.
        show: gets the data set and its predictions, in the main process.
        evaluation: further arguments of `evaluation.evaluate`.
    Returns:
        The results, in every process.
    Raises:
        UnexpectedResults: when they are not as expected.
    """
    dataset = data_loader.dataset
    logger.info("testing on %s: %d images", dataset_name, len(dataset))
    begin = time.perf_counter()
    found = predict(model, data_loader, device, dtype, clip, live, class_agnostic_nms)
    synchronize(f"the predictions on {dataset_name}")
    logger.info("%s", _speed(time.perf_counter() - begin, len(dataset)))
    predictions = collect(found, len(dataset))
    results: dict[str, Any] = {}
    if is_main_process():
        predictions = predictions if box_only else in_labels_of(dataset, predictions, class_names)
        if output_folder:
            ids = [dataset.get_img_info(index).get("id") for index in range(len(dataset))]
            save_predictions(predictions, output_folder, ids)
        results = evaluate(dataset, predictions, output_folder, iou_types, box_only=box_only, **evaluation)
        if show is not None and not box_only:
            show(dataset, predictions)
    results = broadcast(results)
    _require_expected([results], expected_results, expected_results_sigma_tol)
    return results


@torch.no_grad()
def predict(
    model: nn.Module,
    data_loader: Any,
    device: torch.device | str,
    dtype: torch.dtype = torch.float32,
    clip: bool = False,
    live: bool = False,
    class_agnostic_nms: float = 0.0,
) -> dict[int, BoxList]:
    """Detections by index in the data set, on the CPU, in pixels of the original images; arguments as for `inference`."""
    device = torch.device(device)
    was_training = model.training
    model.eval()
    found: dict[int, BoxList] = {}
    for images, _, indices in _bar(data_loader, live):
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            detections = model(images.to(device, non_blocking=True))
        for boxlist, index, scale in zip(detections.to("cpu"), indices, _scales(images), strict=True):
            boxlist = to_original(boxlist, data_loader.dataset.get_img_info(int(index)), clip, scale)
            found[int(index)] = boxlist_nms(boxlist, class_agnostic_nms)
    model.train(was_training)
    return found


def _bar(batches: Iterable, live: bool) -> Iterable:
    if not live:
        return batches
    from tqdm import tqdm

    return tqdm(batches, unit="batch", desc="testing", dynamic_ncols=True, leave=False)


def _scales(images: Any) -> list[float | None]:
    """By which factor each image was enlarged, where that is known more exactly than from its size."""
    scales = getattr(images, "scales", None)
    return [None] * len(images) if scales is None else scales.tolist()


def to_original(boxlist: BoxList, info: Mapping[str, Any], clip: bool = False, scale: float | None = None) -> BoxList:
    """Detections scaled from the resized image to the original one.

    Args:
        info: with `width` and `height` of the original.
        clip: cut boxes to the image, and drop those without extent.
        scale: pixels of the resized image per pixel of the original; None takes the ratio of the sizes.
    """
    scaled = boxlist.resize((info["width"], info["height"]))
    if scale is not None:
        scaled.bbox = boxlist.bbox / scale
    return scaled.clip_to_image(remove_empty=True) if clip else scaled


def collect(found: Mapping[int, BoxList], count: int) -> list[BoxList | None]:
    """The detections of all processes in the order of the data set, in the main process; [] in the others.

    Args:
        found: of this process, by index.
        count: images of the data set.
    """
    gathered = dict(gather_items(list(found.items())))
    if not is_main_process():
        return []
    missing = count - len(gathered)
    if missing:
        logger.warning("%d of %d images have no prediction; they count as images without detections", missing, count)
    return [gathered.get(index) for index in range(count)]


def in_labels_of(dataset: Any, predictions: Sequence[BoxList | None], class_names: Sequence[str] = ()) -> list[BoxList | None]:
    """Predictions with the labels of a data set, and without those of classes that it lacks, of which one line warns.

    Args:
        dataset: with `categories`, and `class_names` where those of the model are given.
        class_names: of the model, background first; () where its labels are the data set's.
    """
    table = {label: label for label in dataset.categories if label}
    if class_names and tuple(class_names) != tuple(dataset.class_names):
        places = {name: label for label, name in enumerate(dataset.class_names)}
        table = {label: places[name] for label, name in enumerate(class_names) if label and name in places}
    fitting = [None if p is None else _relabelled(p, table) for p in predictions]
    dropped = sum(len(p) - len(q) for p, q in zip(predictions, fitting, strict=True) if p is not None)
    if dropped:
        logger.warning("%d detections are of classes that the data lacks; they are left out", dropped)
    return fitting


def _relabelled(boxlist: BoxList, table: Mapping[int, int]) -> BoxList:
    labels = [table.get(label, 0) for label in boxlist.get_field("labels").tolist()]
    new = boxlist[torch.tensor([label > 0 for label in labels], dtype=torch.bool)]
    new.add_field("labels", torch.tensor([label for label in labels if label], dtype=torch.int64))
    return new


def save_predictions(predictions: Sequence[BoxList | None], folder: str, image_ids: Sequence[Any] | None = None) -> None:
    """Writes predictions.pth: a dict an image with `image_id`, `bbox` (xyxy), `size`, and the fields; `torch.load` needs no trust for it.

    Args:
        predictions: in the order of the data set; None where an image has none.
        folder: where the file goes.
        image_ids: what the data set calls each image; None where that is not known.
    """
    image_ids = [None] * len(predictions) if image_ids is None else [i.item() if hasattr(i, "item") else i for i in image_ids]
    os.makedirs(folder, exist_ok=True)
    plain = [
        None if p is None else {"image_id": image_id, "bbox": p.bbox, "size": tuple(p.size), **_tensors(p)}
        for image_id, p in zip(image_ids, predictions, strict=True)
    ]
    path = os.path.join(folder, PREDICTIONS)
    write_atomically(path, lambda file: torch.save(plain, file))


def _tensors(boxlist: BoxList) -> dict[str, torch.Tensor]:
    return {name: value for name, value in boxlist.extra_fields.items() if isinstance(value, torch.Tensor)}


def _speed(seconds: float, images: int) -> str:
    """A line as maskrcnn-benchmark writes it."""
    processes = get_world_size()
    per_image = seconds * processes / max(images, 1)
    return f"Total run time: {datetime.timedelta(seconds=int(seconds))} ({per_image:.6f} s / img per device, on {processes} devices)"


def flat_metrics(results: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of results as "bbox/AP" and the like."""
    tasks = {task: numbers for task, numbers in results.items() if isinstance(numbers, Mapping) and task not in ("per_class", "evaluator")}
    flat = {f"{task}/{name}": value for task, numbers in tasks.items() for name, value in numbers.items()}
    return {name: float(value) for name, value in flat.items() if isinstance(value, (int, float))}


class Tester:
    """Tests one model on several data sets.

    Args:
        names: of the data sets: catalog names or folders.
        loaders: one a data set.
        folder: results go to folder/inference/NAME, and those of the first data set to folder/results.json as well.
        expected: expected results and tolerance, as `inference` has them.
        options: further arguments of `inference`, the same for all.
        model: may be set later.
        prepare: makes of the model, as it is at the time of a test, what is tested; not kept.
        losses: also measure the losses on the data.
    """

    def __init__(
        self,
        names: Sequence[str],
        loaders: Sequence[Any],
        folder: str,
        expected: tuple[Sequence[Sequence], float] = ((), 4),
        options: Mapping[str, Any] | None = None,
        model: nn.Module | None = None,
        prepare: Callable[[nn.Module], nn.Module] = lambda model: model,
        losses: bool = False,
    ):
        self.losses = losses
        self.model = model
        self.prepare = prepare
        self.names = list(names)
        self.short_names = short_names(names)
        self.loaders = list(loaders)
        self.folder = folder
        self.expected = expected
        self.options = dict(options or {})
        self.results: list[dict[str, Any]] = []

    def __call__(self) -> dict[str, float]:
        """Metrics by name; those of the second data set on have its name in front."""
        self.results, metrics = [], {}
        model = self.prepare(self.model)
        for name, short, loader in zip(self.names, self.short_names, self.loaders, strict=True):
            folder = os.path.join(self.folder, "inference", short)
            with during(lambda name=name: f"the test on {name}"):
                result = inference(model, loader, name, output_folder=folder, **self.options)
            prefix = f"{short}/" if self.results else ""
            metrics |= {prefix + key: value for key, value in flat_metrics(result).items()}
            if self.losses:
                with during(lambda name=name: f"the losses on {name}"):
                    known = self.options.get("class_names", ())
                    losses = validation_losses(self.model, loader, self.options["device"], self.options["dtype"], known)
                metrics |= {prefix + key: value for key, value in losses.items()}
            self.results.append(result)
            if is_main_process() and not prefix:
                text = Path(folder, "results.json").read_bytes()
                write_atomically(Path(self.folder, "results.json"), lambda file, text=text: file.write(text))
        return metrics

    def require_expected(self) -> None:
        """Compares the last results with the expected ones.

        Raises:
            UnexpectedResults: when one is missing or too far away.
        """
        _require_expected(self.results, *self.expected)


def short_names(names: Sequence[str]) -> list[str]:
    """The last part of each name or path, with a number behind those that come again."""
    seen: Counter[str] = Counter()
    out = []
    for name in (Path(name).resolve().name for name in names):
        seen[name] += 1
        out.append(f"{name}_{seen[name]}" if seen[name] > 1 else name)
    return out


def _require_expected(results: Sequence[dict], expected: Sequence[Sequence], sigma_tol: float) -> None:
    failures = [line for result in results for line in check_expected_results(result, expected, sigma_tol)]
    if failures:
        raise UnexpectedResults("TEST.EXPECTED_RESULTS: " + "; ".join(failures))
