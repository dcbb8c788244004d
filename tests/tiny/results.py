"""Small results of a model, with what is known about them."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import torch
from detectron2.data import Metadata, MetadataCatalog
from detectron2.structures import Boxes, Instances

from panoptic_ext.prediction.panoptic_result import PanopticResult

METADATA = SimpleNamespace(
    name="street",
    thing_classes=["car", "person", "road", "sky"],
    stuff_classes=["car", "person", "road", "sky"],
    thing_colors=[[200, 0, 0], [0, 200, 0], [90, 90, 90], [0, 0, 200]],
    stuff_colors=[[200, 0, 0], [0, 200, 0], [90, 90, 90], [0, 0, 200]],
    isthing=(True, True, False, False),
    thing_dataset_id_to_contiguous_id={30: 0, 10: 1},
    stuff_dataset_id_to_contiguous_id={7: 2, 200: 3},
    label_divisor=1000,
    ignore_label=255,
)
"""Four classes; the order of the dataset ids is not that of the contiguous ids."""


def street_ids() -> np.ndarray:
    """(6, 10): sky (5) above road (9), two cars (1, 70000) and a person (3); the corner is void."""
    ids = np.full((6, 10), 5)
    ids[3:] = 9
    ids[2:5, 1:4] = 1
    ids[4:6, 5:9] = 70000
    ids[1:5, 9] = 3
    ids[0, 0] = 0
    return ids


STREET_SEGMENTS = [
    {"id": 9, "category_id": 2, "isthing": False},
    {"id": 70000, "category_id": 0, "isthing": True, "score": 0.6},
    {"id": 1, "category_id": 0, "isthing": True, "score": 0.9},
    {"id": 5, "category_id": 3, "isthing": False},
    {"id": 3, "category_id": 1, "isthing": True, "score": 0.8},
]


def street_image() -> np.ndarray:
    """(6, 10, 3) uint8 RGB."""
    return np.random.default_rng(0).integers(0, 256, (6, 10, 3)).astype(np.uint8)


def street() -> PanopticResult:
    """The result of `street_ids`."""
    return PanopticResult(
        street_ids(), STREET_SEGMENTS, METADATA, street_image(), file_name="photos/street.jpg"
    )


def overlapping_instances() -> Instances:
    """(6, 10): a person wholly in front of a car of a better score, a bad one and an empty one."""
    masks = torch.zeros(4, 6, 10, dtype=torch.bool)
    masks[0, 2:4, 2:4] = True  # hidden behind the car
    masks[1, 1:5, 1:8] = True
    masks[2, 5, :] = True
    return Instances(
        (6, 10),
        pred_masks=masks,
        pred_classes=torch.tensor([1, 0, 1, 0]),
        scores=torch.tensor([0.6, 0.9, 0.3, 0.95]),
        pred_boxes=Boxes(torch.zeros(4, 4)),
    )


def separated_metadata() -> Metadata:
    """Detectron2's, of COCO: 80 things, and 53 stuff after a class 0 that stands for things."""
    return MetadataCatalog.get("coco_2017_val_panoptic_separated")
