"""Where losses and results are written: the console, metrics.json, TensorBoard, wandb, mlflow."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable
from typing import Any

from detectron2.config import CfgNode
from detectron2.engine import hooks
from detectron2.engine.train_loop import HookBase
from detectron2.utils.events import (
    CommonMetricPrinter,
    EventWriter,
    JSONWriter,
    TensorboardXWriter,
)

from panoptic_ext.atomic import write_atomic
from panoptic_ext.engine.trackers import MlflowWriter, WandbWriter
from panoptic_ext.errors import NOT_JSON, ConfigError
from panoptic_ext.optional_packages import import_optional
from panoptic_ext.regular_files import LOG_FILE, check_regular_file

__all__ = ["ROW_PERIOD", "ConsoleWriter", "WriterHook", "trim_metrics"]

logger = logging.getLogger(__name__)

ROW_PERIOD = 20
"""Iterations between two rows of the writers."""

_TRACKERS = {"wandb": WandbWriter, "mlflow": MlflowWriter}


class ConsoleWriter(EventWriter):
    """Detectron2's CommonMetricPrinter, for a training whose length may change on the way."""

    def __init__(self, max_iter: Callable[[], int]) -> None:
        self._max_iter = max_iter
        self._length = max_iter()
        self._printer = CommonMetricPrinter(self._length)

    def write(self) -> None:
        if self._length != self._max_iter():
            self._length = self._max_iter()
            self._printer = CommonMetricPrinter(self._length)
        self._printer.write()


class WriterHook(HookBase):
    """Write losses and results to the places of LOGGERS.

    Values that an earlier attempt wrote for iterations that are now trained again are removed from
    metrics.json and TensorBoard's view.
    """

    def __init__(self, cfg: CfgNode) -> None:
        """
        Args:
            cfg: LOGGERS and OUTPUT_DIR are read, and the keys of the loggers.

        Raises:
            ConfigError: the package of a logger is not installed.
        """
        self._cfg = cfg
        for name in sorted(_TRACKERS.keys() & {*cfg.LOGGERS}):
            import_optional(name, name, f"LOGGERS {name}")
        self._writers: list[Any] = []
        self._inner: hooks.PeriodicWriter | None = None

    def before_train(self) -> None:
        # Not in the constructor: a run that fails before its training leaves the files untouched.
        trainer, folder = self.trainer, self._cfg.OUTPUT_DIR
        start, path = trainer.start_iter, os.path.join(folder, "metrics.json")
        purge: dict[str, Any] = {"purge_step": start} if start else {}
        self._writers = []
        for name in dict.fromkeys(self._cfg.LOGGERS):
            if name == "console":
                self._writers.append(ConsoleWriter(lambda: trainer.max_iter))
            elif name == "json":
                trim_metrics(path, start)
                self._writers.append(JSONWriter(path))
            elif name == "tensorboard":
                self._writers.append(TensorboardXWriter(folder, **purge))
            else:
                self._writers.append(_TRACKERS[name](self._cfg, start))
        self._inner = hooks.PeriodicWriter(self._writers, ROW_PERIOD)
        self._inner.trainer = trainer

    def after_step(self) -> None:
        assert self._inner is not None
        self._inner.after_step()

    def after_train(self) -> None:
        if self._inner is not None:
            self._inner.after_train()
            self._inner = None

    def close(self) -> None:
        """Close the files without a row for the last iteration.

        The resumed run writes the rows that are due.
        """
        if self._inner is not None:
            for writer in self._writers:
                writer.close()
            self._inner = None


def trim_metrics(path: str, start_iter: int) -> None:
    """Remove the lines of metrics.json from `start_iter` on, and lines that are no whole JSON.

    If `start_iter` is 0, the file of the earlier run is renamed instead.
    """
    if not os.path.exists(path):
        return
    if start_iter == 0:
        renamed = f"{path[: -len('.json')]}-before-{time.strftime('%Y%m%d-%H%M%S')}.json"
        os.replace(path, renamed)
        logger.info("%s of an earlier run is now %s", path, renamed)
        return
    check_regular_file(path, LOG_FILE, error=ConfigError)
    kept = []
    with open(path, encoding="utf-8", errors="replace") as stream:
        for line in stream:
            try:
                if json.loads(line)["iteration"] < start_iter:
                    kept.append(line if line.endswith("\n") else line + "\n")
            except (*NOT_JSON, KeyError, TypeError):
                continue
    write_atomic(path, lambda stream: stream.write("".join(kept).encode()))
