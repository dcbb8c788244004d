"""What the console says between the rows of 20 iterations: how far a training is, and for how long.

The rows of Detectron2's printer come each 20 iterations, which takes minutes on a CPU.
"""

from __future__ import annotations

import logging
import statistics
from collections import deque
from datetime import timedelta
from time import perf_counter

from detectron2.config import CfgNode
from detectron2.engine.train_loop import HookBase

from panoptic_ext.engine.writers import ROW_PERIOD

__all__ = ["ProgressHook", "now"]

logger = logging.getLogger(__name__)

now = perf_counter
"""The clock, in seconds."""

_NUM_FIRST_STEPS = 3
_FIRST_INTERVAL, _LONGEST_INTERVAL = 5.0, 30.0  # seconds between lines
_NUM_RECENT_STEPS = 20


class ProgressHook(HookBase):
    """Log where results will lie, the time of the first steps, and lines at growing intervals.

    After the first step a line comes 5 seconds after the one before it, then 10, 20 and 30 seconds,
    unless a row of the writers does. metrics.json is not changed by them.
    """

    def __init__(self, cfg: CfgNode) -> None:
        """
        Args:
            cfg: OUTPUT_DIR, SOLVER.TIME_BUDGET and the periods are read.
        """
        self._where = _where_results_lie(cfg)
        # A time budget sets the number of iterations after three of them.
        self._num_first_steps = _NUM_FIRST_STEPS + bool(cfg.SOLVER.TIME_BUDGET)
        self._seconds: deque[float] = deque(maxlen=_NUM_RECENT_STEPS)
        self._interval = _FIRST_INTERVAL
        self._began = self._logged = 0.0

    def before_train(self) -> None:
        logger.info("%s", self._where)
        self._began = self._logged = now()

    def before_step(self) -> None:
        if self.trainer.iter > self.trainer.start_iter:  # else with what was prepared for the first
            self._began = now()

    def after_step(self) -> None:
        trainer = self.trainer
        seconds, step = now() - self._began, trainer.iter - trainer.start_iter + 1
        if step == 1:
            self._log("The first iteration took %.1f s, preparations included", seconds)
            return
        # Without the first step, which also starts the data workers and chooses algorithms.
        self._seconds.append(seconds)
        num_done = trainer.iter + 1
        if step == self._num_first_steps:
            self._log(
                "%.2f s per iteration: about %s for the %d that are left, evaluations aside",
                statistics.fmean(self._seconds),
                self._time_left(),
                trainer.max_iter - num_done,
            )
        elif num_done % ROW_PERIOD == 0:
            self._logged = now()
        elif now() - self._logged >= self._interval and not self._is_row_near(num_done):
            self._log(
                "%d of %d iterations (%d %%): total_loss %.4g, %.2f s per iteration, about %s left",
                num_done,
                trainer.max_iter,
                100 * num_done // trainer.max_iter,
                trainer.storage.history("total_loss").latest(),
                statistics.median(self._seconds),
                self._time_left(),
            )
            self._interval = min(2 * self._interval, _LONGEST_INTERVAL)

    def _log(self, text: str, *values: object) -> None:
        logger.info(text, *values)
        self._logged = now()

    def _is_row_near(self, num_done: int) -> bool:
        num_until = min(-num_done % ROW_PERIOD, self.trainer.max_iter - num_done)
        return num_until * statistics.median(self._seconds) < self._interval / 3

    def _time_left(self) -> timedelta:
        num_left = self.trainer.max_iter - self.trainer.iter - 1
        return timedelta(seconds=round(statistics.median(self._seconds) * num_left))


def _where_results_lie(cfg: CfgNode) -> str:
    """One line: the folder, and what will come when."""
    evaluations = "evaluations at the end"
    if cfg.TEST.EVAL_PERIOD:
        evaluations = f"evaluations every {cfg.TEST.EVAL_PERIOD} iterations and at the end"
    if not cfg.DATASETS.TEST:
        evaluations = "no evaluation, because DATASETS.TEST is empty"
    scale = " (iterations of the schedule)" if cfg.SOLVER.TIME_BUDGET else ""
    return (
        f"Results will lie in {cfg.OUTPUT_DIR}: log.txt, checkpoints every "
        f"{cfg.SOLVER.CHECKPOINT_PERIOD} iterations, {evaluations}{scale}"
    )
