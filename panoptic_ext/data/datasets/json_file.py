"""The JSON of a data set, read as one object and otherwise unchecked."""

from __future__ import annotations

import json
import os
from typing import Any, TypeGuard

from panoptic_ext.errors import NOT_JSON, DatasetError
from panoptic_ext.regular_files import PANOPTIC_JSON, FileKind, check_regular_file

__all__ = ["is_int", "read_json"]


def read_json(path: str, kind: FileKind = PANOPTIC_JSON) -> dict[str, Any]:
    """Read a JSON object.

    Args:
        path: of the file.
        kind: PANOPTIC_JSON or INSTANCES_JSON, for the messages.

    Raises:
        DatasetError: no regular file, no JSON, or no object.
    """
    check_regular_file(path, kind, error=DatasetError)
    try:
        with open(path, encoding="utf-8") as file:
            info = json.load(file)
    except OSError as error:
        raise DatasetError(f"{kind.name} {path} cannot be read: {error}") from error
    except NOT_JSON as error:
        raise DatasetError(
            f"{kind.name} {path} ({os.path.getsize(path)} bytes) is not valid JSON: {error};"
            f" {kind.bad}"
        ) from error
    if not isinstance(info, dict):
        raise DatasetError(
            f"{kind.name} {path} holds a {type(info).__name__}, expected an object with "
            "images, annotations and categories"
        )
    return info


def is_int(value: Any) -> TypeGuard[int]:
    """Whether a value is a whole number; True and False are none."""
    return isinstance(value, int) and not isinstance(value, bool)
