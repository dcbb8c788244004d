"""SOLVER.TIME_BUDGET: as many iterations as fit into so many minutes, and the whole schedule."""

from __future__ import annotations

import logging
import math
import statistics
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

from detectron2.config import CfgNode
from detectron2.engine import hooks
from detectron2.engine.train_loop import HookBase
from detectron2.utils import comm

from panoptic_ext.engine.evaluation_time import estimate_evaluation
from panoptic_ext.engine.hooks import CheckpointHook
from panoptic_ext.engine.stretched_schedule import Stretch, Timeline
from panoptic_ext.errors import ConfigError

__all__ = ["StepTimes", "TimeBudgetHook", "now"]

logger = logging.getLogger(__name__)

now = perf_counter
"""The clock, in seconds."""

_NUM_FIRST_STEPS = (
    3  # measured before the first plan; the first of them prepares much and is left out
)
_NUM_LATEST_STEPS = 10  # at least, of those that a later plan looks at
_LONGEST_STEP = 4  # times the median
_NOISE = 0.1  # of the budget, at most, by which an uncertain end may miss it
_LEAST_SECONDS = 30.0  # between two checkpoints
_SHARE_OF_CHECKPOINTS = 0.03  # of the time, at most
_TOLERANCE = 0.02  # of the budget: a plan that ends earlier or later by more is changed


@dataclass
class StepTimes:
    """Seconds that parts of a training take.

    Attributes:
        steps: of iterations without an evaluation or a checkpoint, the first one left out.
        evaluation: of the last evaluation with what was due beside it; None: not known yet.
        checkpoint: of the last checkpoint that was written alone; None: not known yet.
    """

    steps: list[float] = field(default_factory=list)
    evaluation: float | None = None
    checkpoint: float | None = None

    def step(self) -> float:
        """Mean of the latest steps: the machine may have become faster or slower."""
        return statistics.fmean(self._latest())

    def uncertainty(self) -> float:
        """Standard error of `step`."""
        latest = self._latest()
        return statistics.stdev(latest) / math.sqrt(len(latest)) if len(latest) > 1 else 0.0

    def _latest(self) -> list[float]:
        latest = self.steps[-max(len(self.steps) // 5, _NUM_LATEST_STEPS) :]
        # A machine that slept for a minute does not make all further steps slow.
        longest = _LONGEST_STEP * statistics.median(latest)
        return [min(seconds, longest) for seconds in latest]

    def between_checkpoints(self) -> float:
        """Seconds between two checkpoints, at least: a short budget makes periods short, too."""
        return max(_LEAST_SECONDS, (self.checkpoint or 0.0) / _SHARE_OF_CHECKPOINTS)

    def state(self) -> dict[str, Any]:
        """What a resumed run knows from the beginning, as plain values."""
        return {
            "steps": self.steps[-_NUM_LATEST_STEPS:] or None,
            "evaluation": self.evaluation,
            "checkpoint": self.checkpoint,
        }


@dataclass(frozen=True)
class _Decision:
    """What the main process decides for all workers."""

    end: int | None  # iteration at which the training ends; None leaves it as it is
    next_check: int  # iteration
    gap: int  # iterations between two checkpoints, at least


class TimeBudgetHook(HookBase):
    """Set the trainer's `max_iter` by the time of its steps; move the schedule along.

    After the first steps the number of iterations is set. The time of a step is compared with the
    plan again as the training goes on, and the rest is planned anew where the end would miss the
    budget by more than a fiftieth of it. The plan and the time used are in the checkpoint: as long
    as nothing is planned anew, a resumed run equals an uninterrupted one.

    The hook must come first of those that take time, and run on all workers.
    """

    def __init__(self, cfg: CfgNode, timeline: Timeline) -> None:
        """
        Args:
            cfg: SOLVER.TIME_BUDGET, CHECKPOINT_PERIOD, TEST.EVAL_PERIOD and DATASETS.TEST are read.
            timeline: of the training, which this hook changes.
        """
        self._budget = cfg.SOLVER.TIME_BUDGET * 60
        self._timeline = timeline
        self._periods = {
            "evaluation": cfg.TEST.EVAL_PERIOD,
            "checkpoint": cfg.SOLVER.CHECKPOINT_PERIOD,
        }
        self._num_last_evaluations = int(bool(cfg.DATASETS.TEST))
        self._times = StepTimes()
        self._used = 0.0  # seconds, before this process
        self._began = self._checked = now()
        self._is_planned = False
        self._loaded_budget: float | None = None
        self._next_check = 0
        self._interval = math.inf  # seconds to the next check
        self._gap = _NUM_FIRST_STEPS + 1  # no checkpoint before the first plan
        self._last_checkpoint = -1  # its iteration
        self._due: list[str] = []  # names of `_periods` that end with the iteration
        self._cycle = (0.0, 0.0)  # when the last step began and ended

    def before_train(self) -> None:
        start = self.trainer.start_iter
        self._began = self._checked = now()
        self._last_checkpoint = start - 1
        if not self._is_planned:
            self._next_check = start + _NUM_FIRST_STEPS
        if start and self._loaded_budget != self._budget:
            if self._loaded_budget is None:
                self._join(start)
            else:
                self._change_budget(start)
            schedule = self.trainer.scheduler
            schedule.load_state_dict(schedule.state_dict())  # the rate of the first step
        # Of the last iteration of the checkpoint: its evaluation may have been cut off.
        self._schedule_hooks(start - 1)

    def before_step(self) -> None:
        iteration = self.trainer.iter
        self._note_cycle(iteration)
        if iteration > self.trainer.start_iter and self._is_check_due(iteration):
            # The clock of one worker decides, so that all train equally long.
            decision = comm.all_gather(self._decide(iteration))[0]
            self._next_check, self._checked = decision.next_check, now()
            self._gap = decision.gap
            if decision.end is not None:
                self._timeline.turn(iteration, decision.end)
        self._schedule_hooks(iteration)
        position = self._timeline.position(iteration)
        self.trainer.storage.put_scalar("schedule_iteration", position, smoothing_hint=False)
        self._cycle = (now(), 0.0)

    def after_step(self) -> None:
        self._cycle = (self._cycle[0], now())

    def after_train(self) -> None:
        if self.trainer.iter >= self.trainer.max_iter:
            logger.info(
                "SOLVER.TIME_BUDGET: %d iterations and what lay between took %.1f of %g minutes%s",
                self.trainer.max_iter,
                self._seconds_used() / 60,
                self._budget / 60,
                "; the last evaluation follows" if self._num_last_evaluations else "",
            )

    def state_dict(self) -> dict[str, Any]:
        return {
            "budget": self._budget,
            "used": self._seconds_used(),
            "times": self._times.state(),
            "next_check": self._next_check,
            "stretches": self._timeline.state() if self._is_planned else None,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._loaded_budget, self._used = state_dict["budget"], state_dict["used"]
        times = state_dict["times"]
        steps = [float(seconds) for seconds in times["steps"] or []]
        self._times = StepTimes(steps, times["evaluation"], times["checkpoint"])
        self._next_check = int(state_dict["next_check"])
        if state_dict["stretches"] is not None:
            self._timeline.load(state_dict["stretches"])
            self._is_planned = True
            self._gap = self._least_gap() if steps else self._gap
            self.trainer.max_iter = self._timeline.end

    def _seconds_used(self) -> float:
        return self._used + now() - self._began

    def _join(self, start: int) -> None:
        """Take over a run without a budget: what is left of its schedule fills the budget."""
        if start >= self._timeline.max_iter:
            raise ConfigError(
                f"the run has done all {self._timeline.max_iter} iterations of SOLVER.MAX_ITER, so "
                "SOLVER.TIME_BUDGET has nothing to fill. Raise MAX_ITER, or start a new run from "
                "its weights (MODEL.WEIGHTS, another OUTPUT_DIR)"
            )
        self._timeline.jump(Stretch(start, float(start), start + self._timeline.end))

    def _change_budget(self, start: int) -> None:
        """Take over a run of another budget, as one with another MAX_ITER is taken over."""
        share = min(self._used / self._budget, 1.0)
        end = start + self._timeline.end
        self._timeline.jump(Stretch(start, share * self._timeline.max_iter, end))
        if self._times.steps:
            # One worker decides, as in `before_step`: by the clocks of others the end is another.
            end = self._planned_end(start) if comm.is_main_process() else 0
            self._timeline.turn(start, comm.all_gather(end)[0])

    def _schedule_hooks(self, iteration: int) -> None:
        """Have the hooks of checkpoints and evaluations run after this iteration, or not."""
        self.trainer.max_iter = self._timeline.end
        self._due = [n for n, p in self._periods.items() if self._timeline.is_due(p, iteration)]
        if "checkpoint" in self._due:
            # In iterations, because all workers must decide alike.
            if iteration - self._last_checkpoint < self._gap:
                self._due.remove("checkpoint")
            else:
                self._last_checkpoint = iteration
        for hook in self.trainer._hooks:
            name = "checkpoint" if isinstance(hook, CheckpointHook) else "evaluation"
            if isinstance(hook, (CheckpointHook, hooks.EvalHook, hooks.PreciseBN)):
                # The other number is no divisor of iteration + 1.
                hook._period = 1 if name in self._due else iteration + 3

    def _least_gap(self) -> int:
        return math.ceil(self._times.between_checkpoints() / max(self._times.step(), 1e-9))

    def _note_cycle(self, iteration: int) -> None:
        """Note what the iteration before this one took, with all that followed its step."""
        began, ended = self._cycle
        if iteration <= self.trainer.start_iter + 1:
            return  # there is none, or it started data workers and chose algorithms
        if self._due:
            setattr(self._times, self._due[0], now() - ended)
        self._times.steps.append((ended if self._due else now()) - began)

    def _is_check_due(self, iteration: int) -> bool:
        if iteration >= self._next_check:
            return True
        # One worker alone need not wait for the iteration if the machine has become slow.
        return (
            comm.get_world_size() == 1
            and iteration - self.trainer.start_iter > _NUM_FIRST_STEPS
            and now() - self._checked > 2 * self._interval
        )

    def _decide(self, iteration: int) -> _Decision:
        end = None
        if comm.is_main_process():
            seconds = self._times.step()
            end = self._planned_end(iteration)
            miss = (end - self._timeline.end) * seconds
            noise = 2 * self._times.uncertainty() * (self._timeline.end - iteration)
            allowed = max(_TOLERANCE * self._budget, min(noise, _NOISE * self._budget))
            if self._is_planned and abs(miss) <= allowed:
                end = None
            else:
                self._explain(iteration, end)
        self._is_planned = True
        # Soon at first, when few steps have been measured, later in shares of the budget.
        left = self._budget - self._seconds_used()
        self._interval = min(
            (now() - self._began) / 2, 0.05 * self._budget, max(left / 2, 0.01 * self._budget)
        )
        num_steps = max(1, round(self._interval / max(self._times.step(), 1e-9)))
        return _Decision(end, iteration + num_steps, self._least_gap())

    def _planned_end(self, iteration: int) -> int:
        """The iteration that fills the budget, if the training goes on as measured."""
        reserve = self._reserve(iteration)  # its guess takes time
        left = self._budget - self._seconds_used() - reserve
        return iteration + max(1, math.floor(left / max(self._times.step(), 1e-9)))

    def _reserve(self, iteration: int) -> float:
        """Seconds of the evaluations and checkpoints that will come."""
        if self._times.evaluation is None and self._num_last_evaluations:
            # A guess, which the first evaluation replaces.
            self._times.evaluation = estimate_evaluation(self.trainer)
        num_evaluations, num_checkpoints = (
            self._timeline.num_due(period, iteration) for period in self._periods.values()
        )
        left = self._budget - self._seconds_used()
        num_checkpoints = min(num_checkpoints, int(left / self._times.between_checkpoints()))
        return (num_evaluations + self._num_last_evaluations) * (self._times.evaluation or 0.0) + (
            num_checkpoints + 1
        ) * (self._times.checkpoint or 0.0)

    def _explain(self, iteration: int, end: int) -> None:
        reserve = self._reserve(iteration) / 60
        logger.info(
            "SOLVER.TIME_BUDGET: %.3g s per iteration, %.1f of %g minutes used%s: %s%d iterations "
            "in all, which pass the schedule of %d",
            self._times.step(),
            self._seconds_used() / 60,
            self._budget / 60,
            f", {reserve:.1f} kept for evaluations and checkpoints" if reserve >= 0.05 else "",
            f"{self._timeline.end} become " if self._is_planned else "",
            end,
            self._timeline.max_iter,
        )
