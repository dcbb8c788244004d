"""Fine-tuning of our recipes beside Detectron2's PanopticFPN and transformers' Mask2Former.

    python benchmarks/finetuning.py --list
    python benchmarks/finetuning.py --measure         # seconds of a step, on a quiet machine
    python benchmarks/finetuning.py --tune --budget 4 # each setting of the peers, with seed 1
    python benchmarks/finetuning.py --budget 12       # trains what is missing or was stopped
    python benchmarks/finetuning.py --report          # table, curves and sheets of what is there

All sides get the same images, the same budget in core-minutes of one thread, the same pretrained
EfficientNet-Lite0 and the same evaluator. A job is a side on a data set, with pretrained or random
weights, with one seed; --jobs takes words of its name, such as facade seed1. Its iterations are the
budget over the seconds of a step, which are measured once for each side and kept in speeds.json, so
that a busy machine changes no result. --tune keeps the setting of each peer with the highest PQ
(settings.json); sides with a colon, such as detectron2:published, are one setting. --records keeps
speeds, settings and results in a folder of its own: those of docs/results.md lie in
benchmarks/records/finetuning.
"""

from __future__ import annotations

import argparse
import importlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import cv2
import torch
from finetuning_jobs import (
    DATA_SETS,
    BestSettings,
    Enough,
    Job,
    Results,
    Speeds,
    StepClock,
    data_config,
    make_jobs,
    result_of_metrics,
)
from finetuning_ours import MODELS, config_file
from finetuning_ours import train as train_ours
from finetuning_table import report

from panoptic_ext.engine.run_config import load_cfg

DEFAULTS = {"detectron2": "narrow-adamw", "transformers": "narrow"}
SIDES = (*MODELS, *DEFAULTS)
UNENDING = 100_000  # iterations of a training that is only measured


def settings_of(side: str) -> dict[str, Any]:
    """The settings of a peer; importing its module costs seconds."""
    return importlib.import_module(f"finetuning_{side}").SETTINGS


def trainer_of(job: Job) -> Callable[..., None]:
    """The function that trains a job, `job.side` with setting; takes folder, iterations, on_step.

    Raises:
        SystemExit: our recipe is missing.
    """
    side, _, setting = job.side.partition(":")
    same: dict[str, Any] = {"pretrained": job.pretrained, "seed": job.seed}
    if side in MODELS:
        config = config_file(side, job.data)
        if not os.path.isfile(config):
            raise SystemExit(f"error: {config} is missing: there is no recipe to train")
        return partial(train_ours, config, **same)
    cfg = load_cfg(data_config(job.data), use_data=False)
    names = cfg.DATASETS.TRAIN[0], cfg.DATASETS.TEST[0]
    peer = importlib.import_module(f"finetuning_{side}")
    return partial(peer.train, peer.SETTINGS[setting], names, data=job.data, **same)


class Queue:
    """Jobs below an output folder."""

    def __init__(self, root: Path, records: Path, minutes: float, limit: float) -> None:
        """`minutes`: budget of a job; `limit`: seconds of a measurement."""
        self._root, self._records, self._minutes, self._limit = root, records, minutes, limit
        self._speeds, self._results = Speeds(records), Results(records)
        self.settings = BestSettings(records, DEFAULTS)

    def measure(self, job: Job) -> None:
        """Measure a step of a job's side and keep it, unless it is known."""
        job, clock = self.settings.resolve(job), StepClock(self._limit)
        if self._speeds.get(job) is not None:
            return
        with tempfile.TemporaryDirectory() as folder:
            try:
                trainer_of(job)(Path(folder, "a", "run"), UNENDING, on_step=clock)
            except Enough:
                self._speeds.put(job, clock.seconds)
        print(f"{job.speed_key}: {clock.seconds:.3f} s a step", file=sys.stderr, flush=True)

    def train(self, job: Job) -> None:
        """Train one job to its end and write its result."""
        folder, resolved = self._root / job.name, self.settings.resolve(job)
        folder.mkdir(parents=True, exist_ok=True)
        iterations = self._speeds.iterations(resolved, self._minutes)
        trainer_of(resolved)(folder, iterations)
        setting = resolved.side.partition(":")[2]
        seconds = self._speeds.get(resolved)
        assert seconds is not None
        self._results.put(job, result_of_metrics(folder, iterations, seconds, setting))
        for checkpoint in (*folder.glob("model_0*.pth"), *folder.glob("checkpoint.pth")):
            checkpoint.unlink()  # model_final.pth stays

    def measure_all(self, jobs: Sequence[Job]) -> None:
        """Measure every side that has not been measured, one after the other in this process."""
        sides: dict[str, Job] = {}
        for job in jobs:
            sides.setdefault(self.settings.resolve(job).speed_key, job)
        for job in sides.values():
            self.measure(job)

    def run(self, jobs: Sequence[Job]) -> int:
        """Each job in a process of its own; one that fails is named, and the next one begins."""
        failed = []
        for job in jobs:
            folder = self._root / job.name
            if self._results.get(job) is not None:
                continue
            for step in ("--measure", "--train"):
                if status := self._call(step, job, folder):
                    failed.append(f"{job.name} ({step[2:]}, exit code {status}, {folder})")
                    break
        for name in failed:
            print(f"failed: {name}", file=sys.stderr)
        return bool(failed)

    def _call(self, step: str, job: Job, folder: Path) -> int:
        print(f"{time.strftime('%H:%M')} {step[2:]} {job.name}", flush=True)
        command = [sys.executable, __file__, step, job.name, "--output", str(self._root)]
        values = {"records": self._records, "budget": self._minutes, "limit": self._limit}
        command += [f"--{name}={value}" for name, value in values.items()]
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "console.txt").open("a", encoding="utf-8") as stream:
            return subprocess.run(command, stdout=stream, stderr=stream).returncode

    def print_list(self, jobs: Sequence[Job]) -> None:
        """One line for each job: its quality, or how far it is."""
        for job in jobs:
            result = self._results.get(job)
            seconds = self._speeds.get(self.settings.resolve(job))
            speed = "not measured" if seconds is None else f"{seconds:.2f} s a step"
            if result is not None:
                quality = ", ".join(
                    f"{k} {result.quality[k]:.1f}" for k in ("PQ", "PQ_th", "PQ_st")
                )
                state = f"{quality}; {result.iterations} iterations, {result.minutes:.1f} minutes"
            elif (self._root / job.name / "metrics.json").is_file():
                state = f"begun; {speed}"
            else:
                state = f"to do; {speed}"
            print(f"{job.name:<52} {state}")


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--output", type=Path, default=Path("output/finetuning"))
    parser.add_argument("--records", type=Path, help="results, speeds, settings (--output)")
    parser.add_argument("--budget", type=float, default=12.0, help="core-minutes of each training")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--sides", nargs="+", default=list(SIDES), help="also detectron2:SETTING")
    parser.add_argument("--data", nargs="+", default=list(DATA_SETS))
    parser.add_argument("--jobs", nargs="+", default=[], help="words that a job's name has")
    parser.add_argument("--limit", type=float, default=15.0, help="of a measurement, seconds")
    parser.add_argument("--tune", action="store_true", help="every setting of the peers, seed 1")
    parser.add_argument("--list", action="store_true", help="what is done")
    parser.add_argument("--report", action="store_true", help="table, curves and sheets")
    parser.add_argument("--docs", action="store_true", help="with --report: into docs/ as well")
    parser.add_argument("--measure", nargs="?", const="", metavar="JOB", help="speeds alone")
    parser.add_argument("--train", metavar="JOB", help=argparse.SUPPRESS)  # the queue's own
    return parser.parse_args()


def chosen_jobs(options: argparse.Namespace) -> list[Job]:
    if not options.tune:
        return make_jobs(options.sides, options.data, options.seeds, options.jobs)
    peers = [side for side in options.sides if side in DEFAULTS]
    sides = [f"{side}:{setting}" for side in peers for setting in settings_of(side)]
    return make_jobs(sides, options.data, [1], [*options.jobs, "pretrained"])


def use_one_thread() -> None:
    """In this process and in those that it starts: the budget is of one thread."""
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = "1"


def main() -> int:
    options = parse_options()
    use_one_thread()
    records = options.records or options.output
    queue = Queue(options.output, records, options.budget, options.limit)
    if options.train or options.measure:
        step = queue.train if options.train else queue.measure
        step(Job.of_name(options.train or options.measure))
        return 0
    jobs = chosen_jobs(options)
    if options.list:
        queue.print_list(jobs)
        return 0
    if options.report:
        report(jobs, options.output, records, docs=options.docs)
        return 0
    if options.measure is not None:
        queue.measure_all(jobs)
        return 0
    status = queue.run(jobs)
    if options.tune:
        print(f"best settings: {queue.settings.choose(jobs)}")
    return status


if __name__ == "__main__":
    sys.exit(main())
