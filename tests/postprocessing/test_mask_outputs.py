"""All outputs of a batch: as of each image alone, with one resize, few waits, little memory."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from panoptic_ext.postprocessing import (
    MaskOutputs,
    Sizes,
    instance_inference,
    mask_inference,
    mask_outputs,
    panoptic_inference,
    semantic_inference,
)
from panoptic_ext.postprocessing.tiled_resize import TiledResize
from tests.operation_counts import OperationCounts
from tests.tiny.mask_logits import THINGS, blobs, make_case, sizes_of

EVERYTHING = MaskOutputs(
    panoptic=True, semantic=True, instances=True, thing_ids=THINGS, object_mask_threshold=0.0,
    overlap_threshold=0.3, top_k=12,
)  # fmt: skip


def make_batch():
    """Blobs of two images of different sizes, in the second few queries with a class."""
    mask_cls = torch.stack([make_case(12, 5, (1, 1), seed)[0] for seed in (0, 1)])
    mask_cls[1, 3:, -1] += 20
    mask_pred = torch.stack([blobs(12, (96, 80), seed) for seed in (0, 1)])
    sizes = [
        Sizes(image_size=(381, 311), padded_size=(384, 320), output_size=(200, 333)),
        Sizes(image_size=(300, 320), padded_size=(384, 320), output_size=(300, 320)),
    ]
    return mask_cls, mask_pred, sizes


def assert_same_outputs(found, expected):
    assert found.keys() == expected.keys()
    if "panoptic_seg" in found:
        assert torch.equal(found["panoptic_seg"][0], expected["panoptic_seg"][0])
        assert found["panoptic_seg"][1] == expected["panoptic_seg"][1]
    if "sem_seg" in found:
        torch.testing.assert_close(found["sem_seg"], expected["sem_seg"], rtol=1e-5, atol=1e-6)
    if "instances" in found:
        found, expected = found["instances"], expected["instances"]
        assert torch.equal(found.pred_masks, expected.pred_masks)
        assert torch.equal(found.pred_boxes.tensor, expected.pred_boxes.tensor)
        assert torch.equal(found.pred_classes, expected.pred_classes)
        torch.testing.assert_close(found.scores, expected.scores)


def test_looking_at_every_query_changes_nothing(monkeypatch):
    """The way of CUDA, where no query is left out of a tile."""
    batch = make_batch()
    for name in ("panoptic", "instances"):
        wanted = dataclasses.replace(
            EVERYTHING, **{part: part == name for part in ("panoptic", "semantic", "instances")}
        )
        expected = mask_inference(*batch, wanted)
        with monkeypatch.context() as patch:
            patch.setattr(mask_outputs, "_host_may_read", lambda device: False)
            found = mask_inference(*batch, wanted)
        for one, other in zip(found, expected, strict=True):
            assert_same_outputs(one, other)


@pytest.mark.parametrize("host_may_read", [True, False])
def test_all_outputs_of_a_batch_are_those_of_each_alone(monkeypatch, host_may_read):
    monkeypatch.setattr(mask_outputs, "_host_may_read", lambda device: host_may_read)
    mask_cls, mask_pred, sizes = make_batch()
    found = mask_inference(mask_cls, mask_pred, sizes, EVERYTHING)
    for number, result in enumerate(found):
        one = mask_cls[number], mask_pred[number]
        assert len(result["panoptic_seg"][1]) > 1 and len(result["instances"]) > 1
        options = {"object_mask_threshold": 0.0, "overlap_threshold": 0.3}
        alone = {
            "sem_seg": semantic_inference(*one, **sizes[number]),
            "panoptic_seg": panoptic_inference(*one, **sizes[number], thing_ids=THINGS, **options),
            "instances": instance_inference(*one, **sizes[number], thing_ids=THINGS, top_k=12),
        }
        assert_same_outputs(result, alone)


@pytest.mark.parametrize("resize_first", [True, False])
def test_masks_are_resized_once_for_all_outputs(monkeypatch, resize_first):
    """Three outputs resized them three times; scores of another size need their own.

    Not so on a CPU, where each output looks at tiles and masks of its own, which is faster.
    """
    monkeypatch.setattr(mask_outputs, "_host_may_read", lambda device: False)
    resized = []
    tile = TiledResize.tile
    monkeypatch.setattr(
        TiledResize, "tile", lambda self, *args: resized.append(args[0]) or tile(self, *args)
    )
    mask_cls, mask_pred, sizes = make_batch()
    wanted = dataclasses.replace(EVERYTHING, resize_first=resize_first)
    mask_inference(mask_cls[:1], mask_pred[:1], sizes[:1], wanted)
    pixels = sum(tile.size[0] * tile.size[1] for tile in resized)
    assert pixels == 200 * 333 + (0 if resize_first else 381 * 311)


def test_the_host_waits_twice_for_a_batch(monkeypatch):
    """It waited several times for each image."""
    monkeypatch.setattr(mask_outputs, "_host_may_read", lambda device: False)
    mask_cls, mask_pred, sizes = make_batch()
    for count in (1, 2):
        with OperationCounts() as counted:
            mask_inference(mask_cls[:count], mask_pred[:count], sizes[:count], EVERYTHING)
        assert counted.copies == {"cpu": 2}
        assert counted.waits == {} and counted.by_name["bincount"] == 0
    with OperationCounts() as counted:
        mask_inference(mask_cls, mask_pred, sizes, MaskOutputs(semantic=True))
    assert not counted.copies and not counted.waits


@pytest.mark.parametrize("queries", [1, 80, 300])
def test_a_tile_of_all_queries_stays_small(queries):
    masks = torch.zeros(1, 256, 256).expand(queries, -1, -1)
    sizes = sizes_of((256, 256), output=(2048, 2048))
    resize = TiledResize(masks, **sizes)
    values = [tile.size[0] * tile.size[1] * queries for tile in resize]
    assert max(values) <= 2**19
    assert sum(values) == 2048 * 2048 * queries


class RecordedRows:
    """Lazy masks that note which of them are read."""

    def __init__(self, masks):
        self.masks, self.read = masks, {}

    def rows(self, image, queries):
        self.read[image] = queries.tolist()
        return self.masks[image].index_select(0, queries)


@pytest.mark.parametrize("host_may_read", [True, False])
@pytest.mark.parametrize("semantic", [True, False])
@pytest.mark.parametrize("instances", [True, False])
def test_lazy_masks_are_read_where_an_output_needs_them(
    monkeypatch, host_may_read, semantic, instances
):
    monkeypatch.setattr(mask_outputs, "_host_may_read", lambda device: host_may_read)
    mask_cls, mask_pred, sizes = make_batch()
    wanted = dataclasses.replace(
        EVERYTHING, semantic=semantic, instances=instances, object_mask_threshold=0.9, top_k=2
    )
    masks = RecordedRows(mask_pred)
    found = mask_inference(mask_cls, masks, sizes, wanted)
    for one, other in zip(found, mask_inference(mask_cls, mask_pred, sizes, wanted), strict=True):
        assert_same_outputs(one, other)
    assert 0 in masks.read
    for queries in masks.read.values():
        assert queries == list(range(12)) if semantic else 0 < len(set(queries)) < 12


def test_without_a_kept_query_no_lazy_mask_is_read():
    mask_cls, mask_pred, sizes = make_batch()
    masks = RecordedRows(mask_pred)
    wanted = MaskOutputs(panoptic=True, thing_ids=THINGS, object_mask_threshold=1.0)
    found = mask_inference(mask_cls, masks, sizes, wanted)
    assert not masks.read
    assert [result["panoptic_seg"][1] for result in found] == [[], []]
