"""Whether two registrations under one name are the same data set, however they are written."""

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
        """Where its paths lie, in the order of its fields; DatasetError where one is not there."""


def source_differences(old: Any, new: Any) -> list[str]:
    """What differs between two sources; empty where they mean the same data set.

    Paths are compared by the place they lead to, where both lead somewhere: a relative path and an
    absolute one may be the same file. Otherwise they are compared as they are written.

    Args:
        old: what is registered.
        new: what is to be registered.

    Returns:
        Texts such as "json is 'a.json' there, 'b.json' here".
    """
    if type(old) is not type(new):
        return [f"a {type(old).__name__} there, a {type(new).__name__} here"]
    fields = [field.name for field in dataclasses.fields(new)]
    rows = [(name, getattr(old, name), getattr(new, name)) for name in fields]
    rows = [(name, a, b) for name, a, b in rows if a != b]
    if rows and all(name in _LOOKED_UP for name, _, _ in rows):
        # Only now: to be located, a generated data set is made.
        there, here = _places(old), _places(new)
        if there is not None and here is not None:
            paths = [name for name in fields if name in _PATHS]
            places = zip(paths, there, here, strict=True)
            rows = [(name, a, b) for name, a, b in places if a != b]
    return [f"{name} is {quoted(a)} there, {quoted(b)} here" for name, a, b in rows]


def check_name(name: str, old: Any, kind: type) -> None:
    """Raise DatasetError unless a data set may be registered under `name`.

    Args:
        name: of the data set to be registered.
        old: the metadata that this name has in MetadataCatalog, or None.
        kind: the class that the metadata of an earlier registration has to have.
    """
    if not name:
        raise DatasetError("a data set needs a name, found an empty one")
    if name in DatasetCatalog and not isinstance(old, kind):
        raise DatasetError(
            f"data set name {quoted(name)} is taken by another registration; choose another name"
        )


def other_content(name: str, differences: list[str]) -> DatasetError:
    """The error for a name under which another data set is registered."""
    return DatasetError(
        f"data set {quoted(name)} is registered with other content: "
        + "; ".join(differences)
        + ". Choose another name, or remove it from DatasetCatalog and MetadataCatalog"
    )


def _places(source: Source) -> tuple[str, ...] | None:
    try:
        return tuple(map(os.path.realpath, source.locate()))
    except DatasetError:
        return None
