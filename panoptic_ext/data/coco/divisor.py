"""Label maps of the divisor encoding whose JSON has no segments_info: all is in their values."""

from __future__ import annotations

from collections.abc import Container, Sequence
from typing import Any

from panoptic_ext.data.coco.label_png import read_id_map
from panoptic_ext.data.coco.problems import Problem
from panoptic_ext.data.coco.runs import find_runs
from panoptic_ext.errors import DatasetError

__all__ = ["check_divisor_categories", "segments_of_png"]


def check_divisor_categories(
    category_ids: Container[Any], annotations: Sequence[Any], where: str
) -> list[Problem]:
    """A problem where a category has id 0 and an annotation leaves its segments to the PNG."""
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


def segments_of_png(
    path: str, label_divisor: int, contiguous: dict[int, tuple[int, bool]]
) -> list[dict[str, Any]]:
    """Segments of a divisor-encoded map that has no segments_info.

    As in Cityscapes: a value below the divisor is a category without instances, which is a crowd
    where the category is a thing.

    Args:
        path: the label PNG.
        label_divisor: value = category * label_divisor + instance.
        contiguous: dataset_id -> (contiguous id, isthing).

    Raises:
        DatasetError: a value of an unknown category, or a category with id 0.
    """
    if 0 in contiguous:
        raise DatasetError(str(_category_0(f"label map {path}")))
    ids, areas = find_runs(read_id_map(path, "divisor")).areas()
    segments = []
    for i, area in zip(ids.tolist(), areas.tolist(), strict=True):
        category = i if i < label_divisor else i // label_divisor
        if i == 0:
            continue
        if category not in contiguous:
            raise DatasetError(
                f"label map {path}: value {i} is of category {category} (divisor {label_divisor}), "
                f"which is not among {sorted(contiguous)}; correct label_divisor or the categories"
            )
        crowd = int(i < label_divisor and contiguous[category][1])
        segments.append({"id": i, "category_id": category, "iscrowd": crowd, "area": area})
    return segments
