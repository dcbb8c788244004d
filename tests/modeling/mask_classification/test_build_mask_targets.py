"""Targets of the mask-classification loss from mapped images, for the three tasks."""

from __future__ import annotations

import pytest
import torch
from detectron2.structures import BitMasks, Instances, PolygonMasks

from panoptic_ext.data import IdMapMasks
from panoptic_ext.errors import DatasetError
from panoptic_ext.modeling.mask_classification.targets import PlaneTargets, build_mask_targets

CPU = torch.device("cpu")
ALL = torch.arange(5)
THINGS = torch.tensor([-1, 0, -1, 1, 2])  # classes 1, 3 and 4 are things


def mapped(crowd=(False, False, False, True)):
    """Four segments: a thing, two of one stuff class, a crowd of a thing class."""
    ids = torch.tensor([[1, 1, 2, 0], [3, 3, 4, 4]], dtype=torch.int32)
    rows = Instances((2, 4))
    rows.gt_classes = torch.tensor([3, 2, 2, 4])
    rows.gt_isthing = torch.tensor([True, False, False, True])
    rows.gt_iscrowd = torch.tensor(crowd)
    return {"panoptic_ids": ids, "segments": rows, "file_name": "a.png"}


def targets_of(inputs, task, class_index=ALL, size=(2, 4), **kwargs):
    return build_mask_targets(
        inputs, task=task, padded_size=size, device=CPU, class_index=class_index, **kwargs
    )


def test_panoptic_targets_are_all_segments_but_crowds():
    inputs = mapped()
    before = inputs["panoptic_ids"].clone()
    targets = targets_of(inputs, "panoptic")
    assert targets.labels.tolist() == [3, 2, 2]
    assert targets.id_map.tolist() == [[1, 1, 2, 0], [3, 3, 0, 0]]
    assert targets.id_map.dtype == torch.int32 and targets.image == "a.png"
    assert torch.equal(inputs["panoptic_ids"], before)


def test_instance_targets_are_things_and_may_be_counted_alone():
    inputs = mapped(crowd=(False, False, False, False))
    targets = targets_of(inputs, "instance", THINGS)
    assert targets.labels.tolist() == [1, 2]
    assert targets.id_map.tolist() == [[1, 1, 0, 0], [0, 0, 2, 2]]
    assert targets_of(inputs, "instance").labels.tolist() == [3, 4]


def test_semantic_targets_join_the_segments_of_a_class():
    targets = targets_of(mapped(), "semantic")
    assert targets.labels.tolist() == [2, 3, 4]
    assert targets.id_map.tolist() == [[2, 2, 1, 0], [1, 1, 3, 3]]


# With INPUT.KEEP_EMPTY_SEGMENTS, as the zero masks of the published panoptic mappers.
def test_a_segment_without_pixels_is_a_target_with_an_empty_mask():
    inputs = mapped()
    inputs["panoptic_ids"][inputs["panoptic_ids"] == 1] = 0
    targets = targets_of(inputs, "panoptic")
    assert targets.labels.tolist() == [3, 2, 2]
    points = torch.rand(50, 2)
    masks = torch.stack([targets.id_map == row for row in (1, 2, 3)])
    dense = PlaneTargets(targets.labels, masks)
    torch.testing.assert_close(targets.sample(points), dense.sample(points))
    assert not targets.sample(points)[0].any()


def test_padding_is_void():
    targets = targets_of(mapped(), "panoptic", size=(3, 6))
    assert targets.id_map.tolist() == [[1, 1, 2, 0, 0, 0], [3, 3, 0, 0, 0, 0], [0] * 6]


@pytest.mark.parametrize("task", ["panoptic", "instance", "semantic"])
def test_an_image_of_void_alone_has_no_target(task):
    rows = Instances((2, 4))
    rows.gt_classes = torch.zeros(0, dtype=torch.int64)
    rows.gt_isthing = rows.gt_iscrowd = torch.zeros(0, dtype=torch.bool)
    inputs = {"panoptic_ids": torch.zeros(2, 4, dtype=torch.int32), "segments": rows}
    targets = targets_of(inputs, task)
    assert len(targets) == 0 and not targets.id_map.any()


def given_instances(masks):
    instances = Instances((2, 4))
    instances.gt_classes = torch.tensor([3, 2, 4])
    instances.gt_masks = masks
    return {"instances": instances}


def test_instances_as_id_map_masks_stay_one_map():
    ids = torch.tensor([[1, 1, 5, 0], [5, 3, 3, 3]], dtype=torch.int32)
    inputs = given_instances(IdMapMasks(ids, torch.tensor([5, 1, 3])))
    targets = targets_of(inputs, "instance", THINGS)
    assert targets.labels.tolist() == [1, 2]
    assert targets.id_map.tolist() == [[0, 0, 1, 0], [1, 2, 2, 2]]


def test_instances_as_masks_may_overlap():
    masks = torch.rand(3, 2, 4) > 0.5
    targets = targets_of(given_instances(BitMasks(masks)), "instance", THINGS, size=(3, 4))
    assert targets.labels.tolist() == [1, 2]
    assert torch.equal(targets.masks[:, :2], masks[[0, 2]]) and not targets.masks[:, 2].any()


def test_instances_as_polygons():
    square = [[0.0, 0.0, 2.0, 0.0, 2.0, 2.0, 0.0, 2.0]]
    targets = targets_of(given_instances(PolygonMasks([square] * 3)), "instance")
    assert targets.masks.sum(dim=(1, 2)).tolist() == [4, 4, 4]


def test_sem_seg_alone():
    sem_seg = torch.tensor([[1, 1, 255, 4], [4, 0, 0, 0]])
    targets = targets_of({"sem_seg": sem_seg}, "semantic")
    assert targets.labels.tolist() == [0, 1, 4]
    assert targets.id_map.tolist() == [[2, 2, 0, 3], [3, 1, 1, 1]]


def test_the_ignore_value_may_be_another_one():
    inputs = {"sem_seg": torch.tensor([[3, 1]])}
    targets = targets_of(inputs, "semantic", size=(1, 2), ignore_value=3)
    assert targets.labels.tolist() == [1] and targets.id_map.tolist() == [[0, 1]]


def test_a_class_out_of_range_names_the_image():
    inputs = mapped()
    inputs["segments"].gt_classes[0] = 7
    with pytest.raises(DatasetError, match=r"'a.png' has a segment of class 7.*0 to 4"):
        targets_of(inputs, "panoptic")


def test_missing_ground_truth_says_what_is_there():
    with pytest.raises(DatasetError, match=r"\['image'\], but the panoptic task needs"):
        targets_of({"image": None}, "panoptic")


@pytest.mark.parametrize("task", ["panoptic", "instance", "semantic"])
def test_random_maps_against_a_naive_version(task):
    generator = torch.Generator().manual_seed(3)
    for _ in range(20):
        count = int(torch.randint(0, 6, (1,), generator=generator))
        ids = torch.randint(0, count + 1, (5, 7), generator=generator, dtype=torch.int32)
        rows = Instances((5, 7))
        rows.gt_classes = torch.randint(0, 5, (count,), generator=generator)
        rows.gt_isthing = THINGS[rows.gt_classes] >= 0
        rows.gt_iscrowd = torch.rand(count, generator=generator) < 0.3
        found = targets_of({"panoptic_ids": ids, "segments": rows}, task, size=(5, 7))
        expected = {}
        for i in range(count):
            label = int(rows.gt_classes[i])
            mask = ids == i + 1
            if task == "semantic":
                expected[label] = expected.get(label, torch.zeros_like(mask)) | mask
            elif not rows.gt_iscrowd[i] and (task == "panoptic" or rows.gt_isthing[i]):
                expected[i] = mask
        assert len(found) == len(expected)
        order = sorted(expected)
        for row, key in enumerate(order):
            label = key if task == "semantic" else int(rows.gt_classes[key])
            assert found.labels[row] == label
            assert torch.equal(found.id_map == row + 1, expected[key])
