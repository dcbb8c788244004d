"""Panoptic, instance and semantic results of one picture: they agree with each other."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from panoptic_ext.errors import ConfigError
from panoptic_ext.prediction.kinds import KINDS, result_of_kind
from tests.tiny.results import (
    METADATA,
    STREET_SEGMENTS,
    overlapping_instances,
    separated_metadata,
    street_ids,
    street_image,
)

PANOPTIC = {"panoptic_seg": (torch.from_numpy(street_ids()), STREET_SEGMENTS)}


def test_panoptic_has_all_segments_above_the_score() -> None:
    result = result_of_kind("panoptic", PANOPTIC, METADATA, street_image(), file_name="a.jpg")
    assert [s.id for s in result] == [9, 70000, 1, 5, 3] and result.file_name == "a.jpg"
    good = result_of_kind("panoptic", PANOPTIC, METADATA, min_score=0.7)
    assert [s.id for s in good] == [9, 1, 5, 3]


def test_instances_of_a_panoptic_model_are_its_things() -> None:
    outputs = {**PANOPTIC, "instances": overlapping_instances()}
    result = result_of_kind("instance", outputs, METADATA)
    assert [s.id for s in result] == [70000, 1, 3] and all(s.isthing for s in result)
    assert [s.id for s in result_of_kind("instance", outputs, METADATA, min_score=0.85)] == [1]


def test_instances_of_an_instance_model_keep_whole_masks() -> None:
    outputs = {"instances": overlapping_instances()}
    result = result_of_kind("instance", outputs, METADATA, min_score=0.5)
    assert result.counts() == {"car": 1, "person": 1}
    assert [segment.area for segment in result] == [28, 4]


def test_semantic_merges_the_segments_of_a_class() -> None:
    image = street_image()
    result = result_of_kind("semantic", PANOPTIC, METADATA, image)
    assert [s.name for s in result] == ["car", "person", "road", "sky"]
    assert not any(segment.isthing for segment in result) and result.counts() == {}
    ids = street_ids()
    np.testing.assert_array_equal(result.mask(result[0]), (ids == 1) | (ids == 70000))
    np.testing.assert_array_equal(result.panoptic_seg.numpy() == 0, ids == 0)
    assert result.image is image


def test_semantic_takes_the_scores_of_the_model() -> None:
    scores = torch.zeros(4, 6, 10)
    scores[1] = 1
    result = result_of_kind("semantic", {**PANOPTIC, "sem_seg": scores}, METADATA)
    assert [(s.name, s.area) for s in result] == [("person", 60)]
    alone = result_of_kind("semantic", {"sem_seg": scores}, METADATA)
    assert alone == result


def test_semantic_scores_of_other_classes_are_not_taken() -> None:
    """Detectron2's Panoptic FPN: 54 semantic classes, of which one stands for all things."""
    segments = [{"id": 1, "category_id": 2, "isthing": True}, {"id": 2, "category_id": 2}]
    segments[1]["isthing"] = False
    ids = torch.ones(6, 10, dtype=torch.int32)
    ids[3:] = 2
    outputs = {"panoptic_seg": (ids, segments), "sem_seg": torch.zeros(54, 6, 10)}
    result = result_of_kind("semantic", outputs, separated_metadata())
    assert [(s.name, s.area) for s in result] == [("car", 30), ("blanket", 30)]


@settings(max_examples=20)
@given(st.lists(st.integers(0, 3), min_size=12, max_size=12), st.integers(1, 3))
def test_kinds_of_one_result_agree(classes: list[int], repeat: int) -> None:
    ids = torch.arange(12).repeat_interleave(repeat).reshape(3, -1)  # id 0 is void
    segments = [
        {"id": i, "category_id": c, "isthing": METADATA.isthing[c]}
        for i, c in enumerate(classes)
        if i
    ]
    found = {
        kind: result_of_kind(kind, {"panoptic_seg": (ids, segments)}, METADATA) for kind in KINDS
    }
    for kind in KINDS:
        for segment in found[kind]:
            other = found["panoptic"].filter(segment.name).panoptic_seg.numpy() > 0
            assert not (found[kind].mask(segment) & ~other).any()
    assert found["semantic"].shares() == pytest.approx(found["panoptic"].shares())
    assert found["instance"].counts() == found["panoptic"].counts()


@pytest.mark.parametrize(
    ("kind", "outputs", "message"),
    [
        ("panoptik", PANOPTIC, "unknown kind 'panoptik'; did you mean"),
        (
            "panoptic",
            {"instances": overlapping_instances()},
            "gives no panoptic result, only instances; ask for kind='instance', or take a panoptic",
        ),
        ("instance", {"sem_seg": torch.zeros(4, 2, 2)}, "no instance result.*kind='semantic'"),
        ("semantic", {"instances": overlapping_instances()}, "no semantic result"),
        ("semantic", {}, "only nothing; take a panoptic model"),
    ],
)
def test_a_kind_that_the_model_does_not_answer(kind: str, outputs: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        result_of_kind(kind, outputs, METADATA)
