"""Fine-tuning of our recipes beside Detectron2's PanopticFPN and transformers' Mask2Former.

    python benchmarks/finetuning.py --list
    python benchmarks/finetuning.py --measure            # seconds per step, on a quiet machine
    python benchmarks/finetuning.py --budget 12          # trains what is missing or was stopped
    python benchmarks/finetuning.py --report             # table, curves and sheets of what is there

All sides get the same images, the same budget in core-minutes of one thread, the same pretrained
EfficientNet-Lite0 and the same evaluator. A job is a side on a data set, with pretrained or random
weights, with one seed; --jobs takes words of its name, such as facade seed1. Its iterations are the
budget over the seconds of a step, which are measured once for each side and kept in speeds.json, so
that a busy machine changes no result. Sides with a colon are settings of a peer that were tried.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import cv2
import torch
from finetuning_jobs import (
    DATA_SETS,
    Enough,
    Job,
    Result,
    Speeds,
    StepClock,
    data_config,
    make_jobs,
    read_result,
    result_of_metrics,
)
from finetuning_ours import MODELS, config_file
from finetuning_ours import train as train_ours

from panoptic_ext.engine.run_config import load_cfg

BEST = {"detectron2": "narrow-adamw", "transformers": "narrow"}
SIDES = (*MODELS, *BEST)
UNENDING = 100_000  # iterations of a training that is only measured


def trainer_of(job: Job) -> Callable[..., None]:
    """The function that trains a job; it takes folder, iterations and on_step."""
    side, _, name = job.side.partition(":")
    same: dict[str, Any] = {"pretrained": job.pretrained, "seed": job.seed}
    if side in MODELS:
        config = config_file(side, job.data)
        if not os.path.isfile(config):
            raise SystemExit(f"error: {config} is missing: there is no recipe to train")
        return partial(train_ours, config, **same)
    cfg = load_cfg(data_config(job.data), use_data=False)
    names = cfg.DATASETS.TRAIN[0], cfg.DATASETS.TEST[0]
    if side == "detectron2":
        import finetuning_detectron2 as peer
    else:
        import finetuning_transformers as peer  # type: ignore[no-redef]
    setting = peer.SETTINGS[name or BEST[side]]
    return partial(peer.train, setting, names, data=job.data, **same)


def measure(job: Job, speeds: Speeds, limit: float) -> None:
    """Measure a step of a job's side and keep it."""
    clock = StepClock(limit)
    with tempfile.TemporaryDirectory() as folder:
        try:
            trainer_of(job)(Path(folder, "a", "run"), UNENDING, on_step=clock)
        except Enough:
            speeds.put(job, clock.seconds)
    print(f"{job.speed_key}: {clock.seconds:.3f} s a step", flush=True)


def train(job: Job, root: Path, minutes: float) -> None:
    """Train one job to its end and write its result."""
    folder, speeds = root / job.name, Speeds(root)
    folder.mkdir(parents=True, exist_ok=True)
    iterations = speeds.iterations(job, minutes)
    trainer_of(job)(folder, iterations)
    result_of_metrics(folder, iterations, speeds.all()[job.speed_key]).write(folder)


def run_queue(jobs: list[Job], options: argparse.Namespace) -> int:
    """Each job in a process of its own; one that fails is named, and the next one begins."""
    failed = []
    for job in jobs:
        if read_result(options.output / job.name) is not None:
            continue
        steps = ["--measure", "--train"] if Speeds(options.output).get(job) is None else ["--train"]
        for step in steps:
            command = [sys.executable, __file__, "--output", str(options.output), step, job.name]
            print(" ".join(command[1:]), flush=True)
            log = options.output / job.name / "console.txt"
            log.parent.mkdir(parents=True, exist_ok=True)
            with log.open("a", encoding="utf-8") as stream:
                done = subprocess.run(
                    [*command, "--budget", str(options.budget)], stdout=stream, stderr=stream
                )
            if done.returncode:
                failed.append(f"{job.name} ({log})")
                break
    for name in failed:
        print(f"failed: {name}", file=sys.stderr)
    return bool(failed)


def print_list(jobs: list[Job], root: Path) -> None:
    """One line for each job: its quality, or how far it is."""
    speeds = Speeds(root)
    for job in jobs:
        result: Result | None = read_result(root / job.name)
        seconds = speeds.get(job)
        speed = "not measured" if seconds is None else f"{seconds:.2f} s a step"
        if result is not None:
            quality = ", ".join(f"{k} {result.quality[k]:.1f}" for k in ("PQ", "PQ_th", "PQ_st"))
            state = f"{quality}; {result.iterations} iterations, {result.minutes:.1f} minutes"
        elif (root / job.name / "metrics.json").is_file():
            state = f"begun; {speed}"
        else:
            state = f"to do; {speed}"
        print(f"{job.name:<50} {state}")


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--output", type=Path, default=Path("output/finetuning"))
    parser.add_argument("--budget", type=float, default=12.0, help="core-minutes of each training")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--sides", nargs="+", default=list(SIDES), help="also detectron2:SETTING")
    parser.add_argument("--data", nargs="+", default=list(DATA_SETS))
    parser.add_argument("--jobs", nargs="+", default=[], help="words that a job's name has")
    parser.add_argument("--limit", type=float, default=40.0, help="of --measure, seconds a side")
    parser.add_argument("--list", action="store_true", help="what is done")
    parser.add_argument("--report", action="store_true", help="table, curves and sheets")
    parser.add_argument("--measure", nargs="?", const="", metavar="JOB", help="speeds alone")
    parser.add_argument("--train", metavar="JOB", help=argparse.SUPPRESS)  # the queue's own
    return parser.parse_args()


def main() -> int:
    options = parse_options()
    use_one_thread()
    if options.train:
        train(job_of(options.train), options.output, options.budget)
        return 0
    if options.measure:
        measure(job_of(options.measure), Speeds(options.output), options.limit)
        return 0
    jobs = make_jobs(options.sides, options.data, options.seeds, options.jobs)
    if options.list:
        print_list(jobs, options.output)
        return 0
    if options.report:
        from finetuning_table import report

        report(jobs, options.output)
        return 0
    if options.measure == "":
        missing = {job.speed_key: job for job in reversed(jobs)}
        speeds = Speeds(options.output).all()
        for job in [job for key, job in missing.items() if key not in speeds]:
            command = [sys.executable, __file__, "--output", str(options.output)]
            command += ["--limit", str(options.limit), "--measure", job.name]
            subprocess.run(command, check=True)
        return 0
    return run_queue(jobs, options)


def use_one_thread() -> None:
    """In this process and in those that it starts: the budget is of one thread."""
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = "1"


def job_of(name: str) -> Job:
    data, side, weights, seed = name.split("/")
    return Job(data, side, weights, int(seed.removeprefix("seed")))


if __name__ == "__main__":
    sys.exit(main())
