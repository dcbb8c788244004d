"""Boundary IoU of segments, for boundary PQ.

Source: Cheng et al., "Boundary IoU: Improving Object-Centric Image Segmentation Evaluation", CVPR
2021. The boundary of a segment are its pixels within a distance d of its outline, the image's
border included; d is 0.02 of the image's diagonal, and distances are those of a square
neighbourhood. Boundary PQ is PQ with the smaller one of mask IoU and boundary IoU in the place of
the IoU, in matching and in SQ: the mask IoU of a large segment hardly sees its outline.

As in PQ, pixels that are void in the truth are left out of unions, and what is mostly void or crowd
is no false positive.

Shapes: G true and P predicted segments, M pairs of them that share pixels.
"""

from __future__ import annotations

import math

import cv2
import numpy as np

from panoptic_ext.data.coco.runs import MAX_ID, Overlaps, Runs, find_runs, overlaps
from panoptic_ext.data.coco.segment_table import SegmentTable
from panoptic_ext.evaluation.image_match import ImageMatch

__all__ = ["DILATION_RATIO", "boundary_iou", "boundary_match", "boundary_pixels"]

DILATION_RATIO = 0.02  # of the image's diagonal


def boundary_match(match: ImageMatch, gt_runs: Runs, pred_runs: Runs) -> ImageMatch:
    """The match that the smaller one of mask IoU and boundary IoU gives."""
    return match.with_iou(np.minimum(match.iou, boundary_iou(match, gt_runs, pred_runs)))


def boundary_iou(match: ImageMatch, gt_runs: Runs, pred_runs: Runs) -> np.ndarray:
    """(M,) float64, the boundary IoU of each pair of a match.

    Args:
        match: of the two maps.
        gt_runs, pred_runs: the maps.
    """
    num_gt, num_pred = len(match.gt), len(match.pred)
    void, other = num_gt, num_gt + 1
    gt = _rows(gt_runs, match.gt, void, other)
    # Void is no segment: all of it is left out, and not its outline alone.
    np.copyto(gt, other, where=~boundary_pixels(gt_runs) & (gt != void))
    pred = _rows(pred_runs, match.pred, num_pred, num_pred)
    np.copyto(pred, num_pred, where=~boundary_pixels(pred_runs))
    # As runs, because a table of all pairs of segments may be too large.
    shared = overlaps(find_runs(gt), find_runs(pred))
    both = _pixels_of_pairs(shared, match.g, match.p)
    union = (
        np.bincount(shared.gt_ids, shared.pixels, num_gt + 2)[match.g]
        + np.bincount(shared.pred_ids, shared.pixels, num_pred + 1)[match.p]
        - both
        - _pixels_of_pairs(shared, np.full(len(match.p), void), match.p)
    )
    return both / union


def _pixels_of_pairs(shared: Overlaps, gt: np.ndarray, pred: np.ndarray) -> np.ndarray:
    """(M,) int64, the pixels that each pair of numbers shares."""
    # Sorted, as overlaps are; the last entry is for a pair after all others.
    keys = np.append(shared.gt_ids.astype(np.int64) * MAX_ID + shared.pred_ids, MAX_ID**2)
    wanted = gt * MAX_ID + pred
    at = np.searchsorted(keys, wanted)
    return np.where(keys[at] == wanted, np.append(shared.pixels, 0)[at], 0)


def boundary_pixels(runs: Runs, ratio: float = DILATION_RATIO) -> np.ndarray:
    """(H, W) bool: pixels within the distance of another id or of the image's border.

    The distance is `ratio` of the diagonal, rounded, at least 1.
    """
    height, width = runs.shape
    distance = max(1, round(ratio * math.hypot(height, width)))
    index = runs.index[1]
    # OpenCV has no filter of int32; of float32, numbers up to 2^24 are exact.
    kind = np.uint16 if len(runs.index[0]) < 1 << 16 else np.float32
    ids = cv2.copyMakeBorder(
        runs.expand(index.astype(kind)),
        *(1, 1, 1, 1),
        cv2.BORDER_CONSTANT,
        value=float(len(runs.index[0])),
    )
    square = np.ones((3, 3), np.uint8)
    is_inner = cv2.erode(ids, square) == cv2.dilate(ids, square)
    # A pixel lies within the distance d of another id if and only if it lies within d - 1 of a
    # pixel, of whatever id, that has another id beside it. So one transform serves all segments.
    to_edge = cv2.distanceTransform(is_inner.astype(np.uint8), cv2.DIST_C, 3)
    return to_edge[1:-1, 1:-1] <= distance - 1


def _rows(runs: Runs, table: SegmentTable, void: int, other: int) -> np.ndarray:
    """(H, W) int32, the row of each pixel's segment; `other` for an id that has none."""
    ids, index = runs.index
    rows = np.where(ids == 0, void, table.rows(ids))
    return runs.expand(np.where(rows < 0, other, rows).astype(np.int32)[index])
