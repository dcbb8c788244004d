"""The Markdown table of benchmarks/gpu_suite.py."""

from __future__ import annotations

from typing import Any

__all__ = ["table_of"]

_HIDDEN = {"environment", "unfinished"}


def table_of(content: dict[str, Any]) -> str:
    """One Markdown table for each part of the results.

    Args:
        content: of `gpu_suite_results.Results`.
    """
    lines = ["# GPU suite", ""]
    for number, environment in enumerate(content["environments"]):
        facts = ", ".join(f"{k} {v}" for k, v in environment.items() if v is not None)
        lines.append(f"Machine {number}: {facts}.")
    parts: dict[str, dict[str, Any]] = {}
    for key, row in content["rows"].items():
        part, _, name = key.partition("/")
        parts.setdefault(part, {})[name] = row
    for part, rows in parts.items():
        columns = list(
            dict.fromkeys(
                name
                for row in rows.values()
                for name, value in row.items()
                if name not in _HIDDEN and not isinstance(value, list | dict)
            )
        )
        lines += ["", f"## {part}", "", f"| {part} | {' | '.join(columns)} |"]
        lines.append("|---|" + "---:|" * len(columns))
        for name, row in rows.items():
            lines.append(f"| {name} | {' | '.join(_cell(row.get(c)) for c in columns)} |")
        for name, row in rows.items():
            lines += _lists(name, row)
    return "\n".join(lines) + "\n"


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value).replace("|", "\\|").replace("\n", " ")


def _lists(name: str, row: dict[str, Any]) -> list[str]:
    """Lists of a row, such as a curve or the names of failed tests, below the table."""
    lines: list[str] = []
    for column, values in row.items():
        if isinstance(values, list) and values:
            shown = "; ".join(
                ", ".join(map(_cell, value)) if isinstance(value, list) else _cell(value)
                for value in values
            )
            lines += ["", f"{name}, {column}: {shown}"]
    return lines
