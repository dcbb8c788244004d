"""Config keys that Detectron2 main has and v0.6 lacks: a run of either is read by the other.

A run's config.yaml names every key, so that one written with main has these. v0.6 behaves as main
does at their defaults. There is no key that v0.6 has and main lacks.
"""

from __future__ import annotations

from typing import Any

from detectron2.config import CfgNode as CN

from panoptic_ext.errors import ConfigError, quoted

__all__ = ["MAIN_DEFAULTS", "check_main_default", "lacks"]

# Key -> main's default, from its detectron2/config/defaults.py of 2026-06-06 (02b5c4e2).
MAIN_DEFAULTS: dict[str, Any] = {
    "MODEL.ROI_BOX_HEAD.USE_FED_LOSS": False,
    "MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE": False,
    "MODEL.ROI_BOX_HEAD.FED_LOSS_FREQ_WEIGHT_POWER": 0.5,
    "MODEL.ROI_BOX_HEAD.FED_LOSS_NUM_CLASSES": 50,
    "DATALOADER.REPEAT_SQRT": True,
    "SOLVER.BASE_LR_END": 0.0,
    "SOLVER.NUM_DECAYS": 3,
    "SOLVER.RESCALE_INTERVAL": False,
    "FLOAT32_PRECISION": "",
}


def lacks(cfg: CN, key: str) -> bool:
    """Whether `key` is one of main's that `cfg`, being of Detectron2 v0.6, does not have."""
    if key not in MAIN_DEFAULTS:
        return False
    *parents, leaf = key.split(".")
    for name in parents:
        cfg = cfg[name]
    return leaf not in cfg


def check_main_default(key: str, value: Any, source: str) -> None:
    """Make sure that a key that v0.6 lacks can be left out without changing anything.

    Args:
        key: one of MAIN_DEFAULTS.
        value: what was given for it.
        source: where, for the message.

    Raises:
        ConfigError: the value is another than main's default.
    """
    default = MAIN_DEFAULTS[key]
    if value != default:
        raise ConfigError(
            f"{source}: {key} = {quoted(value)} needs Detectron2 main; the one installed is v0.6, "
            f"which lacks this key and works as main does with {quoted(default)}. Install "
            "Detectron2 "
            f"main, or put {key} {str(default) or repr(default)} last on the command line"
        )
