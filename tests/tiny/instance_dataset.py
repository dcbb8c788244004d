"""A tiny instance data set with overlapping masks, which tests change to make it wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
from PIL import Image

HEIGHT, WIDTH = 40, 60
# Category ids out of order and with gaps: contiguous ids follow the sorted dataset ids.
CATEGORIES = [{"id": 9, "name": "plate"}, {"id": 4, "name": "cup"}]
CUP, PLATE = 0, 1


def rectangle(x0: int, y0: int, x1: int, y1: int) -> list[list[float]]:
    """A polygon around whole pixels."""
    return [[x0, y0, x1, y0, x1, y1, x0, y1]]


def run_lengths(mask: np.ndarray) -> dict[str, Any]:
    """COCO's compressed run lengths of a (H, W) bool mask."""
    encoded = mask_util.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": list(mask.shape), "counts": encoded["counts"].decode()}


class TinyInstances:
    """Two images of a plate with a cup on it; in the second the cup is a crowd.

    `info` is the JSON's content; after editing it call `save`.
    """

    def __init__(self, root: Path):
        self.root = root
        self.json = root / "instances.json"
        self.images = root / "images"
        self.images.mkdir(parents=True)
        plate = np.zeros((HEIGHT, WIDTH), bool)
        plate[10:30, 5:45] = True
        self.masks = {PLATE: plate, CUP: np.zeros((HEIGHT, WIDTH), bool)}
        self.masks[CUP][12:22, 20:30] = True
        self.info: dict[str, Any] = {
            "categories": json.loads(json.dumps(CATEGORIES)),
            "images": [],
            "annotations": [],
        }
        for number in (1, 2):
            self._add(number)
        self.save()

    def _add(self, number: int) -> None:
        pixels = np.random.default_rng(number).integers(0, 255, (HEIGHT, WIDTH, 3), np.uint8)
        Image.fromarray(pixels).save(self.images / f"{number}.png")
        self.info["images"].append(
            {"id": number, "file_name": f"{number}.png", "height": HEIGHT, "width": WIDTH}
        )
        for category, segmentation, crowd in (
            (PLATE, run_lengths(self.masks[PLATE]), 0),
            (CUP, rectangle(20, 12, 30, 22), int(number == 2)),
        ):
            mask = self.masks[category]
            rows, columns = np.nonzero(mask)
            box = [columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1]
            self.info["annotations"].append(
                {
                    "id": len(self.info["annotations"]) + 1,
                    "image_id": number,
                    "category_id": {PLATE: 9, CUP: 4}[category],
                    "iscrowd": crowd,
                    "area": int(mask.sum()),
                    "bbox": [int(v) for v in box],
                    "segmentation": segmentation,
                }
            )

    def save(self) -> TinyInstances:
        self.json.write_text(json.dumps(self.info))
        return self
