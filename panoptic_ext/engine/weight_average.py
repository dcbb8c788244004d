"""Exponential moving average (EMA) of the weights that a training changes.

Polyak and Juditsky (SIAM J. Control and Optimization, 1992) average the iterates of stochastic
approximation; the exponential weights and their warm-up are those of common practice, as in timm.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from detectron2.config import CfgNode
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from panoptic_ext.engine.checkpoint.parts import PartError, check_integer, check_kind, check_like
from panoptic_ext.errors import ConfigError

__all__ = [
    "WeightAverage",
    "build_weight_average",
    "check_average_keys",
    "check_average_state",
    "restore_average",
]

logger = logging.getLogger(__name__)

_STATISTICS = ("running_mean", "running_var")
_PART = "trainer.weight_average"


class WeightAverage:
    """The average of a model's trained parameters and of the statistics of its norms.

    Frozen parameters are not kept a second time. Averages are at least float32. All workers have
    equal parameters, hence equal averages; their statistics differ, as those of the model do.

    Attributes:
        updates: how many updates the average has seen.
    """

    def __init__(self, model: nn.Module, *, decay: float, warmup: bool = True) -> None:
        """
        Args:
            model: not wrapped in DistributedDataParallel, on its device; the first average is its
                weights.
            decay: share of the old average that an update keeps, 0 to less than 1.
            warmup: keep min(decay, (1 + t) / (10 + t)) after t updates.
        """
        self.updates = 0
        self._model = model
        self._decay = decay
        self._warmup = warmup
        self._parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
        self._average: dict[str, Tensor] = {}
        self.restart()

    @property
    def decay(self) -> float:
        """Share of the average that the next update keeps."""
        if not self._warmup:
            return self._decay
        return min(self._decay, (1 + self.updates) / (10 + self.updates))

    def update(self) -> None:
        """Take the model's weights into the average, after a step of the optimizer."""
        averages = list(self._average.values())
        if averages:
            live = self._live().values()
            current = [t.detach().to(a.dtype) for t, a in zip(live, averages, strict=True)]
            get_ema_multi_avg_fn(self.decay)(averages, current, None)
        self.updates += 1

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Give the model the averages in the block, and its trained weights back after it.

        Statistics of norms that the block computes, as PreciseBN does, become the average's.
        """
        trained = {name: tensor.detach().clone() for name, tensor in self._live().items()}
        # In place and not through `.data`: what is cached of a weight sees a new version then.
        _copy(self._average, self._live())
        try:
            yield
        finally:
            _copy(_norm_statistics(self._model), self._average)
            _copy(trained, self._live())

    def weights(self) -> dict[str, Tensor]:
        """The state dict of the model with averages in place of the trained weights."""
        averages = {id(tensor): self._average[name] for name, tensor in self._live().items()}
        state = self._model.state_dict(keep_vars=True)
        return {
            name: averages.get(id(value), value).detach().to(value.dtype)
            for name, value in state.items()
        }

    def state_dict(self) -> dict[str, Any]:
        """The number of updates and, as "trained", the model's own weights.

        The averages are not part of it: a checkpoint holds them as its "model", see `weights`.
        """
        trained = {name: tensor.detach() for name, tensor in self._live().items()}
        return {"updates": self.updates, "trained": trained}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue, where the model has just been loaded with `weights`."""
        self.restart()
        self.updates = state["updates"]
        _copy(state["trained"], self._live())

    def restart(self) -> None:
        """Begin anew with the weights that the model has now, as after loading them."""
        self.updates = 0
        self._average = {name: _widened(tensor) for name, tensor in self._live().items()}

    def _live(self) -> dict[str, Tensor]:
        # The statistics are looked up anew, because PreciseBN gives a norm other tensors.
        return {**self._parameters, **_norm_statistics(self._model)}


def build_weight_average(cfg: CfgNode, model: nn.Module) -> WeightAverage | None:
    """The average of SOLVER.EMA, or None where that is not enabled."""
    ema = cfg.SOLVER.EMA
    return WeightAverage(model, decay=ema.DECAY, warmup=ema.WARMUP) if ema.ENABLED else None


def check_average_keys(cfg: CfgNode) -> None:
    """Raise ConfigError if SOLVER.EMA.DECAY is out of its range."""
    if not 0 <= cfg.SOLVER.EMA.DECAY < 1:
        raise ConfigError(
            f"SOLVER.EMA.DECAY = {cfg.SOLVER.EMA.DECAY}, expected 0 to less than 1, such as 0.999"
        )


def check_average_state(state: Any, model: nn.Module) -> None:
    """Raise PartError unless `restore_average` can use `state`; None, of a run without, can be."""
    if state is None:
        return
    check_kind(_PART, state, dict)
    check_integer(f"{_PART}.updates", state.get("updates"))
    trained = state.get("trained")
    check_kind(f"{_PART}.trained", trained, dict)
    tensors = dict([*model.named_parameters(), *model.named_buffers()])
    for name, value in trained.items():
        if name not in tensors:
            raise PartError(f"{_PART}.trained", f"has {name}, which the model does not have")
        check_like(f"{_PART}.trained.{name}", value, tensors[name])


def restore_average(state: Any, average: WeightAverage | None, model: nn.Module) -> None:
    """Give a model, loaded from a checkpoint, and its average the state of that checkpoint.

    Args:
        state: `WeightAverage.state_dict` of the checkpoint, or None if its run had no average.
        average: that of this run, or None.
        model: not wrapped; it gets its trained weights back.
    """
    if average is not None and state is not None:
        lacking = sorted(average.state_dict()["trained"].keys() - state["trained"].keys())
        if lacking:
            logger.warning(
                "The checkpoint was averaged without %d tensors, such as %s: their average starts "
                "with their value",
                len(lacking),
                lacking[0],
            )
        average.load_state_dict(state)
    elif average is not None:
        logger.warning(
            "The checkpoint has no average of weights: SOLVER.EMA starts at this iteration"
        )
        average.restart()
    elif state is not None:
        logger.warning(
            "The checkpoint has averaged weights (SOLVER.EMA), which this run does not go on with: "
            "it goes on with the trained ones"
        )
        _copy(state["trained"], dict([*model.named_parameters(), *model.named_buffers()]))


def _norm_statistics(model: nn.Module) -> dict[str, Tensor]:
    """Running mean and variance of every norm that keeps them."""
    return {
        f"{name}.{buffer}" if name else buffer: getattr(module, buffer)
        for name, module in model.named_modules()
        if getattr(module, "track_running_stats", False)
        for buffer in _STATISTICS
        if isinstance(getattr(module, buffer, None), Tensor)
    }


def _widened(tensor: Tensor) -> Tensor:
    """A copy of at least float32: in half precision an update would round to nothing."""
    return tensor.detach().to(torch.promote_types(tensor.dtype, torch.float32), copy=True)


@torch.no_grad()
def _copy(sources: Mapping[str, Tensor], targets: Mapping[str, Tensor]) -> None:
    for name, source in sources.items():
        targets[name].copy_(source)
