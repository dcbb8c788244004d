"""Panoptic quality of small, medium and large segments.

A true positive and a false negative have the size of the true segment. A false positive has no true
one, so it has its own: that of the predicted segment. A mask that is too large by much is therefore
an error of two sizes, a false negative of the true size and a false positive of its own.

The sizes of "pixels" are COCO's: small below 32 x 32 pixels, large from 96 x 96 pixels on. Those of
"share" are the same parts of an image of 480 x 640 pixels, for images of other sizes: small below
1/300 of the image's pixels, large from 3/100 on.
"""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction

import numpy as np

from panoptic_ext.evaluation.outcomes import Outcomes
from panoptic_ext.evaluation.panoptic_quality import PQStat

__all__ = ["SIZES", "SIZE_LIMITS", "quality_by_size", "sizes_of"]

SIZES = ("small", "medium", "large")

SIZE_LIMITS: dict[str, tuple[Fraction, Fraction]] = {
    "pixels": (Fraction(32**2), Fraction(96**2)),
    "share": (Fraction(32**2, 480 * 640), Fraction(96**2, 480 * 640)),
}
"""Kind of size -> the least area of a medium and of a large segment, in pixels or in images."""


def sizes_of(areas: np.ndarray, num_pixels: np.ndarray, kind: str) -> np.ndarray:
    """(N,) int64, the position in `SIZES` of each segment.

    Args:
        areas: (N,) int64 pixels.
        num_pixels: (N,) int64 pixels of each segment's image.
        kind: of `SIZE_LIMITS`.
    """
    whole = num_pixels if kind == "share" else np.ones_like(num_pixels)
    # Whole numbers, so that an area of exactly a limit is on its right side.
    return sum(
        (areas * limit.denominator >= limit.numerator * whole).astype(np.int64)
        for limit in SIZE_LIMITS[kind]
    )


def quality_by_size(
    outcomes: Outcomes, num_pixels: np.ndarray, isthing: Mapping[int, bool], kind: str
) -> dict[str, dict]:
    """{size of `SIZES`: as `PQStat.summary`, with "tp", "fp", "fn" of all classes}.

    A class counts in the averages of a size only if it has a TP, FP or FN of this size.

    Args:
        outcomes: segments of all images.
        num_pixels: (N,) int64 pixels of each segment's image.
        isthing: for each category, whether it is a thing.
        kind: of `SIZE_LIMITS`.
    """
    sizes = sizes_of(outcomes.areas, num_pixels, kind)
    stats = {name: PQStat.of(outcomes[sizes == number]) for number, name in enumerate(SIZES)}
    return {name: {**stat.summary(isthing), **stat.totals()} for name, stat in stats.items()}
