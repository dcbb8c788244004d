"""Metadata of a data set as a small JSON file, so that a model can be used without its data.

A trained model's output folder keeps it as `metadata.json`; class names, colours and ids are then
at hand on a machine that has neither the images nor the panoptic JSON.
"""

from __future__ import annotations

import json
import os
from typing import Any

from detectron2.data.catalog import Metadata

from panoptic_ext.atomic import write_atomic
from panoptic_ext.errors import DatasetError
from panoptic_ext.regular_files import METADATA, check_regular_file

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
    """Write the class names, colours, kinds and ids of `metadata`, aside and then renamed.

    Args:
        metadata: a registered data set's; a lazy one is read by this.
        path: of the JSON file; its folder is made.

    Raises:
        DatasetError: class names or kinds are missing.
    """
    content: dict[str, Any] = {}
    for key in (*_REQUIRED, *_ID_MAPS, *_OPTIONAL):
        value = getattr(metadata, key, None)
        if value is None and key in _REQUIRED:
            raise DatasetError(
                f"the metadata of {getattr(metadata, 'name', '?')!r} has no {key}; register the"
                " data set with register_panoptic"
            )
        if value is not None:
            content[key] = _plain(value)
    os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
    text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
    write_atomic(path, lambda stream: stream.write(text.encode()))


def load_metadata(path: str) -> Metadata:
    """Read a file of `save_metadata`.

    Returns:
        A new Metadata that is in no catalogue; ids are ints again.

    Raises:
        DatasetError: missing file, invalid JSON or another kind of JSON.
    """
    check_regular_file(path, METADATA, error=DatasetError)
    try:
        with open(path, encoding="utf-8") as stream:
            content = json.load(stream)
    except (OSError, ValueError, RecursionError) as error:
        raise DatasetError(
            f"metadata file {path} cannot be read: {error}; expected the {METADATA_FILE} that"
            " training writes into its output folder"
        ) from error
    missing = [key for key in _REQUIRED if key not in content] if isinstance(content, dict) else []
    if missing or not isinstance(content, dict):
        raise DatasetError(
            f"{path} is not a metadata file: expected the keys {', '.join(_REQUIRED)}"
            + (f", missing are {', '.join(missing)}" if missing else "")
        )
    known = {k: v for k, v in content.items() if k in (*_REQUIRED, *_ID_MAPS, *_OPTIONAL)}
    for key in _ID_MAPS:
        known[key] = {int(k): int(v) for k, v in known.get(key, {}).items()}
    known["isthing"] = tuple(bool(v) for v in known["isthing"])
    return Metadata(**known)


def _plain(value: Any) -> Any:
    """`value` with plain ints, bools, strings, lists and dicts only; numpy numbers unpacked."""
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return value.item() if hasattr(value, "item") else value
