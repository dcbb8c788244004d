"""Whether two registrations under one name are the same data set, however they are written."""

from __future__ import annotations

import dataclasses
import os
from typing import Any, Protocol

from panoptic_ext.errors import DatasetError, quoted

__all__ = ["source_differences"]

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


def _places(source: Source) -> tuple[str, ...] | None:
    try:
        return tuple(map(os.path.realpath, source.locate()))
    except DatasetError:
        return None
