"""Tell what kind of JSON a file is without reading all of it."""

from __future__ import annotations

import os
import re

__all__ = ["json_keys"]

_HEAD = 1 << 20  # bytes; a COCO JSON may list a hundred thousand images before its annotations
_KEY = re.compile(rb'"(\w+)"\s*:')


def json_keys(path: str) -> frozenset[str]:
    """The keys of all objects at the beginning and the end of a JSON file; none of what is no file.

    Args:
        path: of the file.
    """
    if not path.lower().endswith(".json") or not os.path.isfile(path):
        return frozenset()
    try:
        with open(path, "rb") as file:
            text = file.read(_HEAD)
            size = os.fstat(file.fileno()).st_size
            if size > len(text):
                file.seek(max(len(text), size - _HEAD))
                text += file.read(_HEAD)
    except OSError:
        return frozenset()
    return frozenset(key.decode("ascii", "replace") for key in _KEY.findall(text))
