"""Maps without segments_info: the two conventions of label_divisor."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from panoptic_ext.data.coco.divisor import segments_of_label_map, segments_without_info
from panoptic_ext.data.coco.runs import find_runs
from panoptic_ext.data.datasets.metadata import dataset_ids
from panoptic_ext.errors import DatasetError


def test_a_value_below_the_divisor_is_a_whole_category_and_a_crowd_where_thing() -> None:
    runs = find_runs(np.array([[0, 7, 7, 11], [11, 11003, 99, 0]]))
    assert segments_of_label_map(runs, 1000, {7: False, 11: True}) == [
        {"id": 7, "category_id": 7, "iscrowd": 0, "area": 2},
        {"id": 11, "category_id": 11, "iscrowd": 1, "area": 2},
        {"id": 99, "category_id": 99, "iscrowd": 0, "area": 1},
        {"id": 11003, "category_id": 11, "iscrowd": 0, "area": 1},
    ]


def test_a_models_value_below_the_divisor_is_an_instance_of_category_0() -> None:
    assert segments_without_info(np.array([-1, 3, 1000, 1001]), 1000) == [
        {"id": 3, "category_id": 0},
        {"id": 1000, "category_id": 1},
        {"id": 1001, "category_id": 1},
    ]


def test_dataset_ids_in_the_order_of_contiguous_ids() -> None:
    def metadata(things: dict[int, int], stuff: dict[int, int]) -> SimpleNamespace:
        return SimpleNamespace(
            name="some",
            thing_dataset_id_to_contiguous_id=things,
            stuff_dataset_id_to_contiguous_id=stuff,
        )

    assert dataset_ids(metadata({30: 0, 2: 2}, {7: 1})) == (30, 7, 2)
    for things, stuff in (({}, {}), ({30: 0}, {7: 2})):
        with pytest.raises(DatasetError, match="'some' has no contiguous category ids; register"):
            dataset_ids(metadata(things, stuff))
