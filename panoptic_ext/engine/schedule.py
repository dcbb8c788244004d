"""Learning rate schedules that Detectron2 lacks: poly, and a warm-up of the backbone's own."""

from __future__ import annotations

import logging
import math
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.solver import LRMultiplier
from fvcore.common.param_scheduler import ConstantParamScheduler

from panoptic_ext.engine.layer_decay import BACKBONE_MARK, check_layer_keys
from panoptic_ext.errors import ConfigError, check_known, quoted

__all__ = ["RateCurve", "Schedule", "Warmup", "poly_schedule", "two_warmups_schedule"]

logger = logging.getLogger(__name__)

Curve = Callable[[int, float], float]
"""Factor of an iteration and of its share of the way from a start to MAX_ITER, 0 to 1."""


@dataclass(frozen=True)
class Warmup:
    """The factor of a learning rate at its start.

    Attributes:
        start: the factor is 0 before this iteration.
        iterations: the factor grows during so many iterations, to 1.
        factor: of the first of these.
        method: "linear", or "constant" for `factor` in all of them.
    """

    start: int
    iterations: int
    factor: float
    method: str

    @property
    def end(self) -> int:
        """The first iteration of factor 1."""
        return self.start + self.iterations

    def __call__(self, iteration: int) -> float:
        if iteration < self.start:
            return 0.0
        if iteration >= self.end:
            return 1.0
        if self.method == "constant":
            return self.factor
        alpha = (iteration - self.start) / self.iterations
        return self.factor * (1 - alpha) + alpha


@dataclass(frozen=True)
class RateCurve:
    """The learning rate of a group of parameters, relative to its initial one.

    Attributes:
        warmup: multiplies the curve.
        curve: see `Curve`.
        start: iteration at which the curve starts; it is not applied before.
        max_iter: iteration at which the curve ends.
    """

    warmup: Warmup
    curve: Curve
    start: int
    max_iter: int

    def rate(self, base: float, iteration: int) -> float:
        """The learning rate of an iteration, where `base` is the initial one."""
        warm = base * self.warmup(iteration)
        if iteration < self.start:
            return warm
        share = (iteration - self.start) / (self.max_iter - self.start)
        return warm * self.curve(iteration, min(share, 1.0))


class Schedule(LRMultiplier):
    """One curve for each group of parameters.

    The state is the iteration and the initial rates, as in Detectron2's LRMultiplier, so that a
    resumed run has the curves of its own config, such as those of a larger MAX_ITER. The state of
    Detectron2's WarmupPolyLR, which earlier versions used, is taken, too.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, curves: Sequence[RateCurve]) -> None:
        """Args:
        optimizer: its groups have their initial rates.
        curves: as many as the optimizer has groups.
        """
        self._curves = tuple(curves)
        # The base class makes Detectron2's hook save the state; its one multiplier is not used.
        super().__init__(optimizer, ConstantParamScheduler(1.0), curves[0].max_iter)

    def get_lr(self) -> list[float]:
        """The learning rate of each group at iteration `last_epoch`."""
        return [
            curve.rate(base, self.last_epoch)
            for curve, base in zip(self._curves, self.base_lrs, strict=True)
        ]

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue at the iteration of a state, with the rates of this schedule's curves."""
        self.base_lrs = list(state_dict["base_lrs"])
        self.last_epoch = state_dict["last_epoch"]
        for group, rate in zip(self.optimizer.param_groups, self.get_lr(), strict=True):
            group["lr"] = rate


def poly_schedule(solver: CfgNode, optimizer: torch.optim.Optimizer) -> Schedule:
    """One warm-up, multiplied with a poly curve from iteration 0, as Detectron2's WarmupPolyLR.

    Raises:
        ConfigError: the method of the warm-up is unknown.
    """
    warmup = _warmup(solver, 0, solver.WARMUP_ITERS)
    curve = RateCurve(warmup, _CURVES["WarmupPolyLR"](solver), 0, solver.MAX_ITER)
    return Schedule(optimizer, [curve] * len(optimizer.param_groups))


def two_warmups_schedule(solver: CfgNode, optimizer: torch.optim.Optimizer) -> Schedule:
    """The backbone's warm-up after that of the others, each with its own curve behind it.

    As in the training of the published EoMT (Kerssies et al., CVPR 2025). The second warm-up may
    have no iteration, as for PMT, whose backbone is frozen.

    Raises:
        ConfigError: the schedule or the method of the warm-up is unknown; a number is negative; the
            two warm-ups leave no iteration for the curve; or SOLVER.STEPS do not increase.
    """
    check_layer_keys(solver)
    check_known("SOLVER.LR_SCHEDULER_NAME", solver.LR_SCHEDULER_NAME, _CURVES)
    first = _warmup(solver, 0, solver.WARMUP_ITERS)
    second = _warmup(solver, first.end, solver.BACKBONE_WARMUP_ITERS)
    if second.end >= solver.MAX_ITER:
        raise ConfigError(
            f"SOLVER.WARMUP_ITERS {solver.WARMUP_ITERS} and BACKBONE_WARMUP_ITERS "
            f"{solver.BACKBONE_WARMUP_ITERS} are {second.end} iterations, expected less than "
            f"SOLVER.MAX_ITER {solver.MAX_ITER}: raise it or lower them"
        )
    curve = _CURVES[solver.LR_SCHEDULER_NAME](solver)
    others, backbone = (
        RateCurve(warmup, curve, warmup.end, solver.MAX_ITER) for warmup in (first, second)
    )
    marks = [group.get(BACKBONE_MARK, False) for group in optimizer.param_groups]
    if solver.BACKBONE_WARMUP_ITERS and not any(marks):
        logger.warning(
            "SOLVER.BACKBONE_WARMUP_ITERS is %d, but no parameter of a backbone is trained",
            solver.BACKBONE_WARMUP_ITERS,
        )
    return Schedule(optimizer, [backbone if marked else others for marked in marks])


def _warmup(solver: CfgNode, start: int, iterations: int) -> Warmup:
    check_known("SOLVER.WARMUP_METHOD", solver.WARMUP_METHOD, ("linear", "constant"))
    return Warmup(start, iterations, solver.WARMUP_FACTOR, solver.WARMUP_METHOD)


def _poly(solver: CfgNode) -> Curve:
    power, least = solver.POLY_LR_POWER, solver.POLY_LR_CONSTANT_ENDING
    return lambda iteration, share: max(math.pow(1.0 - share, power), least)


def _cosine(solver: CfgNode) -> Curve:
    return lambda iteration, share: 0.5 * (1.0 + math.cos(math.pi * share))


def _multi_step(solver: CfgNode) -> Curve:
    steps, gamma = list(solver.STEPS), solver.GAMMA
    if steps != sorted(set(steps)):
        raise ConfigError(f"SOLVER.STEPS = {quoted(solver.STEPS)}, expected increasing iterations")
    return lambda iteration, share: gamma ** bisect_right(steps, iteration)


_CURVES = {"WarmupPolyLR": _poly, "WarmupCosineLR": _cosine, "WarmupMultiStepLR": _multi_step}
