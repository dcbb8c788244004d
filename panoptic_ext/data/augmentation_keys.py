"""Check the config keys in INPUT, for which Detectron2's augmentations have bare assertions."""

from __future__ import annotations

from typing import Any

from panoptic_ext.errors import ConfigError, check_known, quoted

__all__ = ["check_lsj_keys", "check_shortest_edge_keys"]

_CROP_TYPES = ("absolute", "absolute_range", "relative", "relative_range")


def check_lsj_keys(keys: Any) -> None:
    """Check the keys of large-scale jitter in cfg.INPUT."""
    if keys.IMAGE_SIZE < 1:
        raise ConfigError(f"INPUT.IMAGE_SIZE is {keys.IMAGE_SIZE}, expected pixels, 1 or more")
    low, high = keys.MIN_SCALE, keys.MAX_SCALE
    if not 0 < low <= high:
        raise ConfigError(
            f"INPUT.MIN_SCALE and MAX_SCALE are {low} and {high}, expected 0 < MIN_SCALE <= "
            "MAX_SCALE"
        )
    check_known("INPUT.CROP_POSITION", keys.CROP_POSITION, ("diagonal", "uniform"))


def check_shortest_edge_keys(keys: Any) -> None:
    """Check the sizes and the crop of cfg.INPUT."""
    sizes, style = keys.MIN_SIZE_TRAIN, keys.MIN_SIZE_TRAIN_SAMPLING
    check_known("INPUT.MIN_SIZE_TRAIN_SAMPLING", style, ("choice", "range"))
    expected = "two sizes, least and most" if style == "range" else "one size or more"
    good = isinstance(sizes, (list, tuple)) and (len(sizes) == 2 if style == "range" else sizes)
    if not good or any(not isinstance(size, int) or size < 0 for size in sizes):
        raise ConfigError(
            f"INPUT.MIN_SIZE_TRAIN is {quoted(sizes)}, expected {expected} in pixels for "
            f"MIN_SIZE_TRAIN_SAMPLING {quoted(style)}"
        )
    if not keys.CROP.ENABLED:
        return
    check_known("INPUT.CROP.TYPE", keys.CROP.TYPE, _CROP_TYPES)
    # Relative sizes are shares of the image. `absolute_range` alone needs its two sizes in order.
    size = keys.CROP.SIZE
    good = isinstance(size, (list, tuple)) and len(size) == 2
    if keys.CROP.TYPE.startswith("relative"):
        unit = "shares of the image, above 0 and at most 1"
        good = good and all(0 < value <= 1 for value in size)
    else:
        unit = "sizes in pixels, least and most for absolute_range"
        good = good and all(isinstance(value, int) and value > 0 for value in size)
        good = good and (keys.CROP.TYPE == "absolute" or size[0] <= size[1])
    if not good:
        raise ConfigError(
            f"INPUT.CROP.SIZE is {quoted(size)}, expected two {unit}, for CROP.TYPE "
            f"{quoted(keys.CROP.TYPE)}"
        )
