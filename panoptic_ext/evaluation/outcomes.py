"""What became of each segment of an image, and of each pair of classes' pixels: numbers alone.

Workers exchange these, no label map. All measures are computed from them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import TypeVar

import numpy as np

from panoptic_ext.evaluation.error_causes import false_negative_causes, false_positive_causes
from panoptic_ext.evaluation.image_match import ImageMatch

__all__ = ["FN", "FP", "NO_CATEGORY", "TP", "UNLISTED", "ClassPixels", "Outcomes", "concatenate"]

TP, FN, FP = range(3)

NO_CATEGORY = -1  # void, or no segment
UNLISTED = -2  # pixels of an id that the truth's JSON lacks


@dataclass(frozen=True)
class Outcomes:
    """The true positives, false negatives and false positives of images, N segments.

    Attributes:
        kinds: (N,) int8, TP, FN or FP.
        categories: (N,) int64, dataset id of the segment's category.
        causes: (N,) int8, positions in `error_causes.CAUSES`.
        ious: (N,) float64, that of a TP; 0 of others.
        ids: (N,) int64, of the true segment; of the predicted one for a FP.
        areas: (N,) int64 pixels, of the same segment.
        others: (N,) int64, category of the other map's segment with an IoU above 0.5, which is the
            same for a TP; NO_CATEGORY where there is none.
    """

    kinds: np.ndarray
    categories: np.ndarray
    causes: np.ndarray
    ious: np.ndarray
    ids: np.ndarray
    areas: np.ndarray
    others: np.ndarray

    def __len__(self) -> int:
        return len(self.kinds)

    def __getitem__(self, use: np.ndarray) -> Outcomes:
        """Those that an index array or a (N,) bool array names."""
        return Outcomes(*(getattr(self, field.name)[use] for field in fields(self)))

    def pooled_pq(self) -> float:
        """PQ in [0, 1] of all segments taken as one class's; nan without any."""
        if not len(self):
            return math.nan
        num_matched = int((self.kinds == TP).sum())
        return math.fsum(self.ious.tolist()) / (num_matched + 0.5 * (len(self) - num_matched))

    @classmethod
    def of(cls, match: ImageMatch) -> Outcomes:
        """Those of one image."""
        gt, pred = match.gt, match.pred
        hits = match.g[match.matched]
        missed, extra = np.flatnonzero(match.missed), np.flatnonzero(match.extra)
        numbers = (len(hits), len(missed), len(extra))
        categories = (gt.categories[hits], gt.categories[missed], pred.categories[extra])
        causes = (
            np.zeros(len(hits), np.int64),
            # Most images of a good model have no error of a kind.
            false_negative_causes(match)[missed] if len(missed) else missed,
            false_positive_causes(match)[extra] if len(extra) else extra,
        )
        of_truth, of_prediction = _others(match)
        return cls(
            kinds=np.repeat(np.array([TP, FN, FP], np.int8), numbers),
            categories=np.concatenate(categories),
            causes=np.concatenate(causes).astype(np.int8),
            ious=np.concatenate([match.iou[match.matched], np.zeros(sum(numbers[1:]))]),
            ids=np.concatenate([gt.ids[hits], gt.ids[missed], pred.ids[extra]]),
            areas=np.concatenate([gt.areas[hits], gt.areas[missed], pred.areas[extra]]),
            others=np.concatenate([categories[0], of_truth[missed], of_prediction[extra]]),
        )


@dataclass(frozen=True)
class ClassPixels:
    """Pixels that a true and a predicted class share, K pairs of them.

    Attributes:
        gt: (K,) int64, category of the truth, NO_CATEGORY for void, or UNLISTED.
        iscrowd: (K,) bool, whether the truth is a crowd.
        pred: (K,) int64, predicted category, NO_CATEGORY for void.
        pixels: (K,) int64.
    """

    gt: np.ndarray
    iscrowd: np.ndarray
    pred: np.ndarray
    pixels: np.ndarray

    @classmethod
    def of(cls, match: ImageMatch) -> ClassPixels:
        """Those of one image."""
        gt, pred, shared = match.gt, match.pred, match.shared
        classes = np.unique(np.concatenate([gt.categories, pred.categories]))
        number = len(classes)
        # Codes of the truth: a class, the same as crowd, void, unlisted; of predictions: a class,
        # void. A row of -1 takes the last entry.
        gt_codes = np.append(
            np.searchsorted(classes, gt.categories) + number * gt.iscrowd, 2 * number + 1
        )[match.shared_gt]
        gt_codes[shared.gt_ids == 0] = 2 * number
        pred_codes = np.append(np.searchsorted(classes, pred.categories), number)[match.shared_pred]
        pairs = gt_codes * (number + 1) + pred_codes
        present, inverse = np.unique(pairs, return_inverse=True)
        gt_codes, pred_codes = np.divmod(present, number + 1)
        return cls(
            gt=np.concatenate([classes, classes, [NO_CATEGORY, UNLISTED]])[gt_codes],
            iscrowd=(gt_codes >= number) & (gt_codes < 2 * number),
            pred=np.append(classes, NO_CATEGORY)[pred_codes],
            pixels=np.bincount(inverse, shared.pixels, len(present)).astype(np.int64),
        )


Arrays = TypeVar("Arrays", Outcomes, ClassPixels)


def concatenate(parts: Sequence[Arrays]) -> tuple[Arrays, np.ndarray]:
    """Join those of many images, at least one.

    Returns:
        One object; the position of each entry's image in `parts`, int64.
    """
    kind = type(parts[0])
    names = [field.name for field in fields(kind)]
    lengths = [len(getattr(part, names[0])) for part in parts]
    joined = {name: np.concatenate([getattr(part, name) for part in parts]) for name in names}
    return kind(**joined), np.repeat(np.arange(len(parts)), lengths)


def _others(match: ImageMatch) -> tuple[np.ndarray, np.ndarray]:
    """Category of the segment with IoU > 0.5, of each true and of each predicted segment."""
    of_truth: np.ndarray = np.full(len(match.gt), NO_CATEGORY)
    of_prediction: np.ndarray = np.full(len(match.pred), NO_CATEGORY)
    over = (match.iou > 0.5) & ~match.gt.iscrowd[match.g]
    g, p = match.g[over], match.p[over]
    of_truth[g] = match.pred.categories[p]
    of_prediction[p] = match.gt.categories[g]
    return of_truth, of_prediction
