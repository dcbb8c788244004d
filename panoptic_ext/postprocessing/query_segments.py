"""The segments of a panoptic map from queries that have won pixels.

Source: Cheng et al., "Masked-attention Mask Transformer", the published model's post-processing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["KeptQuery", "segments_of_queries"]


@dataclass(frozen=True)
class KeptQuery:
    """A query that may become a segment, and its pixels in the output.

    Attributes:
        score: class probability.
        category: contiguous class id.
        won: number of pixels that the query wins.
        mask: number of pixels of its own mask, where its sigmoid is at least 0.5.
        won_in_mask: number of pixels that it wins inside its own mask.
    """

    score: float
    category: int
    won: int
    mask: int
    won_in_mask: int


def segments_of_queries(
    queries: Sequence[KeptQuery], is_thing: Sequence[bool], overlap_threshold: float
) -> tuple[list[int], list[dict[str, Any]]]:
    """Decide which queries become segments.

    Args:
        queries: in the order of their indices.
        is_thing: for each class whether it is a thing.
        overlap_threshold: a query that wins less than this share of its mask is discarded.

    Returns:
        The segment id of each code of `PanopticPixels`, 0 for void, and segments_info.
    """
    table = [0] * (2 * len(queries))
    segments: list[dict[str, Any]] = []
    stuff: dict[int, dict[str, Any]] = {}
    for index, query in enumerate(queries):
        if not (query.won and query.mask and query.won_in_mask):
            continue
        # As in the published code, `won` also counts pixels outside the query's own mask, so that
        # the share can exceed 1. Only the pixels inside the mask get the segment's id below.
        if query.won / query.mask < overlap_threshold:
            continue
        # All queries of a stuff class share one segment.
        segment = stuff.get(query.category)
        if segment is None:
            segment = {
                "id": len(segments) + 1,
                "isthing": is_thing[query.category],
                "category_id": query.category,
                "score": query.score,
                "area": 0,
            }
            segments.append(segment)
            if not segment["isthing"]:
                stuff[query.category] = segment
        segment["score"] = max(segment["score"], query.score)
        segment["area"] += query.won_in_mask
        table[2 * index + 1] = segment["id"]
    return table, segments
