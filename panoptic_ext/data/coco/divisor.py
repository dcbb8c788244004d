"""Segments of maps that have no segments_info: the values of the map hold category and instance.

Two conventions, both Detectron2's. A label PNG in the "divisor" encoding, as Cityscapes', holds
category * label_divisor + instance with dataset ids and 0 for void; a value below the divisor is a
whole category. A model's output holds category * label_divisor + instance with contiguous ids and
-1 for void; there a value below the divisor is an instance of category 0.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence
from typing import Any

from panoptic_ext.data.coco.label_png import read_id_map
from panoptic_ext.data.coco.problems import Problem
from panoptic_ext.data.coco.runs import Runs, find_runs
from panoptic_ext.errors import DatasetError

__all__ = [
    "check_divisor_categories",
    "segments_of_label_map",
    "segments_of_png",
    "segments_without_info",
]


def segments_without_info(values: Iterable[int], label_divisor: int) -> list[dict[str, Any]]:
    """Segments of a model's output whose segments_info is None.

    Args:
        values: those that occur in the map, category * label_divisor + instance; -1 is void.
        label_divisor: of the data set.

    Returns:
        dicts with id, the value, and the contiguous category_id.
    """
    return [{"id": v, "category_id": v // label_divisor} for v in map(int, values) if v >= 0]


def segments_of_label_map(
    runs: Runs, label_divisor: int, isthing: Mapping[int, bool]
) -> list[dict[str, Any]]:
    """Segments of a label map in the "divisor" encoding.

    Args:
        runs: of the label map.
        label_divisor: value = category * label_divisor + instance.
        isthing: by dataset category id. An unknown category is left for the caller to report.

    Returns:
        dicts with id, category_id (dataset id), iscrowd and area, by ascending id.
    """
    segments = []
    for value, area in zip(*(a.tolist() for a in runs.areas()), strict=True):
        if value == 0:
            continue  # void
        # Cityscapes labels a group of things whose instances nobody separated with the category
        # alone. COCO calls such a segment a crowd.
        is_whole = value < label_divisor
        category = value if is_whole else value // label_divisor
        crowd = int(is_whole and bool(isthing.get(category)))
        segments.append({"id": value, "category_id": category, "iscrowd": crowd, "area": area})
    return segments


def segments_of_png(
    path: str, label_divisor: int, isthing: Mapping[int, bool]
) -> list[dict[str, Any]]:
    """Return the segments of the label PNG at `path`, as `segments_of_label_map` does.

    Raises:
        DatasetError: a value of an unknown category, or a category with id 0.
    """
    if 0 in isthing:
        raise DatasetError(str(_category_0(f"label map {path}")))
    segments = segments_of_label_map(
        find_runs(read_id_map(path, "divisor")), label_divisor, isthing
    )
    for segment in segments:
        if segment["category_id"] not in isthing:
            raise DatasetError(
                f"label map {path}: value {segment['id']} is of category {segment['category_id']} "
                f"(divisor {label_divisor}), which is not among {sorted(isthing)}; correct "
                "label_divisor or the categories"
            )
    return segments


def check_divisor_categories(
    category_ids: Container[Any], annotations: Sequence[Any], where: str
) -> list[Problem]:
    """Return a problem if a category has id 0 and an annotation has no segments_info."""
    if 0 not in category_ids:
        return []
    derived = any(isinstance(a, dict) and a.get("segments_info") is None for a in annotations)
    return [_category_0(where)] if derived else []


def _category_0(where: str) -> Problem:
    return Problem(
        "divisor-category-0",
        where,
        "a category has id 0, which the divisor encoding cannot tell from void or from another "
        "category (value 3 is category 0, instance 3, as well as category 3)",
        "give every annotation its segments_info, or number the categories from 1 upwards",
    )
