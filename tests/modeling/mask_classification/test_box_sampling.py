"""Points in the targets' own boxes: the matching and losses that use them."""

from __future__ import annotations

import pytest
import torch

from panoptic_ext.modeling.mask_classification.criterion import SetCriterion
from panoptic_ext.modeling.mask_classification.matcher import HungarianMatcher
from panoptic_ext.modeling.mask_classification.points import common_points, points_in_boxes
from panoptic_ext.modeling.mask_classification.targets import IdMapTargets
from panoptic_ext.modeling.transformer_decoder.outputs import DecoderOutputs
from tests.modeling.mask_classification.test_criterion import (
    CLASSES,
    gradients,
    make_outputs,
    make_target,
)


def small_and_large() -> IdMapTargets:
    """A target of 2 x 2 pixels and one of everything else, in 100 x 100."""
    id_map = torch.full((100, 100), 2, dtype=torch.int32)
    id_map[60:62, 30:32] = 1
    return IdMapTargets(torch.tensor([0, 1]), id_map)


def test_points_lie_in_the_enlarged_box_and_in_the_image():
    torch.manual_seed(0)
    boxes = torch.tensor([[0.4, 0.2, 0.6, 0.3], [0.0, 0.9, 1.0, 1.0]])
    points = points_in_boxes(boxes, 4000)
    assert points.shape == (2, 4000, 2)
    low, high = points.amin(1), points.amax(1)
    torch.testing.assert_close(low[0], torch.tensor([0.2, 0.1]), atol=2e-3, rtol=0)
    torch.testing.assert_close(high[0], torch.tensor([0.8, 0.4]), atol=2e-3, rtol=0)
    assert low.min() >= 0 and high.max() <= 1
    inside = ((points[0] >= boxes[0, :2]) & (points[0] < boxes[0, 2:])).all(-1)
    assert abs(inside.float().mean().item() - 1 / 3**2) < 0.03


@pytest.mark.parametrize("ratio", [0.5, 1.0])
def test_a_perfect_mask_of_the_whole_image_costs_no_more_than_published(ratio):
    """No point lies on the image's border, where sampling would halve both mask and target."""
    target = IdMapTargets(torch.tensor([0]), torch.ones(64, 64, dtype=torch.int32))
    logits = torch.tensor([[[9.0] + [-9.0] * CLASSES]])
    outputs = DecoderOutputs(logits, torch.full((1, 1, 16, 16), 8.0))
    torch.manual_seed(0)
    published = box_criterion(0.0, 4000)(outputs, [target])
    found = box_criterion(ratio, 4000)(outputs, [target])
    assert found["loss_mask"] < published["loss_mask"] < 0.3
    assert found["loss_dice"] < published["loss_dice"] < 0.1


def test_common_points_share_themselves_out():
    target = small_and_large()
    torch.manual_seed(0)
    hits = target.sample(common_points(target, 1000, 0.5)[0])[0] >= 0.5
    assert abs(int(hits.sum()) - 250 / 3**2) < 30  # a quarter of the points is drawn around it
    assert int((target.sample(common_points(target, 1000, 0.0)[0])[0] >= 0.5).sum()) < 5
    assert common_points(target, 7, 0.5, draws=3).shape == (3, 7, 2)
    nothing = IdMapTargets(torch.zeros(0, dtype=torch.int64), torch.zeros(4, 4, dtype=torch.int32))
    assert common_points(nothing, 9, 1.0).shape == (1, 9, 2)


def test_without_a_share_points_are_drawn_as_published():
    target = small_and_large()
    torch.manual_seed(3)
    expected = torch.rand(50, 2)
    torch.manual_seed(3)
    assert torch.equal(common_points(target, 50, 0.0)[0], expected)


def box_criterion(ratio: float, num_points: int = 64) -> SetCriterion:
    matcher = HungarianMatcher(num_points=num_points, box_sample_ratio=ratio)
    return SetCriterion(CLASSES, matcher, {}, 0.1, num_points, 3.0, 0.75, box_sample_ratio=ratio)


@pytest.mark.parametrize("ratio", [0.3, 1.0])
@pytest.mark.parametrize("counts", [(3, 0), (0, 0), (9, 2)])
def test_losses_train_with_points_in_boxes(ratio, counts):
    outputs = make_outputs(2)
    targets = [make_target(count, seed) for seed, count in enumerate(counts)]
    losses = box_criterion(ratio)(outputs, targets)
    total = sum(losses.values())
    total.backward()
    assert torch.isfinite(total)
    assert all(g is not None and torch.isfinite(g).all() for g in gradients(outputs))


def test_a_small_target_that_nothing_covers_costs_its_full_dice():
    """With points drawn anywhere, hardly one of 256 falls on the four pixels of the target, and the
    smoothing of Dice hides the wrong mask."""
    target = small_and_large()
    logits = torch.full((1, 2, CLASSES + 1), -9.0)
    logits[0, [0, 1], [0, 1]] = 9.0
    masks = torch.stack([torch.full((100, 100), -9.0), torch.full((100, 100), 9.0)])[None]
    outputs = DecoderOutputs(logits, masks)

    def dice(ratio: float) -> float:
        torch.manual_seed(0)
        return box_criterion(ratio, 256)(outputs, [target])["loss_dice"].item()

    assert dice(0.5) > 0.4  # the mean of nearly 1 and nearly 0
    assert dice(0.0) < 0.2
