"""Matches of images that a test writes down, in memory."""

from __future__ import annotations

import numpy as np

from panoptic_ext.data.coco.runs import runs_from_ids
from panoptic_ext.data.coco.segment_table import SegmentTable
from panoptic_ext.evaluation.image_match import ImageMatch, match_segments, predicted_segments
from panoptic_ext.evaluation.image_measures import ImageMeasures
from panoptic_ext.evaluation.measures import Measures
from tests.evaluation.reference import CATEGORIES, IS_THING, random_image, with_areas

PERSON, CAR, SKY, ROAD = 7, 3, 90, 21

Sample = tuple[np.ndarray, list[dict], np.ndarray, list[dict]]
"""True ids and segments, predicted ids and segments."""


def row(*runs: tuple[int, int]) -> np.ndarray:
    """A map of one row from (id, length) pairs."""
    return np.repeat([i for i, _ in runs], [n for _, n in runs])[None]


def match(
    gt_ids: np.ndarray,
    gt: list[dict],
    pred_ids: np.ndarray,
    pred: list[dict],
    *,
    areas: bool = True,
) -> ImageMatch:
    """The match of one image; the truth's areas are counted unless given."""
    gt = with_areas(gt_ids, gt) if areas else gt
    gt_runs, pred_runs = runs_from_ids(gt_ids), runs_from_ids(pred_ids)
    table = SegmentTable.from_segments_info(pred, IS_THING, "image 1")
    return match_segments(
        gt_runs,
        SegmentTable.from_segments_info(gt, IS_THING, "image 1"),
        pred_runs,
        predicted_segments(pred_runs, table, "image 1"),
        "image 1",
    )


def random_samples(seed: int, number: int, size: int = 12) -> list[Sample]:
    """Images whose predictions are the truth with noise, shifted, or of their own.

    All segments of the truth have pixels and entries.
    """
    rng = np.random.default_rng(seed)
    samples = []
    for _ in range(number):
        shape = (int(rng.integers(2, size)), int(rng.integers(2, size)))
        ids, segments = random_image(rng, shape, int(rng.integers(0, 6)), truth=True)
        segments = [s for s in segments if s["area"]]
        pred_ids, pred = random_image(rng, shape, int(rng.integers(0, 5)), truth=False)
        if rng.random() < 0.7:
            listed = np.isin(ids, [s["id"] for s in segments])
            pred_ids = np.where(listed & (rng.random(shape) < 0.8), ids, 0)
            pred_ids = np.roll(pred_ids, int(rng.integers(0, 2)), axis=1)
            pred = [dict(s) for s in segments if (pred_ids == s["id"]).any()]
            for segment in pred:
                if rng.random() < 0.2:
                    segment["category_id"] = int(rng.choice(list(IS_THING)))
        samples.append((ids, segments, pred_ids, pred))
    return samples


def measures(samples: list[Sample]) -> Measures:
    """Those of images 0, 1, 2, ..."""
    images = {i: ImageMeasures.of(match(*sample)) for i, sample in enumerate(samples)}
    return Measures(images, {c["id"]: c for c in CATEGORIES})
