"""Check COCO's run lengths of masks from files, and decode them to the window of the mask.

pycocotools fills the pixels after the last run with uninitialised memory, if the runs end early. If
they end late, versions before 2.0.8 write beyond the mask. Only decoding detects either fault.
Shapes: H x W is the image, R the number of runs. Runs go down the columns and alternate between
outside and inside.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from panoptic_ext.errors import EvaluationError, quoted

__all__ = ["decode_window", "run_lengths"]

_MAX_DIGITS = 9  # of five bits; a run of 2^40 pixels is in no image


def run_lengths(segmentation: Any, size: tuple[int, int], where: str) -> np.ndarray:
    """Read and check a run-length encoded mask.

    Args:
        segmentation: object with size [H, W] and counts: COCO's compressed string, or a list.
        size: (H, W) of the image in pixels.
        where: names image and file in errors.

    Returns:
        (R,) int64, pixels of each run; they add up to H W.

    Raises:
        EvaluationError: not run lengths, of another size, or damaged.
    """
    if not isinstance(segmentation, dict) or not {"size", "counts"} <= set(segmentation):
        kind = "polygons" if isinstance(segmentation, list) else quoted(segmentation, 60)
        raise EvaluationError(
            f"{where}: the segmentation is {kind}; expected run lengths, an object with size and"
            " counts, as pycocotools.mask.encode gives"
        )
    if segmentation["size"] not in (list(size), tuple(size)):
        raise EvaluationError(
            f"{where}: a mask of size {quoted(segmentation['size'], 60)}; expected {list(size)}"
            " (height, width), the image's: predictions must be of the original resolution"
        )
    counts = segmentation["counts"]
    try:
        if isinstance(counts, (str, bytes)):
            lengths = _decompress(counts.encode() if isinstance(counts, str) else counts)
        else:
            lengths = _whole_numbers(counts)
        if len(lengths) and lengths.min() < 0:
            raise ValueError("a run of less than 0 pixels")
        if int(lengths.sum()) != size[0] * size[1]:
            raise ValueError(f"runs of {int(lengths.sum())} pixels in all, not {size[0] * size[1]}")
    except (ValueError, OverflowError) as error:
        raise EvaluationError(
            f"{where}: run lengths that cannot be read ({error}); the file may be cut off or"
            " edited: write the predictions again"
        ) from error
    return lengths


def decode_window(lengths: np.ndarray, height: int) -> tuple[np.ndarray, int, int]:
    """Decode the smallest window around a mask.

    Args:
        lengths: (R,) of `run_lengths`.
        height: H of the image in pixels.

    Returns:
        (h, w) bool, and the row and column of its first pixel; (0, 0) of an empty mask.
    """
    ends = np.cumsum(lengths)
    # Runs at odd positions are inside the mask. Those of length 0 must not widen the window.
    inside = np.flatnonzero(lengths[1::2]) * 2 + 1
    if not len(inside):
        return np.zeros((0, 0), bool), 0, 0
    left = int(ends[inside[0] - 1]) // height
    right = (int(ends[inside[-1]]) - 1) // height + 1
    # Runs are clipped to the columns of the window, so that the rest of the image is not decoded.
    within = np.diff(np.clip(ends, left * height, right * height), prepend=left * height)
    columns = np.repeat(np.arange(len(lengths)) % 2 == 1, within).reshape(right - left, height)
    rows = np.flatnonzero(columns.any(0))
    top, bottom = int(rows[0]), int(rows[-1]) + 1
    return np.ascontiguousarray(columns[:, top:bottom].T), top, left


def _whole_numbers(counts: Any) -> np.ndarray:
    if not isinstance(counts, list) or not all(type(c) is int for c in counts):
        raise ValueError("counts are neither a string nor a list of whole numbers")
    return np.array(counts, np.int64)


def _decompress(counts: bytes) -> np.ndarray:
    """Return the numbers in COCO's string: five bits per character from 48 on, low bits first.

    Bit 5 is set if more characters of the number follow. Bit 4 of the last character is the sign.
    From the fourth number on, the string holds the difference to the number two before.
    """
    codes = np.frombuffer(counts, np.uint8).astype(np.int64) - 48
    if not len(codes):
        return codes
    if codes.min() < 0 or codes.max() > 63:
        raise ValueError("characters outside of '0' to 'o'")
    ends = np.flatnonzero(codes < 32)
    if not len(ends) or ends[-1] != len(codes) - 1:
        raise ValueError("they end within a number")
    starts = np.concatenate([[0], ends[:-1] + 1])
    digits = ends - starts + 1
    if digits.max() > _MAX_DIGITS:
        raise ValueError("a number that is too large")
    # _MAX_DIGITS bounds the shifts below, so that no number overflows int64.
    digit_positions = np.arange(len(codes)) - np.repeat(starts, digits)
    values = np.add.reduceat((codes & 31) << (5 * digit_positions), starts)
    values -= np.where(codes[ends] & 16, 1 << (5 * digits), 0)
    # The first three numbers are absolute, so the sum over even positions starts at the third.
    values[1::2] = np.cumsum(values[1::2])
    values[2::2] = np.cumsum(values[2::2])
    return values
