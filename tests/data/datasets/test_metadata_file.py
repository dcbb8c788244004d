"""Metadata survives the way through its JSON file."""

from __future__ import annotations

import json

import numpy as np
import pytest
from detectron2.data.catalog import Metadata

from panoptic_ext.data.datasets.metadata_file import load_metadata, save_metadata
from panoptic_ext.errors import DatasetError

FIELDS = {
    "name": "toy_val",
    "thing_classes": ["a", "ü"],
    "stuff_classes": ["a", "ü"],
    "thing_colors": [[1, 2, 3], [4, 5, 6]],
    "stuff_colors": [[1, 2, 3], [4, 5, 6]],
    "isthing": (True, False),
    "thing_dataset_id_to_contiguous_id": {7: 0},
    "stuff_dataset_id_to_contiguous_id": {200: 1},
    "label_divisor": 1000,
    "ignore_label": 255,
    "evaluator_type": "coco_panoptic_seg",
}


def test_round_trip(tmp_path):
    path = str(tmp_path / "run" / "metadata.json")
    save_metadata(Metadata(**{**FIELDS, "label_divisor": np.int64(1000)}), path)
    assert load_metadata(path).as_dict() == Metadata(**FIELDS).as_dict()
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["metadata.json"]


@pytest.mark.parametrize(
    "text", [None, "{", "[]", '{"name": "x"}', "[" * 100_000, '{"name": ' + "9" * 6000 + "}"]
)
def test_bad_files(tmp_path, text):
    path = tmp_path / "metadata.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(DatasetError, match=r"metadata\.json"):
        load_metadata(str(path))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("name", ["x"]),
        ("thing_classes", "ab"),
        ("stuff_classes", [[[["a"]]]]),
        ("isthing", 3),
        ("thing_colors", [[1, 2]]),
        ("stuff_colors", [[1, 2, 1e999]]),
        ("thing_dataset_id_to_contiguous_id", {"9" * 6000: 1}),
        ("stuff_dataset_id_to_contiguous_id", [1]),
        ("label_divisor", 10**30),
        ("ignore_label", "x"),
        ("evaluator_type", {}),
    ],
)
def test_a_value_of_another_kind_is_named(tmp_path, key, value):
    """Tracebacks before."""
    path = str(tmp_path / "metadata.json")
    save_metadata(Metadata(**FIELDS), path)
    content = json.loads((tmp_path / "metadata.json").read_text())
    (tmp_path / "metadata.json").write_text(json.dumps({**content, key: value}))
    with pytest.raises(DatasetError, match=rf"metadata\.json: {key} is .*expected") as error:
        load_metadata(path)
    assert len(str(error.value)) < 300 + len(path)


def test_unregistered_metadata_is_refused(tmp_path):
    with pytest.raises(DatasetError, match="thing_classes"):
        save_metadata(Metadata(name="toy"), str(tmp_path / "m.json"))
