"""What models give as "panoptic_seg"."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from panoptic_ext.errors import EvaluationError, quoted

__all__ = ["map_and_info"]


def map_and_info(output: Any, where: str) -> tuple[Any, list[dict[str, Any]] | None]:
    """Take apart a model's "panoptic_seg".

    Args:
        output: what the model gave.
        where: names the image in errors.

    Returns:
        the map, not looked at, and a copy of segments_info, or None.

    Raises:
        EvaluationError: not a pair, or segments_info is no list of dicts.
    """
    pair = output if isinstance(output, (tuple, list)) and len(output) == 2 else (output, "")
    ids, info = pair
    if not (info is None or isinstance(info, (tuple, list))):
        raise EvaluationError(
            f"{where}: 'panoptic_seg' is {type(output).__name__} {quoted(output, 100)}; expected a"
            " tuple of a (height, width) map and its segments_info, a list or None"
        )
    for segment in info or ():
        if not isinstance(segment, Mapping):
            raise EvaluationError(
                f"{where}: segments_info has the entry {quoted(segment)}; expected an object "
                "with id and category_id"
            )
    return ids, None if info is None else [dict(segment) for segment in info]
