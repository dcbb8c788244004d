"""Results of panoptic quality as Detectron2's keys, as a table, as JSON and image by image."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from tabulate import tabulate

from panoptic_ext.evaluation.panoptic_quality import PQStat

__all__ = ["image_ranking", "metric_keys", "named_result", "quality_table"]

_GROUPS = (("All", ""), ("Things", "_th"), ("Stuff", "_st"))


def metric_keys(summary: Mapping[str, dict]) -> dict[str, float]:
    """The keys of COCOPanopticEvaluator, in its order: PQ, SQ, RQ, PQ_th, ..., RQ_st; in percent.

    Args:
        summary: of `PQStat.summary`.
    """
    return {
        key.upper() + suffix: 100 * summary[group][key]
        for group, suffix in _GROUPS
        for key in ("pq", "sq", "rq")
    }


def named_result(summary: Mapping[str, dict], categories: Mapping[int, dict]) -> dict[str, Any]:
    """The result for a JSON file.

    Args:
        summary: of `PQStat.summary`.
        categories: {id: {"name", "isthing"}}.

    Returns:
        `metric_keys`, "num_categories" by group, and "per_class": a list of dicts with category_id,
        name, isthing, PQ, SQ, RQ in percent, tp, fp, fn and their causes. Values that are not
        available are None, because JSON has no nan.
    """
    per_class = []
    for category, row in summary["per_class"].items():
        per_class.append(
            {
                "category_id": category,
                "name": categories[category]["name"],
                "isthing": int(categories[category]["isthing"]),
                **{key.upper(): _or_none(100 * row[key]) for key in ("pq", "sq", "rq")},
                **{k: row[k] for k in ("tp", "fp", "fn", "fp_causes", "fn_causes")},
            }
        )
    return {
        **{key: _or_none(value) for key, value in metric_keys(summary).items()},
        "num_categories": {group: summary[group]["n"] for group, _ in _GROUPS},
        "per_class": per_class,
    }


def quality_table(summary: Mapping[str, dict], categories: Mapping[int, dict]) -> str:
    """A Markdown table: All, Things, Stuff, then each category that occurs, with its errors."""
    rows = []
    for group, _ in _GROUPS:
        result = summary[group]
        rows.append([f"**{group}** ({result['n']})", *_percent(result), "", "", "", "", ""])
    for category, row in summary["per_class"].items():
        if row["tp"] + row["fp"] + row["fn"]:
            rows.append(
                [
                    categories[category]["name"],
                    *_percent(row),
                    *(row[key] for key in ("tp", "fp", "fn")),
                    _causes(row["fn_causes"]),
                    _causes(row["fp_causes"]),
                ]
            )
    headers = ["", "PQ", "SQ", "RQ", "TP", "FP", "FN", "FN by cause", "FP by cause"]
    table = tabulate(rows, headers, tablefmt="pipe", disable_numparse=True, colalign=_ALIGN)
    absent = [c for c, r in summary["per_class"].items() if not r["tp"] + r["fp"] + r["fn"]]
    if absent:
        names = ", ".join(str(categories[c]["name"]) for c in absent)
        table += f"\nNeither in the ground truth nor predicted, left out of averages: {names}"
    return table


_ALIGN = ("left", *("right",) * 6, "left", "left")


def image_ranking(
    stats: Mapping[Any, PQStat], total: PQStat, file_names: Mapping[Any, str]
) -> list[dict[str, Any]]:
    """The quality of each image, and what it takes off the data set's PQ.

    Args:
        stats: counts of each image.
        total: their sum.
        file_names: of each image.

    Returns:
        in the order of `stats`, dicts with image_id, file_name, pq (percent, over all segments of
        the image, TPs' IoU / (TP + FP/2 + FN/2); nan for an image without any), tp, fp, fn, and
        loss: what the image takes off the data set's PQ, in points. The losses of all images and
        PQ add up to 100.
    """
    present = [c for c in total.counts if total.has(c)]
    rows = []
    for image_id, stat in stats.items():
        loss = math.fsum(
            stat.counts[c].shortfall / total.counts[c].weight for c in present if c in stat.counts
        )
        rows.append(
            {
                "image_id": image_id,
                "file_name": file_names[image_id],
                "pq": 100 * stat.pooled_pq(),
                **stat.totals(),
                "loss": 100 * loss / max(len(present), 1),
            }
        )
    return rows


def _percent(row: Mapping[str, float]) -> list[str]:
    return [
        "n/a" if math.isnan(row[key]) else f"{100 * row[key]:.3f}" for key in ("pq", "sq", "rq")
    ]


def _causes(causes: Mapping[str, int]) -> str:
    ordered = sorted(causes.items(), key=lambda item: -item[1])
    return ", ".join(f"{cause} {number}" for cause, number in ordered)


def _or_none(value: float) -> float | None:
    return None if math.isnan(value) else value
