"""Predictions as COCO panoptic JSON and PNG, written by every worker for its images."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

from panoptic_ext.atomic import write_file
from panoptic_ext.data.coco.label_png import encode_png
from panoptic_ext.data.coco.panoptic_files import Annotation, PanopticFiles
from panoptic_ext.data.coco.runs import Runs
from panoptic_ext.data.coco.segment_table import SegmentTable
from panoptic_ext.errors import EvaluationError

__all__ = ["PREDICTIONS", "check_png_names", "write_json", "write_png"]

PREDICTIONS = "panoptic_predictions"
"""Folder of the PNGs, which keep the sub-folders of the truth's, and stem of the JSON."""


def check_png_names(truth: PanopticFiles) -> None:
    """Raise EvaluationError where two images would be written to one file."""
    names = {_png_name(annotation) for annotation in truth.annotations.values()}
    if len(names) < len(truth.annotations):
        raise EvaluationError(
            f"{truth.path}: two images have one PNG file_name, so predictions cannot be written"
            " under these names; give each image its own"
        )


def write_png(
    folder: str, annotation: Annotation, runs: Runs, table: SegmentTable
) -> list[dict[str, Any]]:
    """Write one prediction.

    Args:
        folder: that holds the folder of all predictions.
        annotation: the image's truth.
        runs, table: the prediction; table has its areas.

    Returns:
        its segments_info in COCO's format, with dataset category ids.

    Raises:
        EvaluationError: not writable.
    """
    path = os.path.join(folder, PREDICTIONS, _png_name(annotation))
    write_file(path, encode_png(runs), durable=False)
    boxes = runs.boxes(table.ids).tolist()
    rows = zip(
        table.ids.tolist(), table.categories.tolist(), table.areas.tolist(), boxes, strict=True
    )
    return [{"id": i, "category_id": c, "area": a, "bbox": b, "iscrowd": 0} for i, c, a, b in rows]


def write_json(
    folder: str, truth: PanopticFiles, segments: Mapping[int | str, list[dict[str, Any]]]
) -> None:
    """Write the JSON of all predictions.

    Args:
        folder: as in `write_png`.
        truth: its images and categories are taken over.
        segments: of each of the truth's image ids, from `write_png`.
    """
    annotations = [
        {"image_id": i, "file_name": _png_name(annotation), "segments_info": segments[i]}
        for i, annotation in truth.annotations.items()
    ]
    content = json.dumps({**truth.content, "annotations": annotations})
    write_file(os.path.join(folder, PREDICTIONS + ".json"), content.encode())


def _png_name(annotation: Annotation) -> str:
    return os.path.splitext(annotation.file_name)[0] + ".png"
