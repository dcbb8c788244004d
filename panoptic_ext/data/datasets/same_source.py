"""Decide whether two registrations under one name describe the same data set."""

from __future__ import annotations

import dataclasses
import os
from typing import Any, Protocol

from detectron2.data import DatasetCatalog

from panoptic_ext.errors import DatasetError, quoted

__all__ = ["check_name", "other_content", "source_differences"]

_PATHS = ("json", "image_root", "png_root")
_LOOKED_UP = (*_PATHS, "search_path")


class Source(Protocol):
    """A dataclass of paths and values, such as PanopticSource and InstanceSource."""

    def locate(self) -> tuple[str, ...]:
        """Return its located paths in the order of its fields; DatasetError if one is missing."""


def source_differences(old: Any, new: Any) -> list[str]:
    """List the differences between two sources; the list is empty for the same data set.

    If both sources can be located, their real paths are compared, because a relative and an
    absolute path may be the same file. Otherwise the paths are compared as text.

    Args:
        old: the registered source.
        new: the source to be registered.

    Returns:
        texts such as "json is 'a.json' there, 'b.json' here".
    """
    if type(old) is not type(new):
        return [f"a {type(old).__name__} there, a {type(new).__name__} here"]
    fields = [field.name for field in dataclasses.fields(new)]
    rows = [(name, getattr(old, name), getattr(new, name)) for name in fields]
    rows = [(name, a, b) for name, a, b in rows if a != b]
    if rows and all(name in _LOOKED_UP for name, _, _ in rows):
        # Real paths are compared only if nothing but paths differs, because locating a generated
        # data set generates it.
        old_paths, new_paths = _real_paths(old), _real_paths(new)
        if old_paths is not None and new_paths is not None:
            path_fields = [name for name in fields if name in _PATHS]
            located = zip(path_fields, old_paths, new_paths, strict=True)
            rows = [(name, a, b) for name, a, b in located if a != b]
    return [f"{name} is {quoted(a)} there, {quoted(b)} here" for name, a, b in rows]


def check_name(name: str, old: Any, kind: type) -> None:
    """Raise DatasetError unless a data set may be registered under `name`.

    Args:
        name: name of the data set to be registered.
        old: metadata of this name in MetadataCatalog, or None.
        kind: class that the metadata of an earlier registration must have.
    """
    if not name:
        raise DatasetError("a data set needs a name, found an empty one")
    if name in DatasetCatalog and not isinstance(old, kind):
        raise DatasetError(
            f"data set name {quoted(name)} is taken by another registration; choose another name"
        )


def other_content(name: str, differences: list[str]) -> DatasetError:
    """Return the error for a name under which another data set is registered."""
    return DatasetError(
        f"data set {quoted(name)} is registered with other content: "
        + "; ".join(differences)
        + ". Choose another name, or remove it from DatasetCatalog and MetadataCatalog"
    )


def _real_paths(source: Source) -> tuple[str, ...] | None:
    try:
        return tuple(map(os.path.realpath, source.locate()))
    except DatasetError:
        return None
