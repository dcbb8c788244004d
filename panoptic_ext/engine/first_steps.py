"""Log how long training will take, after its first steps."""

from __future__ import annotations

import datetime
import logging
import time

from detectron2.engine.train_loop import HookBase

__all__ = ["FirstStepsHook"]

logger = logging.getLogger(__name__)

_NUM_STEPS = 3


class FirstStepsHook(HookBase):
    """Log the time of the first step, then the time per step and for the remaining ones."""

    # The writers log first after 20 iterations, which takes minutes on a CPU.

    def before_train(self) -> None:
        self._start = time.perf_counter()
        self._seconds_of_first = 0.0

    def after_step(self) -> None:
        step = self.trainer.iter - self.trainer.start_iter + 1
        if step > _NUM_STEPS:
            return
        seconds = time.perf_counter() - self._start
        if step == 1:
            self._seconds_of_first = seconds
            logger.info("The first iteration took %.1f s, preparations included", seconds)
        elif step == _NUM_STEPS:
            # Without the first step, which also starts the data workers and chooses algorithms.
            per_step = (seconds - self._seconds_of_first) / (_NUM_STEPS - 1)
            num_left = self.trainer.max_iter - self.trainer.iter - 1
            logger.info(
                "%.2f s per iteration: about %s for the %d that are left, evaluations aside",
                per_step,
                datetime.timedelta(seconds=round(per_step * num_left)),
                num_left,
            )
