"""Results of panoptic quality as Detectron2's keys, as a table, as JSON and image by image."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from tabulate import tabulate

from panoptic_ext.evaluation.error_causes import CAUSES
from panoptic_ext.evaluation.measures import Measures

__all__ = ["cost_table", "image_ranking", "metric_keys", "named_result", "quality_table"]

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


def named_result(measures: Measures) -> dict[str, Any]:
    """The result for a JSON file.

    Returns:
        `metric_keys`, "num_categories" by group, "per_class": a list of dicts with category_id,
        name, isthing, PQ, SQ, RQ in percent, tp, fp, fn, their causes and "costs", and "costs" of
        each group (see `costs`). Values that are not available are None, because JSON has no nan.
    """
    summary, categories, costs = measures.summary, measures.categories, measures.costs
    per_class = []
    for category, row in summary["per_class"].items():
        per_class.append(
            {
                "category_id": category,
                "name": categories[category]["name"],
                "isthing": int(categories[category]["isthing"]),
                **{key.upper(): _or_none(100 * row[key]) for key in ("pq", "sq", "rq")},
                **{k: row[k] for k in ("tp", "fp", "fn", "fp_causes", "fn_causes")},
                "costs": costs["per_class"][category],
            }
        )
    return {
        **{key: _or_none(value) for key, value in metric_keys(summary).items()},
        "num_categories": {group: summary[group]["n"] for group, _ in _GROUPS},
        "costs": {group: costs[group] for group, _ in _GROUPS},
        "per_class": per_class,
    }


def quality_table(measures: Measures) -> str:
    """A Markdown table: All, Things, Stuff, then each category that occurs, with its errors."""
    summary, categories = measures.summary, measures.categories
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


def cost_table(measures: Measures) -> str:
    """A Markdown table of the points of PQ that each cause costs; a row adds up to 100.

    Rows as `quality_table`. Causes that cost nothing anywhere have no column.
    """
    costs, summary = measures.costs, measures.summary
    named = [(f"**{group}**", summary[group], costs[group]) for group, _ in _GROUPS]
    named += [
        (str(measures.categories[c]["name"]), summary["per_class"][c], row)
        for c, row in costs["per_class"].items()
    ]
    named = [(name, quality, row) for name, quality, row in named if row]
    causes = [c for c in CAUSES if any(row[c] for _, _, row in named)]
    cells = [
        [name, f"{100 * quality['pq']:.2f}", *(f"{row[c]:.2f}" if row[c] else "" for c in causes)]
        for name, quality, row in named
    ]
    headers = ["points of PQ", "PQ", *causes]
    align = ("left", *("right",) * (len(headers) - 1))
    return tabulate(cells, headers, tablefmt="pipe", disable_numparse=True, colalign=align)


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
    total = measures.total
    present = [c for c in total.counts if total.has(c)]
    rows = []
    for image_id, stat in measures.stats.items():
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
