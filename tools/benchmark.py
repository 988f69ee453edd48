"""Speed against torchvision, side by side: results are compared first, then both are timed in turns.

    python tools/benchmark.py                      every row, as a table
    python tools/benchmark.py --only P3,P5 --json benchmark.json
    python tools/benchmark.py --device cuda        P1 and P2 in place of P3 and P4, the operators and memory on the GPU
    python tools/benchmark.py --quick              small inputs and few repeats: does it run at all
    python tools/benchmark.py --table FOLDER       VGG-16 and R-101 on a VOC folder: time an epoch, memory, mAP after --steps of training

A row whose results differ prints no ratio. Ratios are peer's median / our median; the spread is the range of the ratios of
single turns.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import benchmark_models as models
import benchmark_parts as parts
import benchmark_peers as peers
import benchmark_table
import torch
from benchmark_case import Case, take_turns

GROUPS: dict[str, Callable[[bool, str], Iterator[Case | dict]]] = {
    "P0": models.shape_rows,
    "P2,P3": models.inference_cases,
    "P1,P4": models.training_cases,
    "P5": parts.op_cases,
    "P6": parts.mask_cases,
    "P7": parts.evaluation_cases,
    "P8": parts.loader_cases,
    "P10": models.memory_rows,
    "P12": models.growth_rows,
    "P13": peers.peer_rows,
}
"""Rows by the ids they begin with. What a function yields is a row, or a case to be timed for one."""


def measure(wanted: tuple[str, ...], device: str, quick: bool, repeats: int) -> Iterator[dict]:
    """The rows whose ids begin with one of `wanted`; () takes all."""
    for ids, group in GROUPS.items():
        if wanted and not any(w.startswith(i) for w in wanted for i in ids.split(",")):
            continue
        for case in group(quick, device):
            row_id = case.id if isinstance(case, Case) else case["id"]
            if not wanted or row_id.startswith(wanted):
                yield take_turns(case, repeats, warm=1 if device == "cpu" else 5) if isinstance(case, Case) else case
                print(f"{row_id}: done", file=sys.stderr, flush=True)


def machine(device: str) -> dict[str, str]:
    import torchvision

    commit = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=models.ROOT, capture_output=True, text=True, check=False)
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    cpu = next((line.split(":")[1].strip() for line in lines if "model name" in line), platform.processor())
    facts = {"cpu": cpu, "threads": str(torch.get_num_threads()), "commit": commit.stdout.strip() or "unknown"}
    if device != "cpu":
        facts["gpu"] = torch.cuda.get_device_name()
    return facts | {"torch": torch.__version__, "torchvision": torchvision.__version__, "python": platform.python_version()}


def table(rows: list[dict]) -> str:
    """The rows as Markdown."""
    lines = ["| id | what | ours | torchvision | ratio | spread | equal |", "|---|---|---|---|---|---|---|"]
    for row in rows:
        if "not_run" in row:
            lines.append(f"| {row['id']} | {row['what']} | | | not run | {row['not_run']} | |")
            continue
        ours, peer, ratio, spread = growth(row) if "exponent" in row else pair(row)
        lines.append(f"| {row['id']} | {row['what']} | {ours} | {peer} | {ratio} | {spread} | {'yes' if row['equal'] else 'NO'} |")
    return "\n".join(lines)


def pair(row: dict) -> tuple[str, str, str, str]:
    """Ours, the peer's, ratio and spread in words."""
    ours, peer = (amount(row[name], row["unit"]) for name in ("ours", "peer"))
    if "images_per_second" in row:
        ours, peer = (f"{text} ({rate:.1f}/s)" for text, rate in zip((ours, peer), row["images_per_second"], strict=True))
    if not row["equal"] or "ratio" not in row:
        return ours, peer, "", ""
    return ours, peer, f"{row['ratio']:.2f}x", f"{row['spread'][0]:.2f}-{row['spread'][1]:.2f}"


def growth(row: dict) -> tuple[str, str, str, str]:
    counts = row[row["id"].split(".")[1]]
    times = ", ".join(f"{count}: {amount(t, 's')}" for count, t in zip(counts, row["ours"], strict=True))
    return times, "", f"exponent {row['exponent']:.2f}", ""


def amount(value: float, unit: str) -> str:
    return {"s": f"{value * 1e3:.1f} ms", "B": f"{value / 2**20:.0f} MiB", "": str(value)}[unit]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="rows whose id begins with one of these, separated by commas: P3,P5.nms")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--repeats", type=int, default=5, help="turns of each (5)")
    parser.add_argument("--quick", action="store_true", help="small inputs, two turns")
    parser.add_argument("--json", metavar="FILE", help="write the rows with machine, versions, commit and command")
    parser.add_argument("--table", metavar="FOLDER", help="the table of faster-rcnn.pytorch on this data set instead")
    parser.add_argument("--steps", type=int, default=6, help="steps that --table trains, 3 or more (6)")
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="changes of the config, for --table")
    args = parser.parse_args(argv)
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no GPU; `maskrcnn-bench doctor` says why")
    if args.table and args.steps < 3:
        parser.error(f"--steps {args.steps}: the first two are not timed, so 3 or more are needed")
    if args.table:
        for line in benchmark_table.lines(benchmark_table.rows(args.table, args.device, args.steps, args.opts)):
            print(line, flush=True)
        return 0
    command = "python tools/benchmark.py " + " ".join(sys.argv[1:] if argv is None else argv)
    wanted = tuple(w for w in args.only.split(",") if w)
    rows = [row | {"command": command} for row in measure(wanted, args.device, args.quick, 2 if args.quick else args.repeats)]
    if not rows:
        parser.error(f"--only {args.only}: no such row; ids begin with {', '.join(GROUPS)}")
    for row in rows:
        if not row.get("equal", True):
            row["ratio"] = None
    facts = machine(args.device)
    print(", ".join(f"{k} {v}" for k, v in facts.items()) + "\n\n" + table(rows))
    if args.json:
        Path(args.json).write_text(json.dumps({"machine": facts, "rows": rows}, indent=1) + "\n")
    return 0 if all(row.get("equal", True) for row in rows) else 1


if __name__ == "__main__":
    raise SystemExit(main())
