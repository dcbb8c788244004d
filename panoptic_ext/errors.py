"""Errors of panoptic_ext: what was found, what was expected and how to mend it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = [
    "CheckpointError",
    "ConfigError",
    "DatasetError",
    "EvaluationError",
    "NonFiniteLossError",
    "PanopticExtError",
    "UnreadableFileError",
    "nearest",
]


class PanopticExtError(ValueError):
    """Base of every error that a user can mend; command lines print it without a traceback."""


class DatasetError(PanopticExtError):
    """A data set's files, JSON or registration are not as documented."""


class UnreadableFileError(DatasetError):
    """An image or label file is missing or damaged; DATALOADER.SKIP_CORRUPT goes on without it."""


class ConfigError(PanopticExtError):
    """A config file, key or value cannot be used."""


class EvaluationError(PanopticExtError):
    """Predictions and ground truth cannot be compared."""


class CheckpointError(PanopticExtError):
    """A checkpoint cannot be read, trusted or fitted to the model."""


class NonFiniteLossError(PanopticExtError, FloatingPointError):
    """A loss became infinite or NaN during training."""


def nearest(name: str, candidates: Iterable[str]) -> str:
    """A hint to append to an error message.

    Args:
        name: the unknown name that was found.
        candidates: the names that exist.

    Returns:
        "; did you mean 'x'?" for the candidate most like `name`, or "" if none is like it.
    """
    names = sorted({str(c) for c in candidates})
    lowered: dict[str, str] = {}
    for candidate in names:
        lowered.setdefault(candidate.lower(), candidate)
    found = difflib.get_close_matches(str(name).lower(), list(lowered), n=1, cutoff=0.5)
    return f"; did you mean {lowered[found[0]]!r}?" if found else ""
