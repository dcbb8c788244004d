"""Instances that overlap: which is seen, and their boxes."""

from __future__ import annotations

import copy
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from panoptic_ext.data import get_metadata, get_records, register_instances
from panoptic_ext.errors import ConfigError
from panoptic_ext.visualization import Pictures, ground_truth_segments
from panoptic_ext.visualization.instance_masks import stack_masks
from tests.tiny.instance_dataset import CUP, HEIGHT, PLATE, WIDTH, TinyInstances

TWO = SimpleNamespace(thing_classes=["a disc", "grass"])


def test_the_largest_mask_lies_at_the_bottom() -> None:
    masks = np.zeros((3, 10, 10), bool)
    masks[0, 4:6, 4:6], masks[1], masks[2, 2:8, 2:8] = True, True, True
    ids = stack_masks(masks)
    assert (ids == 1).sum() == 4 and (ids == 3).sum() == 32 and (ids == 2).sum() == 64
    assert stack_masks(masks[:0]).shape == (10, 10) and not stack_masks(masks[:0]).any()


def test_annotations_of_a_record_with_crowds_and_their_own_boxes(
    tmp_path: Path, clean_catalogs: None
) -> None:
    data = TinyInstances(tmp_path / "tiny")
    register_instances("tiny_masks", data.json, data.images)
    record = get_records("tiny_masks")[1]  # whose cup is a crowd
    before = copy.deepcopy(record)
    ids, segments = ground_truth_segments(record)
    assert record == before
    assert [s["category_id"] for s in segments] == [PLATE, CUP]
    assert (ids == 2).sum() == data.masks[CUP].sum()
    assert ((ids > 0) == (data.masks[CUP] | data.masks[PLATE])).all()
    assert segments[0]["full_bbox"] == [5, 10, 40, 20]

    pictures = Pictures(get_metadata("tiny_masks"), {"labels": False})
    image = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    picture = pictures.draw(image, ids, segments, scale=1.0)
    cup, plate = (picture[y, x].astype(int) for y, x in ((15, 25), (15, 10)))
    assert (cup != plate).any() and cup.any() and plate.any() and not picture[0].any()
    boxed = pictures.draw(image, ids, segments, scale=1.0, boxes=True)
    assert (boxed != picture).any()


def test_pictures_check_their_options_once_and_count() -> None:
    with pytest.raises(ConfigError, match="expected 0 to 1"):
        Pictures(TWO, {"alpha": 2})
    ids = np.kron(np.arange(1, 145).reshape(12, 12), np.ones((20, 20), int))
    segments = [{"id": i, "category_id": 0} for i in range(1, 145)]
    image = np.zeros((240, 240, 3), np.uint8)
    pictures = Pictures(TWO, {})
    assert pictures.unlabelled_line() == ""
    for _ in range(2):
        pictures.draw(image, ids, segments, scale=1.0)
    assert pictures.unlabelled_line().startswith("286 of 288 segments in the pictures have no")
    assert "--legend" in pictures.unlabelled_line()
