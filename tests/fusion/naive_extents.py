"""Area and box of a segment, pixel by pixel."""

from __future__ import annotations

from typing import Any

from torch import Tensor

__all__ = ["check_extents", "naive_extent"]


def naive_extent(panoptic_seg: Tensor, segment_id: int) -> tuple[int, list[int]]:
    """Area, and x, y, width, height, of one id of an (H, W) map; zeros where it has no pixel."""
    rows = enumerate(panoptic_seg.tolist())
    pixels = [(x, y) for y, row in rows for x, value in enumerate(row) if value == segment_id]
    if not pixels:
        return 0, [0, 0, 0, 0]
    xs, ys = zip(*pixels, strict=True)
    return len(pixels), [min(xs), min(ys), max(xs) - min(xs) + 1, max(ys) - min(ys) + 1]


def check_extents(panoptic_seg: Tensor, segments: list[dict[str, Any]]) -> None:
    """Every segment has its area and its bbox, as ints."""
    for segment in segments:
        expected = naive_extent(panoptic_seg, segment["id"])
        assert (segment["area"], segment["bbox"]) == expected
        assert {type(value) for value in (segment["area"], *segment["bbox"])} == {int}
