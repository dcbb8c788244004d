"""Category ids from one numbering of classes into another."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
from detectron2.data import MetadataCatalog
from hypothesis import given, settings
from hypothesis import strategies as st

from panoptic_ext import map_categories
from panoptic_ext.errors import DatasetError
from tests.tiny.results import METADATA

ID2LABEL = {"0": "sky", "1": "road", "2": "person", "3": "N/A", "4": "car", "5": "N/A"}
CATEGORIES = [
    {"id": 30, "name": "car", "isthing": 1},
    {"id": 10, "name": "person", "isthing": 1},
    {"id": 7, "name": "road", "isthing": 0},
    {"id": 200, "name": "sky", "isthing": 0},
]
SEPARATED, TOGETHER = "coco_2017_val_panoptic_separated", "coco_2017_val_panoptic"


def numbers(segments: list[dict[str, Any]]) -> list[int]:
    return [s["category_id"] if "category_id" in s else s["label_id"] for s in segments]


def test_segments_of_transformers_become_those_of_a_data_set():
    segments = [
        {"id": 1, "label_id": 4, "was_fused": False, "score": 0.9},
        {"id": 2, "label_id": 0, "was_fused": True, "score": 0.8},
    ]
    before = copy.deepcopy(segments)
    assert map_categories(segments, ID2LABEL, METADATA) == [
        {"id": 1, "category_id": 0, "was_fused": False, "score": 0.9, "isthing": True},
        {"id": 2, "category_id": 3, "was_fused": True, "score": 0.8, "isthing": False},
    ]
    assert segments == before
    integer_keys = {int(k): v for k, v in ID2LABEL.items()}
    assert numbers(map_categories(segments, integer_keys, (METADATA, "dataset"))) == [30, 200]


def test_every_numbering_into_every_other_and_back():
    numberings = [METADATA, (METADATA, "dataset"), (METADATA, "contiguous"), ID2LABEL, CATEGORIES]
    expected = [[0, 3, 2], [30, 200, 7], [0, 3, 2], [4, 0, 1], [30, 200, 7]]
    for source, ids in zip(numberings, expected, strict=True):
        segments = [{"id": 1, "category_id": i} for i in ids]
        for target, others in zip(numberings, expected, strict=True):
            mapped = map_categories(segments, source, target)
            assert numbers(mapped) == others
            assert all(("label_id" in s) == (target is ID2LABEL) for s in mapped)
            assert numbers(map_categories(mapped, target, source)) == ids


def test_the_numbers_of_things_and_stuff_apart():
    """What the DETR tutorial does in a loop over two tables."""
    metadata = MetadataCatalog.get(SEPARATED)
    coco = MetadataCatalog.get(TOGETHER)
    tables = metadata.thing_dataset_id_to_contiguous_id, metadata.stuff_dataset_id_to_contiguous_id
    segments = [
        {"id": i, "category_id": dataset_id, "isthing": dataset_id in tables[0]}
        for i, dataset_id in enumerate([*tables[0], *tables[1]])
        if dataset_id  # 0 stands for all things
    ]
    assert len(segments) == 133
    naive = [tables[0 if s["isthing"] else 1][s["category_id"]] for s in segments]
    mapped = map_categories(segments, (SEPARATED, "dataset"), SEPARATED)
    assert numbers(mapped) == naive
    # The names of the stuff differ in their endings: "wall" and "wall-other-merged".
    unified = map_categories(mapped, SEPARATED, TOGETHER)
    table = {
        **coco.thing_dataset_id_to_contiguous_id,
        **coco.stuff_dataset_id_to_contiguous_id,
    }
    assert numbers(unified) == [table[s["category_id"]] for s in segments]
    assert map_categories(unified, TOGETHER, SEPARATED) == mapped
    with pytest.raises(DatasetError, match="segment 1 has the category_id 54"):
        map_categories([{"id": 1, "category_id": 54, "isthing": False}], SEPARATED, TOGETHER)


def test_names_differ_in_case_and_in_endings():
    source = {
        0: "Traffic_Light",
        1: "wall-other-merged",
        2: "wall",
        3: "Sky-other",
        4: "house, hut",
    }
    target = [
        {"id": 5, "name": "traffic light"},
        {"id": 6, "name": "wall"},
        {"id": 7, "name": "sky"},
    ]
    target.append({"id": 8, "name": "house"})
    segments = [{"id": i + 1, "label_id": i} for i in (0, 2, 3, 4)]
    assert numbers(map_categories(segments, source, target)) == [5, 6, 7, 8]
    with pytest.raises(DatasetError, match="corresponds to 'wall-other-merged'"):
        map_categories([{"id": 1, "label_id": 1}], source, target)


def test_classes_without_a_counterpart():
    segments = [{"id": 1, "label_id": 3}, {"id": 2, "label_id": 2}]
    source = {3: "persons", 2: "person"}
    message = "data set 'street' has no class that corresponds to 'persons'; did you mean 'person'"
    with pytest.raises(DatasetError, match=message):
        map_categories(segments, source, METADATA)
    assert numbers(map_categories(segments, source, METADATA, unmatched="drop")) == [1]
    kept = map_categories(segments, source, METADATA, unmatched="keep")
    assert kept[0] == segments[0] and kept[0] is not segments[0]
    with pytest.raises(DatasetError, match="unknown unmatched 'dorp'; did you mean 'drop'"):
        map_categories(segments, source, METADATA, unmatched="dorp")


def test_a_name_of_several_classes_is_matched_by_place_alone():
    again = {10: "sky", 11: "road", 12: "person", 13: "N/A", 14: "car", 15: "N/A"}
    segments = [{"id": 1, "label_id": 5}]
    assert numbers(map_categories(segments, ID2LABEL, again)) == [15]
    with pytest.raises(DatasetError, match="'N/A'"):
        map_categories(segments, ID2LABEL, [*CATEGORIES, {"id": 1, "name": "N/A"}])


@pytest.mark.parametrize("wrong", [7, None, ["a", "b"], [{"id": 1}], ("street", "id", "x")])
def test_what_is_no_numbering(wrong):
    with pytest.raises(DatasetError, match="numbers no classes; expected the name of a data set"):
        map_categories([], wrong, METADATA)


def test_segments_without_a_known_class():
    with pytest.raises(
        DatasetError, match="segment 4 has the category_id None, which the metadata"
    ):
        map_categories([{"id": 4}], type("M", (), {"stuff_classes": ["a"]})(), METADATA)
    with pytest.raises(DatasetError, match="unknown data set 'coco_2017_val_panoptik'"):
        map_categories([], "coco_2017_val_panoptik", METADATA)


@settings(max_examples=50, deadline=None)
@given(st.permutations(range(12)), st.permutations(range(12)), st.lists(st.integers(0, 11)))
def test_a_way_and_back_is_the_same(first, second, classes):
    names = [f"class {i}" for i in range(12)]
    source = {i: names[n] for i, n in enumerate(first)}
    target = [
        {"id": int(i), "name": names[n]} for i, n in zip(np.arange(12) * 5, second, strict=True)
    ]
    segments = [{"id": i + 1, "label_id": c} for i, c in enumerate(classes)]
    there = map_categories(segments, source, target)
    by_id = {c["id"]: c["name"] for c in target}
    assert [by_id[s["category_id"]] for s in there] == [source[c] for c in classes]
    assert map_categories(there, target, source) == segments
