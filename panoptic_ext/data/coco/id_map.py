"""Id maps: one integer per pixel, 0 = void, otherwise the id of the one segment it belongs to.

Shapes: H x W is the image. In COCO's colours an id is R + 256 G + 65536 B.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from panoptic_ext.data.coco.runs import MAX_ID, find_runs
from panoptic_ext.errors import DatasetError

__all__ = ["MAX_RGB_ID", "id2rgb", "id_to_rgb", "remap_ids", "rgb2id", "rgb_to_id"]

MAX_RGB_ID = MAX_ID - 1


def rgb_to_id(array: np.ndarray) -> np.ndarray:
    """(..., 3 or 4) uint8 colours to (...) int32 ids, R + 256 G + 65536 B."""
    array = np.asarray(array)
    if array.dtype != np.uint8 or array.ndim < 1 or array.shape[-1] not in (3, 4):
        raise DatasetError(
            f"expected (..., 3) uint8 colours, found {array.dtype} of shape {array.shape}"
        )
    # Starting from blue and shifting in place needs one int32 map and no temporary of its size.
    ids = array[..., 2].astype(np.int32)
    for channel in (1, 0):
        ids <<= 8
        ids |= array[..., channel]
    return ids


def id_to_rgb(ids: Any) -> np.ndarray:
    """(...) integer ids in [0, 2^24) to (..., 3) uint8 colours; the inverse of `rgb_to_id`."""
    ids = np.asarray(ids)
    if ids.size and (ids.min() < 0 or ids.max() > MAX_RGB_ID):
        raise DatasetError(
            f"ids from {ids.min()} to {ids.max()} do not fit an RGB PNG: expected 0 to "
            f"{MAX_RGB_ID}; renumber the segments"
        )
    # The bytes of a little-endian integer are R, G, B and a zero, in this order.
    little_endian = np.ascontiguousarray(ids, dtype="<u4")
    return np.ascontiguousarray(little_endian.view(np.uint8).reshape(*ids.shape, 4)[..., :3])


def rgb2id(color: np.ndarray | Sequence[int]) -> np.ndarray | int:
    """Ids of colours as panopticapi's function of this name gives them.

    Args:
        color: (H, W, 3 or 4) integer array, or one colour (R, G, B) as a list, tuple or array.

    Returns:
        (H, W) int32 ids, or one int.
    """
    colors = np.asarray(color)
    if colors.ndim not in (1, 3) or colors.shape[-1] not in (3, 4) or colors.dtype.kind not in "iu":
        raise DatasetError(
            f"expected (H, W, 3) integer colours or one (R, G, B), found {colors.dtype} of shape"
            f" {colors.shape}"
        )
    if colors.size and (colors.min() < 0 or colors.max() > 255):
        raise DatasetError(f"colours from {colors.min()} to {colors.max()}; expected 0 to 255")
    ids = rgb_to_id(colors.astype(np.uint8))
    return int(ids) if colors.ndim == 1 else ids


def id2rgb(id_map: Any) -> np.ndarray | list[int]:
    """Colours of ids as panopticapi's function of this name gives them.

    Args:
        id_map: (H, W) integer array, or a tensor on the CPU, or one id; from 0 to 2^24 - 1.

    Returns:
        (H, W, 3) uint8, or one colour as a list [R, G, B].
    """
    colors = id_to_rgb(id_map)
    return colors if colors.ndim > 1 else colors.tolist()


def remap_ids(ids: np.ndarray, known: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Renumber an id map by the position of each id in `known`.

    Args:
        ids: (H, W) integer map, 0 = void.
        known: (N,) distinct ids, none of them 0.

    Returns:
        (H, W) map with i + 1 where ids == known[i] and 0 for void or unknown ids, of the smallest
        of uint8, uint16, int32 that holds N; (N,) bool, whether known[i] occurs; sorted array of
        the unknown ids that occur.
    """
    known = np.asarray(known, dtype=np.int64)
    dtype = np.uint8 if len(known) < 2**8 else np.uint16 if len(known) < 2**16 else np.int32
    runs = find_runs(ids)
    order = np.argsort(known, kind="stable")
    # The key -1 sorts before all ids, so that an empty `known` needs no branch.
    keys = np.concatenate([[-1], known[order]])
    rows = np.concatenate([[0], order + 1])
    positions = np.clip(np.searchsorted(keys, runs.ids, side="right") - 1, 0, None)
    is_known = keys[positions] == runs.ids
    local = np.where(is_known, rows[positions], 0)
    unknown = np.unique(runs.ids[~is_known])
    present = np.zeros(len(known) + 1, bool)
    present[local] = True
    return runs.expand(local.astype(dtype)), present[1:], unknown[unknown != 0]
