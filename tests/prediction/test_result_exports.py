"""Results in the forms of other tools, with the real packages where they are installed."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
import torch
from detectron2.data import MetadataCatalog
from hypothesis import given, settings
from PIL import Image

from panoptic_ext import PanopticResult, rgb2id
from panoptic_ext.data import read_id_map
from panoptic_ext.errors import ConfigError, DatasetError
from tests.prediction.test_panoptic_result import results
from tests.tiny.results import (
    METADATA,
    overlapping_instances,
    separated_metadata,
    street,
    street_ids,
)


def overlapping() -> PanopticResult:
    return PanopticResult.from_outputs({"instances": overlapping_instances()}, METADATA)


def empty() -> PanopticResult:
    return PanopticResult(np.zeros((4, 5), int), [], METADATA)


# COCO


@settings(max_examples=30, deadline=None)
@given(results())
def test_coco_is_read_back_as_the_same_result(result):
    coco = result.to_coco(image_id=7)
    annotation = json.loads(json.dumps(coco.annotation))
    for png in (coco.png_string, coco.ids):
        assert PanopticResult.from_coco(annotation, png, METADATA) == result


def test_coco_has_dataset_ids_and_measures():
    coco = street().to_coco()
    assert coco.image == {"id": "street", "file_name": "street.jpg", "height": 6, "width": 10}
    assert (coco.annotation["image_id"], coco.annotation["file_name"]) == ("street", "street.png")
    assert coco.annotation["segments_info"][1] == {
        "id": 70000, "category_id": 30, "area": 8, "bbox": [5, 4, 4, 2], "iscrowd": 0,
        "isthing": True, "score": 0.6,
    }  # fmt: skip
    np.testing.assert_array_equal(coco.ids, street_ids())
    assert coco.categories[3] == {"id": 200, "name": "sky", "isthing": 0, "color": [0, 0, 200]}
    assert coco.to_json()["annotations"] == [coco.annotation]
    coco.ids[:] = 0
    assert street().panoptic_seg.any()


def test_the_png_is_that_of_the_tutorial(tmp_path):
    path = tmp_path / "street.png"
    path.write_bytes(street().to_coco().png_string)
    ids = rgb2id(np.array(Image.open(path), dtype=np.uint8))
    np.testing.assert_array_equal(ids, street_ids())
    assert PanopticResult.from_coco(street().to_coco().annotation, path, METADATA) == street()


def test_coco_of_ids_beyond_a_png_and_of_hidden_instances():
    large = PanopticResult([[2**24, 2**24, 5]], [{"id": 2**24, "category_id": 0}], METADATA)
    assert large.to_coco().ids.tolist() == [[1, 1, 0]]
    assert large.to_coco().annotation["segments_info"][0]["id"] == 1
    segments = overlapping().to_coco().annotation["segments_info"]
    assert [s["category_id"] for s in segments] == [30]  # the person is behind the car


def test_coco_of_separated_metadata_is_that_of_unified_ones():
    apart, together = separated_metadata(), MetadataCatalog.get("coco_2017_val_panoptic")
    stuff = apart.stuff_classes.index("wall")
    segments = [{"id": 1, "category_id": stuff, "isthing": False}]
    result = PanopticResult([[1, 1]], segments, apart)
    coco = result.to_coco(1)
    assert coco.annotation["segments_info"][0]["category_id"] == 199  # wall-other-merged
    assert PanopticResult.from_coco(coco.annotation, coco.ids, apart) == result
    unified = PanopticResult.from_coco(coco.annotation, coco.ids, together)
    assert unified[0].class_id == result[0].class_id


def test_a_semantic_region_stays_no_thing_in_coco():
    result = PanopticResult.from_outputs({"sem_seg": torch.rand(4, 3, 5)}, METADATA)
    coco = result.to_coco()
    assert PanopticResult.from_coco(coco.annotation, coco.png_string, METADATA) == result


def test_unknown_category_of_coco():
    annotation = {"segments_info": [{"id": 1, "category_id": 31}]}
    with pytest.raises(DatasetError, match="segment 1 has the category_id 31, which data set"):
        PanopticResult.from_coco(annotation, np.ones((2, 2), int), METADATA)


def test_save_coco_collects_results_in_one_folder(tmp_path):
    first, second = street(), empty()
    path = first.save_coco(tmp_path / "new")
    assert second.save_coco(tmp_path / "new", "b.jpg") == path
    first.filter("car").save_coco(tmp_path / "new")  # replaces the first
    content = json.loads((tmp_path / "new" / "panoptic.json").read_text())
    assert [image["id"] for image in content["images"]] == ["street", "b"]
    annotation = content["annotations"][0]
    png = tmp_path / "new" / "panoptic" / annotation["file_name"]
    read = PanopticResult.from_coco(annotation, png, METADATA)
    assert read.counts() == {"car": 2} and read_id_map(png).shape == (6, 10)
    with pytest.raises(ConfigError, match="no file_name"):
        second.save_coco(tmp_path)


# Detectron2


def test_instances_are_the_things():
    instances = street().to_instances()
    assert instances.image_size == (6, 10)
    assert instances.pred_classes.tolist() == [0, 0, 1]
    assert instances.scores.tolist() == pytest.approx([0.6, 0.9, 0.8])
    np.testing.assert_array_equal(instances.pred_masks[1], street_ids() == 1)
    assert instances.pred_boxes.tensor[1].tolist() == [1, 2, 4, 5]
    assert len(street().to_instances(stuff=True)) == 5
    assert street().to_instances(stuff=True).scores[0] == 1
    assert empty().to_instances().pred_boxes.tensor.shape == (0, 4)


def test_overlapping_instances_come_back_as_they_were():
    original, again = overlapping_instances()[[1, 0]], overlapping().to_instances()
    assert torch.equal(again.pred_masks, original.pred_masks)
    assert torch.equal(again.scores, original.scores)
    result = PanopticResult.from_outputs({"instances": again}, METADATA)
    assert [s.box for s in result] == [s.box for s in overlapping()]


@settings(max_examples=30, deadline=None)
@given(results())
def test_semantic_map_agrees_with_a_naive_one(result):
    naive = np.full((result.height, result.width), 255)
    for segment in result:
        naive[result.mask(segment)] = segment.class_id
    semantic = result.to_semantic()
    assert semantic.dtype == np.int32
    np.testing.assert_array_equal(semantic, naive)


def test_void_of_a_semantic_map():
    assert street().to_semantic()[0, 0] == 255 and street().to_semantic(-1)[0, 0] == -1
    with pytest.raises(DatasetError, match="void is 2, which is the class 'road'"):
        street().to_semantic(2)


# Other packages


def test_supervision():
    supervision = pytest.importorskip("supervision", reason="the extra results is not installed")
    detections = street().to_supervision()
    assert isinstance(detections, supervision.Detections) and len(detections) == 5
    assert detections.class_id.tolist() == [2, 0, 0, 3, 1]
    assert detections.data["class_name"].tolist() == ["road", "car", "car", "sky", "person"]
    np.testing.assert_allclose(detections.confidence, [1, 0.6, 0.9, 1, 0.8])
    np.testing.assert_array_equal(detections.area, [s.area for s in street()])
    # supervision's boxes of masks count pixels, so that its x1 and y1 are inclusive.
    inclusive = np.add(supervision.mask_to_xyxy(detections.mask), [0, 0, 1, 1])
    np.testing.assert_array_equal(detections.xyxy, inclusive)
    cars = detections[detections.data["class_name"] == "car"]
    assert cars.data["segment_id"].tolist() == [70000, 1]
    picture = supervision.MaskAnnotator().annotate(np.zeros((6, 10, 3), np.uint8), detections)
    assert picture.any()
    np.testing.assert_array_equal(overlapping().to_supervision().mask, overlapping().masks())
    nothing = empty().to_supervision()
    assert nothing.confidence is None and len(nothing) == 0


def test_pandas():
    pandas = pytest.importorskip("pandas", reason="the extra results is not installed")
    frame = street().to_pandas()
    assert isinstance(frame, pandas.DataFrame)
    assert list(frame.columns) == [
        "id", "class_id", "category_id", "name", "isthing", "score", "area", "share",
        "x0", "y0", "x1", "y1",
    ]  # fmt: skip
    assert frame.groupby("name").area.sum().to_dict() == {
        name: sum(s.area for s in street() if s.name == name) for name in METADATA.thing_classes
    }
    assert frame.score.isna().tolist() == [True, False, False, True, False]
    assert frame[frame.name == "person"][["x0", "y0", "x1", "y1"]].values.tolist() == [
        [9, 1, 10, 5]
    ]
    types = empty().to_pandas().dtypes
    assert len(empty().to_pandas()) == 0
    assert {c: types[c] for c in types.index if c != "name"} == {
        c: frame.dtypes[c] for c in types.index if c != "name"
    }


def test_fiftyone():
    fiftyone = pytest.importorskip("fiftyone", reason="the extra fiftyone is not installed")
    labels = street().to_fiftyone()
    assert isinstance(labels, fiftyone.Detections)
    car = labels.detections[1]
    assert (car.label, car.confidence, car.segment_id, car.area) == ("car", 0.6, 70000, 8)
    assert car.bounding_box == [0.5, 4 / 6, 0.4, 2 / 6] and car.isthing
    # FiftyOne's own way from a detection to a mask of the whole image.
    for detection, segment in zip(labels.detections, street(), strict=True):
        whole = detection.to_segmentation(frame_size=(10, 6), target=1).mask
        np.testing.assert_array_equal(whole > 0, street().mask(segment))
    segmentation = street().to_fiftyone("segmentation")
    assert isinstance(segmentation, fiftyone.Segmentation)
    np.testing.assert_array_equal(segmentation.mask, street().to_semantic(-1) + 1)
    sample = fiftyone.Sample(filepath="street.jpg")
    sample["panoptic"] = labels
    assert len(sample.panoptic.detections) == 5 and not empty().to_fiftyone().detections


def test_kind_of_fiftyone():
    with pytest.raises(ConfigError, match="unknown kind of FiftyOne labels 'masks'; known: detec"):
        street().to_fiftyone("masks")


@pytest.mark.parametrize(
    ("module", "extra"), [("supervision", "results"), ("pandas", "results"), ("fiftyone",) * 2]
)
def test_without_the_package_the_error_says_what_to_install(module, extra, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ConfigError, match=rf"package {module}.*pip install 'panoptic_ext\[{extra}"):
        getattr(street(), f"to_{module}")()


def test_dicts_are_ready_for_json():
    assert json.loads(json.dumps(street().to_dicts()))[1] == {
        "id": 70000, "class_id": 0, "category_id": 30, "name": "car", "isthing": True,
        "score": 0.6, "area": 8, "share": 8 / 60, "box": [5, 4, 9, 6],
    }  # fmt: skip
