"""Learning curves of several runs, from their metrics.json.

The x of a curve is the iteration, or the minutes of training up to it. These are the sum of the
seconds per iteration. Evaluations and pauses do not count, so that a resumed run has the same
minutes as one that was never stopped.
"""

from __future__ import annotations

import json
import os
import statistics
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

from panoptic_ext.errors import NOT_JSON, PanopticExtError, listed, quoted
from panoptic_ext.regular_files import METRICS, check_regular_file

__all__ = ["Curve", "curve_table", "draw_curves", "read_curve"]

_MOST_LISTED_KEYS = 10  # in a message


@dataclass(frozen=True)
class Curve:
    """One metric of one run: `values` at `iterations` and after `minutes` of training."""

    label: str
    iterations: list[int]
    minutes: list[float]
    values: list[float]


def read_curve(run: str, label: str, metric: str = "panoptic_seg/PQ") -> Curve:
    """Read the curve of one run.

    Args:
        run: an OUTPUT_DIR, or its metrics.json.
        label: name of the curve; runs of one label are seeds of one configuration.
        metric: key of metrics.json.

    Raises:
        PanopticExtError: the file is missing, is no metrics.json, or has no such metric.
    """
    path = os.path.join(run, "metrics.json") if os.path.isdir(run) else run
    rows = _rows(path)
    seconds, last_iteration = 0.0, -1
    iterations, minutes, values = [], [], []
    for iteration in sorted(rows):
        row = rows[iteration]
        if "time" in row:
            seconds += row["time"] * (iteration - last_iteration)
            last_iteration = iteration
        if metric in row:
            # The evaluation after the last step is logged under the next step's number.
            after_the_end = "time" not in row and "time" in rows.get(iteration - 1, {})
            iterations.append(iteration if after_the_end else iteration + 1)
            minutes.append(seconds / 60)
            values.append(float(row[metric]))
    if not values:
        keys = {key for row in rows.values() for key in row if "/" in key}
        raise PanopticExtError(
            f"{path} has no {quoted(metric)}; expected at least one evaluation (TEST.EVAL_PERIOD) "
            f"with it, found {_nearest_keys(metric, keys) or 'none'}"
        )
    return Curve(label, iterations, minutes, values)


def _nearest_keys(metric: str, keys: Collection[str]) -> str:
    """The keys most like `metric`, and how many others there are."""

    def likeness(key: str) -> float:
        names = (key.lower(), key.rsplit("/", 1)[-1].lower())
        return max(SequenceMatcher(None, metric.lower(), name).ratio() for name in names)

    ordered = sorted(sorted(keys), key=likeness, reverse=True)
    return listed(ordered, _MOST_LISTED_KEYS, show=str)


def _rows(path: str) -> dict[int, dict[str, Any]]:
    """The metrics of each iteration; those of a resumed run override earlier ones."""
    rows: dict[int, dict[str, Any]] = {}
    check_regular_file(path, METRICS, error=PanopticExtError)
    try:
        with open(path, encoding="utf-8") as file:
            for line in file:
                row = json.loads(line)
                known = rows.setdefault(int(row["iteration"]), {})
                known.update(row)
    except (OSError, *NOT_JSON, KeyError, TypeError) as error:
        raise PanopticExtError(
            f"{path} is not the metrics.json of a run: {error}; give the OUTPUT_DIR of a training"
        ) from error
    return rows


def _groups(curves: Sequence[Curve]) -> dict[str, list[Curve]]:
    groups: dict[str, list[Curve]] = {}
    for curve in curves:
        groups.setdefault(curve.label, []).append(curve)
    return groups


def curve_table(curves: Sequence[Curve], metric: str = "PQ") -> str:
    """A Markdown table with runs, iterations, minutes, last and best value of each label.

    With several runs the last value is the mean, followed by the least and the largest.
    """
    lines = [
        f"| model | runs | iterations | minutes | {metric} at the end | best on the way |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for label, group in _groups(curves).items():
        last_values = [curve.values[-1] for curve in group]
        spread = f" ({min(last_values):.1f} to {max(last_values):.1f})" if len(group) > 1 else ""
        minutes = statistics.mean(curve.minutes[-1] for curve in group)
        best = statistics.mean(max(curve.values) for curve in group)
        lines.append(
            f"| {label} | {len(group)} | {max(c.iterations[-1] for c in group)} | {minutes:.0f} "
            f"| {statistics.mean(last_values):.1f}{spread} | {best:.1f} |"
        )
    return "\n".join(lines)


def draw_curves(
    curves: Sequence[Curve], path: str | Path, *, title: str = "", metric: str = "PQ"
) -> None:
    """Draw all curves over iterations (left) and over minutes of training (right).

    Args:
        path: of the picture; its suffix gives the format (.svg, .png, .pdf).
    """
    from matplotlib.figure import Figure  # slow to import

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    for number, (label, group) in enumerate(_groups(curves).items()):
        for at, curve in enumerate(group):
            name = label if at == 0 else None
            for axis, x in ((axes[0], curve.iterations), (axes[1], curve.minutes)):
                line = axis.plot(
                    [0.0, *map(float, x)], [0.0, *curve.values], "o-", label=name, markersize=3.5
                )
                line[0].set_color(f"C{number}")
    for axis, unit in zip(axes, ("iterations", "minutes of training"), strict=True):
        axis.set_xlabel(unit)
        axis.grid(alpha=0.3)
        axis.set_xlim(left=0)
        axis.set_ylim(bottom=0)
    axes[0].set_ylabel(metric)
    names = axes[0].get_legend_handles_labels()
    figure.legend(*names, loc="outside lower center", ncols=2, fontsize=8)
    if title:
        figure.suptitle(title)
    os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
    # Without a date and with fixed ids the same runs give the same file.
    figure.savefig(path, metadata={"Date": None} if str(path).endswith(".svg") else None)
