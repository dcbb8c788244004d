"""Which device a run uses, and how exactly it computes there."""

from __future__ import annotations

import logging
from typing import Any

import torch
from detectron2.config import CfgNode

from panoptic_ext.engine.bfloat16_speed import warn_if_bfloat16_is_slow
from panoptic_ext.engine.precision import bfloat16_on_cpu, unusable_float16
from panoptic_ext.errors import check_known

__all__ = ["choose_device", "set_precision"]

logger = logging.getLogger(__name__)

_PRECISIONS = ("highest", "high", "medium")  # of torch.set_float32_matmul_precision


def choose_device(cfg: CfgNode) -> None:
    """Fall back, in place, to the CPU where CUDA is not there, and from float16 without CUDA.

    bfloat16 is kept: it works on a CPU too, and a warning says where it is slower than float32. The
    fall-back to the CPU is a warning, for a model that is made for the CPU (MODEL.MADE_FOR_CPU) an
    info line.
    """
    wanted = cfg.MODEL.DEVICE
    fall_back = wanted.startswith("cuda") and not torch.cuda.is_available()
    if fall_back:
        _set(cfg.MODEL, "DEVICE", "cpu")
    full = unusable_float16(cfg)
    if "SOLVER.AMP" in full:
        _set(cfg.SOLVER.AMP, "ENABLED", False)
    if "TEST.AMP_DTYPE" in full:
        _set(cfg.TEST, "AMP_DTYPE", "")
    if fall_back and cfg.MODEL.MADE_FOR_CPU:
        in_full = ", in full precision: float16 is for CUDA" if full else ""
        logger.info("Running on the CPU, which this model is made for%s", in_full)
    elif fall_back:
        logger.warning(
            "MODEL.DEVICE is %s, but CUDA is not available: running on the CPU instead, %smuch "
            "slower (MODEL.DEVICE cpu silences this)",
            wanted,
            "in full precision and " if full else "",
        )
    elif full:
        logger.warning(
            "float16 (%s) is for CUDA: running in full precision on %s; bfloat16 works there "
            "(SOLVER.AMP.DTYPE, TEST.AMP_DTYPE)",
            ", ".join(full),
            wanted,
        )
    warn_if_bfloat16_is_slow(bfloat16_on_cpu(cfg))


def set_precision(cfg: CfgNode) -> None:
    """Set how torch multiplies float32 matrices, by FLOAT32_PRECISION, a key of Detectron2 main.

    Raises:
        ConfigError: an unknown precision.
    """
    precision = cfg.get("FLOAT32_PRECISION", "")
    if not precision:
        return
    check_known("FLOAT32_PRECISION", precision, ("", *_PRECISIONS))
    logger.info("Precision of float32 matrix products: %s", precision)
    torch.set_float32_matmul_precision(precision)


def _set(node: CfgNode, key: str, value: Any) -> None:
    frozen = node.is_frozen()
    node.defrost()
    node[key] = value
    if frozen:
        node.freeze()
