"""Write YOLO's segment files: a line of normalised corners for each object."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
import yaml

from panoptic_ext.atomic import write_file
from panoptic_ext.data.convert.masks import Polygons
from panoptic_ext.data.convert.resolve import Group
from panoptic_ext.data.convert.targets.target import ResultPlace, Target, WrittenImage

__all__ = ["Yolo", "outline_of"]


class Yolo(Target):
    """labels/*.txt beside images/, and data.yaml. A line is one polygon: `class x1 y1 x2 y2 ...`.

    The largest part of an object is kept; its holes and its other parts cannot be written.
    """

    name = "yolo"
    description = "YOLO segment text files: one polygon an object; stuff too with --with-stuff"
    entries = ("labels", "images", "data.yaml")

    def add(self, image: WrittenImage, ids: np.ndarray, groups: Sequence[Group]) -> dict[str, int]:
        numbers = {c.id: number for number, c in enumerate(self.written_classes())}
        lost = {"pixels": 0, "filled": 0, "objects": 0}
        lines = []
        for group in self.written(groups):
            mask = ids == group.id
            outline = outline_of(mask)
            window = Polygons([outline.reshape(-1).tolist()]).window(image.size)
            inside = int(np.count_nonzero(window.part_of(mask) & window.mask))
            missing = int(np.count_nonzero(mask)) - inside
            filled = int(np.count_nonzero(window.mask)) - inside
            lost["pixels"] += missing
            lost["filled"] += filled
            lost["objects"] += missing > 0 or filled > 0
            corners = (outline / [image.size[1], image.size[0]]).reshape(-1)
            numbers_of_corners = " ".join(f"{corner:.7g}" for corner in corners.tolist())
            lines.append(f"{numbers[group.category.id]} {numbers_of_corners}\n")
        path = self.path("labels", image.stem + ".txt")
        write_file(path, "".join(lines).encode(), durable=False, error=None)
        return lost

    def close(self, added: Sequence[tuple[WrittenImage, Any]], place: ResultPlace) -> list[str]:
        names = {number: c.name for number, c in enumerate(self.written_classes())}
        content = {"path": place.folder, "train": "images", "val": "images", "names": names}
        text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=1000)
        write_file(self.path("data.yaml"), text.encode(), error=None)
        total = {
            key: sum(lost[key] for _, lost in added) for key in ("pixels", "filled", "objects")
        }
        notes = self.stuff_note()
        if total["objects"]:
            notes.append(
                f"YOLO lines hold one outline: {total['objects']} objects lost holes or parts, "
                f"{total['pixels']} of their pixels are missing and {total['filled']} others were "
                "filled"
            )
        return notes


def outline_of(mask: np.ndarray) -> np.ndarray:
    """The outline of the largest part of a mask, along the edges of its pixels.

    Args:
        mask: (H, W) bool with at least one pixel.

    Returns:
        (N, 2) corners x, y in pixels, whole numbers; the pixel in column x is from x to x + 1.
    """
    # Each pixel is doubled, so that the border pixels that OpenCV lists tell the left edge of a
    # pixel (even) from its right one (odd).
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    top, left = int(rows[0]), int(columns[0])
    part = mask[top : rows[-1] + 1, left : columns[-1] + 1].astype(np.uint8)
    doubled = part.repeat(2, axis=0).repeat(2, axis=1)
    contours, _ = cv2.findContours(doubled, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    largest = max(contours, key=cv2.contourArea)
    corners = (largest.reshape(-1, 2) + 1) // 2 + [left, top]
    return _without_straight(corners)


def _without_straight(corners: np.ndarray) -> np.ndarray:
    """The corners without repeated ones and those in the middle of a straight line."""
    distinct = corners[np.any(corners != np.roll(corners, 1, axis=0), axis=1)]
    before = distinct - np.roll(distinct, 1, axis=0)
    after = np.roll(distinct, -1, axis=0) - distinct
    return distinct[before[:, 0] * after[:, 1] != before[:, 1] * after[:, 0]]
