"""Find the checkpoints in the output folder of a run, and move them aside."""

from __future__ import annotations

import glob
import itertools
import logging
import os
import re
import time
from collections.abc import Sequence

from panoptic_ext.data.datasets.metadata_file import METADATA_FILE
from panoptic_ext.regular_files import SMALL_FILE, file_problem

__all__ = [
    "BEST_CHECKPOINT",
    "BEST_METRIC_FILE",
    "FORMER_BEST",
    "RUN_FILES",
    "TAG",
    "best_checkpoint",
    "files_of_best",
    "periodic_checkpoints",
    "set_aside",
    "training_checkpoints",
]

TAG = "last_checkpoint"
"""Name of the file that holds the newest checkpoint's name, as Detectron2 writes it."""

BEST_CHECKPOINT = "model_best"
"""Name, without .pth, of the weights of the best evaluation (TEST.BEST_METRIC)."""
FORMER_BEST = "model_best_before"
"""Name, without .pth, of the best weights as of the last checkpoint, where there are better."""
BEST_METRIC_FILE = "best_metric.json"
"""Name of the file that lists the evaluations of a run by that metric."""

RUN_FILES = ("config.yaml", "run_info.json", "environment.txt", METADATA_FILE)
"""Names of the files that describe a run, see `save_run_info`."""

_TRAINING_FILE = re.compile(r"model_(\d{7}|final)\.pth")
_PERIODIC_FILE = re.compile(r"model_\d{7}\.pth")


def training_checkpoints(folder: str, logger: logging.Logger) -> list[str]:
    """Paths of the checkpoints in a folder: the one that the tag names, then the newest first."""
    paths = _matching(folder, _TRAINING_FILE)
    paths.sort(key=_modified, reverse=True)
    tag = os.path.join(folder, TAG)
    if file_problem(tag, SMALL_FILE):
        return paths
    try:
        with open(tag, encoding="utf-8") as stream:
            tagged = os.path.join(folder, os.path.basename(stream.read().strip()))
    except (OSError, UnicodeDecodeError):
        return paths
    if not os.path.isfile(tagged):
        if paths:
            logger.warning("%s names %s, which is not there", TAG, tagged)
        return paths
    return [tagged, *(path for path in paths if path != tagged)]


def periodic_checkpoints(folder: str) -> list[str]:
    """Paths of the checkpoints of single iterations, by iteration."""
    return sorted(_matching(folder, _PERIODIC_FILE))


def best_checkpoint(folder: str) -> str:
    """Path of the weights of a run's best evaluation; "" if there are none."""
    path = os.path.join(folder, f"{BEST_CHECKPOINT}.pth")
    return path if os.path.isfile(path) else ""


def files_of_best(folder: str) -> list[str]:
    """Paths of the files about a run's best evaluation that are there."""
    names = (f"{BEST_CHECKPOINT}.pth", f"{FORMER_BEST}.pth", BEST_METRIC_FILE)
    paths = (os.path.join(folder, name) for name in names)
    return [path for path in paths if os.path.isfile(path)]


def set_aside(folder: str, checkpoints: Sequence[str]) -> str:
    """Move checkpoints, the newest first in the list, and their tag into a new folder.

    What belongs to the best evaluation is moved, too, and what describes the run, so that its
    weights can still be loaded.

    Returns:
        That folder, `previous-<time>` in `folder`.
    """
    aside = _new_folder(os.path.join(folder, time.strftime("previous-%Y%m%d-%H%M%S")))
    # The oldest checkpoint is moved first, the tagged one last and the tag after it. A kill in
    # between then leaves either the newest state of the earlier run to resume from, or nothing.
    best = files_of_best(folder)
    for path in [*best, *reversed(checkpoints), os.path.join(folder, TAG)]:
        if os.path.isfile(path):
            os.replace(path, os.path.join(aside, os.path.basename(path)))
    for name in RUN_FILES:
        if os.path.isfile(path := os.path.join(folder, name)):
            os.replace(path, os.path.join(aside, name))
    return aside


def _matching(folder: str, name: re.Pattern[str]) -> list[str]:
    if not os.path.isdir(folder):
        return []
    paths = glob.glob(os.path.join(glob.escape(folder), "*.pth"))
    return [path for path in paths if name.fullmatch(os.path.basename(path))]


def _modified(path: str) -> float:
    """Time of the last write; 0 for a dangling link, which is skipped when it is read."""
    try:
        return os.path.getmtime(path)
    except OSError:
        return 0.0


def _new_folder(path: str) -> str:
    """Make the folder `path`, or `<path>-2`, `<path>-3`, ... if that exists already."""
    for number in itertools.count(1):
        folder = path if number == 1 else f"{path}-{number}"
        try:
            os.mkdir(folder)
        except FileExistsError:
            continue
        return folder
    raise AssertionError("not reached")
