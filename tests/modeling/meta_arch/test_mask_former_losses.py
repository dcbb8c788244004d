"""Losses of PanopticExtMaskFormer beyond the published ones, and their keys."""

from __future__ import annotations

import math
import re

import pytest
import torch

from panoptic_ext.errors import ConfigError
from panoptic_ext.modeling.mask_classification.build_criterion import build_criterion
from tests.tiny.mask_former import build, mapped, predict, tiny_cfg, train


def test_auxiliary_semantic_loss():
    """Its value by hand, its gradient, and nothing of it in inference."""
    torch.manual_seed(0)
    model = build(**{"MODEL.MASK_FORMER.SEMANTIC_LOSS_WEIGHT": 2.0})
    inputs = mapped()
    seen = {}
    model.semantic_classifier.register_forward_hook(lambda *call: seen.update(logits=call[2]))
    model.train()
    losses = model([inputs])
    table = torch.cat((torch.tensor([-1]), inputs["segments"].gt_classes))
    labels = table[inputs["panoptic_ids"].long()][2::4, 2::4].reshape(-1)
    logits = seen.pop("logits")[0].detach().flatten(1).t()
    chosen = logits.log_softmax(1)[labels >= 0].gather(1, labels[labels >= 0, None])
    assert losses["loss_sem_seg"].item() == pytest.approx(-2 * chosen.mean().item(), rel=1e-4)
    losses["loss_sem_seg"].backward()
    assert model.semantic_classifier.weight.grad.abs().sum() > 0
    assert model.sem_seg_head.pixel_decoder.mask_features.weight.grad.abs().sum() > 0
    predict(model, [inputs])
    assert not seen


def test_auxiliary_semantic_loss_of_void_is_zero():
    model = build(**{"MODEL.MASK_FORMER.SEMANTIC_LOSS_WEIGHT": 1.0})
    assert train(model, [mapped(num=0)])["loss_sem_seg"] == 0


@pytest.mark.parametrize("ratio", [0.5, 1.0])
def test_box_sample_ratio_reaches_loss_and_matcher(ratio):
    model = build(**{"MODEL.MASK_FORMER.BOX_SAMPLE_RATIO": ratio})
    assert model.criterion.box_sample_ratio == model.criterion.matcher.box_sample_ratio == ratio
    losses = train(model, [mapped(), mapped(num=0, seed=1)])
    assert all(math.isfinite(loss) for loss in losses.values())


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("SEMANTIC_LOSS_WEIGHT", -1.0, "0 (no such loss) or more"),
        ("CLASS_BALANCE", 1.1, "0 (all pixels"),
        ("BOX_SAMPLE_RATIO", -0.1, "a share"),
        ("BOX_SAMPLE_RATIO", 1.5, "a share"),
        ("OVERSAMPLE_RATIO", 0.5, "1 candidate for each point"),
        ("OVERSAMPLE_RATIO", math.inf, "1 candidate for each point"),
        ("IMPORTANCE_SAMPLE_RATIO", 1.1, "a share of the points from 0 to 1"),
        ("IMPORTANCE_SAMPLE_RATIO", -0.1, "a share of the points from 0 to 1"),
        ("TRAIN_NUM_POINTS", 0, "1 point a mask"),
        ("TRAIN_NUM_POINTS", -5, "1 point a mask"),
        ("NO_OBJECT_WEIGHT", -0.1, "a weight of 0 or more"),
        ("CLASS_WEIGHT", -2.0, "a weight of 0 or more"),
        ("MASK_WEIGHT", math.nan, "a weight of 0 or more"),
        ("DICE_WEIGHT", math.inf, "a weight of 0 or more"),
    ],
)
def test_a_key_of_the_loss_outside_its_range_is_refused(key, value, expected):
    message = re.escape(f"MASK_FORMER.{key} is {value}, expected {expected}")
    with pytest.raises(ConfigError, match=message):
        build_criterion(tiny_cfg(**{f"MODEL.MASK_FORMER.{key}": value}))


def test_a_box_sample_ratio_over_1_is_refused_when_the_model_is_built():
    with pytest.raises(ConfigError, match=r"BOX_SAMPLE_RATIO is 1\.5, expected a share"):
        build(**{"MODEL.MASK_FORMER.BOX_SAMPLE_RATIO": 1.5})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("OVERSAMPLE_RATIO", 1.0),
        ("IMPORTANCE_SAMPLE_RATIO", 0.0),
        ("IMPORTANCE_SAMPLE_RATIO", 1.0),
        ("TRAIN_NUM_POINTS", 1),
    ],
)
def test_the_ends_of_the_ranges_train(key, value):
    model = build(**{f"MODEL.MASK_FORMER.{key}": value, "MODEL.MASK_FORMER.DEC_LAYERS": 2})
    losses = train(model, [mapped(), mapped(num=0, seed=1)])
    assert all(math.isfinite(loss) for loss in losses.values())


def test_no_ground_truth_trains_though_no_object_has_no_weight():
    model = build(**{"MODEL.MASK_FORMER.NO_OBJECT_WEIGHT": 0.0})
    losses = train(model, [mapped(num=0), mapped(num=0, seed=1)])
    assert set(losses.values()) == {0.0}
    grads = [parameter.grad for parameter in model.parameters()]
    assert all(grad is not None and not grad.any() for grad in grads)


@pytest.mark.parametrize("deep", [False, True])
def test_unequal_weights_reach_matcher_and_losses(deep):
    weights = {"CLASS_WEIGHT": 3.0, "MASK_WEIGHT": 0.5, "DICE_WEIGHT": 7.0}
    changes = {f"MODEL.MASK_FORMER.{key}": value for key, value in weights.items()}
    deep_or_not = {"MODEL.MASK_FORMER.DEEP_SUPERVISION": deep}
    criterion = build_criterion(tiny_cfg(**changes, **deep_or_not))
    assert criterion.matcher.weights == (3.0, 0.5, 7.0)
    ends = ("", "_0", "_1", "_2") if deep else ("",)
    terms = {"loss_ce": 3.0, "loss_mask": 0.5, "loss_dice": 7.0}
    expected = {name + end: weight for name, weight in terms.items() for end in ends}
    assert criterion.weight_dict == expected
