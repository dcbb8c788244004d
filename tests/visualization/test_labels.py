"""Names of segments lie inside their own segment and do not overlap."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from panoptic_ext.postprocessing import with_extents
from panoptic_ext.visualization.labels import Wanted, place_labels


def segments_of(ids):
    known = [{"id": int(i)} for i in np.unique(ids) if i]
    return with_extents(torch.from_numpy(np.ascontiguousarray(ids)), known)[1]


def blobs(seed, count, size=160):
    """Discs of many sizes over a background with the id 1."""
    rng = np.random.default_rng(seed)
    ids = np.ones((size, size), np.int32)
    rows, columns = np.mgrid[:size, :size]
    for number in range(count):
        y, x = rng.integers(0, size, 2)
        ids[(rows - y) ** 2 + (columns - x) ** 2 < rng.integers(3, 30) ** 2] = number + 2
    return ids


def pixels_of(box, shape):
    """Bool map of the pixels whose centres lie within x0, y0, x1, y1."""
    rows, columns = np.mgrid[: shape[0], : shape[1]] + 0.5
    return (columns > box[0]) & (columns < box[2]) & (rows > box[1]) & (rows < box[3])


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 40), st.sampled_from(["1", "disc", "a long name"]))
def test_a_label_lies_in_its_own_segment_and_covers_a_third_at_most(seed, count, text):
    """The label of the background was written over an object."""
    ids = blobs(seed, count)
    segments = segments_of(ids)
    labels = place_labels(ids, [Wanted(s, [text], 14.0) for s in segments], 6.0)
    assert len({label.segment["id"] for label in labels}) == len(labels)
    for label in labels:
        inside = pixels_of(label.box, ids.shape)
        x0, y0, x1, y1 = label.box
        assert x0 >= 0 and y0 >= 0 and x1 <= ids.shape[1] and y1 <= ids.shape[0]
        assert (ids[inside] == label.segment["id"]).all()
        assert 6 <= label.size <= 14
        assert (x1 - x0) * (y1 - y0) * 3 <= label.segment["area"] * 1.01


@pytest.mark.parametrize("width", [1, 3])
def test_a_label_is_not_written_over_objects_that_are_narrower_than_a_letter(width):
    """One pixel in four was sampled, so that names were written over lines between them."""
    ids = np.ones((160, 160), np.int32)
    for x in range(3, 160, 45):
        ids[:, x : x + width] = 2
    background = segments_of(ids)[0]
    (label,) = place_labels(ids, [Wanted(background, ["a long name"], 14.0)], 5.0)
    assert (ids[pixels_of(label.box, ids.shape)] == 1).all()


def test_sixty_objects_are_labelled_and_the_last_text_is_for_small_ones():
    """Of 60 objects only a quarter got a label."""
    ids = np.zeros((240, 400), np.int32)
    for number in range(60):
        y, x = 5 + 40 * (number // 10), 5 + 40 * (number % 10)
        side = 30 if number % 2 else 14
        ids[y : y + side, x : x + side] = number + 1
    segments = segments_of(ids)
    labels = place_labels(ids, [Wanted(s, ["cell", "1"], 10.0) for s in segments], 7.0)
    assert [label.text for label in labels] == ["1", "cell"] * 30


def test_a_label_takes_the_part_with_most_room_and_no_hole():
    ids = np.zeros((60, 200), np.int32)
    ids[:, :40], ids[5:55, 120:180], ids[25:35, 140:160] = 1, 1, 0
    ids[0, 41:119] = 1  # a thin bridge, where the middle of the segment is
    (label,) = place_labels(ids, [Wanted(segments_of(ids)[0], ["name"], 8.0)], 8.0)
    assert ids[pixels_of(label.box, ids.shape)].all()


def test_one_that_is_due_stands_out_but_stays_in_the_picture_and_off_the_others():
    ids = np.zeros((40, 100), np.int32)
    ids[:3, 97:], ids[10:24, 10:90], ids[10:12, 50:52] = 1, 2, 3
    tiny, large, covered = segments_of(ids)
    wanted = [Wanted(s, ["a name"], 12.0, is_due=True) for s in (tiny, covered, large)]
    labels = place_labels(ids, wanted, 8.0)
    assert [label.segment["id"] for label in labels] == [2, 1, 3]
    boxes = [label.box for label in labels]
    for x0, y0, x1, y1 in boxes:
        assert x0 > 0 and y0 >= 0 and x1 <= 100 and y1 <= 40
    covered = sum(pixels_of(box, ids.shape).astype(int) for box in boxes)
    assert covered.max() == 1
    x0, y0, x1, y1 = boxes[2]  # beside the second name, and its own segment is next to it
    assert x0 < 51 < x1 and (0 <= 10 - y1 < 8 or 0 <= y0 - 12 < 14)


def test_one_that_is_due_takes_a_shorter_text_or_is_left_out_where_there_is_no_room():
    ids = np.zeros((12, 80), np.int32)
    ids[5, 20], ids[5, 70], ids[5, 10] = 1, 2, 3
    texts = ["a long name", "2"]
    wanted = [Wanted(s, texts, 8.0, is_due=True) for s in segments_of(ids)]
    labels = place_labels(ids, wanted, 8.0)
    assert [(lab.segment["id"], lab.text) for lab in labels] == [(1, "a long name"), (2, "2")]


@pytest.mark.parametrize("shape", [(1, 1), (1, 500), (500, 1)])
def test_segments_of_any_shape(shape):
    ids = np.ones(shape, np.int32)
    wanted = [Wanted(segments_of(ids)[0], ["name", "1"], 10.0, is_due=True)]
    assert len(place_labels(ids, wanted, 8.0)) == 1
    assert place_labels(ids, [Wanted({"id": 2, "area": 0, "bbox": [0] * 4}, ["a"], 9.0)], 8.0) == []
