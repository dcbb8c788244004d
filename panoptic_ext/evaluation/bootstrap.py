"""How sure a PQ is: bootstrap over images.

A data set is a sample of all images that it might hold. As many images as it has are drawn from it,
with repetition, again and again; the spread of the PQs of these draws estimates how far PQ would
vary with other images (percentile bootstrap, Efron, 1979). It says nothing about the noise of
training: another seed's weights are another model.

PQ of a draw is computed from sums alone. Each image adds the sum of its IoUs and its
TP + FP / 2 + FN / 2 to each class; an image that is drawn twice adds twice.

Shapes: N images, C classes, B draws, K = 3 + C values: PQ, PQ_th, PQ_st and the PQ of each class.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from panoptic_ext.evaluation.outcomes import TP, Outcomes

__all__ = [
    "FEW_IMAGES",
    "LEVEL",
    "NUM_DRAWS",
    "ImageSums",
    "Interval",
    "drawn_values",
    "draws",
    "intervals",
]

NUM_DRAWS = 1000
LEVEL = 0.95  # of intervals
FEW_IMAGES = 20  # with fewer, the spread of the draws is clearly less than that of data sets
_MAX_CELLS = 1 << 22  # of a block of draws, so that it takes tens of MB

Interval = tuple[float, float]
"""Least and largest value; nan where there is none."""


@dataclass(frozen=True)
class ImageSums:
    """What each image adds to the PQ of each class.

    Attributes:
        ious: (N, C) float64, sums of the IoUs of true positives; an array or a sparse one.
        weights: (N, C) float64, TP + FP / 2 + FN / 2; the same.
        isthing: (C,) bool.
    """

    ious: Any
    weights: Any
    isthing: np.ndarray

    @classmethod
    def of(
        cls, outcomes: Outcomes, images: np.ndarray, num_images: int, isthing: Mapping[int, bool]
    ) -> ImageSums:
        """Those of segments.

        Args:
            outcomes: n segments of all images.
            images: (n,) int64, the position of each one's image.
            num_images: N.
            isthing: for each category, whether it is a thing.
        """
        from scipy.sparse import csr_array  # takes long to import, and few programs evaluate

        column = {category: i for i, category in enumerate(isthing)}
        columns = np.array([column[c] for c in outcomes.categories.tolist()], np.int64)
        weights = np.where(outcomes.kinds == TP, 1.0, 0.5)
        # An image has a few of a hundred classes. Entries of one cell are added up.
        ious, weights = (
            csr_array((values, (images, columns)), shape=(num_images, len(column)))
            for values in (outcomes.ious, weights)
        )
        return cls(ious, weights, np.array(list(isthing.values()), bool))

    def quality(self, times: np.ndarray) -> np.ndarray:
        """PQ of draws.

        Args:
            times: (B, N) float64, how often each draw has each image.

        Returns:
            (B, K) percent; nan where no class of the group, or nothing of the class, was drawn.
        """
        weights = (self.weights.T @ times.T).T
        with np.errstate(invalid="ignore"):
            per_class = 100 * (self.ious.T @ times.T).T / np.where(weights > 0, weights, np.nan)
        everything = np.ones(len(self.isthing), bool)
        groups = [_mean(per_class[:, use]) for use in (everything, self.isthing, ~self.isthing)]
        return np.column_stack([*groups, per_class])


def draws(num_images: int, number: int, seed: int) -> Iterator[np.ndarray]:
    """Yield blocks of draws, (b, N) float64: how often each draw has each image.

    The same arguments give the same draws.
    """
    rng = np.random.default_rng(seed)
    block = max(1, _MAX_CELLS // num_images)
    for first in range(0, number, block):
        size = min(block, number - first)
        chosen = rng.integers(0, num_images, (size, num_images))
        chosen += np.arange(size)[:, None] * num_images
        times = np.bincount(chosen.reshape(-1), minlength=size * num_images)
        yield times.reshape(size, num_images).astype(np.float64)


def drawn_values(
    num_images: int,
    quality: Callable[[np.ndarray], np.ndarray],
    *,
    num_draws: int = NUM_DRAWS,
    seed: int = 0,
) -> np.ndarray:
    """(B, K) the values of all draws; nan for one image alone, whose draws are all the same.

    Args:
        num_images: N.
        quality: (b, N) times of `draws` -> (b, K) values.
        num_draws: B.
        seed: of the draws.
    """
    values = np.concatenate([quality(times) for times in draws(num_images, num_draws, seed)])
    return values if num_images > 1 else np.full_like(values, np.nan)


def intervals(values: np.ndarray, level: float = LEVEL) -> list[Interval]:
    """The central interval of each column; draws without a value are left out.

    Args:
        values: (B, K).
        level: share of the values that lie in the interval, 0 to 1.
    """
    tail = (1 - level) / 2
    result = []
    for column in values.T:
        numbers = column[~np.isnan(column)]
        low, high = np.quantile(numbers, [tail, 1 - tail]) if len(numbers) else (np.nan, np.nan)
        result.append((float(low), float(high)))
    return result


def _mean(values: np.ndarray) -> np.ndarray:
    """(B,) the mean of the numbers of each row; nan for a row without any."""
    present = ~np.isnan(values)
    number = present.sum(axis=1)
    total = np.where(present, values, 0).sum(axis=1)
    return np.where(number > 0, total / np.maximum(number, 1), np.nan)
