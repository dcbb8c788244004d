"""A comparison of two results as text and for a JSON file."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from panoptic_ext.evaluation.comparison import Comparison, Difference
from panoptic_ext.evaluation.formats import markdown_table, number_text, or_none

__all__ = ["comparison_text", "named_comparison"]

_MOST_DIFFERENT = 10  # images that are named


def comparison_text(
    comparison: Comparison, categories: Mapping[int, Mapping[str, Any]], first: str, second: str
) -> str:
    """The sentence, a Markdown table of groups and classes, and the images that differ most.

    Args:
        comparison: of two results.
        categories: {dataset id: {"name"}}.
        first, second: names of the results.
    """
    named = {f"**{key}**": d for key, d in comparison.groups.items() if not math.isnan(d.value)}
    classes = {str(categories[c]["name"]): d for c, d in comparison.per_class.items()}
    rows = [_row(name, difference) for name, difference in (*named.items(), *classes.items())]
    headers = ["PQ", "A", "B", "B - A", f"{100 * comparison.level:.0f} % interval", "beyond noise"]
    table = markdown_table(rows, headers, last_texts=1)
    parts = [
        f"A: {first}\nB: {second}\n{comparison.sentence()}",
        table + _by_chance(comparison),
    ]
    images = [row for row in comparison.images if row["difference"]][:_MOST_DIFFERENT]
    if images:
        parts.append(f"Images that differ most:\n{_image_table(images)}")
    return "\n\n".join(parts)


def named_comparison(
    comparison: Comparison, categories: Mapping[int, Mapping[str, Any]], first: str, second: str
) -> dict[str, Any]:
    """The same for a JSON file, all images; values that are not available are None."""
    return {
        "A": first,
        "B": second,
        "sentence": comparison.sentence(),
        "level": comparison.level,
        "draws": comparison.num_draws,
        "differences": {key: _named(d) for key, d in comparison.groups.items()},
        "per_class": [
            {"category_id": c, "name": categories[c]["name"], **_named(difference)}
            for c, difference in comparison.per_class.items()
        ],
        "per_image": [
            {key: or_none(value) for key, value in row.items()} for row in comparison.images
        ],
    }


def _row(name: str, difference: Difference) -> list[str]:
    interval = f"{difference.low:+.2f} to {difference.high:+.2f}"
    return [
        name,
        *(number_text(value, ".2f") for value in (difference.first, difference.second)),
        number_text(difference.value, "+.2f"),
        "n/a" if math.isnan(difference.low) else interval,
        "yes" if difference.is_clear else "",
    ]


def _by_chance(comparison: Comparison) -> str:
    """A line on many classes, of which some are clear by chance."""
    number = len(comparison.per_class) * (1 - comparison.level)
    if number < 0.5:
        return ""
    return f"\nOf {len(comparison.per_class)} classes about {number:.0f} would be so by chance"


def _image_table(images: list[dict[str, Any]]) -> str:
    rows = [
        [
            row["file_name"],
            *(number_text(row[key], ".2f") for key in ("pq_first", "pq_second")),
            number_text(row["difference"], "+.3f"),
        ]
        for row in images
    ]
    headers = ["image", "its PQ, A", "its PQ, B", "points of PQ, B - A"]
    return markdown_table(rows, headers)


def _named(difference: Difference) -> dict[str, Any]:
    return {
        "A": or_none(difference.first),
        "B": or_none(difference.second),
        "difference": or_none(difference.value),
        "interval": [or_none(difference.low), or_none(difference.high)],
        "more_than_noise": difference.is_clear,
    }
