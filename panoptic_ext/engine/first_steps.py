"""How long training will take, said after its first steps rather than with the first losses."""

from __future__ import annotations

import datetime
import logging
import time

from detectron2.engine.train_loop import HookBase

__all__ = ["FirstStepsHook"]

logger = logging.getLogger(__name__)

_STEPS = 3


class FirstStepsHook(HookBase):
    """Log the time of the first step, then the time per step and for the rest.

    Losses follow every 20 iterations, which on a CPU can be minutes of silence.
    """

    def before_train(self) -> None:
        self._start = time.perf_counter()
        self._first = 0.0

    def after_step(self) -> None:
        step = self.trainer.iter - self.trainer.start_iter + 1
        if step > _STEPS:
            return
        seconds = time.perf_counter() - self._start
        if step == 1:
            self._first = seconds
            logger.info("The first iteration took %.1f s, preparations included", seconds)
        elif step == _STEPS:
            # Without the first step, which also starts the data workers and chooses algorithms.
            per_step = (seconds - self._first) / (_STEPS - 1)
            left = round(per_step * (self.trainer.max_iter - self.trainer.iter - 1))
            logger.info(
                "%.2f s per iteration: about %s for the %d that are left, evaluations aside",
                per_step,
                datetime.timedelta(seconds=left),
                self.trainer.max_iter - self.trainer.iter - 1,
            )
