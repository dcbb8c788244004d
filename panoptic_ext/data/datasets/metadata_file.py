"""Save and load metadata as a small JSON file, so that a model can be used without its data.

Training writes it as `metadata.json` into the output folder. A machine that has neither the images
nor the panoptic JSON can then show class names, colours and ids.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import Any

from detectron2.data.catalog import Metadata

from panoptic_ext.atomic import write_atomic
from panoptic_ext.data.coco.json_file import load_json
from panoptic_ext.errors import DatasetError, quoted
from panoptic_ext.regular_files import METADATA

__all__ = ["METADATA_FILE", "load_metadata", "save_metadata"]

METADATA_FILE = "metadata.json"
"""Name of the file in a run's output folder."""

_REQUIRED = ("name", "thing_classes", "stuff_classes", "isthing")
_ID_MAPS = ("thing_dataset_id_to_contiguous_id", "stuff_dataset_id_to_contiguous_id")
_OPTIONAL = (
    "thing_colors",
    "stuff_colors",
    "label_divisor",
    "ignore_label",
    "evaluator_type",
)


def save_metadata(metadata: Any, path: str) -> None:
    """Write the class names, colours, kinds and ids of `metadata` atomically.

    Args:
        metadata: metadata of a registered data set; values that are not set yet are read.
        path: path of the JSON file; its folder is created.

    Raises:
        DatasetError: class names or kinds are missing.
    """
    content: dict[str, Any] = {}
    for key in (*_REQUIRED, *_ID_MAPS, *_OPTIONAL):
        value = getattr(metadata, key, None)
        if key == "stuff_classes" and value is None and all(getattr(metadata, "isthing", (0,))):
            # A data set of instances alone has no stuff; its things are all K classes.
            value = metadata.thing_classes
        if value is None and key in _REQUIRED:
            raise DatasetError(
                f"the metadata of {quoted(getattr(metadata, 'name', '?'))} has no {key}; "
                "register the data set with register_panoptic"
            )
        if value is not None:
            content[key] = _plain(value)
    os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
    text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
    write_atomic(path, lambda stream: stream.write(text.encode()))


def load_metadata(path: str) -> Metadata:
    """Read a file that `save_metadata` wrote.

    Returns:
        A new Metadata that is in no catalogue. Its ids are integers, which JSON keys are not.

    Raises:
        DatasetError: the file is missing, or is no valid JSON of metadata.
    """
    content = load_json(path, METADATA)
    missing = [key for key in _REQUIRED if key not in content] if isinstance(content, dict) else []
    if missing or not isinstance(content, dict):
        raise DatasetError(
            f"{path} is not a metadata file: expected the keys {', '.join(_REQUIRED)}"
            + (f", missing are {', '.join(missing)}" if missing else "")
        )
    return Metadata(**_checked(content, path))


def _checked(content: dict[str, Any], path: str) -> dict[str, Any]:
    """Return the known keys of a metadata file, converted to the types that metadata has."""
    known = {k: v for k, v in content.items() if k in (*_REQUIRED, *_ID_MAPS, *_OPTIONAL)}
    # A table of ids that is missing stands for an empty one, so that both attributes exist.
    for key, value in {**{key: {} for key in _ID_MAPS}, **known}.items():
        try:
            known[key] = _KINDS[key](value)
        except _NOT_OF_A_KIND as error:
            raise DatasetError(
                f"metadata file {path}: {key} is {quoted(value)}, expected what training writes"
                " there; copy the file again from the run's output folder"
            ) from error
    return known


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value


def _integer(value: Any) -> int:
    number = int(value)  # JSON keys are texts, so "7" is accepted
    if isinstance(value, (bool, float)) or abs(number) >= 2**63:
        raise ValueError
    return number


def _texts(value: Any) -> list[str]:
    return [_text(v) for v in _list(value)]


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise TypeError
    return value


def _colors(value: Any) -> list[list[int]]:
    colors = [[_integer(v) for v in _list(color)] for color in _list(value)]
    if any(len(color) != 3 for color in colors):
        raise ValueError
    return colors


def _ids(value: Any) -> dict[int, int]:
    return {_integer(k): _integer(v) for k, v in value.items()}


_NOT_OF_A_KIND = (TypeError, ValueError, AttributeError, OverflowError)
_KINDS: dict[str, Callable[[Any], Any]] = {
    "name": _text,
    "thing_classes": _texts,
    "stuff_classes": _texts,
    "isthing": lambda value: tuple(bool(v) for v in _list(value)),
    "thing_colors": _colors,
    "stuff_colors": _colors,
    "label_divisor": _integer,
    "ignore_label": _integer,
    "evaluator_type": _text,
    **dict.fromkeys(_ID_MAPS, _ids),
}


def _plain(value: Any) -> Any:
    """Return `value` as types that JSON has; tuples become lists, numpy scalars plain numbers."""
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return value.item() if hasattr(value, "item") else value
