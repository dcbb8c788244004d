"""Tables and numbers of results, for a terminal and for a JSON file."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from tabulate import tabulate

__all__ = ["markdown_table", "number_text", "or_none"]


def markdown_table(
    rows: Sequence[Sequence],
    headers: Sequence[str],
    *,
    first_texts: int = 1,
    last_texts: int = 0,
) -> str:
    """A Markdown table: text in the first and in the last columns, numbers between them."""
    numbers = len(headers) - first_texts - last_texts
    align = ("left",) * first_texts + ("right",) * numbers + ("left",) * last_texts
    return tabulate(rows, headers, tablefmt="pipe", disable_numparse=True, colalign=align)


def number_text(value: float, form: str) -> str:
    """A number in a format such as ".3f"; "n/a" for nan."""
    return "n/a" if math.isnan(value) else format(value, form)


def or_none(value: Any) -> Any:
    """None for nan, which JSON lacks; any other value as it is."""
    return None if isinstance(value, float) and math.isnan(value) else value
