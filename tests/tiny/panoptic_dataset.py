"""A tiny panoptic data set on disk, which tests change to make it wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from panoptic_ext.data.coco.label_png import write_id_map
from panoptic_ext.data.datasets.metadata import PanopticSource
from panoptic_ext.data.datasets.panoptic import load_panoptic

CATEGORIES = [
    {"id": 7, "name": "road", "isthing": 0, "color": [10, 20, 30]},
    {"id": 3, "name": "car", "isthing": 1, "color": [200, 0, 0]},
    {"id": 11, "name": "person", "isthing": 1, "color": [0, 200, 0]},
]
ROAD, CAR, CROWD = 70000, 5, 2**24 - 1
HEIGHT, WIDTH = 24, 32


class TinyDataset:
    """Two images: road with a car, and road with a car and a crowd of people.

    `info` is the JSON's content; after editing it call `save`.
    """

    def __init__(self, root: Path):
        self.root = root
        self.json = root / "panoptic.json"
        self.images = root / "images"
        self.pngs = root / "panoptic"
        self.images.mkdir(parents=True)
        self.pngs.mkdir()
        self.maps: list[np.ndarray] = []
        self.info: dict[str, Any] = {"categories": json.loads(json.dumps(CATEGORIES))}
        self.info.update(images=[], annotations=[])
        for number in (1, 2):
            self._add(number)
        self.save()

    def _add(self, number: int) -> None:
        ids = np.full((HEIGHT, WIDTH), ROAD, np.int32)
        ids[:3] = 0
        ids[5:15, 4:14] = CAR
        segments = [(ROAD, 7, 0), (CAR, 3, 0)]
        if number == 2:
            ids[10:20, 20:30] = CROWD
            segments.append((CROWD, 11, 1))
        rng = np.random.default_rng(number)
        image = rng.integers(0, 255, (HEIGHT, WIDTH, 3), np.uint8)
        Image.fromarray(image).save(self.images / f"{number}.png")
        write_id_map(self.pngs / f"{number}.png", ids)
        self.maps.append(ids)
        self.info["images"].append(
            {"id": number, "file_name": f"{number}.png", "height": HEIGHT, "width": WIDTH}
        )
        self.info["annotations"].append(
            {
                "image_id": number,
                "file_name": f"{number}.png",
                "segments_info": [
                    {"id": i, "category_id": c, "iscrowd": crowd, "area": int((ids == i).sum())}
                    for i, c, crowd in segments
                ],
            }
        )

    @property
    def segment(self) -> dict[str, Any]:
        """The first segment of the first annotation."""
        return self.info["annotations"][0]["segments_info"][0]

    def save(self) -> TinyDataset:
        self.json.write_text(json.dumps(self.info))
        return self

    def paths(self) -> tuple[str, str, str]:
        return str(self.json), str(self.images), str(self.pngs)

    def source(self, **changes: Any) -> PanopticSource:
        return PanopticSource(*self.paths(), **changes)

    def load(self, **options: Any) -> list[dict[str, Any]]:
        return load_panoptic(*self.paths(), **options)
