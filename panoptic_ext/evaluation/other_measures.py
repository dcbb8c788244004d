"""Measures beside PQ that the same counts give: PQ-dagger, and AP without scores."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from panoptic_ext.evaluation.outcomes import NO_CATEGORY, ClassPixels
from panoptic_ext.evaluation.panoptic_quality import ClassCounts

__all__ = ["AP_THRESHOLDS", "ap_without_scores", "stuff_ious"]

AP_THRESHOLDS = np.linspace(0.5, 0.95, 10)  # of IoU, as COCO
_RECALLS = np.linspace(0, 1, 101)  # at which COCO samples precision


def stuff_ious(
    class_pixels: ClassPixels, images: np.ndarray, isthing: Mapping[int, bool]
) -> dict[int, list[float]]:
    """The IoU of each stuff class in each image whose truth has it, for PQ-dagger.

    Source: Porzi et al., "Seamless Scene Segmentation", CVPR 2019. PQ-dagger of a stuff class is
    the sum of IoU over all images, matched or not, by the number of images whose truth has the
    class: no threshold of 0.5 makes a stuff region count twice as an error. Of things it is PQ.
    Void, and crowd of the class, are left out of unions, as in PQ.

    Args:
        class_pixels: K pairs of classes of all images.
        images: (K,) int64, the position of each one's image.
        isthing: for each category, whether it is a thing.

    Returns:
        {stuff category: IoU in [0, 1] of each image}.
    """
    found: dict[int, list[float]] = {}
    number = int(images.max(initial=-1)) + 1
    for category in (c for c, thing in isthing.items() if not thing):
        is_true = (class_pixels.gt == category) & ~class_pixels.iscrowd
        ignored = (class_pixels.gt == NO_CATEGORY) | (
            (class_pixels.gt == category) & class_pixels.iscrowd
        )
        is_predicted = (class_pixels.pred == category) & ~ignored
        true, hits, union = (
            np.bincount(images[use], class_pixels.pixels[use], number)
            for use in (is_true, is_true & is_predicted, is_true | is_predicted)
        )
        present = true > 0
        found[category] = (hits[present] / union[present]).tolist()
    return found


def ap_without_scores(counts: ClassCounts) -> np.ndarray:
    """(10,) AP of one class in [0, 1] at each of `AP_THRESHOLDS`; nan without a true segment.

    AP ranks segments by their scores, and a panoptic map has none: all rank equally, and precision
    has one value, whatever the recall up to that which is reached. So AP is precision times the
    share of COCO's 101 recalls that are reached: about precision times recall. That is what
    COCOeval gives if all false positives have the better scores, the least AP of these segments.
    An IoU of exactly 0.5 is no match, as in PQ.
    """
    num_true, num_predicted = counts.tp + counts.fn, counts.tp + counts.fp
    if not num_true:
        return np.full(len(AP_THRESHOLDS), np.nan)
    ious = np.array(counts.ious)
    hits = (ious[:, None] >= AP_THRESHOLDS).sum(axis=0)
    reached = np.searchsorted(_RECALLS, hits / num_true, side="right") / len(_RECALLS)
    # Without a hit COCO's precision is 0 at recall 0, too.
    return hits / max(num_predicted, 1) * reached
