"""Checked values of the keys that decide how images are resized in testing, and padded."""

from __future__ import annotations

from typing import Any

from panoptic_ext.errors import ConfigError, check_known

__all__ = [
    "check_test_images",
    "pads_black",
    "resizing_of_test_images",
    "side_of_test_batches",
    "side_of_windows",
    "sizes_of_test_images",
]

_PAD_VALUES = ("mean", "black")
_TEST_RESIZES = ("shortest_edge", "longest_side")


def pads_black(cfg: Any) -> bool:
    """Whether INPUT.PAD_VALUE is "black", 0 before normalisation.

    Raises:
        ConfigError: the value is unknown.
    """
    check_known("INPUT.PAD_VALUE", cfg.INPUT.PAD_VALUE, _PAD_VALUES)
    return cfg.INPUT.PAD_VALUE == "black"


def side_of_test_batches(cfg: Any) -> int:
    """Side of the square that models pad test batches to, pixels; 0 without INPUT.PAD_TO_SQUARE."""
    check_test_images(cfg)
    return cfg.INPUT.IMAGE_SIZE if cfg.INPUT.PAD_TO_SQUARE else 0


def side_of_windows(cfg: Any) -> int:
    """Side of the windows that semantic scores are computed in, pixels; 0 for whole images."""
    check_test_images(cfg)
    return cfg.INPUT.IMAGE_SIZE if cfg.TEST.SEMANTIC_WINDOWS else 0


def sizes_of_test_images(cfg: Any) -> tuple[int, int]:
    """The shorter and the longest longer side of resized images, for listings; 0: not resized."""
    keys = cfg.INPUT
    if cfg.TEST.SEMANTIC_WINDOWS:
        return keys.IMAGE_SIZE, 0
    if keys.TEST_RESIZE == "longest_side":
        return keys.IMAGE_SIZE, keys.IMAGE_SIZE
    return keys.MIN_SIZE_TEST, keys.MAX_SIZE_TEST


def resizing_of_test_images(cfg: Any) -> str:
    """What resizes whole images before they reach the model, for messages; "" for nothing."""
    if cfg.INPUT.TEST_RESIZE != "shortest_edge":
        return f"INPUT.TEST_RESIZE is {cfg.INPUT.TEST_RESIZE}"
    size = 0 if cfg.TEST.SEMANTIC_WINDOWS else cfg.INPUT.MIN_SIZE_TEST
    return f"INPUT.MIN_SIZE_TEST is {size}" if size else ""


def check_test_images(cfg: Any) -> None:
    """Check TEST.SEMANTIC_WINDOWS, INPUT.TEST_RESIZE and INPUT.PAD_TO_SQUARE.

    Raises:
        ConfigError: a value is wrong, or two of them contradict each other.
    """
    keys, has_windows = cfg.INPUT, cfg.TEST.SEMANTIC_WINDOWS
    check_known("INPUT.TEST_RESIZE", keys.TEST_RESIZE, _TEST_RESIZES)
    is_longest = keys.TEST_RESIZE == "longest_side"
    if has_windows and is_longest:
        raise ConfigError(
            "TEST.SEMANTIC_WINDOWS resizes the shorter side of an image, and INPUT.TEST_RESIZE is "
            "'longest_side'; set it to 'shortest_edge', or TEST.SEMANTIC_WINDOWS to False"
        )
    if (has_windows or is_longest or keys.PAD_TO_SQUARE) and keys.IMAGE_SIZE < 1:
        raise ConfigError(f"INPUT.IMAGE_SIZE is {keys.IMAGE_SIZE}, expected pixels, 1 or more")
    # A MIN_SIZE_TEST of 0 leaves images as they are, whatever MAX_SIZE_TEST is.
    is_bounded = keys.MIN_SIZE_TEST > 0 and keys.MAX_SIZE_TEST <= keys.IMAGE_SIZE
    if keys.PAD_TO_SQUARE and not (is_longest or has_windows or is_bounded):
        raise ConfigError(
            f"INPUT.PAD_TO_SQUARE pads to INPUT.IMAGE_SIZE {keys.IMAGE_SIZE}, but with INPUT."
            f"MIN_SIZE_TEST {keys.MIN_SIZE_TEST} and MAX_SIZE_TEST {keys.MAX_SIZE_TEST} images can "
            "be larger; set INPUT.TEST_RESIZE 'longest_side', or a larger IMAGE_SIZE"
        )
