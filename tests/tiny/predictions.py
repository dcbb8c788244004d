"""A registered data set of three small images in two folders, and predictions for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from PIL import Image

from panoptic_ext.data import register_panoptic
from tests.evaluation.reference import CATEGORIES, segment, with_areas, write_dataset

CONTIGUOUS = {
    c["id"]: i for i, c in enumerate(CATEGORIES)
}  # things and stuff alternate in no order
NAMES = {"a": "north/1.png", "b": "south/1.png", "c": "south/2.png"}


def truth(kind: str) -> tuple[np.ndarray, list[dict]]:
    """Sky above road, two people (one far id), a car, void at the left; "b" has a crowd of cars."""
    ids = np.full((24, 32), 500, np.int64)
    ids[12:] = 501
    ids[4:16, 4:10] = 2**24 - 1
    ids[6:20, 12:18] = 70000
    ids[14:22, 20:30] = 7
    ids[:, :2] = 0
    if kind == "c":
        ids[:] = 501
    segments = [segment(500, 90), segment(501, 21)]
    segments += [segment(2**24 - 1, 7), segment(70000, 7), segment(7, 3, crowd=int(kind == "b"))]
    segments = [s for s in segments if (ids == s["id"]).any()]
    return ids, with_areas(ids, segments)


def register(root: Path, name: str, **options: Any) -> str:
    """Write and register the data set; returns its name. Remove it with `unregister`."""
    images = []
    for image_id, file_name in NAMES.items():
        ids, segments = truth(image_id)
        images.append((image_id, file_name, ids, segments))
        path = root / "images" / file_name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.zeros((*ids.shape, 3), np.uint8)).save(path)
    json, png_root = write_dataset(root, "truth", images)
    register_panoptic(name, json, root / "images", png_root, **options)
    return name


def unregister(name: str) -> None:
    """Undo `register`."""
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)


def inputs(name: str) -> list[dict]:
    """The inputs of an evaluator, as the loader makes them, without images."""
    return [{k: r[k] for k in ("image_id", "file_name")} for r in DatasetCatalog.get(name)]


def prediction(ids: np.ndarray, segments: list[dict]) -> dict[str, Any]:
    """A model's output, with contiguous ids, from a map and its segments with dataset ids."""
    things = {c["id"]: bool(c["isthing"]) for c in CATEGORIES}
    info = [
        {
            "id": s["id"],
            "category_id": CONTIGUOUS[s["category_id"]],
            "isthing": np.bool_(things[s["category_id"]]),
        }
        for s in segments
    ]
    return {"panoptic_seg": (torch.from_numpy(ids.astype(np.int32)), info)}


def perfect() -> dict[str, dict[str, Any]]:
    """The truth as predictions, by image id; crowds become ordinary segments."""
    return {i: prediction(*truth(i)) for i in NAMES}


def imperfect() -> dict[str, dict[str, Any]]:
    """As `perfect`, but 6 columns of "a" are void and "c" is sky."""
    outputs = perfect()
    ids, segments = truth("a")
    ids[:, 26:] = 0
    outputs["a"] = prediction(ids, segments)
    ids, _ = truth("c")
    outputs["c"] = prediction(ids, [segment(501, 90)])
    return outputs


def run(evaluator: DatasetEvaluator, name: str, outputs: dict[str, dict]) -> Any:
    """Evaluate the outputs, in batches of two."""
    evaluator.reset()
    chosen = [i for i in inputs(name) if i["image_id"] in outputs]
    for first in range(0, len(chosen), 2):
        batch = chosen[first : first + 2]
        evaluator.process(batch, [outputs[i["image_id"]] for i in batch])
    return evaluator.evaluate()


def change(outputs: dict[str, dict], image_id: str, **values: Any) -> dict[str, dict]:
    """`outputs` with another map (`ids`) or `info` for one image."""
    ids, info = outputs[image_id]["panoptic_seg"]
    outputs[image_id] = {"panoptic_seg": (values.get("ids", ids), values.get("info", info))}
    return outputs
