"""The result of one image: segments, masks, counts, filters, pictures and text."""

from __future__ import annotations

import io
import pickle
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.data import MetadataCatalog
from detectron2.structures import Instances
from detectron2.utils.visualizer import Visualizer
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from panoptic_ext import PanopticResult, map_categories
from panoptic_ext.errors import ConfigError, DatasetError
from panoptic_ext.prediction.description import describe, plural
from tests.tiny.results import (
    METADATA,
    STREET_SEGMENTS,
    overlapping_instances,
    separated_metadata,
    street,
    street_ids,
    street_image,
)
from tests.tiny.transformers_models import build_tiny


@st.composite
def results(draw: Any) -> PanopticResult:
    """A map of few ids, of which some have no segment, and segments of which some have no pixel."""
    shape = draw(st.tuples(st.integers(1, 7), st.integers(1, 7)))
    values = draw(st.lists(st.integers(0, 6), min_size=shape[0] * shape[1], max_size=49))
    ids = np.array(values[: shape[0] * shape[1]]).reshape(shape)
    segments = []
    for number in draw(st.lists(st.integers(1, 8), unique=True)):
        segment = {"id": number, "category_id": draw(st.integers(0, 3))}
        if draw(st.booleans()):
            segment["score"] = draw(st.floats(0, 1))
        segments.append(segment)
    return PanopticResult(ids, segments, METADATA)


def test_segments_are_typed_and_in_the_models_order():
    result = street()
    assert [s.id for s in result] == [9, 70000, 1, 5, 3]
    car = result.segments[1]
    assert car == result[1] and len(result) == 5
    assert (car.class_id, car.category_id, car.name, car.isthing) == (0, 30, "car", True)
    assert (car.score, car.area, car.share, car.box) == (0.6, 8, 8 / 60, (5, 4, 9, 6))
    assert result[0].score is None and result[3].name == "sky"
    assert car.to_dict()["box"] == [5, 4, 9, 6]
    np.testing.assert_array_equal(result.boxes[1], [5, 4, 9, 6])
    assert (result.height, result.width) == (6, 10)
    assert result.panoptic_seg.dtype == torch.int32
    np.testing.assert_array_equal(result.panoptic_seg, street_ids())


@settings(max_examples=40, deadline=None)
@given(results())
def test_masks_are_disjoint_and_cover_what_the_ids_say(result):
    masks = result.masks()
    assert masks.shape == (len(result), result.height, result.width) and masks.dtype == bool
    assert (masks.sum(axis=0) <= 1).all()
    np.testing.assert_array_equal(masks.any(axis=0), result.panoptic_seg.numpy() > 0)
    for mask, segment in zip(masks, result, strict=True):
        np.testing.assert_array_equal(mask, result.panoptic_seg.numpy() == segment.id)
        np.testing.assert_array_equal(mask, result.mask(segment))
        np.testing.assert_array_equal(mask, result.mask(segment.id))
        assert segment.area == mask.sum() > 0
        ys, xs = np.nonzero(mask)
        assert segment.box == (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1)


@settings(max_examples=40, deadline=None)
@given(results())
def test_counts_and_shares_agree_with_a_naive_count(result):
    names, ids = METADATA.stuff_classes, result.panoptic_seg.numpy()
    counts = {n: sum(s.isthing and s.name == n for s in result) for n in names}
    assert result.counts() == {n: count for n, count in counts.items() if count}
    shares = result.shares()
    for name in names:
        of_class = [s.id for s in result if s.name == name]
        assert shares.get(name, 0) == pytest.approx(np.isin(ids, of_class).mean())
    assert list(shares.values()) == sorted(shares.values(), reverse=True)


@settings(max_examples=40, deadline=None)
@given(results(), st.floats(0, 1), st.integers(0, 10), st.sets(st.integers(0, 3)))
def test_filter_keeps_what_a_naive_filter_keeps(result, min_score, min_area, classes):
    before = result.panoptic_seg.clone()
    kept = result.filter(sorted(classes), min_score=min_score, min_area=min_area)
    naive = [
        s for s in result
        if s.class_id in classes and s.area >= min_area
        and not (s.score is not None and s.score < min_score)
    ]  # fmt: skip
    assert kept.segments == tuple(naive)
    inside = np.isin(before.numpy(), [s.id for s in naive])
    np.testing.assert_array_equal(kept.panoptic_seg, np.where(inside, before.numpy(), 0))
    assert torch.equal(result.panoptic_seg, before)
    assert result.filter() == result and (kept == result) == (len(kept) == len(result))


def test_filter_by_names_and_kind():
    result = street()
    assert [s.name for s in result.filter("car")] == ["car", "car"]
    assert result.filter(["car", 3]).counts() == {"car": 2}
    assert [s.name for s in result.filter(isthing=False)] == ["road", "sky"]
    assert [s.id for s in result.filter(isthing=True, min_score=0.7)] == [1, 3]
    with pytest.raises(ConfigError, match="unknown class 'cra'; did you mean 'car'"):
        result.filter(["cra"])
    with pytest.raises(ConfigError, match="unknown class 4; expected a name, or a contiguous id"):
        result.filter(4)
    with pytest.raises(ConfigError, match=r"unknown class 1\.5; expected a name"):
        result.filter([1.5])
    assert result.filter(np.int64(0)) == result.filter(np.array([0])) == result.filter("car")


def test_inputs_stay_as_they_are_and_tensors_of_any_type_do():
    ids, segments = torch.as_tensor(street_ids()), [dict(s) for s in STREET_SEGMENTS]
    result = PanopticResult(ids.to(torch.int64), segments, METADATA)
    result.panoptic_seg.zero_()
    assert segments == STREET_SEGMENTS and ids.any()
    for dtype in (np.uint32, np.int64):
        assert PanopticResult(street_ids().astype(dtype), segments, METADATA) == street()


def test_ids_without_a_segment_are_void_and_segments_without_a_pixel_are_left_out():
    ids = np.array([[1, 1, 2**40 + 1, 4]])
    result = PanopticResult(
        ids, [{"id": 1, "category_id": 0}, {"id": 7, "category_id": 1}], METADATA
    )
    np.testing.assert_array_equal(result.panoptic_seg, [[1, 1, 0, 0]])
    assert [s.id for s in result] == [1]


def test_a_map_without_segments_info_holds_class_and_instance():
    ids = np.array([[-1, 0, 1], [1, 2000, 2000]])  # car 0, car 1 and road
    result = PanopticResult(ids, None, METADATA)
    assert [(s.name, s.area) for s in result] == [("car", 1), ("car", 2), ("road", 2)]
    np.testing.assert_array_equal(result.panoptic_seg, [[0, 1, 2], [2, 3, 3]])


def test_an_empty_result():
    result = PanopticResult(np.zeros((4, 5), int), [], METADATA)
    assert (len(result), result.masks().shape, result.boxes.shape) == (0, (0, 4, 5), (0, 4))
    assert result.counts() == {} and result.shares() == {}
    assert repr(result) == "PanopticResult, 5 x 4: nothing found"
    assert result.draw().shape[2] == 3


@pytest.mark.parametrize(
    ("ids", "segments", "match"),
    [
        (np.zeros((1, 2, 2), int), [], r"id map is of shape \(1, 2, 2\)"),
        (np.zeros((2, 2)), [], "type torch.float64; expected"),
        (np.ones((2, 2), int), [{"id": 1, "category_id": 4}], "class 4 .*expected 0 to 3"),
        (np.ones((2, 2), int), [{"id": 0, "category_id": 1}], "ids 0 twice or out of range"),
        (np.ones((2, 2), int), [{"id": 1, "category_id": 1}] * 2, "ids 1 twice or out of range"),
    ],
)
def test_wrong_maps_and_segments(ids, segments, match):
    with pytest.raises(DatasetError, match=match):
        PanopticResult(ids, segments, METADATA)


def test_unknown_segment():
    with pytest.raises(ConfigError, match="no segment of the id 2; known: 9, 70000, 1, 5, 3"):
        street().mask(2)


# What models give


def test_overlapping_instances_keep_their_own_masks():
    outputs = {"instances": overlapping_instances()}
    result = PanopticResult.from_outputs(outputs, METADATA)
    assert [(s.name, s.area, s.box) for s in result] == [
        ("car", 28, (1, 1, 8, 5)),
        ("person", 4, (2, 2, 4, 4)),
    ]
    expected = outputs["instances"].pred_masks[[1, 0]].numpy()
    np.testing.assert_array_equal(result.masks(), expected)
    np.testing.assert_array_equal(result.mask(result[1]), expected[1])
    assert set(result.panoptic_seg.unique().tolist()) == {0, 2}  # the car is in front
    assert result.shares() == {"car": 28 / 60, "person": 0.0}
    person = result.filter("person")
    np.testing.assert_array_equal(person.panoptic_seg.numpy() > 0, expected[1])
    assert person != result and result == PanopticResult.from_outputs(outputs, METADATA)
    everything = PanopticResult.from_outputs(outputs, METADATA, min_score=0)
    assert [s.score for s in everything] == pytest.approx([0.9, 0.6, 0.3])


def test_regions_of_a_semantic_model_are_no_objects():
    scores = torch.rand(4, 6, 10, generator=torch.Generator().manual_seed(0))
    result = PanopticResult.from_outputs({"sem_seg": scores}, METADATA)
    assert [s.name for s in result] == METADATA.stuff_classes
    assert not any(s.isthing for s in result) and result.counts() == {}
    best = scores.argmax(dim=0).numpy()
    for mask, segment in zip(result.masks(), result, strict=True):
        np.testing.assert_array_equal(mask, best == segment.class_id)


def test_outputs_of_no_known_kind():
    with pytest.raises(ConfigError, match="expected panoptic_seg, instances with masks"):
        PanopticResult.from_outputs({"instances": Instances((2, 2))}, METADATA)


def test_outputs_are_kept_on_demand():
    outputs = {"panoptic_seg": (torch.tensor(street_ids()), STREET_SEGMENTS), "sem_seg": None}
    assert PanopticResult.from_outputs(outputs, METADATA).outputs is None
    assert PanopticResult.from_outputs(outputs, METADATA, keep_outputs=True).outputs is outputs


def test_things_and_stuff_that_are_numbered_apart_get_one_numbering():
    metadata = separated_metadata()
    stuff = metadata.stuff_classes.index("wall")
    ids = torch.tensor([[1, 1, 2, 3]])
    segments = [
        {"id": 1, "isthing": True, "score": 0.9, "category_id": 2, "instance_id": 0},
        {"id": 2, "isthing": False, "category_id": stuff, "area": 1},
        {"id": 3, "isthing": False, "category_id": 1, "area": 1},
    ]
    result = PanopticResult(ids, segments, metadata)
    together = MetadataCatalog.get("coco_2017_val_panoptic")
    assert [s.name for s in result] == ["car", "wall", metadata.stuff_classes[1]]
    for segment in result:
        table = getattr(
            together, f"{'thing' if segment.isthing else 'stuff'}_dataset_id_to_contiguous_id"
        )
        assert table[segment.category_id] == segment.class_id
    assert len(result.class_names) == 133
    assert result.filter(result[1].class_id).segments == (result[1],)
    with pytest.raises(DatasetError, match=r"stuff 60 of data set .*; expected 1 to 53"):
        PanopticResult(ids, [{"id": 1, "isthing": False, "category_id": 60}], metadata)
    with pytest.raises(DatasetError, match="numbered apart"):
        PanopticResult(ids, [{"id": 1, "category_id": 60}], metadata)
    semantic = torch.zeros(54, 1, 2)
    semantic[0, 0, 0] = semantic[stuff, 0, 1] = 1  # the first pixel is of "things"
    result = PanopticResult.from_outputs({"sem_seg": semantic}, metadata)
    assert [(s.name, s.box) for s in result] == [("wall", (1, 0, 2, 1))]


def test_metadata_of_things_alone_and_of_stuff_alone():
    ids, segments = np.ones((1, 2), int), [{"id": 1, "category_id": 1}]
    things = PanopticResult(ids, segments, MetadataCatalog.get("coco_2017_val"))
    assert (things[0].name, things[0].category_id, things[0].isthing) == ("bicycle", 2, True)
    named = PanopticResult(ids, segments, SimpleNamespace(stuff_classes=["wall", "floor"]))
    assert (named[0].name, named[0].category_id, named[0].isthing) == ("floor", 1, False)
    shorter = SimpleNamespace(
        thing_classes=["car"],
        stuff_classes=["car", "road"],
        thing_dataset_id_to_contiguous_id={7: 0},
        stuff_dataset_id_to_contiguous_id={9: 1},
    )
    road = PanopticResult(ids, segments, shorter)
    assert (road[0].name, road[0].category_id, road[0].isthing) == ("road", 9, False)
    assert road.metadata.thing_classes == road.metadata.stuff_classes == ["car", "road"]
    with pytest.raises(DatasetError, match="no class names"):
        PanopticResult(ids, segments, SimpleNamespace(name="nothing"))


@pytest.mark.parametrize("family", ["detr", "mask2former"])
def test_what_transformers_gives(family):
    """Its own post-processing, of a random model; the order of its labels is another."""
    pytest.importorskip("transformers", reason="the extra hf is not installed")
    labels = ["sky", "person", "car", "road"]
    model, processor = build_tiny(family, labels)
    image = np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8)
    with torch.no_grad():
        outputs = model(**processor(images=image, return_tensors="pt"))
    found = processor.post_process_panoptic_segmentation(
        outputs, threshold=0.1, overlap_mask_area_threshold=0.1, target_sizes=[(60, 80)]
    )[0]
    mapped = map_categories(found["segments_info"], model.config.id2label, METADATA)
    result = PanopticResult(found["segmentation"], mapped, METADATA, image)
    assert len(result) == len(found["segments_info"]) > 0
    for segment, theirs in zip(result, found["segments_info"], strict=True):
        assert segment.name == labels[theirs["label_id"]]
        assert segment.score == pytest.approx(theirs["score"])
        np.testing.assert_array_equal(result.mask(segment), found["segmentation"] == theirs["id"])


# Pictures and text


def test_draw_and_save(tmp_path):
    result = street()
    picture = result.draw(legend=True, boxes=True)
    assert picture.dtype == np.uint8 and picture.shape[2] == 3
    path = result.save(tmp_path / "new" / "street.png", legend=True, boxes=True)
    np.testing.assert_array_equal(np.asarray(Image.open(path)), picture)
    assert Image.open(result.save(str(tmp_path / "street.JPG"))).format == "JPEG"
    with pytest.raises(ConfigError, match=r"street.json: expected a picture ending in .png"):
        result.save("street.json")
    png = Image.open(io.BytesIO(result._repr_png_()))
    np.testing.assert_array_equal(np.asarray(png), result.draw())
    large = PanopticResult(np.ones((300, 2048), int), [{"id": 1, "category_id": 0}], METADATA)
    assert Image.open(io.BytesIO(large._repr_png_())).size == (1024, 150)


def test_without_an_image_the_background_is_grey():
    result = PanopticResult(street_ids(), STREET_SEGMENTS, METADATA)
    picture = result.draw(labels=False, scale=8)
    assert picture[3, 3].tolist() == [235, 235, 235]  # void
    assert picture[3, 12].tolist() == [0, 0, 200]  # sky, opaque


def test_the_image_may_be_read_later():
    calls = []

    def read():
        calls.append(1)
        return street_image()

    result = PanopticResult(street_ids(), STREET_SEGMENTS, METADATA, read)
    assert not calls
    np.testing.assert_array_equal(result.image, street_image())
    result.draw()
    assert len(calls) == 1
    with pytest.raises(DatasetError, match=r"image is of shape \(10, 6, 3\)"):
        PanopticResult(street_ids(), [], METADATA, np.zeros((10, 6, 3), np.uint8))


def test_a_segment_is_cut_out_of_the_image():
    result = street()
    for segment in result:
        picture = result.cut_out(segment)
        x0, y0, x1, y1 = segment.box
        assert picture.shape == (y1 - y0, x1 - x0, 4) and picture.dtype == np.uint8
        np.testing.assert_array_equal(picture[:, :, :3], street_image()[y0:y1, x0:x1])
        assert (picture[:, :, 3] == 255).sum() == segment.area
        assert set(np.unique(picture[:, :, 3])) <= {0, 255}
    np.testing.assert_array_equal(result.cut_out(1), result.cut_out(result.segments[2]))
    with pytest.raises(ConfigError, match="no image to cut a segment out of"):
        PanopticResult(street_ids(), STREET_SEGMENTS, METADATA).cut_out(1)


def test_detectron2s_visualizer_draws_it():
    for metadata in (METADATA, separated_metadata()):
        segments = [{"id": 1, "category_id": 1, "isthing": True}]
        result = PanopticResult(np.ones((40, 60), int), segments, metadata)
        visualizer = Visualizer(np.zeros((40, 60, 3), np.uint8), result.metadata)
        drawn = visualizer.draw_panoptic_seg_predictions(result.panoptic_seg, result.segments_info)
        assert drawn.get_image().any()


def test_repr_says_what_was_found():
    assert repr(street()) == (
        "PanopticResult of street.jpg, 10 x 6: 2 cars, 1 person; sky 40 %, road 23 %"
    )
    assert describe({f"class {i}": 1 for i in range(9)}, {}).endswith("and 3 more")


@pytest.mark.parametrize(
    ("name", "several"),
    [("car", "cars"), ("person", "people"), ("wine glass", "wine glasses"), ("bus", "buses"),
     ("bench", "benches"), ("skis", "skis"), ("sheep", "sheep"), ("key", "keys"),
     ("strawberry", "strawberries"), ("road_person", "road_people"), ("", ""), ("窓", "窓s"),
     ("potted plant (large)", "potted plant (large)")],
)  # fmt: skip
def test_plural(name, several):
    assert plural(name) == several


def test_equality_and_pickling():
    result = street()
    assert result == street() and result != "street"
    assert pickle.loads(pickle.dumps(result)) == result
    other = [{**s, "score": 0.5} if s["id"] == 1 else s for s in STREET_SEGMENTS]
    assert PanopticResult(street_ids(), other, METADATA) != result
    with pytest.raises(TypeError):
        hash(result)
