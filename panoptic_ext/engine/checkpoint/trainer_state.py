"""Collect, check and restore the state of a trainer that a checkpoint holds besides the model."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from detectron2.engine.train_loop import TrainerBase
from detectron2.utils import comm

from panoptic_ext.engine.best_metric import check_state as check_best_state
from panoptic_ext.engine.checkpoint.fingerprint import check_fingerprint
from panoptic_ext.engine.checkpoint.parts import (
    PartError,
    check_integer,
    check_kind,
    check_like,
    check_optimizer,
    using_part,
)
from panoptic_ext.engine.checkpoint.rng import get_rng_state, set_rng_state
from panoptic_ext.engine.weight_average import check_average_state, restore_average

if TYPE_CHECKING:
    from panoptic_ext.engine.trainer import Trainer

__all__ = ["check_parts", "restore_state", "state_of"]

logger = logging.getLogger(__name__)

_HISTORY_LENGTH = 20  # values of a scalar: the window over which Detectron2's writers average
_AVERAGE = "weight_average"
_BEST = "best_metric"
_REQUIRED_KEYS = ("optimizer", "scheduler", "data_seed")


def state_of(trainer: Trainer) -> dict[str, Any]:
    """The state of everything but the model, as tensors and plain values."""
    state = TrainerBase.state_dict(trainer)
    state["optimizer"] = trainer.optimizer.state_dict()
    state["scheduler"] = trainer.scheduler.state_dict()
    if trainer.grad_scaler is not None:
        state["grad_scaler"] = trainer.grad_scaler.state_dict()
    if trainer.average is not None:
        state[_AVERAGE] = trainer.average.state_dict()
    if trainer.best is not None:
        state[_BEST] = trainer.best.state_dict()
    # Of all workers: `Trainer.gather_worker_state` has collected them.
    state["rng"] = trainer.worker_rng
    state["data_seed"] = trainer.data_loader.seed
    hints = trainer.storage.smoothing_hints()
    state["history"] = {
        name: [[float(v), float(i)] for v, i in history.values()[-_HISTORY_LENGTH:]]
        for name, history in trainer.storage.histories().items()
        if hints.get(name)
    }
    return state


def check_parts(checkpoint: dict[str, Any], trainer: Trainer) -> None:
    """Raise PartError unless a trainer can resume from a checkpoint; nothing is changed.

    Args:
        checkpoint: as `Trainer.save_checkpoint` writes it.
        trainer: the trainer that will load it.
    """
    state = checkpoint.get("trainer")
    if state is None:
        raise PartError("trainer", "is missing: another program wrote it", way_out="")
    check_kind("trainer", state, dict)
    missing = [key for key in _REQUIRED_KEYS if key not in state]
    if missing:
        problem = f"has no {', '.join(missing)}: another trainer wrote it"
        raise PartError("trainer", problem, way_out="")
    check_integer("iteration", checkpoint.get("iteration"))
    check_integer("trainer.iteration", state.get("iteration"))
    if state["iteration"] != checkpoint["iteration"]:
        problem = f"is {state['iteration']}, its iteration {checkpoint['iteration']}"
        raise PartError("trainer.iteration", f"{problem}, expected the same")
    if "panoptic_ext" in checkpoint:
        check_fingerprint("panoptic_ext", checkpoint["panoptic_ext"])
    check_integer("trainer.data_seed", state["data_seed"])
    check_optimizer("trainer.optimizer", state["optimizer"], trainer.optimizer)
    check_best_state(f"trainer.{_BEST}", state.get(_BEST))
    check_average_state(state.get(_AVERAGE), trainer.checkpointer.model)
    _check_schedules(state, trainer)
    _check_rng(state.get("rng", []))
    _check_history(state.get("history", {}))


def restore_state(state: dict[str, Any], trainer: Trainer) -> None:
    """Inverse of `state_of`.

    Raises:
        PartError: a part cannot be used.
    """
    with using_part("trainer"):
        TrainerBase.load_state_dict(trainer, state)
    with using_part("trainer.optimizer"):
        trainer.optimizer.load_state_dict(state["optimizer"])
    with using_part("trainer.scheduler"):
        trainer.scheduler.load_state_dict(state["scheduler"])
    if trainer.grad_scaler is not None and state.get("grad_scaler"):
        with using_part("trainer.grad_scaler"):
            trainer.grad_scaler.load_state_dict(state["grad_scaler"])
    with using_part(f"trainer.{_AVERAGE}"):
        restore_average(state.get(_AVERAGE), trainer.average, trainer.checkpointer.model)
    if trainer.best is not None:
        trainer.best.load_state_dict(state.get(_BEST), state["iteration"])
    trainer.data_loader.seed = state["data_seed"]
    with using_part("trainer.rng"):
        _restore_rng(state.get("rng", []))


def _check_schedules(state: dict[str, Any], trainer: Trainer) -> None:
    schedule = trainer.scheduler.state_dict()
    parts = {"trainer.scheduler": (state["scheduler"], schedule)}
    hooks = state.get("hooks", {})
    check_kind("trainer.hooks", hooks, dict)
    for name, current in TrainerBase.state_dict(trainer).get("hooks", {}).items():
        if name in hooks:
            parts[f"trainer.hooks.{name}"] = (hooks[name], current)
    if trainer.grad_scaler is not None and state.get("grad_scaler"):
        parts["trainer.grad_scaler"] = (state["grad_scaler"], trainer.grad_scaler.state_dict())
    for part, (saved, current) in parts.items():
        check_kind(part, saved, dict)
        check_like(part, saved, current)
    check_integer("trainer.scheduler.last_epoch", state["scheduler"].get("last_epoch"))


def _check_rng(states: Any) -> None:
    check_kind("trainer.rng", states, list)
    current = get_rng_state()
    for i, saved in enumerate(states):
        part = f"trainer.rng.{i}"
        check_kind(part, saved, dict)
        for key in ("python", "numpy", "torch"):
            if key not in saved:
                raise PartError(part, f"has no {key}")
            check_like(f"{part}.{key}", saved[key], current[key])


def _check_history(history: Any) -> None:
    check_kind("trainer.history", history, dict)
    for name, values in history.items():
        part = f"trainer.history.{name}"
        check_kind(part, values, list)
        for i, value in enumerate(values):
            check_like(f"{part}.{i}", value, [0.0, 0.0])


def _restore_rng(states: list[dict[str, Any]]) -> None:
    if len(states) != comm.get_world_size():
        logger.warning(
            "The checkpoint is of %d workers, now there are %d: images are distributed "
            "differently, so losses will differ from those of an uninterrupted run",
            len(states),
            comm.get_world_size(),
        )
    if comm.get_rank() < len(states):
        set_rng_state(states[comm.get_rank()])
