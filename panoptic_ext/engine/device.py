"""Choose the device of a run and the precision of its float32 matrix products."""

from __future__ import annotations

import logging
from typing import Any

import torch
from detectron2.config import CfgNode

from panoptic_ext.engine.bfloat16_speed import warn_if_bfloat16_is_slow
from panoptic_ext.engine.precision import bfloat16_on_cpu, unusable_float16
from panoptic_ext.errors import check_known

__all__ = ["choose_device", "make_current", "on_this_machine", "set_precision"]

logger = logging.getLogger(__name__)

_PRECISIONS = ("highest", "high", "medium")  # of torch.set_float32_matmul_precision


def choose_device(cfg: CfgNode, *, training: bool = True) -> None:
    """Change a config, in place, to what the machine has.

    Without CUDA the device becomes the CPU, and float16 becomes float32. bfloat16 is kept, because
    it works on a CPU too; a warning is logged if it is slower there than float32. The change of
    the device is logged as a warning, or as information if the model is made for the CPU
    (MODEL.MADE_FOR_CPU). Without `training`, where SOLVER.AMP has no effect, nothing is said of it.
    """
    wanted = cfg.MODEL.DEVICE
    fall_back = _is_missing(wanted)
    if fall_back:
        _set(cfg.MODEL, "DEVICE", "cpu")
    # After the device is set, on which it depends where float16 can be used.
    float16_keys = unusable_float16(cfg)
    if "SOLVER.AMP" in float16_keys:
        _set(cfg.SOLVER.AMP, "ENABLED", False)
    if "TEST.AMP_DTYPE" in float16_keys:
        _set(cfg.TEST, "AMP_DTYPE", "")
    bfloat16_keys = bfloat16_on_cpu(cfg)
    if not training:
        float16_keys, bfloat16_keys = (
            [key for key in keys if key != "SOLVER.AMP"] for keys in (float16_keys, bfloat16_keys)
        )
    if fall_back and cfg.MODEL.MADE_FOR_CPU:
        in_full = ", in full precision: float16 is for CUDA" if float16_keys else ""
        logger.info("Running on the CPU, which this model is made for%s", in_full)
    elif fall_back:
        logger.warning(
            "MODEL.DEVICE is %s, but CUDA is not available: running on the CPU instead, %smuch "
            "slower (MODEL.DEVICE cpu silences this)",
            wanted,
            "in full precision and " if float16_keys else "",
        )
    elif float16_keys:
        logger.warning(
            "float16 (%s) is for CUDA: running in full precision on %s; bfloat16 works there "
            "(SOLVER.AMP.DTYPE, TEST.AMP_DTYPE)",
            ", ".join(float16_keys),
            wanted,
        )
    warn_if_bfloat16_is_slow(bfloat16_keys)


def on_this_machine(cfg: CfgNode) -> CfgNode:
    """The config, or one that `choose_device` has changed where CUDA is asked for and missing."""
    # Only then: `panoptic-ext train` has chosen the device before, and logged what it changed.
    if not _is_missing(cfg.MODEL.DEVICE):
        return cfg
    cfg = cfg.clone()
    choose_device(cfg)
    return cfg


def _is_missing(device: str) -> bool:
    return device.startswith("cuda") and not torch.cuda.is_available()


def make_current(cfg: CfgNode) -> None:
    """Make the GPU that MODEL.DEVICE numbers, such as cuda:1, the current one of this process.

    Streams, events and statistics of memory are the current GPU's where a call names none.
    """
    device = torch.device(cfg.MODEL.DEVICE)
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)


def set_precision(cfg: CfgNode) -> None:
    """Set the precision of float32 matrix products to FLOAT32_PRECISION, a key of Detectron2 main.

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
