"""The measures of a result as Markdown tables, for a log and a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from panoptic_ext.evaluation.bootstrap import LEVEL
from panoptic_ext.evaluation.confusion import most_confused
from panoptic_ext.evaluation.error_causes import CAUSES
from panoptic_ext.evaluation.formats import markdown_table, number_text
from panoptic_ext.evaluation.measures import Measures
from panoptic_ext.evaluation.report import GROUPS, other_measures
from panoptic_ext.evaluation.sizes import SIZES

__all__ = ["cost_table", "costliest_text", "quality_table", "result_text", "size_table"]

_MOST_CONFUSED = 5  # pairs of classes that are named
_COSTLIEST = 5  # images that are named

_SIZES_TEXT = (
    "By size of the true segment, of a FP by its own (pixels: small below 32 x 32, large from"
    " 96 x 96 on; share: small below 1/300, large from 3/100 of the image on):"
)


def result_text(measures: Measures) -> str:
    """All that a log says about a result."""
    parts = [
        "\n".join([quality_table(measures), *interval_lines(measures)]),
        f"What each cause costs; a row adds up to 100:\n{cost_table(measures)}",
        f"{_SIZES_TEXT}\n{size_table(measures)}",
        other_text(measures),
        confusion_text(measures),
    ]
    return "\n\n".join(part for part in parts if part)


def quality_table(measures: Measures) -> str:
    """A Markdown table: All, Things, Stuff, then each category that occurs, with its errors."""
    summary, categories = measures.summary, measures.categories
    rows = []
    for group, _ in GROUPS:
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
    table = markdown_table(rows, headers, last_texts=2)
    absent = [c for c, r in summary["per_class"].items() if not r["tp"] + r["fp"] + r["fn"]]
    if absent:
        names = ", ".join(str(categories[c]["name"]) for c in absent)
        table += f"\nNeither in the ground truth nor predicted, left out of averages: {names}"
    return table


def interval_lines(measures: Measures) -> list[str]:
    """How sure the PQs are, in one line; none for one image alone."""
    found = [(key, measures.intervals[key]) for key in ("PQ", "PQ_th", "PQ_st")]
    texts = [f"{key} {low:.2f} to {high:.2f}" for key, (low, high) in found if low == low]
    if not texts:
        return []
    return [
        f"{100 * LEVEL:.0f} % intervals over draws of the {len(measures.images)} images:"
        f" {', '.join(texts)}"
    ]


def cost_table(measures: Measures) -> str:
    """A Markdown table of the points of PQ that each cause costs; a row adds up to 100.

    Rows as `quality_table`. Causes that cost nothing anywhere have no column.
    """
    costs, summary = measures.costs, measures.summary
    named = [(f"**{group}**", summary[group], costs[group]) for group, _ in GROUPS]
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
    return markdown_table(cells, ["points of PQ", "PQ", *causes])


def size_table(measures: Measures) -> str:
    """A Markdown table: PQ and counts of small, medium and large segments, by each kind of size."""
    rows = []
    for kind, sizes in measures.by_size.items():
        for size in SIZES:
            summary = sizes[size]
            groups = [number_text(100 * summary[group]["pq"], ".3f") for group, _ in GROUPS]
            rows.append([f"{size} ({kind})", *groups, *(summary[k] for k in ("tp", "fp", "fn"))])
    return markdown_table(rows, ["size", "PQ", "PQ_th", "PQ_st", "TP", "FP", "FN"])


def other_text(measures: Measures) -> str:
    """The measures beside PQ, in one line."""
    named = {
        "PQ_dagger": "PQ-dagger",
        "PQ_dagger_st": "PQ-dagger_st",
        "mIoU": "mIoU",
        "AP": "AP without scores",
        "boundary_PQ": "boundary PQ",
        "boundary_PQ_th": "boundary PQ_th",
        "boundary_PQ_st": "boundary PQ_st",
    }
    found = other_measures(measures)
    texts = [
        f"{name} {number_text(found[key], '.3f')}" for key, name in named.items() if key in found
    ]
    return f"Other measures of the same maps: {', '.join(texts)}"


def costliest_text(per_image: Sequence[Mapping[str, Any]]) -> str:
    """The images that take most off PQ, in one line; "" if none does.

    Args:
        per_image: of `report.image_ranking`.
    """
    ranked = sorted((row for row in per_image if row["loss"]), key=lambda row: -row["loss"])
    texts = [f"{row['file_name']} {row['loss']:.3f}" for row in ranked[:_COSTLIEST]]
    return f"Images that cost most, in points of PQ: {', '.join(texts)}" if texts else ""


def confusion_text(measures: Measures) -> str:
    """The pairs of classes that are most often taken for each other; "" if there is none."""
    names = measures.class_names
    matrices = {"segments": measures.segment_confusion, "pixels": measures.pixel_confusion}
    lines = []
    for unit, matrix in matrices.items():
        totals = dict(zip(names, matrix.sum(axis=1).tolist(), strict=False))
        pairs = [
            f"{true} as {predicted} {number} ({100 * number / totals[true]:.1f} %)"
            for true, predicted, number in most_confused(matrix, names, _MOST_CONFUSED)
        ]
        if pairs:
            lines.append(f"Most confused, {unit} (% of the true class): {', '.join(pairs)}")
    return "\n".join(lines)


def _percent(row: Mapping[str, float]) -> list[str]:
    return [number_text(100 * row[key], ".3f") for key in ("pq", "sq", "rq")]


def _causes(causes: Mapping[str, int]) -> str:
    ordered = sorted(causes.items(), key=lambda item: -item[1])
    return ", ".join(f"{cause} {number}" for cause, number in ordered)
