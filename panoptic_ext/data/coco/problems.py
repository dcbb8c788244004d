"""Problems of a data set, collected so that one report lists all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from panoptic_ext.errors import DatasetError

__all__ = ["Problem", "problem_of", "raise_if_any"]

_MAX_LISTED = 20


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong: where it was found, what, and how to mend it.

    Attributes:
        kind: short stable name, e.g. "unknown-category"; tools count by it.
        where: file, image id and segment id as far as they are known.
        message: what was found and what was expected.
        mend: what to do about it.
        warning: the loader logs a warning and continues, instead of raising an error.
    """

    kind: str
    where: str
    message: str
    mend: str
    warning: bool = False

    def __str__(self) -> str:
        level = "warning: " if self.warning else ""
        return f"{level}{self.where}: {self.message}; {self.mend} [{self.kind}]"


def problem_of(kind: str, where: str, explained: object, *, mend: str = "copy it again") -> Problem:
    """Return a problem made from an error whose text is "what was found; how to mend it".

    Args:
        kind, where: as of `Problem`.
        explained: the error, or its text.
        mend: used if the text has no part after a semicolon.
    """
    # The last semicolon separates the two parts. Without one, rpartition returns the whole text as
    # its last part.
    message, _, last_part = str(explained).rpartition("; ")
    return Problem(kind, where, message or last_part, last_part if message else mend)


def raise_if_any(problems: Sequence[Problem], source: str) -> None:
    """Raise one DatasetError that lists the first problems and counts all of them."""
    if not problems:
        return
    lines = [f"  - {problem}" for problem in problems[:_MAX_LISTED]]
    count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
    if len(problems) > _MAX_LISTED:
        count += f", the first {_MAX_LISTED}"
        lines.append("  panoptic-ext data check lists all of them.")
    raise DatasetError("\n".join([f"{source} cannot be used ({count}):", *lines]))
