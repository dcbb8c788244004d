"""Colours and numbers of segment ids."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from panoptic_ext.data.coco.id_map import id_to_rgb, remap_ids, rgb_to_id
from panoptic_ext.errors import DatasetError

SHAPES = hnp.array_shapes(min_dims=2, max_dims=2, min_side=0, max_side=9)
ID_MAPS = SHAPES.flatmap(lambda s: hnp.arrays(np.int32, s, elements=st.integers(0, 2**24 - 1)))
SMALL_MAPS = SHAPES.flatmap(lambda s: hnp.arrays(np.int32, s, elements=st.integers(0, 5)))


def test_colours_by_hand() -> None:
    colors = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1], [255, 255, 255]], np.uint8)
    ids = np.array([0, 1, 256, 65536, 2**24 - 1])
    assert rgb_to_id(colors).tolist() == ids.tolist()
    assert id_to_rgb(ids).tolist() == colors.tolist()


@given(ID_MAPS)
def test_colours_round_trip(ids: np.ndarray) -> None:
    assert np.array_equal(rgb_to_id(id_to_rgb(ids)), ids)


@pytest.mark.parametrize("values", [[-1], [2**24]])
def test_ids_that_do_not_fit_a_colour(values: list[int]) -> None:
    with pytest.raises(DatasetError, match="do not fit an RGB PNG"):
        id_to_rgb(np.array(values))


@given(SMALL_MAPS, st.lists(st.integers(1, 2**24 - 1), max_size=5, unique=True))
def test_remapping_equals_one_mask_per_id(ids: np.ndarray, others: list[int]) -> None:
    known = np.array([i for i in (4, 2, *others) if i not in (1, 3)])
    known = np.array(list(dict.fromkeys(known.tolist())))
    local, present, unknown = remap_ids(ids, known)
    expected = np.zeros(ids.shape, int)
    for row, i in enumerate(known):
        expected[ids == i] = row + 1
        assert present[row] == (ids == i).any()
    assert np.array_equal(local, expected)
    assert unknown.tolist() == sorted(set(np.unique(ids).tolist()) - set(known.tolist()) - {0})


@pytest.mark.parametrize(("count", "dtype"), [(255, np.uint8), (256, np.uint16), (65536, np.int32)])
def test_remapping_takes_the_smallest_type(count: int, dtype: type) -> None:
    known = np.arange(1, count + 1)
    local, present, _ = remap_ids(known[None].astype(np.int32), known)
    assert local.dtype == dtype
    assert np.array_equal(local[0], known)
    assert present.all()
