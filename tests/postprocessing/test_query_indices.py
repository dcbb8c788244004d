import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from panoptic_ext.postprocessing.query_indices import DeviceIndices, union

indices = st.sets(st.integers(0, 9)).map(lambda found: np.array(sorted(found), dtype=np.int64))


@given(parts=st.lists(indices, min_size=1, max_size=4))
def test_union_has_each_index_once(parts):
    found = union(parts)
    assert found.dtype == np.int64
    assert found.tolist() == sorted(set().union(*(part.tolist() for part in parts)))


def test_a_part_with_all_indices_is_not_copied():
    whole = np.arange(5)
    assert union([whole[2:], whole, whole[:1]]) is whole


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_indices_on_a_device(device):
    on_device = DeviceIndices(torch.device(device))
    first, same, other = (on_device(np.array(values)) for values in ([1, 4], [1, 4], [2, 3]))
    assert first.device.type == device and first.shape == other.shape == (2,)
    if device == "cpu":
        assert first.tolist() == [1, 4] and other.tolist() == [2, 3]
    else:  # copied once
        assert same is first and other is not first
