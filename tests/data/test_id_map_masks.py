from __future__ import annotations

import numpy as np
import pytest
import torch
from detectron2.layers import ROIAlign
from detectron2.structures import BitMasks, Instances
from hypothesis import given, settings
from hypothesis import strategies as st

from panoptic_ext.data.id_map_masks import IdMapMasks
from tests.gpu_waits import waits_of


def block_map(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Rectangles over rectangles, ids 0..6."""
    ids = np.zeros((height, width), np.int64)
    for i in range(1, 7):
        y, x = rng.integers(0, height), rng.integers(0, width)
        ids[y : y + rng.integers(1, height + 1), x : x + rng.integers(1, width + 1)] = i
    return ids


@st.composite
def masks(draw: st.DrawFn) -> tuple[IdMapMasks, BitMasks, np.random.Generator]:
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    ids = torch.from_numpy(block_map(rng, draw(st.integers(1, 30)), draw(st.integers(1, 30))))
    rows = torch.tensor(draw(st.lists(st.integers(1, 8), max_size=8)), dtype=torch.int64)
    bitmasks = BitMasks(ids[None] == rows[:, None, None])
    boxes = bitmasks.get_bounding_boxes().tensor if draw(st.booleans()) else None
    return IdMapMasks(ids, rows, boxes), bitmasks, rng


@given(masks())
@settings(deadline=None, max_examples=60)
def test_equal_to_bitmasks(case: tuple) -> None:
    ours, theirs, _ = case
    assert len(ours) == len(theirs)
    assert tuple(ours.image_size) == tuple(theirs.image_size)
    assert torch.equal(ours.tensor, theirs.tensor)
    assert torch.equal(ours.nonempty(), theirs.nonempty())
    assert torch.equal(ours.area(), theirs.tensor.flatten(1).sum(1))
    assert torch.equal(ours.get_bounding_boxes().tensor, theirs.get_bounding_boxes().tensor)
    for one, other in zip(ours, theirs, strict=True):
        assert torch.equal(one, other)


@given(masks(), st.sampled_from([1, 7, 14]))
@settings(deadline=None, max_examples=60)
def test_crop_and_resize_equals_bitmasks(case: tuple, size: int) -> None:
    ours, theirs, rng = case
    corners = rng.uniform(-3, 33, (len(ours), 2, 2))
    if rng.random() < 0.5:
        corners = np.round(corners)
    boxes = torch.from_numpy(np.sort(corners, axis=1).reshape(-1, 4)).float()
    found = ours.crop_and_resize(boxes, size)
    assert found.dtype == torch.bool
    if len(ours) == 0:
        assert found.shape == (0, size, size)
        return
    # Where the mean of the samples is 0.5 but for rounding, either answer is right.
    rois = torch.cat([torch.arange(len(boxes))[:, None].float(), boxes], dim=1)
    align = ROIAlign((size, size), 1.0, 0, aligned=True)
    values = align.forward(theirs.tensor.float()[:, None], rois)[:, 0]
    sure = (values - 0.5).abs() > 1e-4
    assert torch.equal(found[sure], theirs.crop_and_resize(boxes, size)[sure])


def test_indexing_shares_the_map() -> None:
    ids = torch.arange(12).reshape(3, 4) % 5
    ours = IdMapMasks(ids, torch.tensor([1, 2, 3, 4]))
    theirs = BitMasks(ids[None] == torch.tensor([1, 2, 3, 4])[:, None, None])
    keys = [1, slice(1, 3), torch.tensor([3, 0, 0]), torch.tensor([True, False, True, False])]
    for key in keys:
        assert torch.equal(ours[key].tensor, theirs[key].tensor)
        assert ours[key].id_map.data_ptr() == ours.id_map.data_ptr()
    assert len(ours[torch.zeros(4, dtype=torch.bool)]) == 0


@pytest.mark.parametrize("key", [1, slice(1, 3), torch.tensor([3, 0, 0]), torch.arange(4) > 1])
def test_boxes_follow_their_masks(key: object) -> None:
    ids = torch.arange(12).reshape(3, 4) % 5
    rows = torch.tensor([1, 2, 3, 4])
    boxes = BitMasks(ids[None] == rows[:, None, None]).get_bounding_boxes().tensor
    for chosen in (IdMapMasks(ids, rows, boxes)[key], IdMapMasks(ids, rows, boxes).to("cpu")[key]):
        assert torch.equal(chosen.boxes.float(), boxes[key].reshape(-1, 4))
    both = IdMapMasks.cat([chosen, chosen])
    assert torch.equal(both.boxes, torch.cat([chosen.boxes, chosen.boxes]))
    assert IdMapMasks.cat([chosen, IdMapMasks(chosen.id_map, rows)]).boxes is None


def test_wrong_shape_of_boxes() -> None:
    with pytest.raises(ValueError, match=r"expected \(1, 4\) boxes"):
        IdMapMasks(torch.ones(2, 2), torch.tensor([1]), torch.zeros(2, 4))


@pytest.mark.gpu
def test_one_wait_for_the_device(gpu: str) -> None:
    ids = torch.arange(1200).reshape(30, 40) // 100
    rows = torch.tensor([3, 1, 3, 2, 9])
    boxes = IdMapMasks(ids, rows).get_bounding_boxes().tensor
    given = torch.rand(5, 2, 2).sort(dim=1).values.reshape(5, 4) * 30
    expected = IdMapMasks(ids, rows).crop_and_resize(given, 14)
    masks, given = IdMapMasks(ids, rows, boxes).to(gpu), given.to(gpu)
    masks.crop_and_resize(given, 14)
    found, waits = waits_of(lambda: masks.crop_and_resize(given, 14), gpu)
    assert waits <= 1
    assert (found.cpu() == expected).float().mean() > 0.99


def test_inside_instances() -> None:
    ids = torch.arange(12).reshape(3, 4) % 5
    instances = Instances((3, 4))
    instances.gt_masks = IdMapMasks(ids, torch.tensor([1, 2, 3]))
    both = Instances.cat([instances[:1], instances[torch.tensor([2])]])
    assert both.gt_masks.ids.tolist() == [1, 3]
    assert instances.to("cpu").gt_masks.device == torch.device("cpu")


def test_cat_over_different_maps_is_a_bitmasks() -> None:
    first = IdMapMasks(torch.ones(2, 2), torch.tensor([1]))
    second = IdMapMasks(torch.zeros(2, 2), torch.tensor([1]))
    both = IdMapMasks.cat([first, second])
    assert isinstance(both, BitMasks)
    assert both.tensor.flatten(1).sum(1).tolist() == [4, 0]


def test_wrong_number_of_boxes() -> None:
    with pytest.raises(ValueError, match="2 boxes for 1 masks"):
        IdMapMasks(torch.ones(2, 2), torch.tensor([1])).crop_and_resize(torch.zeros(2, 4), 7)
