"""Panoptic quality of one COCO panoptic result against another, from their files."""

from __future__ import annotations

import logging
import os
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from tqdm import tqdm

from panoptic_ext.data.coco.json_file import ImageId
from panoptic_ext.data.coco.panoptic_files import Annotation, PanopticFiles
from panoptic_ext.errors import EvaluationError, listed, quoted
from panoptic_ext.evaluation.image_match import predicted_segments
from panoptic_ext.evaluation.image_measures import (
    ImageMeasures,
    check_sizes_in_headers,
    compare_with_truth,
)
from panoptic_ext.evaluation.measures import Measures
from panoptic_ext.evaluation.report import image_ranking
from panoptic_ext.many_files import ManyFiles, listed_failures

__all__ = ["FileResult", "evaluate_files"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class FileResult:
    """The result of `evaluate_files`.

    Attributes:
        summary: of `PQStat.summary`.
        categories: of `PanopticFiles`.
        per_image: of `report.image_ranking`; file_name is the truth's PNG.
        measures: all of them.
        left_out: numbers of images of the truth and of the predictions that the other file lacks.
    """

    summary: dict[str, dict]
    categories: dict[int, dict]
    per_image: list[dict[str, Any]]
    # It holds arrays, which have no equality of their own.
    measures: Measures = field(compare=False)
    left_out: tuple[int, int] = (0, 0)


def evaluate_files(
    gt_json: str,
    gt_root: str | None,
    pred_json: str,
    pred_root: str | None,
    *,
    num_threads: int = 2,
    gt_area: str = "check",
    boundary: bool = False,
    only_common: bool = False,
    progress: bool = False,
) -> FileResult:
    """Compare a COCO panoptic result, of a model or a person, with the truth.

    Args:
        gt_json, pred_json: COCO panoptic JSON files, joined on image_id; where they have no id
            in common, on the names of the image files.
        gt_root, pred_root: folders of their PNGs; None: the JSON's path without ".json".
        num_threads: that read PNGs and compare; 0: the calling thread does so.
        gt_area, boundary: as `PanopticEvaluator`.
        only_common: compare the images that both files have, and leave out all others.
        progress: show a progress bar on stderr.

    Raises:
        EvaluationError: files not in COCO panoptic format, images with a missing or extra
            prediction (with `only_common`: no image in both), or ids, categories, sizes or areas
            that do not fit.
    """
    truth = PanopticFiles(gt_json, gt_root or os.path.splitext(gt_json)[0])
    predictions = PanopticFiles(
        pred_json,
        pred_root or os.path.splitext(pred_json)[0],
        categories=truth.category_list,
        is_truth=False,
    )
    predictions.check_categories(truth)
    pairs = _join(truth, predictions, only_common=only_common)

    def compare(pair: tuple[Annotation, Annotation]) -> ImageMeasures:
        annotation, predicted = pair
        where = f"prediction for {predictions.where(predicted)}"
        check_sizes_in_headers(truth.size(annotation), predictions.size(predicted), annotation)
        runs = predictions.runs(predicted)
        table = predicted_segments(runs, predictions.table(predicted, runs), where)
        return compare_with_truth(truth, annotation, runs, table, gt_area, boundary=boundary)

    images = ManyFiles[tuple[Annotation, Annotation]](
        lambda pair: f"image {pair[0].image_id!r}", num_threads=num_threads
    )
    results = images.results(pairs, compare)
    bar = tqdm(results, total=len(pairs), unit="image", desc="PQ", disable=not progress)
    compared = {a.image_id: image for (a, _), image in bar if image is not None}
    images.stop.check(
        f"stopped after comparing {images.done} of {len(pairs)} images; there is no result, and the"
        " same command compares from the first image"
    )
    # The quality of the other images alone would be a wrong number for the data set.
    if images.failed:
        raise EvaluationError(listed_failures(images.failed, len(pairs), "cannot be compared"))
    measures = Measures(compared, truth.categories)
    return FileResult(
        measures.summary,
        truth.categories,
        image_ranking(measures, {a.image_id: a.file_name for a, _ in pairs}),
        measures,
        left_out=(len(truth.annotations) - len(pairs), len(predictions.annotations) - len(pairs)),
    )


def _join(
    truth: PanopticFiles, predictions: PanopticFiles, *, only_common: bool
) -> list[tuple[Annotation, Annotation]]:
    """Return (true, predicted) annotations of the same images; raise EvaluationError on a lack."""
    found = {i: predictions.find(i) for i in truth.annotations}
    if not any(found.values()):
        found = _found_by_name(truth, predictions)
    common = [(truth.annotations[i], p) for i, p in found.items() if p is not None]
    if only_common and common:
        return common
    joined = {predicted.image_id for _, predicted in common}
    missing = [i for i, predicted in found.items() if predicted is None]
    extra = [i for i in predictions.annotations if i not in joined]
    hint = "" if only_common or not common else ", or compare those in both (--only-common)"
    if not common:
        first = next(iter(predictions.annotations), None)
        hint = (
            f". No id and no file name is in both: {predictions.path} has image id {quoted(first)}"
        )
    for kind, ids, where, other in (
        ("no prediction", missing, truth.path, predictions.path),
        ("a prediction but no ground truth", extra, predictions.path, truth.path),
    ):
        if ids:
            raise EvaluationError(
                f"{len(ids)} images of {where} have {kind} in {other}: image ids {listed(ids)};"
                f" both files must be of the same images{hint}"
            )
    return common


def _found_by_name(
    truth: PanopticFiles, predictions: PanopticFiles
) -> dict[ImageId, Annotation | None]:
    """{true image id: the predictions' annotation of an image whose file has the same name}."""
    # `panoptic-ext predict` knows the ids of registered images alone; others get their names.
    by_name: dict[str, list[ImageId]] = {}
    names = predictions.image_names()
    for image_id, name in names.items():
        by_name.setdefault(os.path.basename(name), []).append(image_id)
    found: dict[ImageId, Annotation | None] = {}
    for image_id, name in truth.image_names().items():
        same = [i for i in by_name.get(os.path.basename(name), []) if _may_be_one(name, names[i])]
        found[image_id] = predictions.annotations[same[0]] if len(same) == 1 else None
    uses = Counter(a.image_id for a in found.values() if a is not None)
    found = {i: a if a is not None and uses[a.image_id] == 1 else None for i, a in found.items()}
    common = [(i, p.image_id) for i, p in found.items() if p is not None]
    if common:
        logger.warning(
            "No image id of %s is in %s: images are joined by the names of their files, such as %s "
            "with %s",
            truth.path,
            predictions.path,
            *map(quoted, common[0]),
        )
    return found


def _may_be_one(first: str, second: str) -> bool:
    """Whether two names are one file's, of which either may lack folders in front."""
    return f"/{first}".endswith(f"/{second}") or f"/{second}".endswith(f"/{first}")
