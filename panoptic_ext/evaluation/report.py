"""Results of panoptic quality as Detectron2's keys, as JSON and image by image."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from panoptic_ext.evaluation.bootstrap import LEVEL, NUM_DRAWS, Interval
from panoptic_ext.evaluation.costs import segment_costs
from panoptic_ext.evaluation.formats import or_none
from panoptic_ext.evaluation.measures import Measures
from panoptic_ext.evaluation.outcomes import FN, FP, TP

__all__ = ["GROUPS", "image_ranking", "metric_keys", "named_result", "other_measures"]

GROUPS = (("All", ""), ("Things", "_th"), ("Stuff", "_st"))
"""Names of the groups of classes, and what their keys end with."""


def metric_keys(summary: Mapping[str, dict]) -> dict[str, float]:
    """The keys of COCOPanopticEvaluator, in its order: PQ, SQ, RQ, PQ_th, ..., RQ_st; in percent.

    Args:
        summary: of `PQStat.summary`.
    """
    return {
        key.upper() + suffix: 100 * summary[group][key]
        for group, suffix in GROUPS
        for key in ("pq", "sq", "rq")
    }


def named_result(measures: Measures) -> dict[str, Any]:
    """The result for a JSON file.

    Returns:
        `metric_keys`, "num_categories" by group, "per_class": a list of dicts with category_id,
        name, isthing, PQ, SQ, RQ in percent, "interval" of the PQ, tp, fp, fn, their causes,
        "costs" and other measures; "intervals" of each group's PQ (see `bootstrap`); "costs" of
        each group (see `costs`); "other_measures"; "by_size" of each kind, size and group;
        "confusion": names of the classes, then "segments" and "pixels", lists of [row, column,
        number] of the cells that are not 0 (see `confusion`). Values that are not available are
        None, because JSON has no nan.
    """
    summary, categories, costs = measures.summary, measures.categories, measures.costs
    per_class = []
    for category, row in summary["per_class"].items():
        per_class.append(
            {
                "category_id": category,
                "name": categories[category]["name"],
                "isthing": int(categories[category]["isthing"]),
                **{key.upper(): or_none(100 * row[key]) for key in ("pq", "sq", "rq")},
                "interval": _interval(measures.intervals["per_class"][category]),
                **{k: row[k] for k in ("tp", "fp", "fn", "fp_causes", "fn_causes")},
                "costs": costs["per_class"][category],
                **_other_measures_of_class(measures, category),
            }
        )
    return {
        **{key: or_none(value) for key, value in metric_keys(summary).items()},
        "num_categories": {group: summary[group]["n"] for group, _ in GROUPS},
        "intervals": {
            "level": LEVEL,
            "images": len(measures.images),
            "draws": NUM_DRAWS,
            **{key: _interval(measures.intervals[key]) for key in ("PQ", "PQ_th", "PQ_st")},
        },
        "costs": {group: costs[group] for group, _ in GROUPS},
        "other_measures": {k: or_none(value) for k, value in other_measures(measures).items()},
        "by_size": {kind: _named_sizes(sizes) for kind, sizes in measures.by_size.items()},
        "confusion": {
            "classes": measures.class_names,
            "segments": _cells(measures.segment_confusion),
            "pixels": _cells(measures.pixel_confusion),
        },
        "per_class": per_class,
    }


def other_measures(measures: Measures) -> dict[str, float]:
    """PQ_dagger, PQ_dagger_st, mIoU, AP, AP50, AP75, and boundary_PQ etc. if asked for; percent."""
    return {
        **{key: measures.dagger[key] for key in ("PQ_dagger", "PQ_dagger_st")},
        "mIoU": measures.semantic["mIoU"],
        **{key: measures.precision[key] for key in ("AP", "AP50", "AP75")},
        **{
            f"boundary_{key}": value
            for key, value in (metric_keys(measures.boundary) if measures.boundary else {}).items()
        },
    }


def _other_measures_of_class(measures: Measures, category: int) -> dict[str, float | None]:
    found = {
        "PQ_dagger": measures.dagger["per_class"][category],
        "IoU": measures.semantic[f"IoU-{measures.categories[category]['name']}"],
        "AP": measures.precision["per_class"].get(category, math.nan),
    }
    if measures.boundary:
        found["boundary_PQ"] = 100 * measures.boundary["per_class"][category]["pq"]
    return {key: or_none(value) for key, value in found.items()}


def _interval(interval: Interval) -> list[float | None]:
    return [or_none(value) for value in interval]


def _named_sizes(sizes: Mapping[str, dict]) -> dict[str, dict[str, Any]]:
    """{size: `metric_keys` and counts}."""
    return {
        name: {
            **{key: or_none(value) for key, value in metric_keys(summary).items()},
            "num_categories": {group: summary[group]["n"] for group, _ in GROUPS},
            **{key: summary[key] for key in ("tp", "fp", "fn")},
        }
        for name, summary in sizes.items()
    }


def _cells(matrix: np.ndarray) -> list[list[int]]:
    rows, columns = np.nonzero(matrix)
    return np.stack([rows, columns, matrix[rows, columns]], axis=1).tolist()


def image_ranking(measures: Measures, file_names: Mapping[Any, str]) -> list[dict[str, Any]]:
    """The quality of each image, and what it takes off the data set's PQ.

    Args:
        measures: of the data set.
        file_names: of each image.

    Returns:
        in the order of the images, dicts with image_id, file_name, pq (percent, over all segments
        of the image, TPs' IoU / (TP + FP/2 + FN/2); nan for an image without any), tp, fp, fn, and
        loss: what the image takes off the data set's PQ, in points. The losses of all images and
        PQ add up to 100.
    """
    outcomes, images = measures.segments
    number = len(measures.images)
    losses = np.bincount(images, segment_costs(outcomes, measures.total), number)
    counts = {
        name: np.bincount(images[outcomes.kinds == kind], minlength=number)
        for name, kind in (("tp", TP), ("fp", FP), ("fn", FN))
    }
    rows = []
    for row, (image_id, image) in enumerate(measures.images.items()):
        rows.append(
            {
                "image_id": image_id,
                "file_name": file_names[image_id],
                "pq": 100 * image.outcomes.pooled_pq(),
                **{name: int(values[row]) for name, values in counts.items()},
                "loss": float(losses[row]),
            }
        )
    return rows
