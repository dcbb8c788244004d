"""The criterion: keys, gradients, edges, and equality with the losses written naively."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from panoptic_ext.modeling.mask_classification import criterion as criterion_module
from panoptic_ext.modeling.mask_classification.criterion import SetCriterion
from panoptic_ext.modeling.mask_classification.matcher import HungarianMatcher
from panoptic_ext.modeling.mask_classification.targets import (
    IdMapTargets,
    MaskTargets,
    PlaneTargets,
)
from panoptic_ext.modeling.transformer_decoder.outputs import DecoderOutputs, Predictions
from tests.modeling.mask_classification import naive_mask_losses as naive

CLASSES = 4


def make_criterion(num_points: int = 64) -> SetCriterion:
    matcher = HungarianMatcher(num_points=num_points)
    weights = {"loss_ce": 2.0, "loss_mask": 5.0, "loss_dice": 5.0}
    return SetCriterion(CLASSES, matcher, weights, 0.1, num_points, 3.0, 0.75)


def make_outputs(images: int, queries: int = 6, aux: int = 2, seed: int = 0) -> DecoderOutputs:
    generator = torch.Generator().manual_seed(seed)

    def one() -> tuple[torch.Tensor, torch.Tensor]:
        logits = torch.randn(images, queries, CLASSES + 1, generator=generator)
        masks = torch.randn(images, queries, 8, 10, generator=generator) * 3
        return logits.requires_grad_(), masks.requires_grad_()

    return DecoderOutputs(*one(), tuple(Predictions(*one()) for _ in range(aux)))


def make_target(count: int, seed: int = 0) -> MaskTargets:
    generator = torch.Generator().manual_seed(seed)
    id_map = torch.randint(0, count + 1, (32, 40), generator=generator, dtype=torch.int32)
    return IdMapTargets(torch.randint(0, CLASSES, (count,), generator=generator), id_map)


def gradients(outputs: DecoderOutputs) -> list[torch.Tensor]:
    return [x.grad for part in outputs.predictions for x in (part.pred_logits, part.pred_masks)]


def test_keys_gradients_and_buffer():
    criterion = make_criterion()
    assert list(criterion.state_dict()) == ["empty_weight"]
    torch.testing.assert_close(criterion.empty_weight, torch.tensor([1.0, 1, 1, 1, 0.1]))
    outputs = make_outputs(2)
    losses = criterion(outputs, [make_target(3), make_target(0)])
    names = [f"loss_{name}{end}" for end in ("", "_0", "_1") for name in ("ce", "mask", "dice")]
    assert list(losses) == names
    sum(losses.values()).backward()
    assert all(g is not None and g.abs().sum() > 0 for g in gradients(outputs))


def test_no_ground_truth_trains():
    outputs = make_outputs(2)
    losses = make_criterion()(outputs, [make_target(0), make_target(0)])
    sum(losses.values()).backward()
    assert all(losses[f"loss_{name}"].item() == 0 for name in ("mask", "dice"))
    found = gradients(outputs)
    assert all(g is not None and torch.isfinite(g).all() for g in found)
    assert all(g.abs().sum() > 0 for g in found[::2]) and all(g.sum() == 0 for g in found[1::2])


@pytest.mark.parametrize("overlapping", [False, True])
def test_losses_equal_the_naive_ones(monkeypatch, overlapping):
    """Points at all pixel centres, so that nothing is random."""
    rows, columns = torch.meshgrid(torch.arange(8), torch.arange(10), indexing="ij")
    points = torch.stack(((columns + 0.5) / 10, (rows + 0.5) / 8), -1).reshape(1, -1, 2)
    monkeypatch.setattr(
        criterion_module,
        "uncertain_points",
        lambda masks, *_, **__: points.expand(len(masks), -1, -1),
    )
    outputs, target = make_outputs(1, aux=0), make_target(3)
    target = IdMapTargets(target.labels, target.id_map[::4, ::4].contiguous())
    planes = target.id_map[None] == torch.arange(1, 4)[:, None, None]
    if overlapping:
        target = PlaneTargets(target.labels, planes)
    criterion = make_criterion()
    torch.manual_seed(1)
    losses = criterion(outputs, [target])
    torch.manual_seed(1)
    (((queries, chosen),),) = criterion.matcher([outputs], [target])

    classes = np.full(6, CLASSES)
    classes[queries.numpy()] = target.labels[chosen].numpy()
    masks = outputs.pred_masks[0].detach()[queries].flatten(1).numpy()
    truth = planes[chosen].flatten(1).double().numpy()
    pairs = list(zip(masks, truth, strict=True))
    expected = {
        "loss_ce": naive.class_loss(outputs.pred_logits[0].detach().numpy(), classes, 0.1),
        "loss_mask": sum(naive.mask_term(x, t) for x, t in pairs) / 3,
        "loss_dice": sum(naive.dice_term(x, t) for x, t in pairs) / 3,
    }
    assert {k: v.item() for k, v in losses.items()} == pytest.approx(expected, rel=1e-4)


def test_a_right_prediction_has_a_small_loss():
    id_map = torch.arange(4, dtype=torch.int32).repeat_interleave(10).repeat(32, 1)
    target = IdMapTargets(torch.tensor([2, 0, 2]), id_map)
    planes = id_map[None] == torch.arange(1, 4)[:, None, None]
    logits = torch.full((1, 4, CLASSES + 1), -20.0)
    logits[0, [0, 1, 2], target.labels] = 20.0
    logits[0, 3, CLASSES] = 20.0
    masks = torch.cat((planes.float() * 80 - 40, torch.full((1, 32, 40), -40.0)))[None]
    losses = make_criterion(512)(DecoderOutputs(logits, masks), [target])
    assert losses["loss_ce"] < 1e-4
    wrong = make_criterion(512)(DecoderOutputs(logits, -masks), [target])
    assert losses["loss_mask"] < 0.2 * wrong["loss_mask"]
    assert losses["loss_dice"] < 0.5 * wrong["loss_dice"]


def test_more_objects_than_queries_train():
    outputs = make_outputs(1, queries=2)
    losses = make_criterion()(outputs, [make_target(5)])
    assert all(torch.isfinite(loss) for loss in losses.values())


def test_autocast_keeps_the_losses_in_float32():
    outputs = make_outputs(1, aux=0)
    logits, masks = (x.detach().bfloat16() for x in (outputs.pred_logits, outputs.pred_masks))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = make_criterion()(DecoderOutputs(logits, masks), [make_target(2)])
    assert {loss.dtype for loss in losses.values()} == {torch.float32}


def test_num_masks_is_the_workers_average(monkeypatch):
    """Two workers, the other one with five targets."""
    criterion, outputs, targets = make_criterion(), make_outputs(1, aux=0), [make_target(3)]
    torch.manual_seed(0)
    alone = criterion(outputs, targets)
    monkeypatch.setattr(criterion_module.comm, "get_world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda count: count.add_(5))
    torch.manual_seed(0)
    together = criterion(outputs, targets)
    assert together["loss_ce"].item() == alone["loss_ce"].item()
    for name in ("loss_mask", "loss_dice"):
        assert together[name].item() == pytest.approx(alone[name].item() * 3 / 4, rel=1e-5)


def test_hundreds_of_objects_and_a_single_pixel():
    id_map = torch.arange(1, 376, dtype=torch.int32).reshape(15, 25)
    many = IdMapTargets(torch.zeros(375, dtype=torch.int64), id_map)
    losses = make_criterion()(make_outputs(1, queries=400), [many])
    assert all(torch.isfinite(loss) for loss in losses.values())
    one = IdMapTargets(torch.tensor([1]), torch.ones(1, 1, dtype=torch.int32))
    losses = make_criterion()(make_outputs(1), [one])
    assert all(torch.isfinite(loss) for loss in losses.values())
