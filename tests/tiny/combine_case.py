"""A tiny data set, and predictions of two models made of its own truth."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pycocotools.mask as mask_util
from PIL import Image

from panoptic_ext.evaluation import evaluate_files
from tests.tiny.panoptic_dataset import CATEGORIES, HEIGHT, WIDTH, TinyDataset

ROAD_ID, CAR_ID, PERSON_ID = (c["id"] for c in CATEGORIES)


def rle(mask: np.ndarray) -> dict:
    """COCO's compressed run lengths of a (H, W) mask, as JSON holds them."""
    encoded = mask_util.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {**encoded, "counts": encoded["counts"].decode()}


class Case:
    """A tiny data set, and predictions of two models made of its own truth.

    `instances` and `semantic` are the rows of the two JSONs, `label_maps` the semantic predictions
    as arrays; tests change them and then call `save` or `save_labels`.
    """

    def __init__(self, root: Path):
        self.data = TinyDataset(root / "data")
        for entry in self.data.info["annotations"][1]["segments_info"]:
            entry["iscrowd"] = 0
        self.data.save()
        self.root = root
        self.instances: list[dict] = []
        self.semantic: list[dict] = []
        self.label_maps: list[np.ndarray] = []
        self.folder = root / "labels"
        for number, ids in enumerate(self.data.maps, start=1):
            labels = np.zeros((HEIGHT, WIDTH), np.uint8)
            for s in self.data.info["annotations"][number - 1]["segments_info"]:
                mask, category = ids == s["id"], s["category_id"]
                labels[mask] = category
                row = {"category_id": category, "segmentation": rle(mask)}
                self.semantic.append({"file_name": f"/elsewhere/{number}.jpg", **row})
                if category != ROAD_ID:
                    self.instances.append({"image_id": number, "score": 0.9, "bbox": [], **row})
            self.label_maps.append(labels)

    def save(self) -> list[str]:
        """Write the predictions; the arguments that name them, semantic ones as JSON."""
        paths = []
        for name, content in (("instances", self.instances), ("semantic", self.semantic)):
            path = self.root / f"{name}.json"
            path.write_text(json.dumps(content))
            paths += [f"--{name}", str(path)]
        output = ["--output", str(self.root / "out"), "--stuff-area-threshold", "1"]
        return ["--json", str(self.data.json), *paths, *output, "--threads", "1"]

    def save_labels(self, convert=lambda labels: labels, name: str = "{}.png") -> list[str]:
        """As `save`, semantic ones as PNGs."""
        for number, labels in enumerate(self.label_maps, start=1):
            path = self.folder / name.format(number)
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(convert(labels)).save(path)
        return [*self.save(), "--semantic", str(self.folder)]

    @property
    def result(self) -> Path:
        return self.root / "out" / "panoptic_predictions.json"

    def quality(self) -> dict[str, float]:
        truth = str(self.data.json), str(self.data.pngs)
        return evaluate_files(*truth, str(self.result), None, num_threads=0).summary["All"]
