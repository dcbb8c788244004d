"""The numbers of one image, from which every measure of a data set is computed."""

from __future__ import annotations

from dataclasses import dataclass

from panoptic_ext.data.coco.panoptic_files import Annotation, PanopticFiles
from panoptic_ext.data.coco.runs import Runs
from panoptic_ext.data.coco.segment_table import SegmentTable
from panoptic_ext.errors import EvaluationError, check_known, quoted
from panoptic_ext.evaluation.boundary import boundary_match
from panoptic_ext.evaluation.image_match import (
    ImageMatch,
    check_areas,
    check_same_size,
    match_segments,
)
from panoptic_ext.evaluation.outcomes import ClassPixels, Outcomes
from panoptic_ext.evaluation.panoptic_quality import PQStat

__all__ = [
    "GT_AREAS",
    "ImageMeasures",
    "check_sizes_in_headers",
    "compare_with_truth",
    "match_image",
]

GT_AREAS = ("check", "json", "pixels")
"""Which areas of true segments count, see `PanopticEvaluator`."""


@dataclass(frozen=True)
class ImageMeasures:
    """The numbers of one image, which workers exchange.

    Attributes:
        outcomes: what became of each segment.
        class_pixels: the pixels of each pair of classes.
        num_pixels: of the image.
        boundary: what became of each segment by boundary IoU; None where it was not asked for.
    """

    outcomes: Outcomes
    class_pixels: ClassPixels
    num_pixels: int
    boundary: Outcomes | None = None

    @classmethod
    def of(cls, match: ImageMatch, boundary: ImageMatch | None = None) -> ImageMeasures:
        """Those of a match, and of `boundary.boundary_match`."""
        height, width = match.shape
        return cls(
            Outcomes.of(match),
            ClassPixels.of(match),
            height * width,
            None if boundary is None else Outcomes.of(boundary),
        )

    def stat(self) -> PQStat:
        """The counts of panoptic quality."""
        return PQStat.of(self.outcomes)


def match_image(
    gt_runs: Runs, gt: SegmentTable, pred_runs: Runs, pred: SegmentTable, where: str
) -> PQStat:
    """The counts of panoptic quality of one image; arguments and errors as `match_segments`."""
    return PQStat.of(Outcomes.of(match_segments(gt_runs, gt, pred_runs, pred, where)))


def compare_with_truth(
    truth: PanopticFiles,
    annotation: Annotation,
    runs: Runs,
    table: SegmentTable,
    gt_area: str = "check",
    *,
    boundary: bool = False,
) -> ImageMeasures:
    """Read the truth of one image and compare a prediction with it.

    Args:
        truth: the ground truth.
        annotation: the image, from `truth`.
        runs, table: the prediction, from `predicted_segments`.
        gt_area, boundary: as `PanopticEvaluator`.

    Raises:
        EvaluationError: the truth cannot be read, sizes differ, or its areas are wrong.
    """
    check_known("gt_area", gt_area, GT_AREAS, error=EvaluationError)
    # The headers are compared before the PNG is unpacked: a small file may hold a label map that
    # fills the memory.
    check_sizes_in_headers(truth.size(annotation), runs.shape, annotation)
    gt_runs = truth.runs(annotation)
    gt_table = truth.table(annotation, gt_runs)
    if gt_area == "check":
        check_areas(gt_runs, gt_table, truth.where(annotation))
    elif gt_area == "pixels":
        gt_table = gt_table.with_pixel_areas(*gt_runs.areas())
    where = f"image {quoted(annotation.image_id)}"
    match = match_segments(gt_runs, gt_table, runs, table, where)
    return ImageMeasures.of(match, boundary_match(match, gt_runs, runs) if boundary else None)


def check_sizes_in_headers(
    truth: tuple[int, int] | None, prediction: tuple[int, int] | None, annotation: Annotation
) -> None:
    """Compare the (H, W) of two label maps before the larger of them is unpacked."""
    if truth is not None and prediction is not None:
        check_same_size(truth, prediction, f"image {quoted(annotation.image_id)}")
