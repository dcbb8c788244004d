"""Mixed precision: in which dtype training and evaluation run, and what the device can do."""

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
    """What a model's forward pass runs in.

    Attributes:
        device_type: "cpu", "cuda", ...
        dtype: of torch.autocast; None is full precision.
    """

    device_type: str
    dtype: torch.dtype | None

    def autocast(self) -> AbstractContextManager:
        """A new context for one forward pass, or for many that share the weights cast in it."""
        if self.dtype is None:
            return nullcontext()
        return torch.autocast(self.device_type, self.dtype)


FULL_PRECISION = Precision("cpu", None)


def check_precision(cfg: CfgNode) -> None:
    """Raise ConfigError where SOLVER.AMP.DTYPE or TEST.AMP_DTYPE is not one that is known."""
    for key, value, known in (
        ("SOLVER.AMP.DTYPE", cfg.SOLVER.AMP.DTYPE, [*_DTYPES]),
        ("TEST.AMP_DTYPE", cfg.TEST.AMP_DTYPE, ["", *_DTYPES]),
    ):
        check_known(key, value, known)


def unusable_float16(cfg: CfgNode) -> list[str]:
    """The keys that ask for float16 where MODEL.DEVICE is no CUDA device."""
    if cfg.MODEL.DEVICE.startswith("cuda"):
        return []
    wanted = {
        "SOLVER.AMP": cfg.SOLVER.AMP.ENABLED and cfg.SOLVER.AMP.DTYPE == "float16",
        "TEST.AMP_DTYPE": cfg.TEST.AMP_DTYPE == "float16",
    }
    return [key for key, is_wanted in wanted.items() if is_wanted]


def bfloat16_on_cpu(cfg: CfgNode) -> list[str]:
    """The keys that ask for bfloat16 where MODEL.DEVICE is the CPU."""
    if _device_type(cfg) != "cpu":
        return []
    wanted = {
        "SOLVER.AMP": cfg.SOLVER.AMP.ENABLED and cfg.SOLVER.AMP.DTYPE == "bfloat16",
        "TEST.AMP_DTYPE": cfg.TEST.AMP_DTYPE == "bfloat16",
    }
    return [key for key, is_wanted in wanted.items() if is_wanted]


def training_precision(cfg: CfgNode) -> Precision:
    """SOLVER.AMP on MODEL.DEVICE; float16 on CUDA alone."""
    usable = cfg.SOLVER.AMP.ENABLED and "SOLVER.AMP" not in unusable_float16(cfg)
    return Precision(_device_type(cfg), _DTYPES[cfg.SOLVER.AMP.DTYPE] if usable else None)


def evaluation_precision(cfg: CfgNode) -> Precision:
    """TEST.AMP_DTYPE on MODEL.DEVICE; float16 on CUDA alone."""
    usable = cfg.TEST.AMP_DTYPE and "TEST.AMP_DTYPE" not in unusable_float16(cfg)
    return Precision(_device_type(cfg), _DTYPES[cfg.TEST.AMP_DTYPE] if usable else None)


def build_grad_scaler(cfg: CfgNode) -> torch.amp.GradScaler | None:
    """For float16, whose gradients underflow; bfloat16 has the range of float32."""
    if cfg.SOLVER.AMP.ENABLED and cfg.SOLVER.AMP.DTYPE == "float16":
        return torch.amp.GradScaler("cuda")
    return None


def _device_type(cfg: CfgNode) -> str:
    return torch.device(cfg.MODEL.DEVICE).type
