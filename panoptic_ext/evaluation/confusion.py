"""Which class is taken for which: confusion matrices of segments and of pixels.

Shapes: C classes; matrices are (C + 1, C + 1), rows are true classes, columns predicted ones.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from panoptic_ext.evaluation.outcomes import FP, NO_CATEGORY, ClassPixels, Outcomes

__all__ = ["most_confused", "pixel_confusion", "segment_confusion"]


def segment_confusion(outcomes: Outcomes, categories: Sequence[int]) -> np.ndarray:
    """Count segments: true and predicted ones with an IoU above 0.5, of whatever classes.

    A true segment without such a prediction is in the last column, "missed"; a prediction that is a
    false positive and has no such true segment is in the last row, "spurious". A row adds up to the
    class's true segments, TP + FN. Crowds, and predictions that do not count, are in no cell.

    Args:
        outcomes: segments of all images.
        categories: dataset ids in the order of the rows.
    """
    number = len(categories)
    of_truth = outcomes.kinds != FP
    own, other = (_positions(c, categories) for c in (outcomes.categories, outcomes.others))
    spurious = (outcomes.kinds == FP) & (outcomes.others == NO_CATEGORY)
    rows = np.concatenate([own[of_truth], np.full(spurious.sum(), number)])
    columns = np.concatenate([other[of_truth], own[spurious]])
    return _count(rows, columns, np.ones(len(rows), np.int64), number)


def pixel_confusion(class_pixels: ClassPixels, categories: Sequence[int]) -> np.ndarray:
    """Count pixels; a crowd counts as its category.

    The last column are pixels predicted as void. The last row are those that are void in the truth,
    or of an id that its JSON lacks.

    Args:
        class_pixels: of all images.
        categories: dataset ids in the order of the rows.
    """
    rows, columns = (_positions(c, categories) for c in (class_pixels.gt, class_pixels.pred))
    return _count(rows, columns, class_pixels.pixels, len(categories))


def most_confused(
    confusion: np.ndarray, names: Sequence[str], number: int
) -> list[tuple[str, str, int]]:
    """The pairs of two classes with the most segments or pixels.

    Args:
        confusion: a matrix of this module.
        names: of the C classes.
        number: of pairs, at most.

    Returns:
        (true class, predicted class, count), the largest count first.
    """
    between = confusion[:-1, :-1].copy()
    np.fill_diagonal(between, 0)
    order = np.argsort(-between, axis=None, kind="stable")[:number]
    rows, columns = np.unravel_index(order, between.shape)
    pairs = zip(rows.tolist(), columns.tolist(), strict=True)
    return [(names[r], names[c], int(between[r, c])) for r, c in pairs if between[r, c]]


def _positions(values: np.ndarray, categories: Sequence[int]) -> np.ndarray:
    """The position of each value in `categories`; their number for other values."""
    ids = np.array(categories, np.int64)
    order = np.argsort(ids)
    if not len(ids):
        return np.zeros(len(values), np.int64)
    found = order[np.minimum(np.searchsorted(ids[order], values), len(ids) - 1)]
    return np.where(ids[found] == values, found, len(ids))


def _count(rows: np.ndarray, columns: np.ndarray, numbers: np.ndarray, size: int) -> np.ndarray:
    """(size + 1, size + 1) int64: the numbers of each cell added up."""
    matrix: np.ndarray = np.zeros((size + 1, size + 1), np.int64)
    np.add.at(matrix, (rows, columns), numbers)
    return matrix
