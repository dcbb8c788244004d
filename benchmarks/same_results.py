"""Check that a change of the code keeps results bit for bit: record before, compare after.

    PYTHONPATH=OLD_TREE OMP_NUM_THREADS=1 python benchmarks/same_results.py record FOLDER
    PYTHONPATH=NEW_TREE OMP_NUM_THREADS=1 python benchmarks/same_results.py compare FOLDER
        [--only losses maps/efficientps ...] [--workers 2] [--allow NAME ...]

The parts are
- "losses": the losses of 20 iterations of each model,
- "maps": all outputs of each model and fusion on photographs and micrographs,
- "pq": the evaluators' results on the recorded maps,
- "configs": all shipped configs,
- "state": the tensors of each model with their initial values.
`record` first makes "weights" by short trainings, which FOLDER keeps for every comparison.
panoptic_ext, its configs and its tools are those of PYTHONPATH, or else of this repository. The
data are in $PANOPTIC_EXT_SHARED, or in the folder shared/data beside the repository.

The exit code of `compare` is 0 if all is equal, else 1. Config keys that were added or removed are
listed, but are no difference; nor are other values of what --allow names: config keys, or files
such as contact_sheet.png. Numbers depend on the processor and on torch, so compare on the machine
that recorded.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import logging
import multiprocessing
import os
import platform
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from same_results_items import CONFIGS, LOSSES, MAPS, PQ, STATE, WEIGHTS
from same_results_records import CFG, Record, compare, load, save

sys.path.append(str(Path(__file__).resolve().parents[1]))  # last: PYTHONPATH chooses the tree

import same_results_jobs as jobs

ROOT = Path(__file__).resolve().parents[1]

PARTS: dict[str, Any] = {
    "weights": (jobs.make_weights, {name: name for name in WEIGHTS}),
    "losses": (jobs.record_losses, LOSSES),
    "maps": (jobs.record_maps, MAPS),
    "pq": (jobs.record_pq, {name: name for name in PQ}),
    "configs": (jobs.record_configs, {name: name for name in CONFIGS}),
    "state": (jobs.record_state, {name: name for name in STATE}),
}
"""Part -> the function that makes a record, and its argument for each item. Run in this order."""


class Job(NamedTuple):
    """One item to record.

    Attributes:
        part, name: the item.
        recorded: folder of the records that the item reads.
        output: folder into which its record is written.
        data: folder of the data sets.
    """

    part: str
    name: str
    recorded: Path
    output: Path
    data: Path


class Done(NamedTuple):
    """A job that has ended, and its traceback or ""."""

    job: Job
    seconds: float
    error: str


def run_job(job: Job) -> Done:
    """Record one item, in a separate process."""
    started = time.perf_counter()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True, warn_only=True)
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    error = ""
    make, items = PARTS[job.part]
    try:
        with tempfile.TemporaryDirectory() as scratch:
            places = jobs.Places(job.recorded, Path(scratch), job.data, [])
            with contextlib.redirect_stderr(io.StringIO()):  # progress bars
                record = make(items[job.name], places)
            record.update({f"{CFG}left out: {key}": True for key in places.left_out})
            save(jobs.record_file(job.part, job.name, job.output), record)
    except Exception:  # one item that fails is reported with its trace; the others go on
        error = traceback.format_exc()
    return Done(job, time.perf_counter() - started, error)


def run_jobs(
    names: list[tuple[str, str]], args: argparse.Namespace, output: Path
) -> Iterator[Done]:
    """Record items, part by part, several at once."""
    with tempfile.TemporaryDirectory() as folder:
        data = link_data(Path(folder))
        context = multiprocessing.get_context("fork")
        for part in PARTS:
            todo = [Job(part, name, args.folder, output, data) for p, name in names if p == part]
            if not todo:
                continue
            with context.Pool(min(args.workers, len(todo)), maxtasksperchild=1) as pool:
                for done in pool.imap_unordered(run_job, todo, chunksize=1):
                    print(f"{part}/{done.job.name}: {done.seconds:.0f} s", file=sys.stderr)
                    yield done


def link_data(folder: Path) -> Path:
    """A folder for DETECTRON2_DATASETS: photographs, micrographs, and data sets without images."""
    setting = os.environ.get("PANOPTIC_EXT_SHARED")
    shared = Path(setting) if setting else ROOT.parent / "shared" / "data"
    for name in ("facade", "nuclei"):
        if not (shared / name).is_dir():
            sys.exit(f"error: {shared / name} is missing; set PANOPTIC_EXT_SHARED to its folder")
        (folder / name).symlink_to((shared / name).resolve())
    jobs.write_stub_data_sets(folder)
    os.environ["DETECTRON2_DATASETS"] = str(folder)
    os.environ["PANOPTIC_EXT_CACHE"] = str(folder / "shapes")
    return folder


def chosen(args: argparse.Namespace) -> list[tuple[str, str]]:
    """Parts and names of the items of --only, without weights that have been made already."""
    wanted = tuple(args.only) or ("",)
    names = [(part, name) for part, (_, items) in PARTS.items() for name in items]
    names = [pair for pair in names if "/".join(pair).startswith(wanted)]
    if args.command == "compare":
        return [pair for pair in names if pair[0] != "weights"]
    made = {path.stem for path in (args.folder / "weights").glob("*.pth")}
    return [pair for pair in names if pair[0] != "weights" or pair[1] not in made]


def record_all(args: argparse.Namespace) -> int:
    """Write the records into the folder; the exit code is 1 if one failed."""
    args.folder.mkdir(parents=True, exist_ok=True)
    failed = 0
    for done in run_jobs(chosen(args), args, args.folder):
        if done.error:
            failed += 1
            print(f"{done.job.part}/{done.job.name} failed\n{done.error}", file=sys.stderr)
    (args.folder / "machine.json").write_text(json.dumps(machine(), indent=1))
    return int(failed > 0)


def compare_all(args: argparse.Namespace) -> int:
    """Record again and print a table of differences; the exit code is 1 if there are any."""
    machine_file = args.folder / "machine.json"
    before = json.loads(machine_file.read_text()) if machine_file.is_file() else {}
    for key, value in machine().items():
        if before.get(key) != value:
            print(f"Recorded with {key} {before.get(key)}, compared with {value}")
    rows, notes, seconds = [], Counter(), 0.0
    with tempfile.TemporaryDirectory() as output:
        for done in run_jobs(chosen(args), args, Path(output)):
            result, text = compare_one(done, args, notes)
            rows.append((f"{done.job.part}/{done.job.name}", text, result))
            seconds += done.seconds
    print("\n| item | result |\n|---|---|")
    for name, text, _ in sorted(rows):
        print(f"| {name} | {text} |")
    for note, number in notes.items():
        print(f"noted {number} times: {note}")
    differing = sum(not same for _, _, same in rows)
    print(f"\n{len(rows) - differing} of {len(rows)} items are equal; {seconds:.0f} s of work")
    return int(differing > 0 or not rows)


def compare_one(done: Done, args: argparse.Namespace, notes: Counter[str]) -> tuple[bool, str]:
    """Whether an item is equal, and its cell of the table; adds its notes to `notes`."""
    name = f"{done.job.part}/{done.job.name}"
    recorded = jobs.record_file(done.job.part, done.job.name, args.folder)
    if done.error:
        print(f"{name} failed\n{done.error}", file=sys.stderr)
        return False, f"failed: {done.error.strip().splitlines()[-1]}"
    if not recorded.is_file():
        return False, f"not recorded in {args.folder}"
    today: Record = load(jobs.record_file(done.job.part, done.job.name, done.job.output))
    comparison = compare(load(recorded), today, args.allow)
    notes.update(comparison.notes)
    for line in comparison.differences[: args.most]:
        print(f"{name}: {line}", file=sys.stderr)
    return not comparison.differences, comparison.text()


def machine() -> dict[str, str]:
    """Properties of the machine on which the numbers depend."""
    return {
        "torch": torch.__version__,
        "numpy": np.__version__,
        "processor": f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}",
    }


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("command", choices=("record", "compare"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", nargs="+", default=[], help="parts, or beginnings of part/item")
    parser.add_argument("--workers", type=int, default=2, help="processes, of one thread each")
    parser.add_argument("--allow", nargs="+", default=[], help="keys or files that may differ")
    parser.add_argument("--most", type=int, default=0, help="differences printed of each item")
    args = parser.parse_args()
    args.folder = args.folder.resolve()
    return args


def main() -> int:
    """Record or compare."""
    args = parse_options()
    print(f"panoptic_ext of {jobs.TREE}", file=sys.stderr)
    return record_all(args) if args.command == "record" else compare_all(args)


if __name__ == "__main__":
    sys.exit(main())
