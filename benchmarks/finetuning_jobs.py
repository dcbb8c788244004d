"""The jobs of benchmarks/finetuning.py: what is trained on what, how long, and with what result.

A job is one training: a side on a data set, with pretrained or random weights, with one seed. Its
iterations are the budget in core-minutes over the seconds that a step takes on one thread.
"""

from __future__ import annotations

import fcntl
import json
import os
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from panoptic_ext.atomic import write_file
from panoptic_ext.visualization.learning_curves import read_curve

__all__ = [
    "DATA_SETS",
    "WEIGHTS",
    "BestSettings",
    "Enough",
    "Job",
    "Result",
    "Results",
    "Speeds",
    "StepClock",
    "data_config",
    "make_jobs",
    "result_of_metrics",
]

ROOT = Path(__file__).resolve().parents[1]
DATA_SETS = ("facade", "nuclei")
WEIGHTS = ("pretrained", "random")
QUALITY = ("PQ", "SQ", "RQ", "PQ_th", "PQ_st")
RESULTS, SPEEDS, SETTINGS = "results.json", "speeds.json", "settings.json"
_UNTIMED_STEPS = 2  # at the beginning of a measurement, while caches fill

OnStep = Callable[[], None]


@dataclass(frozen=True)
class Job:
    """One training."""

    data: str
    side: str
    weights: str
    seed: int

    @property
    def name(self) -> str:
        return f"{self.data}/{self.side}/{self.weights}/seed{self.seed}"

    @property
    def speed_key(self) -> str:
        """Jobs that differ in the seed alone take equally long."""
        return f"{self.data}/{self.side}/{self.weights}"

    @property
    def pretrained(self) -> bool:
        return self.weights == "pretrained"

    @classmethod
    def of_name(cls, name: str) -> Job:
        data, side, weights, seed = name.split("/")
        return cls(data, side, weights, int(seed.removeprefix("seed")))


@dataclass(frozen=True)
class Result:
    """What a finished job has reached.

    Attributes:
        quality: "PQ", "PQ_th", "PQ_st" and the others of the evaluator, in percent.
        iterations: that were trained.
        seconds: of a step on one thread of a quiet machine.
        curve: (iteration, PQ) of every evaluation.
        setting: of a peer.
    """

    quality: dict[str, float]
    iterations: int
    seconds: float
    curve: list[tuple[int, float]]
    setting: str = ""

    @property
    def minutes(self) -> float:
        """Core-minutes of training."""
        return self.iterations * self.seconds / 60


class Results:
    """The results of all finished jobs, kept in a file."""

    def __init__(self, root: Path) -> None:
        self._path = root / RESULTS

    def get(self, job: Job) -> Result | None:
        """None while the job is not finished."""
        found = _read_json(self._path).get(job.name)
        return Result(**found) if found else None

    def put(self, job: Job, result: Result) -> None:
        _update_json(self._path, {job.name: asdict(result)})


def make_jobs(
    sides: Iterable[str], data_sets: Iterable[str], seeds: Iterable[int], words: Iterable[str]
) -> list[Job]:
    """All jobs with every one of `words` in the name; the first seed of all sides comes first."""
    data_sets, sides, words = list(data_sets), list(sides), list(words)
    jobs = [
        Job(data, side, weights, seed)
        for seed in seeds
        for weights in WEIGHTS
        for data in data_sets
        for side in sides
    ]
    return [job for job in jobs if all(word in f"/{job.name}/" for word in words)]


def data_config(data: str) -> str:
    """The YAML file with the blocks of a data set."""
    return str(ROOT / f"configs/{data}/panoptic_fpn/Base-data-{data}.yaml")


class BestSettings:
    """The setting of each peer on each data set, chosen by `choose` and kept in a file."""

    def __init__(self, root: Path, defaults: dict[str, str]) -> None:
        """`defaults`: peer -> its setting until one has been chosen."""
        self._path, self._results, self._defaults = root / SETTINGS, Results(root), defaults

    def resolve(self, job: Job) -> Job:
        """The job with the peer's setting behind a colon; other jobs are left as they are."""
        if job.side not in self._defaults:
            return job
        chosen = _read_json(self._path).get(f"{job.data}/{job.side}", self._defaults[job.side])
        return replace(job, side=f"{job.side}:{chosen}")

    def choose(self, jobs: Iterable[Job]) -> dict[str, str]:
        """Keep the setting with the highest PQ among finished jobs, for each data set and peer."""
        best: dict[str, tuple[float, str]] = {}
        for job in jobs:
            side, _, setting = job.side.partition(":")
            result = self._results.get(job)
            if setting and result is not None:
                key, found = f"{job.data}/{side}", (result.quality["PQ"], setting)
                best[key] = max(best.get(key, found), found)
        chosen = {key: setting for key, (_, setting) in best.items()}
        _update_json(self._path, chosen)
        return chosen


def _read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _update_json(path: Path, entries: dict[str, Any]) -> None:
    """Add entries to a file; several queues may do so at once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        content = json.dumps({**_read_json(path), **entries}, indent=1, sort_keys=True)
        write_file(str(path), f"{content}\n".encode())
    finally:
        os.close(folder)


class Speeds:
    """Seconds per step of every side, kept in a file."""

    def __init__(self, root: Path) -> None:
        self._path = root / SPEEDS

    def get(self, job: Job) -> float | None:
        return _read_json(self._path).get(job.speed_key)

    def put(self, job: Job, seconds: float) -> None:
        _update_json(self._path, {job.speed_key: seconds})

    def iterations(self, job: Job, minutes: float) -> int:
        """How many steps fit into a budget."""
        return max(1, round(60 * minutes / _read_json(self._path)[job.speed_key]))


class Enough(BaseException):
    """Ends a training whose steps have been measured."""  # no Exception: trainers log those


class StepClock:
    """Called after every step: measures the processor's seconds, and ends the training.

    The processor's time leaves out what other programs take; they still slow down memory, so that a
    quiet machine is better.
    """

    def __init__(self, limit: float) -> None:
        """`limit`: seconds of processor time after which it raises `Enough`."""
        self._limit = limit
        self._start = time.process_time()
        self._stamps: list[float] = []

    def __call__(self) -> None:
        now = time.process_time()
        self._stamps.append(now)
        if now - self._start > self._limit and len(self._stamps) > _UNTIMED_STEPS + 1:
            raise Enough

    @property
    def seconds(self) -> float:
        """Mean of a step; image sizes differ from step to step."""
        timed = self._stamps[_UNTIMED_STEPS:]
        return (timed[-1] - timed[0]) / (len(timed) - 1)


def result_of_metrics(folder: Path, iterations: int, seconds: float, setting: str = "") -> Result:
    """The result of a finished training, from the metrics.json that Detectron2's writers make."""
    curves = {key: read_curve(str(folder), "", f"panoptic_seg/{key}") for key in QUALITY}
    quality = {key: curve.values[-1] for key, curve in curves.items()}
    # Trainings of a few steps have no times, by which `read_curve` knows the last evaluation.
    numbers = [min(number, iterations) for number in curves["PQ"].iterations]
    curve = list(zip(numbers, curves["PQ"].values, strict=True))
    return Result(quality, iterations, seconds, curve, setting)
