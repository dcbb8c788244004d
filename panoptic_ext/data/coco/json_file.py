"""Read JSON files whole. The modules that use them check their content."""

from __future__ import annotations

import json
from typing import Any, TypeGuard

from panoptic_ext.errors import NOT_JSON, DatasetError, PanopticExtError
from panoptic_ext.regular_files import PANOPTIC_JSON, FileKind, check_regular_file

__all__ = ["ImageId", "is_int", "load_json", "read_json"]

ImageId = int | str
"""The id of an image in a JSON: COCO has numbers, Cityscapes has text."""


def load_json(path: str, kind: FileKind, *, error: type[PanopticExtError] = DatasetError) -> Any:
    """Return the content of a JSON file.

    Args:
        path: of the file.
        kind: what it should be.
        error: the class to raise.

    Raises:
        `error`: it is no regular file of a sensible size, or no JSON.
    """
    size = check_regular_file(path, kind, error=error)
    try:
        with open(path, encoding="utf-8") as file:
            return json.load(file)
    except OSError as failure:
        raise error(
            f"{kind.name} {path} cannot be read: {failure.strerror or failure}"
        ) from failure
    except NOT_JSON as failure:
        raise error(
            f"{kind.name} {path} ({size} bytes) is not valid JSON: {failure}; {kind.bad}"
        ) from failure


def read_json(path: str, kind: FileKind = PANOPTIC_JSON) -> dict[str, Any]:
    """The JSON of a data set.

    Args:
        path: of the file.
        kind: PANOPTIC_JSON or INSTANCES_JSON, for the messages.

    Raises:
        DatasetError: no regular file, no JSON, or no object.
    """
    info = load_json(path, kind)
    if not isinstance(info, dict):
        raise DatasetError(
            f"{kind.name} {path} holds a {type(info).__name__}, expected an object with "
            "images, annotations and categories"
        )
    return info


def is_int(value: Any) -> TypeGuard[int]:
    """Return whether a value is an integer. bool is excluded, although Python counts it as int."""
    return isinstance(value, int) and not isinstance(value, bool)
