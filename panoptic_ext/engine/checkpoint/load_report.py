"""Report in a few lines how much of a model a weight file holds; refuse what is not enough."""

from __future__ import annotations

import logging
from collections import Counter, defaultdict
from collections.abc import Iterable
from typing import NamedTuple

from panoptic_ext.errors import CheckpointError, listed

__all__ = ["LoadReport", "report_load"]

_BACKBONES = ("backbone.bottom_up.", "backbone.")  # what a file of a backbone alone may fill
_MAX_NAMES = 3  # shown of a module, of other shapes, or in an error


class LoadReport(NamedTuple):
    """How a weight file differs from a model, as torch and fvcore report it.

    Attributes:
        path: of the file.
        names: all tensors of the model.
        missing: tensors of the model that the file lacks.
        shapes: tensors of another shape, name -> (shape in the file, shape in the model).
        unexpected: names of the file that the model has no tensor for.
        why: the model's own explanation of the missing ones and how to mend it, or "".
        mend: what to do where the weights do not fit, if the file says so, or "".
    """

    path: str
    names: list[str]
    missing: list[str]
    shapes: dict[str, tuple[tuple[int, ...], tuple[int, ...]]]
    unexpected: list[str]
    why: str = ""
    mend: str = ""

    @property
    def num_loaded(self) -> int:
        """Number of the model's tensors that were loaded."""
        return len(self.names) - len(self.missing) - len(self.shapes)

    def summary(self) -> str:
        """The numbers of tensors, in one line."""
        return (
            f"{self.path}: loaded {self.num_loaded} of {len(self.names)} tensors of the model; "
            f"{len(self.missing)} missing, {len(self.shapes)} of other shape, "
            f"{len(self.unexpected)} unexpected"
        )

    def whole_backbone(self) -> str:
        """One line for a file of a backbone that was loaded whole; "" for any other."""
        absent = {*self.missing, *self.shapes}
        loaded = [name for name in self.names if name not in absent]
        part = next((p for p in _BACKBONES if loaded and loaded == _below(p, self.names)), "")
        if not part or self.shapes:
            return ""
        fresh = listed(dict.fromkeys(map(_part, self.missing)), len(self.missing), show=str)
        unused = listed(dict.fromkeys(map(_module, self.unexpected)), _MAX_NAMES, show=str)
        return (
            f"{self.path}: backbone loaded whole ({len(loaded)} of {len(loaded)} tensors of "
            f"{part[:-1]}); {fresh} start fresh"
            + (f"; not needed of the file: {unused}" if unused else "")
        )

    def details(self) -> list[str]:
        """One line for each name."""
        lines = self._shape_details() + [f"{name} is missing" for name in self.missing]
        return lines + [f"{name} is unexpected" for name in self.unexpected]

    def by_module(self) -> list[str]:
        """One line for each kind of difference, summed up by outermost module."""
        lines = []
        if self.missing:
            modules = _by_module(self.missing, Counter(map(_module, self.names)))
            lines.append(f"not in the file, these stay at their initial values: {modules}")
        if self.shapes:
            shapes = listed(self._shape_details(), _MAX_NAMES, separator="; ", show=str)
            lines.append(f"of other shape, these stay at their initial values: {shapes}")
        if self.unexpected:
            modules = _by_module(self.unexpected, Counter())
            lines.append(f"in the file, but not in the model: {modules}")
        return lines

    def _shape_details(self) -> list[str]:
        return [
            f"{name} is {in_file}, the model's is {in_model}"
            for name, (in_file, in_model) in self.shapes.items()
        ]


def report_load(report: LoadReport, logger: logging.Logger, *, strict: bool) -> None:
    """Log a report.

    Args:
        report: the differences.
        logger: gets the numbers, and a warning for each kind of difference.
        strict: every tensor of the model must be in the file with its shape.

    Raises:
        CheckpointError: nothing was loaded, or not everything although `strict`.
    """
    backbone_alone = "" if strict or report.why else report.whole_backbone()
    if backbone_alone:
        logger.info(backbone_alone)
        return
    logger.info(report.summary())
    for line in report.by_module():
        logger.warning("  %s", line)
    if report.why and not strict:
        logger.warning("%s. They stay at their initial values", report.why)
    if report.num_loaded <= 0 or (strict and (report.missing or report.shapes)):
        mend = (
            report.why
            or report.mend
            or (
                "Use the config the weights were trained with (config.yaml beside them), or other "
                "weights"
            )
        )
        raise CheckpointError(
            f"weights do not fit the model. {report.summary()}. First: "
            f"{listed(report.details(), _MAX_NAMES, separator='; ', show=str)}. {mend}"
        )


def _below(prefix: str, names: Iterable[str]) -> list[str]:
    return [name for name in names if name.startswith(prefix)]


def _by_module(names: Iterable[str], totals: Counter[str]) -> str:
    """Names grouped by module, as in `head (all 12), backbone (2 of 30: backbone.a, ...)`."""
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
            shown = listed(members, _MAX_NAMES, show=str)
            parts.append(f"{module} ({len(members)}{of}: {shown})")
    return ", ".join(parts)


def _module(name: str) -> str:
    return name.partition(".")[0]


def _part(name: str) -> str:
    """The outermost module, and inside the backbone its part, such as "backbone.fpn_output2"."""
    return ".".join(name.split(".")[: 2 if name.startswith("backbone.") else 1])
