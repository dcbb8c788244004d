"""Every segment of a result with its cause and its cost, as a table for spreadsheets."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping
from typing import Any

from panoptic_ext.evaluation.costs import segment_costs
from panoptic_ext.evaluation.error_causes import CAUSES
from panoptic_ext.evaluation.measures import Measures

__all__ = ["segment_csv", "segment_rows"]

_KINDS = ("TP", "FN", "FP")  # by the numbers of `outcomes`

_COLUMNS = (
    "image_id",
    "file_name",
    "kind",
    "cause",
    "cost",
    "class",
    "other_class",
    "iou",
    "id",
    "area",
)


def segment_rows(measures: Measures, file_names: Mapping[Any, str]) -> Iterator[dict[str, Any]]:
    """Yield TPs, FNs and FPs image by image.

    Args:
        measures: of the data set.
        file_names: of each image.

    Yields:
        dicts with image_id, file_name, kind ("TP", "FN", "FP"), cause, cost (points of PQ; all of
        them add up to 100 - PQ), class, other_class (that of the other map's segment with an IoU
        above 0.5, or ""), iou (of a TP, else 0), id (of the true segment, of a FP the predicted
        one) and area (its pixels).
    """
    names = {c: str(entry["name"]) for c, entry in measures.categories.items()}
    for image_id, image in measures.images.items():
        found = image.outcomes
        costs = segment_costs(found, measures.total)
        for row in range(len(found)):
            yield {
                "image_id": image_id,
                "file_name": file_names[image_id],
                "kind": _KINDS[found.kinds[row]],
                "cause": CAUSES[found.causes[row]],
                "cost": float(costs[row]),
                "class": names[int(found.categories[row])],
                "other_class": names.get(int(found.others[row]), ""),
                "iou": float(found.ious[row]),
                "id": int(found.ids[row]),
                "area": int(found.areas[row]),
            }


def segment_csv(measures: Measures, file_names: Mapping[Any, str]) -> str:
    """`segment_rows` as CSV with a heading."""
    stream = io.StringIO()
    writer = csv.DictWriter(stream, _COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(segment_rows(measures, file_names))
    return stream.getvalue()
