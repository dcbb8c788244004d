"""How much of a model a weight file holds, in a few lines, and whether that is enough."""

from __future__ import annotations

import logging
from collections import Counter, defaultdict
from collections.abc import Iterable
from typing import NamedTuple

from panoptic_ext.errors import CheckpointError, listed

__all__ = ["LoadReport", "report_load"]

_MOST_NAMES = 3  # of a module that are named


class LoadReport(NamedTuple):
    """What was found, as torch and fvcore tell it.

    Attributes:
        path: of the file.
        names: all tensors of the model.
        missing: those that the file lacks.
        shapes: those of other shape, name -> (shape in the file, shape in the model).
        unexpected: names of the file that the model has no tensor for.
        why: what the model itself says of the missing ones and how to mend it, or "".
    """

    path: str
    names: list[str]
    missing: list[str]
    shapes: dict[str, tuple[tuple[int, ...], tuple[int, ...]]]
    unexpected: list[str]
    why: str = ""

    @property
    def num_loaded(self) -> int:
        """Tensors of the model that the file gave."""
        return len(self.names) - len(self.missing) - len(self.shapes)

    def summary(self) -> str:
        """The numbers, in one line."""
        return (
            f"{self.path}: loaded {self.num_loaded} of {len(self.names)} tensors of the model; "
            f"{len(self.missing)} missing, {len(self.shapes)} of other shape, "
            f"{len(self.unexpected)} unexpected"
        )

    def details(self) -> list[str]:
        """One line for each name."""
        lines = [f"{k} is {f}, the model's is {w}" for k, (f, w) in self.shapes.items()]
        lines += [f"{name} is missing" for name in self.missing]
        return lines + [f"{name} is unexpected" for name in self.unexpected]

    def by_module(self) -> list[str]:
        """One line for each kind of difference, summed up by outermost module."""
        lines = []
        if self.missing:
            modules = _by_module(self.missing, Counter(map(_module, self.names)))
            lines.append(f"not in the file, these stay at their initial values: {modules}")
        if self.shapes:
            first = [f"{k} is {f}, the model's is {w}" for k, (f, w) in self.shapes.items()]
            shapes = listed(first, _MOST_NAMES, separator="; ", show=str)
            lines.append(f"of other shape, these stay at their initial values: {shapes}")
        if self.unexpected:
            modules = _by_module(self.unexpected, Counter())
            lines.append(f"in the file, but not in the model: {modules}")
        return lines


def report_load(report: LoadReport, logger: logging.Logger, *, strict: bool) -> None:
    """Log a report.

    Args:
        strict: every tensor of the model must be there with its shape.

    Raises:
        CheckpointError: nothing was loaded, or not all and `strict`.
    """
    logger.info(report.summary())
    for line in report.by_module():
        logger.warning("  %s", line)
    if report.why and not strict:
        logger.warning("%s. They stay at their initial values", report.why)
    if report.num_loaded <= 0 or (strict and (report.missing or report.shapes)):
        mend = report.why or (
            "Use the config the weights were trained with (config.yaml beside them), or other "
            "weights"
        )
        raise CheckpointError(
            f"weights do not fit the model. {report.summary()}. First: "
            f"{listed(report.details(), 3, separator='; ', show=str)}. {mend}"
        )


def _by_module(names: Iterable[str], totals: Counter[str]) -> str:
    """`head (all 12), backbone (2 of 30: backbone.a, backbone.b)`."""
    groups: dict[str, list[str]] = defaultdict(list)
    for name in names:
        groups[_module(name)].append(name)
    parts = []
    for module, members in groups.items():
        if members == [module]:
            parts.append(module)
        elif len(members) == totals[module]:
            parts.append(f"{module} (all {len(members)})")
        else:
            of = f" of {totals[module]}" if totals[module] else ""
            shown = listed(members, _MOST_NAMES, show=str)
            parts.append(f"{module} ({len(members)}{of}: {shown})")
    return ", ".join(parts)


def _module(name: str) -> str:
    return name.partition(".")[0]
