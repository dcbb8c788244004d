"""draw_panoptic: sizes, colours, void, many segments, and inputs left as they are."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import matplotlib
import numpy as np
import pytest
import torch

from panoptic_ext.errors import ConfigError, DatasetError
from panoptic_ext.visualization import draw_panoptic, readable_scale
from panoptic_ext.visualization.draw import draw_segments

METADATA = SimpleNamespace(
    thing_classes=["disc", "grass"],
    stuff_classes=["disc", "grass"],
    thing_colors=[(200, 30, 30), (30, 200, 30)],
    stuff_colors=[(200, 30, 30), (30, 200, 30)],
    isthing=(True, False),
    label_divisor=1000,
)


def _scene(height=40, width=60):
    """Grass left, a disc in the middle of it, void right."""
    ids = np.zeros((height, width), np.int32)
    ids[:, : width // 2] = 7
    ids[10:25, 5:20] = 70000
    segments = [
        {"id": 7, "category_id": 1, "isthing": False},
        {"id": 70000, "category_id": 0, "isthing": True, "score": 0.5},
    ]
    return np.full((height, width, 3), 128, np.uint8), ids, segments


def test_size_type_and_colours():
    image, ids, segments = _scene()
    picture = draw_panoptic(image, ids, segments, METADATA, scale=1.0, labels=False)
    assert picture.shape == image.shape and picture.dtype == np.uint8
    assert (picture[:, 35:] == 128).all()  # void stays as it is
    red, green, blue = picture[35, 15].astype(int)  # grass
    assert green > red + 40 and green > blue + 40
    red, green, blue = picture[15, 10].astype(int)  # the disc, and not the grass around it
    assert red > green + 30


def test_small_pictures_grow_to_a_readable_size():
    image, ids, segments = _scene()
    picture = draw_panoptic(image, ids, segments, METADATA)
    assert picture.shape == (320, 480, 3)
    assert readable_scale(512, 512) == 1.0 and readable_scale(256, 256) == 2.0
    assert readable_scale(1, 1) == 8.0
    assert draw_panoptic(image, ids, segments, METADATA, scale=1.5).shape == (60, 90, 3)


@pytest.mark.filterwarnings("error::DeprecationWarning")  # np.array of a tensor, in numpy 2
def test_inputs_and_random_state_and_backend_are_left_alone():
    image, ids, segments = _scene()
    ids_tensor = torch.from_numpy(ids)
    before = copy.deepcopy((image, ids_tensor, segments))
    backend, state = matplotlib.get_backend(), np.random.get_state()[1].copy()
    first = draw_panoptic(image, ids_tensor, segments, METADATA)
    assert (image == before[0]).all() and (ids_tensor == before[1]).all()
    assert segments == before[2]
    assert (np.random.get_state()[1] == state).all() and matplotlib.get_backend() == backend
    assert (draw_panoptic(image, ids_tensor, segments, METADATA) == first).all()


def test_divisor_ids_without_segments():
    image, _, _ = _scene()
    ids = np.full((40, 60), -1)
    ids[:, :20], ids[:10, :10] = 1000, 3
    picture = draw_panoptic(image, ids, None, METADATA, scale=1.0, labels=False)
    assert (picture[:, 30:] == 128).all()
    assert picture[30, 10, 1] > picture[30, 10, 0] and picture[5, 5, 0] > picture[5, 5, 1]


@pytest.mark.parametrize("segments", [[], None])
def test_nothing_but_void(segments):
    image, _, _ = _scene()
    ids = np.full((40, 60), -1 if segments is None else 0)
    assert (draw_panoptic(image, ids, segments, METADATA, scale=1.0) == image).all()


def test_a_hole_in_a_thing_stays_open():
    image, ids, _ = _scene()
    ids[:] = 0
    ids[5:35, 5:35] = 1
    ids[15:25, 15:25] = 0
    picture = draw_panoptic(
        image, ids, [{"id": 1, "category_id": 0}], METADATA, scale=1.0, labels=False
    )
    assert (picture[18:22, 18:22] == 128).all() and picture[10, 10, 0] > 135


def test_many_segments_are_told_apart_and_not_covered_by_text():
    ids = np.kron(np.arange(1, 145).reshape(12, 12), np.ones((20, 20), int))
    segments = [{"id": i, "category_id": 0, "score": 0.9} for i in range(1, 145)]
    image = np.zeros((240, 240, 3), np.uint8)
    bare = draw_panoptic(image, ids, segments, METADATA, scale=1.0, labels=False)
    named = draw_panoptic(image, ids, segments, METADATA, scale=1.0)
    assert 0 < (bare != named).any(axis=2).mean() < 0.05  # one label
    centres = bare[10::20, 10::20].reshape(-1, 3)
    assert len(np.unique(centres, axis=0)) > 70


def test_names_of_any_kind():
    metadata = SimpleNamespace(thing_classes=["a $5 {x_} bill", "Gebäude"])  # no colours, no ids
    image, ids, segments = _scene(200, 300)
    assert draw_panoptic(image, ids, segments, metadata).std() > 0
    some_scores = [dict(segments[1], id=7), dict(segments[1], score=None)]
    assert draw_panoptic(image, ids, some_scores, metadata).std() > 0


def test_opacity_boxes_and_only_some_classes():
    image, ids, segments = _scene()
    plain = {"scale": 1.0, "labels": False}
    clear = draw_panoptic(image, ids, segments, METADATA, alpha=0.0, **plain)
    solid = draw_panoptic(image, ids, segments, METADATA, alpha=1.0, **plain)
    assert (clear[14:21, 9:16] == 128).all()  # edges are drawn all the same
    assert np.abs(solid[15, 10].astype(int) - 128).max() > 90
    discs = draw_panoptic(image, ids, segments, METADATA, classes=["disc"], **plain)
    assert (discs[30:, :25] == 128).all() and (discs[15, 10] != 128).any()
    assert (draw_panoptic(image, ids, segments, METADATA, classes=[], **plain) == 128).all()
    ids[10:14, 5:9] = 7  # a corner of the disc's box is grass
    bare, boxed = (
        draw_panoptic(image, ids, segments, METADATA, boxes=on, **plain) for on in (False, True)
    )
    changed = (boxed != bare).any(axis=2)
    assert changed[10:12, 5:8].any()
    assert not changed[15:21, 9:16].any() and not changed[:, 30:].any()  # and no box of the grass


def test_names_of_a_size_and_how_many_have_one():
    image, ids, segments = _scene(200, 300)
    bare = draw_panoptic(image, ids, segments, METADATA, labels=False)
    covered = []
    for font_size in (None, 12, 24):
        drawing = draw_segments(image, ids, segments, METADATA, font_size=font_size)
        assert drawing.num_segments == 2 and drawing.classes == {"disc", "grass"}
        covered.append((drawing.picture != bare).any(axis=2).sum())
    assert covered[2] > 1.5 * covered[1] > 0
    none = draw_segments(image, ids, segments, METADATA, labels=False)
    assert none.num_labels == 0 and none.num_segments == 2
    crowd = np.kron(np.arange(1, 145).reshape(12, 12), np.ones((20, 20), int))
    small = [{"id": i, "category_id": 0} for i in range(1, 146)]  # the last has no pixel
    image = np.zeros((240, 240, 3), np.uint8)
    drawing = draw_segments(image, crowd, small, METADATA, scale=1.0)
    assert (drawing.num_segments, drawing.num_labels) == (144, 1)
    keyed = draw_segments(image, crowd, small, METADATA, scale=1.0, keys={"disc": "1"})
    assert (keyed.num_segments, keyed.num_labels) == (144, 144)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpha": 1.5}, "alpha, the opacity of segments, is 1.5; expected 0 to 1"),
        ({"alpha": float("nan")}, "is nan; expected 0 to 1"),
        ({"font_size": 0}, "font_size is 0 pixels"),
        ({"classes": ["grass", "dics"]}, "unknown class to draw 'dics'; did you mean 'disc'"),
    ],
)
def test_an_option_out_of_its_range_is_named(options, message):
    image, ids, segments = _scene()
    with pytest.raises(ConfigError, match=message):
        draw_panoptic(image, ids, segments, METADATA, **options)


def test_a_legend_lies_below_and_numbers_what_is_too_small_for_a_name():
    ids = np.kron(np.arange(1, 145).reshape(12, 12), np.ones((20, 20), int))
    segments = [{"id": i, "category_id": int(i == 144)} for i in range(1, 145)]
    image = np.zeros((240, 240, 3), np.uint8)
    plain = draw_segments(image, ids, segments, METADATA, scale=1.0)
    drawing = draw_segments(image, ids, segments, METADATA, scale=1.0, legend=True)
    assert plain.picture.shape == (240, 240, 3) and plain.num_labels == 2
    assert (drawing.num_labels, drawing.num_unlabelled) == (144, 0)
    assert drawing.picture.shape == (262, 240, 3) and not drawing.unlabelled_line
    below = {tuple(pixel) for pixel in drawing.picture[240:].reshape(-1, 3).tolist()}
    assert {(200, 30, 30), (30, 200, 30)} <= below
    many = draw_segments(image, ids, segments, METADATA, scale=1.0, font_size=60, legend=True)
    assert many.unlabelled_line.endswith("of 144 segments without a label: too small")
    assert many.picture.shape[0] == 240 + 2 * 22  # the count has a line
    bare = draw_panoptic(image, ids, segments, METADATA, scale=1.0, labels=False, legend=True)
    assert bare.shape[0] == 240 + 22


def test_errors_name_what_was_found():
    image, ids, segments = _scene()
    with pytest.raises(DatasetError, match=r"\(40, 60\).*\(40, 59\)"):
        draw_panoptic(image, ids[:, 1:], segments, METADATA)
    with pytest.raises(DatasetError, match=r"category 2.*0 to 1"):
        draw_panoptic(image, ids, [{"id": 7, "category_id": 2}], METADATA)
    with pytest.raises(DatasetError, match="no class names"):
        draw_panoptic(image, ids, segments, SimpleNamespace())
    with pytest.raises(DatasetError, match="RGB"):
        draw_panoptic(image[..., 0], ids, segments, METADATA)
