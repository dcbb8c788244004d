"""Write COCO panoptic: a JSON, a label PNG for each image, and the block of YAML to train on it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import yaml

from panoptic_ext.atomic import write_file
from panoptic_ext.data.coco.categories import Category, category_entries
from panoptic_ext.data.coco.writer import PanopticWriter
from panoptic_ext.data.convert.resolve import Group
from panoptic_ext.data.convert.targets.target import ResultPlace, Target, WrittenImage

__all__ = ["CocoPanoptic"]

_DEFAULT_IGNORE_LABEL = 255


class CocoPanoptic(Target):
    """panoptic.json, panoptic/, images/ and dataset.yaml."""

    name = "coco-panoptic"
    description = "panoptic JSON and label PNGs, as training reads them"
    entries = ("panoptic.json", "panoptic", "images", "dataset.yaml")

    def __init__(self, folder: str, classes: Sequence[Category], *, with_stuff: bool) -> None:
        super().__init__(folder, classes, with_stuff=with_stuff)
        self._writer = PanopticWriter(
            self.path("panoptic.json"), self.path("panoptic"), error=None, ensure_ascii=False
        )

    def add(self, image: WrittenImage, ids: np.ndarray, groups: Sequence[Group]) -> dict[str, Any]:
        segments = [
            {"id": g.id, "category_id": g.category.id, "iscrowd": int(g.is_crowd)} for g in groups
        ]
        return self._writer.add(image.id, image.stem + ".png", ids, segments)

    def close(self, added: Sequence[tuple[WrittenImage, Any]], place: ResultPlace) -> list[str]:
        content = {
            "images": [image.entry() for image, _ in added],
            "annotations": [],  # filled in by the writer, here for its place in the file
            "categories": category_entries(self.classes),
        }
        self._writer.close(content, [annotation for _, annotation in added])
        block = training_block(place, len(self.classes))
        write_file(self.path("dataset.yaml"), block.encode(), error=None)
        return []


def training_block(place: ResultPlace, num_classes: int) -> str:
    """The YAML of DATASETS that trains on a result."""
    source: dict[str, Any] = {
        "JSON": os.path.join(place.folder, "panoptic.json"),
        "IMAGE_ROOT": place.image_root,
        "PNG_ROOT": os.path.join(place.folder, "panoptic"),
    }
    if num_classes > _DEFAULT_IGNORE_LABEL:
        source["IGNORE_LABEL"] = num_classes
    block = {"DATASETS": {"PANOPTIC": {place.name: source}, "TRAIN": [place.name]}}
    return yaml.safe_dump(block, sort_keys=False, allow_unicode=True, width=1000)
