"""Choose the dtype in which training and evaluation run, by the config and the device."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
from detectron2.config import CfgNode

from panoptic_ext.errors import check_known

__all__ = [
    "FULL_PRECISION",
    "Precision",
    "bfloat16_on_cpu",
    "build_grad_scaler",
    "check_precision",
    "evaluation_precision",
    "training_precision",
    "unusable_float16",
]

_DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16}


class Precision(NamedTuple):
    """The precision of a model's forward pass.

    Attributes:
        device_type: "cpu", "cuda", ...
        dtype: the dtype of torch.autocast; None is full precision, without autocast.
    """

    device_type: str
    dtype: torch.dtype | None

    def autocast(self) -> AbstractContextManager:
        """A new context, for one forward pass or for several that share the weights it has cast."""
        if self.dtype is None:
            return nullcontext()
        return torch.autocast(self.device_type, self.dtype)


FULL_PRECISION = Precision("cpu", None)


def check_precision(cfg: CfgNode) -> None:
    """Raise ConfigError if SOLVER.AMP.DTYPE or TEST.AMP_DTYPE is unknown."""
    for key, value, known in (
        ("SOLVER.AMP.DTYPE", cfg.SOLVER.AMP.DTYPE, [*_DTYPES]),
        ("TEST.AMP_DTYPE", cfg.TEST.AMP_DTYPE, ["", *_DTYPES]),
    ):
        check_known(key, value, known)


def unusable_float16(cfg: CfgNode) -> list[str]:
    """The keys that ask for float16 although MODEL.DEVICE is no CUDA device."""
    return [] if cfg.MODEL.DEVICE.startswith("cuda") else _keys_of_dtype(cfg, "float16")


def bfloat16_on_cpu(cfg: CfgNode) -> list[str]:
    """The keys that ask for bfloat16 if MODEL.DEVICE is the CPU."""
    return _keys_of_dtype(cfg, "bfloat16") if _device_type(cfg) == "cpu" else []


def training_precision(cfg: CfgNode) -> Precision:
    """The precision of SOLVER.AMP on MODEL.DEVICE; float16 is used on CUDA only."""
    usable = cfg.SOLVER.AMP.ENABLED and "SOLVER.AMP" not in unusable_float16(cfg)
    return Precision(_device_type(cfg), _DTYPES[cfg.SOLVER.AMP.DTYPE] if usable else None)


def evaluation_precision(cfg: CfgNode) -> Precision:
    """The precision of TEST.AMP_DTYPE on MODEL.DEVICE; float16 is used on CUDA only."""
    usable = cfg.TEST.AMP_DTYPE and "TEST.AMP_DTYPE" not in unusable_float16(cfg)
    return Precision(_device_type(cfg), _DTYPES[cfg.TEST.AMP_DTYPE] if usable else None)


def build_grad_scaler(cfg: CfgNode) -> torch.amp.GradScaler | None:
    """Build the gradient scaler of a training in float16; None in other precisions."""
    # Small gradients underflow in float16. bfloat16 needs no scaler: its range is float32's.
    if cfg.SOLVER.AMP.ENABLED and cfg.SOLVER.AMP.DTYPE == "float16":
        return torch.amp.GradScaler("cuda")
    return None


def _keys_of_dtype(cfg: CfgNode, dtype: str) -> list[str]:
    is_asked_for = {
        "SOLVER.AMP": cfg.SOLVER.AMP.ENABLED and dtype == cfg.SOLVER.AMP.DTYPE,
        "TEST.AMP_DTYPE": dtype == cfg.TEST.AMP_DTYPE,
    }
    return [key for key, is_asked in is_asked_for.items() if is_asked]


def _device_type(cfg: CfgNode) -> str:
    return torch.device(cfg.MODEL.DEVICE).type
