"""The one ground truth of an evaluation, with both kinds of category id."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from panoptic_ext.errors import DatasetError, EvaluationError
from panoptic_ext.evaluation import (
    PanopticInstanceEvaluator,
    PanopticSemSegEvaluator,
    Truth,
)
from tests.evaluation.test_other_evaluators import instances, labels_of, scores
from tests.tiny import predictions as toy


def test_both_kinds_of_id(name):
    truth = Truth(name)
    annotation = truth.find("b")
    ids, segments = toy.truth("b")

    table = truth.table(annotation, truth.runs(annotation))
    assert table.categories.tolist() == [s["category_id"] for s in segments]
    assert truth.contiguous_classes(table).tolist() == [
        toy.CONTIGUOUS[s["category_id"]] for s in segments
    ]
    found, drawn = truth.contiguous_segments(annotation)
    assert (found == ids).all() and found.dtype == np.int32
    assert [(s["id"], s["category_id"], s["iscrowd"]) for s in drawn] == [
        (s["id"], toy.CONTIGUOUS[s["category_id"]], s["iscrowd"]) for s in segments
    ]
    assert [s["isthing"] for s in drawn] == [s["category_id"] in (7, 3) for s in segments]
    assert truth.order == {"a": 0, "b": 1, "c": 2}


def test_images_are_named_as_their_files_on_the_disk(name, tmp_path):
    """The JSON says .png, the disk has .jpg."""
    images = tmp_path / "images"
    for path in images.glob("south/*.png"):
        path.rename(path.with_suffix(".jpg"))
    assert Truth(name).image_names() == ["1.png", "1.jpg", "2.jpg"]

    out = tmp_path / "out"
    PanopticInstanceEvaluator(name, str(out))._write_truth()
    content = json.loads((out / f"{name}_instances.json").read_text())
    assert [i["file_name"] for i in content["images"]] == ["1.png", "1.jpg", "2.jpg"]


@pytest.fixture
def name_of_records(name) -> Iterator[str]:
    """A data set that somebody else registered: records with contiguous ids, and no JSON."""
    records = DatasetCatalog.get(name)
    source = MetadataCatalog.get(name)
    DatasetCatalog.register("toy_records", lambda: records)
    MetadataCatalog.get("toy_records").set(
        thing_classes=source.thing_classes,
        stuff_classes=source.stuff_classes,
        thing_dataset_id_to_contiguous_id=source.thing_dataset_id_to_contiguous_id,
        stuff_dataset_id_to_contiguous_id=source.stuff_dataset_id_to_contiguous_id,
    )
    yield "toy_records"
    toy.unregister("toy_records")


def test_records_without_a_json_are_a_truth(name, name_of_records):
    expected, truth = Truth(name), Truth(name_of_records)
    assert list(truth.annotations) == list(expected.annotations)
    assert truth.image_names() == expected.image_names()
    for image_id in toy.NAMES:
        ids, segments = truth.contiguous_segments(truth.find(image_id))
        expected_ids, expected_segments = expected.contiguous_segments(expected.find(image_id))
        assert (ids == expected_ids).all() and segments == expected_segments
    with pytest.raises(EvaluationError, match=r"'z', which is not in data set 'toy_records'"):
        truth.find("z")


def test_records_without_a_json_are_evaluated(name, name_of_records, tmp_path):
    """Semantic and instance evaluation give the numbers of the same data set with a JSON."""
    outputs = {i: {**scores(labels_of(i)), **instances(i, shrink=2)} for i in toy.NAMES}
    results = []
    for dataset_name in (name, name_of_records):
        folder = str(tmp_path / dataset_name)
        semantic = PanopticSemSegEvaluator(dataset_name, folder)
        instance = PanopticInstanceEvaluator(dataset_name, folder)
        results.append([toy.run(e, dataset_name, outputs) for e in (semantic, instance)])
    np.testing.assert_equal(results[1], results[0])
    assert results[1][1]["segm"]["AP-car"] == pytest.approx(70)


def test_records_without_label_maps_are_no_truth(name_of_records):
    for record in DatasetCatalog.get(name_of_records):
        del record["segments_info"]
    with pytest.raises(EvaluationError, match=r"'toy_records' .* have no 'segments_info'; regis"):
        Truth(name_of_records).find("a")


def test_the_json_is_read_when_it_is_asked_for(name):
    truth = Truth(name)
    Path(MetadataCatalog.get(name).panoptic_json).write_text("{")
    with pytest.raises(EvaluationError, match=r"truth.json .* is not valid JSON"):
        truth.find("a")


def test_data_sets_without_a_panoptic_truth(name):
    with pytest.raises(DatasetError, match=r"'toy_panoptc'; did you mean 'toy_panoptic'\?"):
        Truth("toy_panoptc")
    MetadataCatalog.get("toy_without_json").set(evaluator_type="coco")
    try:
        with pytest.raises(EvaluationError, match="'toy_without_json' has no 'panoptic_json'"):
            Truth("toy_without_json").find(1)
    finally:
        MetadataCatalog.remove("toy_without_json")
