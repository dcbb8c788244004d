"""A schedule that a training passes faster or slower than its config says.

The config's schedule has SOLVER.MAX_ITER iterations. A position in it is counted in these
iterations, 0 to MAX_ITER, and need not be whole.
"""

from __future__ import annotations

import math
from dataclasses import astuple, dataclass
from typing import Any

from detectron2.config import CfgNode
from detectron2.solver import LRMultiplier
from fvcore.common.param_scheduler import ConstantParamScheduler

from panoptic_ext.errors import ConfigError

__all__ = ["Stretch", "StretchedSchedule", "Timeline", "build_timeline", "stretched"]


@dataclass(frozen=True)
class Stretch:
    """A part of a training that passes the schedule evenly.

    Attributes:
        start: iteration of the training at which it starts.
        position: in the schedule at this iteration.
        end: iteration at which the schedule ends, more than `start`.
    """

    start: int
    position: float
    end: int


class Timeline:
    """Which iteration of a training has which position in the schedule.

    Positions are continuous: where a new stretch starts, the speed changes and nothing else.

    Attributes:
        max_iter: iterations of the schedule.
    """

    def __init__(self, max_iter: int, first: Stretch) -> None:
        self.max_iter = max_iter
        self._stretches = [first]

    @property
    def end(self) -> int:
        """The iteration at which the training ends."""
        return self._stretches[-1].end

    def position(self, iteration: int) -> float:
        """The position of an iteration, 0 to `max_iter`."""
        stretch = next(s for s in reversed(self._stretches) if s.start <= iteration or not s.start)
        share = min((iteration - stretch.start) / (stretch.end - stretch.start), 1.0)
        return stretch.position + share * (self.max_iter - stretch.position)

    def turn(self, iteration: int, end: int) -> None:
        """From `iteration` on, go on evenly so that the schedule ends at `end`."""
        self.jump(Stretch(iteration, self.position(iteration), end))

    def jump(self, stretch: Stretch) -> None:
        """Go on with a stretch, which may start at another position."""
        self._stretches = [s for s in self._stretches if s.start < stretch.start]
        self._stretches.append(stretch)

    def is_due(self, period: int, iteration: int) -> bool:
        """Whether a period of the schedule ends with an iteration of the training; 0: never."""
        return bool(period) and self._passed(period, iteration + 1) > self._passed(
            period, iteration
        )

    def num_due(self, period: int, iteration: int) -> int:
        """How often a period of the schedule still ends from an iteration on, before the end."""
        if not period:
            return 0
        return max(0, math.ceil(self.max_iter / period) - 1 - self._passed(period, iteration))

    def _passed(self, period: int, iteration: int) -> int:
        return math.floor(self.position(iteration) / period + 1e-9)

    def state(self) -> list[list[float]]:
        """The stretches, as plain values."""
        return [[float(value) for value in astuple(s)] for s in self._stretches]

    def load(self, state: list[list[float]]) -> None:
        """Inverse of `state`.

        Raises:
            ValueError: the state is wrong.
        """
        stretches = [Stretch(int(start), position, int(end)) for start, position, end in state]
        if not stretches or any(s.end <= s.start for s in stretches):
            raise ValueError(f"stretches {state}, expected [start, position, end] with end > start")
        self._stretches = stretches


class StretchedSchedule(LRMultiplier):
    """A schedule of Detectron2 or ours at the positions of a timeline.

    The state is that of the schedule, with the training's iterations.
    """

    def __init__(self, schedule: LRMultiplier, timeline: Timeline) -> None:
        self._schedule: Any = schedule
        self._timeline = timeline
        # The base class keeps state and steps; its one multiplier is not used.
        super().__init__(schedule.optimizer, ConstantParamScheduler(1.0), timeline.max_iter)

    def get_lr(self) -> list[float]:
        """The learning rate of each group at iteration `last_epoch` of the training."""
        self._schedule.base_lrs = self.base_lrs
        self._schedule.last_epoch = self._timeline.position(self.last_epoch)
        return self._schedule.get_lr()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue at the iteration of a state."""
        self.base_lrs = list(state_dict["base_lrs"])
        self.last_epoch = state_dict["last_epoch"]
        for group, rate in zip(self.optimizer.param_groups, self.get_lr(), strict=True):
            group["lr"] = rate


def build_timeline(cfg: CfgNode) -> Timeline | None:
    """The timeline of a training to SOLVER.TIME_BUDGET before any step is measured, or None."""
    if not cfg.SOLVER.TIME_BUDGET:
        return None
    max_iter = cfg.SOLVER.MAX_ITER
    # At most a hundredth of the schedule is passed before the first steps have been measured.
    return Timeline(max_iter, Stretch(0, 0.0, max(max_iter, 300)))


def stretched(schedule: Any, timeline: Timeline | None) -> Any:
    """A learning rate schedule on a timeline; without one the same schedule.

    Raises:
        ConfigError: the schedule is not one of Detectron2's kind.
    """
    if timeline is None:
        return schedule
    if not isinstance(schedule, LRMultiplier):
        raise ConfigError(
            f"SOLVER.TIME_BUDGET needs a learning rate schedule of Detectron2's class LRMultiplier,"
            f" found {type(schedule).__name__}; set it to 0, or have build_lr_scheduler return one"
        )
    return StretchedSchedule(schedule, timeline)
