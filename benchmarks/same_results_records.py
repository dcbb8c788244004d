"""Records of same_results.py: make them flat, save them in one file each, compare them.

A record maps a path such as "12/segments_info/3/score" to an array, or to what JSON can hold.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

Record = dict[str, Any]
CFG = "cfg/"  # the beginning of paths that may be added and removed
_VALUES = "values"  # the entry of a file that holds everything but the arrays
_MISSING = object()


def flat(value: Any, prefix: str = "") -> Record:
    """The record of nested mappings and sequences; tensors become arrays or numbers.

    Raises:
        TypeError: a value of another type.
    """
    if isinstance(value, Mapping):
        pairs = [(str(key), item) for key, item in value.items()]
    elif isinstance(value, (list, tuple)):
        pairs = [(str(i), item) for i, item in enumerate(value)]
    else:
        return {prefix: _plain(value, prefix)}
    record: Record = {}
    for key, item in pairs:
        record.update(flat(item, f"{prefix}/{key}" if prefix else key))
    return record


def nested(record: Record) -> dict[str, Any]:
    """The inverse of `flat`, where every sequence has become a dict by index."""
    root: dict[str, Any] = {}
    for path, value in record.items():
        *parents, key = path.split("/")
        node = root
        for parent in parents:
            node = node.setdefault(parent, {})
        node[key] = value
    return root


def digest(content: bytes | np.ndarray | torch.Tensor) -> str:
    """A short checksum of bytes."""
    if isinstance(content, torch.Tensor):
        content = content.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    if isinstance(content, np.ndarray):
        content = np.ascontiguousarray(content).tobytes()
    return hashlib.sha256(content).hexdigest()[:16]


def save(path: Path, record: Record) -> None:
    """Write a record into an .npz file."""
    arrays = {key: value for key, value in record.items() if isinstance(value, np.ndarray)}
    values = {key: value for key, value in record.items() if key not in arrays}
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, **{_VALUES: np.array(json.dumps(values)), **arrays})


def load(path: Path) -> Record:
    """Read what `save` wrote."""
    with np.load(path) as content:
        arrays = {key: content[key] for key in content.files if key != _VALUES}
        return {**json.loads(str(content[_VALUES])), **arrays}


@dataclass
class Comparison:
    """The differences of two records of one item.

    Attributes:
        differences: a line for each path that differs.
        notes: a line for each config key that only one of the records has or that may differ.
        largest: the largest relative difference of the numbers.
        size: number of paths that were compared.
    """

    differences: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    largest: float = 0.0
    size: int = 0

    def text(self) -> str:
        """One cell of the table."""
        if not self.differences:
            return f"equal ({self.size} values)"
        more = f" (+{len(self.differences) - 1} more)" if len(self.differences) > 1 else ""
        relative = f"; largest relative difference {self.largest:.1e}" if self.largest else ""
        return f"{self.differences[0]}{more}{relative}"


def compare(before: Record, after: Record, allowed: Sequence[str] = ()) -> Comparison:
    """Compare two records of one item.

    Args:
        before: the record of the earlier code.
        after: the record of today's code.
        allowed: config keys, and last parts of other paths, whose values may differ.
    """
    comparison = Comparison()
    for path in {**before, **after}:
        comparison.size += 1
        old, new = before.get(path, _MISSING), after.get(path, _MISSING)
        one_sided = old is _MISSING or new is _MISSING
        if one_sided:
            text = "removed" if new is _MISSING else "added"
        else:
            text, relative = _difference(old, new)
            comparison.largest = max(comparison.largest, relative)
        if not text:
            continue
        last = path.rpartition("/")[2]
        noted = last in allowed or (one_sided and path.startswith(CFG))
        if noted:
            comparison.notes.append(f"{last}: {text}")
        else:
            comparison.differences.append(f"{path}: {text}")
    return comparison


def _difference(old: Any, new: Any) -> tuple[str, float]:
    """What differs ("" for nothing), and the relative difference of numbers."""
    if isinstance(old, np.ndarray) and isinstance(new, np.ndarray):
        return _difference_of_arrays(old, new)
    if type(old) is type(new) and repr(old) == repr(new):  # NaN equals NaN
        return "", 0.0
    numbers = isinstance(old, (int, float)) and isinstance(new, (int, float))
    return f"{_shown(old)} is now {_shown(new)}", _relative(old, new) if numbers else 0.0


def _difference_of_arrays(old: np.ndarray, new: np.ndarray) -> tuple[str, float]:
    if (old.dtype, old.shape) != (new.dtype, new.shape):
        return f"{old.dtype}{list(old.shape)} is now {new.dtype}{list(new.shape)}", 0.0
    if old.tobytes() == new.tobytes():
        return "", 0.0
    flat_old, flat_new = old.reshape(-1), new.reshape(-1)
    places = np.flatnonzero((flat_old != flat_new) | (flat_old != flat_old))
    pairs = [(flat_old[i].item(), flat_new[i].item()) for i in places]
    differing = [(i, o, n) for i, (o, n) in zip(places, pairs, strict=True) if repr(o) != repr(n)]
    if not differing:
        return "the sign of a zero, or the bits of a NaN", 0.0
    place, first_old, first_new = differing[0]
    count = f"{len(differing)} of {old.size} values, the first at {place}"
    is_float = old.dtype.kind == "f"
    relative = max(_relative(o, n) for _, o, n in differing) if is_float else 0.0
    return f"{count}: {first_old!r} is now {first_new!r}", relative


def _relative(old: float, new: float) -> float:
    if math.isnan(old) or math.isnan(new) or math.isinf(old) or math.isinf(new):
        return math.inf
    return abs(old - new) / max(abs(old), abs(new), 1e-300)


def _plain(value: Any, path: str) -> Any:
    """The value as a record can hold it."""
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu().numpy()
    if isinstance(value, (np.ndarray, np.generic)):
        return value if isinstance(value, np.ndarray) and value.ndim else value.item()
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"{path} is a {type(value).__name__}, which a record cannot hold")


def _shown(value: Any) -> str:
    text = "an array" if isinstance(value, np.ndarray) else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
