"""What an evaluation leaves behind: tables to read, JSON and CSV files, and the check against expected numbers.

Results are a plain dict: {"bbox": {"AP": ...}, "segm": {...}, "per_class": {"bbox": {name: {...}}}, "evaluator": {"name", "version"},
"images": count, "detections": count}. Numbers are 0 to 1, -1 where there is no ground truth.
"""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Sequence
from pathlib import Path

from ..utils.files import write_atomically

TASKS = ("bbox", "segm", "keypoints", "voc", "cityscapes", "box_proposal")


def format_results(results: dict, max_classes: int = 100) -> str:
    """Results as plain text: one table over all classes, and one a task by class.

    Args:
        results: see the head of this file.
        max_classes: more classes than this are left to the CSV file.
    """
    tasks = [task for task in TASKS if task in results]
    blocks = [_format_task(task, results[task]) for task in tasks]
    for task in tasks:
        table = results.get("per_class", {}).get(task, {})
        if 0 < len(table) <= max_classes:
            columns = list(next(iter(table.values())))
            rows = [[name, *(_cell(row[column]) for column in columns)] for name, row in table.items()]
            blocks.append(f"{task} by class\n" + format_table(["class", *columns], rows))
    if "evaluator" in results:
        name, version = results["evaluator"]["name"], results["evaluator"]["version"]
        blocks.append(f"{results['detections']} detections in {results['images']} images, evaluated by {name} {version}")
    return "\n\n".join(blocks)


def _format_task(task: str, numbers: dict[str, float], columns: int = 6) -> str:
    names = list(numbers)
    lines = []
    for start in range(0, len(names), columns):
        part = names[start : start + columns]
        lines.append(format_table([task if not start else "", *part], [["", *(_cell(numbers[name]) for name in part)]], rule=False))
    return "\n".join(lines)


def format_table(head: Sequence[str], rows: Sequence[Sequence[str]], rule: bool = True) -> str:
    """Rows of text as a table, the first column to the left and the others to the right."""
    widths = [max(len(row[k]) for row in (head, *rows)) for k in range(len(head))]
    widths = [max(width, 12 if k == 0 else 8) for k, width in enumerate(widths)]
    lines = [row[0].ljust(widths[0]) + "".join(text.rjust(w + 1) for text, w in zip(row[1:], widths[1:])) for row in (head, *rows)]
    if rule:
        lines.insert(1, "-" * len(lines[0]))
    return "\n".join(line.rstrip() for line in lines)


def _cell(value: float | int) -> str:
    if isinstance(value, int):
        return str(value)
    return "-" if value < 0 else f"{value:.4f}"


def write_results(results: dict, folder: str | os.PathLike, predictions: dict[str, list[dict]] | None = None) -> None:
    """Writes results.json, per_class.csv and the predictions of each task (bbox.json, segm.json ...) into a folder.

    Args:
        results: see the head of this file.
        folder: made when it is missing.
        predictions: task -> detections in COCO's result format.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for task, rows in (predictions or {}).items():
        _write(folder / f"{task}.json", json.dumps(rows))
    _write(folder / "results.json", json.dumps(results, indent=2) + "\n")
    per_class = results.get("per_class", {})
    if per_class:
        table = io.StringIO(newline="")
        _write_csv(table, per_class)
        _write(folder / "per_class.csv", table.getvalue())


def _write(path: Path, text: str) -> None:
    """Puts a file in its place at once, so that an interruption leaves the old one or the new one."""
    write_atomically(path, lambda file: file.write(text.encode()))


def _write_csv(file, per_class: dict[str, dict[str, dict]]) -> None:
    columns = list(dict.fromkeys(column for table in per_class.values() for row in table.values() for column in row))
    writer = csv.DictWriter(file, ["task", "class", *columns])
    writer.writeheader()
    for task, table in per_class.items():
        writer.writerows({"task": task, "class": name, **row} for name, row in table.items())


def check_expected_results(results: dict, expected_results: Sequence[Sequence], sigma_tol: float = 4) -> list[str]:
    """Compares results with expected ones.

    Args:
        results: see the head of this file.
        expected_results: (task, number, mean, standard deviation) each, such as ("bbox", "AP", 0.378, 0.002).
        sigma_tol: how many standard deviations a number may be away from its mean.
    Returns:
        One line a number that is missing or too far away; empty when all is as expected.
    """
    failures = []
    for task, name, mean, std in expected_results:
        low, high = mean - sigma_tol * std, mean + sigma_tol * std
        value = results.get(task, {}).get(name)
        if value is None:
            failures.append(f"{task}/{name}: {mean:.4f} expected, but there is no such number; there are {_names(results)}")
        elif not low <= value <= high:
            failures.append(f"{task}/{name}: {low:.4f} to {high:.4f} expected (mean {mean}, {sigma_tol} x {std}), got {value:.4f}")
    return failures


def _names(results: dict) -> str:
    return ", ".join(f"{task}/{name}" for task in TASKS for name in results.get(task, {})) or "none"
