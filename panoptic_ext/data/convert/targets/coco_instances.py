"""Write COCO instances: a JSON of run lengths."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from panoptic_ext.atomic import write_file
from panoptic_ext.data.coco.categories import category_entries
from panoptic_ext.data.convert.resolve import Group
from panoptic_ext.data.convert.targets.target import ResultPlace, Target, WrittenImage

__all__ = ["CocoInstancesTarget"]


class CocoInstancesTarget(Target):
    """instances.json and images/. Masks are compressed run lengths, as pycocotools writes them."""

    name = "coco-instances"
    description = "instances JSON with run lengths; stuff too with --with-stuff"
    entries = ("instances.json", "images")

    def add(
        self, image: WrittenImage, ids: np.ndarray, groups: Sequence[Group]
    ) -> list[dict[str, Any]]:
        return [
            {
                "image_id": image.id,
                "category_id": group.category.id,
                "iscrowd": int(group.is_crowd),
                **_measured(ids == group.id),
            }
            for group in self.written(groups)
        ]

    def close(self, added: Sequence[tuple[WrittenImage, Any]], place: ResultPlace) -> list[str]:
        rows = [row for _, annotations in added for row in annotations]
        content = {
            "images": [image.entry() for image, _ in added],
            "annotations": [{"id": number, **row} for number, row in enumerate(rows, 1)],
            "categories": category_entries(self.written_classes()),
        }
        text = json.dumps(content, ensure_ascii=False)
        write_file(self.path("instances.json"), text.encode(), error=None)
        return self.stuff_note()


def _measured(mask: np.ndarray) -> dict[str, Any]:
    """Run lengths, area and box of an (H, W) bool mask."""
    runs = coco_mask.encode(np.asfortranarray(mask, np.uint8))
    return {
        "segmentation": {"size": runs["size"], "counts": runs["counts"].decode("ascii")},
        "area": int(coco_mask.area(runs)),
        "bbox": coco_mask.toBbox(runs).tolist(),
    }
