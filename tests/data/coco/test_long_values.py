"""Values of any depth and length in a data set's JSON give short problems."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from panoptic_ext.combine.images import ImageEntry, ImageList
from panoptic_ext.combine.inputs import InstanceResults, SemanticResults
from panoptic_ext.data.datasets.check import check_panoptic
from panoptic_ext.errors import DatasetError, PanopticExtError, nearest
from tests.tiny.panoptic_dataset import TinyDataset

NESTED = "[" * 900 + "]" * 900
LONG = json.dumps("x" * 100_000)
MANY = json.dumps(list(range(10_000)))
PLACES = {
    "category id": ("categories", 0, "id"),
    "category name": ("categories", 0, "name"),
    "isthing": ("categories", 0, "isthing"),
    "category": ("categories", 0),
    "image id": ("images", 0, "id"),
    "image name": ("images", 0, "file_name"),
    "height": ("images", 0, "height"),
    "image": ("images", 0),
    "image id of an annotation": ("annotations", 0, "image_id"),
    "PNG name": ("annotations", 0, "file_name"),
    "annotation": ("annotations", 0),
    "segments": ("annotations", 0, "segments_info"),
    "segment": ("annotations", 0, "segments_info", 0),
    "segment id": ("annotations", 0, "segments_info", 0, "id"),
    "category_id": ("annotations", 0, "segments_info", 0, "category_id"),
    "area": ("annotations", 0, "segments_info", 0, "area"),
    "iscrowd": ("annotations", 0, "segments_info", 0, "iscrowd"),
}


def _with(tiny: TinyDataset, place: tuple, value: str) -> None:
    *parents, last = place
    at: Any = tiny.info
    for key in parents:
        at = at[key]
    at[last] = "THE VALUE"
    tiny.json.write_text(json.dumps(tiny.info).replace('"THE VALUE"', value))


@pytest.mark.parametrize("value", [NESTED, LONG, MANY], ids=["nested", "long", "many"])
@pytest.mark.parametrize("place", PLACES)
def test_every_key_of_the_json_gives_short_problems(place: str, value: str, tmp_path: Path) -> None:
    tiny = TinyDataset(tmp_path)
    _with(tiny, PLACES[place], value)

    problems = [str(problem) for problem in check_panoptic(tiny.source(), pixels=False)]
    if place != "category name" or value != LONG:  # a name may be long
        assert problems
    assert all(len(problem) < 500 + 2 * len(str(tmp_path)) for problem in problems)
    if problems:
        with pytest.raises(DatasetError) as raised:
            tiny.load()
        assert len(str(raised.value)) < 5000


@pytest.mark.parametrize("key", ["image_id", "category_id", "score", "segmentation", "file_name"])
@pytest.mark.parametrize("value", [NESTED, LONG, MANY], ids=["nested", "long", "many"])
def test_predictions_to_combine_give_short_errors(key: str, value: str, tmp_path: Path) -> None:
    row = {"image_id": 1, "category_id": 1, "score": 1, "segmentation": {}, "file_name": "x"}
    path = tmp_path / "x.json"
    path.write_text(json.dumps([{**row, key: "THE VALUE"}]).replace('"THE VALUE"', value))
    images = ImageList("data", [ImageEntry(1, "x.jpg", "x.png", (2, 2))], [])

    errors = []
    for reader in (InstanceResults, SemanticResults):
        try:
            read = reader(str(path), images)
            read.labels(images.images[0]) if isinstance(read, SemanticResults) else None
        except PanopticExtError as error:
            errors.append(str(error))
    assert errors and max(map(len, errors)) < 500 + len(str(tmp_path))


def test_no_line_of_an_error_is_longer_than_a_screen() -> None:
    error = DatasetError("short\n" + "x" * 10**6)

    assert str(error).startswith("short\nxxx")
    assert len(str(error)) < 1600


def test_the_nearest_name_to_a_text_of_a_megabyte_is_found_at_once() -> None:
    assert nearest("x" * 10**6, ["a"] * 1000) == ""
