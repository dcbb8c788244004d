"""The last step of every fusion: turn one code per pixel into a panoptic map and its segments.

Shapes: n instances, S stuff classes, H x W pixels. Codes: 0 void, 1..S stuff, S + 1..S + n the
instances in the order in which they were visited.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from panoptic_ext.fusion.base import PanopticMap
from panoptic_ext.fusion.windows import Instance
from panoptic_ext.host_copies import to_device
from panoptic_ext.postprocessing.best_class import strips
from panoptic_ext.postprocessing.counts import count_values

__all__ = ["assemble_segments"]


def assemble_segments(
    things: Tensor,
    stuff: Tensor,
    instances: Sequence[Instance],
    stuff_ids: Sequence[int | None],
    stuff_area_threshold: float,
) -> PanopticMap:
    """Fill the pixels without an instance with stuff, and number the segments.

    Args:
        things: (H, W) float32 codes of instances, 0 where there is none.
        stuff: (H, W) float32 codes of stuff, 0 for void.
        instances: in the order of their codes.
        stuff_ids: contiguous ids in the order of their codes; None for a code that means void.
        stuff_area_threshold: stuff with fewer pixels becomes void.

    Returns:
        Things in the order of `instances`, then stuff by class; no segment is empty.
    """
    # The codes of instances are larger than those of stuff, so that the maximum is the instance
    # wherever there is one. Float32 holds whole numbers exactly up to 2**24.
    codes = torch.empty(things.shape, dtype=torch.int32, device=things.device)
    length = 1 + len(stuff_ids) + len(instances)
    counts = torch.zeros(length, dtype=torch.int64, device=things.device)
    for rows in strips(things):
        codes[rows] = torch.maximum(things[rows], stuff[rows])
        counts += count_values(codes[rows].reshape(-1), length)
    table, segments = _number(counts.tolist(), instances, stuff_ids, stuff_area_threshold)
    by_code = to_device(np.array(table, dtype=np.int32), codes.device)
    for rows in strips(codes):
        strip = codes[rows]
        strip.copy_(by_code.index_select(0, strip.reshape(-1)).view_as(strip))
    return codes, segments


def _number(
    areas: list[int],
    instances: Sequence[Instance],
    stuff_ids: Sequence[int | None],
    stuff_area_threshold: float,
) -> tuple[list[int], list[dict[str, Any]]]:
    """Give a segment id to every code that has enough pixels; the others stay 0, which is void."""
    table = [0] * len(areas)
    segments: list[dict[str, Any]] = []
    for code, instance in enumerate(instances, start=1 + len(stuff_ids)):
        if areas[code]:
            table[code] = len(segments) + 1
            segments.append(
                {
                    "id": table[code],
                    "isthing": True,
                    "category_id": instance.category,
                    "score": instance.score,
                    "instance_id": instance.index,
                    "area": areas[code],
                }
            )
    for code, category in enumerate(stuff_ids, start=1):
        if category is not None and areas[code] >= max(1, stuff_area_threshold):
            table[code] = len(segments) + 1
            segments.append(
                {
                    "id": table[code],
                    "isthing": False,
                    "category_id": category,
                    "area": areas[code],
                }
            )
    return table, segments
