"""Check the parts of a checkpoint before a trainer loads any of them.

A part is named by its keys from the checkpoint down, as `trainer.optimizer.state.3.exp_avg`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from panoptic_ext.errors import CheckpointError, quoted, shortened

__all__ = [
    "PartError",
    "check_integer",
    "check_kind",
    "check_like",
    "check_optimizer",
    "using_part",
]

_KINDS = {bool: "a truth value", int: "a whole number", str: "text", dict: "a dict", list: "a list"}
# Keys that an optimizer's state has for each parameter, and that its groups have. Keys that newer
# versions of torch added are not required, because older checkpoints lack them.
_STATE_KEYS = {"SGD": {"momentum_buffer"}, "AdamW": {"step", "exp_avg", "exp_avg_sq"}}
_GROUP_KEYS = ("lr", "weight_decay", "momentum", "dampening", "nesterov", "betas", "eps")
_FIRST_CONFIG = (
    "resume with the first run's config (config.yaml in its output folder) and its version of "
    "panoptic_ext (run_info.json there)"
)


class PartError(CheckpointError):
    """A part of a checkpoint cannot be used; `Checkpointer` adds the file and the ways to go on.

    Attributes:
        way_out: what may help besides starting anew from the weights. "" is nothing. None is an
            older checkpoint, because this one is damaged.
    """

    def __init__(self, part: str, problem: str, *, way_out: str | None = None) -> None:
        super().__init__(f"its {part} {problem}")
        self.way_out = way_out


def check_kind(part: str, value: Any, kind: type) -> None:
    """Raise PartError unless `value` is of `kind`; a bool is no number."""
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise PartError(part, f"is {quoted(value)}, expected {_KINDS[kind]}")


def check_integer(part: str, value: Any) -> None:
    """Raise PartError unless `value` is a whole number from 0 on that 64 bits can hold."""
    check_kind(part, value, int)
    if not 0 <= value < 2**63:
        raise PartError(part, f"is {quoted(value)}, expected a number from 0 to 2^63 - 1")


def check_like(part: str, value: Any, like: Any) -> None:
    """Raise PartError unless `value` has the structure of `like`, a state of this run.

    Types, dtypes and shapes are compared, values are not. None matches anything.
    """
    if like is None or value is None:
        return
    if isinstance(like, Tensor):
        if not isinstance(value, Tensor) or (value.dtype, value.shape) != (like.dtype, like.shape):
            raise PartError(part, f"is {_described(value)}, expected {_described(like)}")
    elif isinstance(like, dict):
        check_kind(part, value, dict)
        # Only keys that both have: versions of torch differ in the keys of their states.
        for key in like.keys() & value.keys():
            check_like(f"{part}.{key}", value[key], like[key])
    elif isinstance(like, (list, tuple)):
        if not isinstance(value, (list, tuple)):
            raise PartError(part, f"is {quoted(value)}, expected a list")
        if len(value) != len(like):
            raise PartError(part, f"has {len(value)} values, expected {len(like)}")
        for i, (item, like_item) in enumerate(zip(value, like, strict=True)):
            check_like(f"{part}.{i}", item, like_item)
    elif isinstance(like, (int, float)) and not isinstance(like, bool):
        if not isinstance(value, (int, float)) or isinstance(value, bool):
            raise PartError(part, f"is {quoted(value)}, expected a number")
    elif not isinstance(value, type(like)):
        raise PartError(part, f"is {quoted(value)}, expected as {quoted(like)}")


def check_optimizer(part: str, state: Any, optimizer: torch.optim.Optimizer) -> None:
    """Raise PartError unless a state dict has the kind, groups and shapes of `optimizer`."""
    check_kind(part, state, dict)
    groups, states = state.get("param_groups"), state.get("state")
    check_kind(f"{part}.param_groups", groups, list)
    check_kind(f"{part}.state", states, dict)
    name = next((n for n in _STATE_KEYS if isinstance(optimizer, getattr(torch.optim, n))), "")
    state_keys = _STATE_KEYS.get(name, set())
    if len(groups) != len(optimizer.param_groups):
        problem = (
            f"does not fit: {len(groups)} groups, this run's has {len(optimizer.param_groups)}"
        )
        raise PartError(part, problem, way_out=_FIRST_CONFIG)
    for i, (group, current) in enumerate(zip(groups, optimizer.param_groups, strict=True)):
        _check_group(f"{part}.param_groups.{i}", group, current, name)
        for key, parameter in zip(group["params"], current["params"], strict=True):
            if key in states:
                _check_state(f"{part}.state.{key}", states[key], parameter, state_keys)


def _check_group(part: str, group: Any, current: dict[str, Any], name: str) -> None:
    check_kind(part, group, dict)
    optimizer = part.partition(".param_groups")[0]
    lacking = [key for key in _GROUP_KEYS if key in current and key not in group]
    if lacking:
        problem = f"has no {lacking[0]}: it is of another kind than this run's ({name})"
        raise PartError(optimizer, problem, way_out=_FIRST_CONFIG)
    check_like(part, {k: group[k] for k in _GROUP_KEYS if k in group}, current)
    keys = group.get("params")
    check_kind(f"{part}.params", keys, list)
    if len(keys) != len(current["params"]):
        problem = f"does not fit: {len(keys)} parameters in a group of {len(current['params'])}"
        raise PartError(optimizer, problem, way_out=_FIRST_CONFIG)
    for key in keys:
        check_integer(f"{part}.params", key)


def _check_state(part: str, state: Any, parameter: Tensor, expected: set[str]) -> None:
    check_kind(part, state, dict)
    if state and not expected <= state.keys():
        lacking = ", ".join(sorted(expected - state.keys()))
        raise PartError(part, f"has no {lacking}: damaged, or of another optimizer")
    for key, value in state.items():
        is_number = isinstance(value, (int, float)) or (
            isinstance(value, Tensor) and value.shape == ()
        )
        if value is None or (key == "step" and is_number):
            continue
        if not isinstance(value, Tensor) or value.shape != parameter.shape:
            problem = f"is {_described(value)}, its parameter {_described(parameter)}"
            raise PartError(f"{part}.{key}", problem)


@contextmanager
def using_part(part: str) -> Iterator[None]:
    """Turn what a `load_state_dict` in the block raises for bad content into a PartError."""
    try:
        yield
    except CheckpointError:
        raise
    # Not OSError or MemoryError: the content of a state dict is not their cause.
    except (
        ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError,
        ValueError,
    ) as error:  # fmt: skip
        reason = shortened(str(error).strip().split("\n")[0] or "no reason given", 150)
        raise PartError(part, f"cannot be used ({type(error).__name__}: {reason})") from error


def _described(value: Any) -> str:
    if not isinstance(value, Tensor):
        return quoted(value)
    return f"a {str(value.dtype).removeprefix('torch.')} tensor of shape {tuple(value.shape)}"
