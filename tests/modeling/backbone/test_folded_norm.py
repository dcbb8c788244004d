"""Convolutions with a folded norm against Detectron2's own."""

from __future__ import annotations

import copy

import pytest
import torch
from detectron2.layers import Conv2d, FrozenBatchNorm2d
from torch import nn
from torch.nn import functional as F

from panoptic_ext.modeling.backbone.folded_norm import FoldedConv2d, fold_norms
from tests.operation_counts import OperationCounts


def layer(norm, bias=False, activation=F.relu):
    torch.manual_seed(0)
    conv = Conv2d(3, 4, 3, stride=2, padding=1, bias=bias, norm=norm(4), activation=activation)
    conv.norm.running_mean.normal_()
    conv.norm.running_var.uniform_(0.5, 2)
    for parameter in (conv.norm.weight, conv.norm.bias):
        parameter.data.normal_()
    return conv


def pair(norm, **kwargs):
    conv = layer(norm, **kwargs)
    return conv, fold_norms(copy.deepcopy(conv))


IMAGE = torch.randn(2, 3, 9, 11, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("norm", [FrozenBatchNorm2d, nn.BatchNorm2d])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("activation", [None, F.relu])
def test_evaluation_equals_the_plain_layer(norm, bias, activation):
    plain, folded = pair(norm, bias=bias, activation=activation)
    assert type(folded) is FoldedConv2d
    assert list(plain.state_dict()) == list(folded.state_dict())
    with torch.no_grad():
        expected = plain.eval()(IMAGE)
        torch.testing.assert_close(folded.eval()(IMAGE), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("norm", [FrozenBatchNorm2d, nn.BatchNorm2d])
def test_gradients_and_statistics_equal_the_plain_layers(norm, training):
    layers = [conv.train(training) for conv in pair(norm)]
    inputs = [IMAGE.clone().requires_grad_() for _ in layers]
    for conv, x in zip(layers, inputs, strict=True):
        conv(x).square().sum().backward()
    torch.testing.assert_close(inputs[0].grad, inputs[1].grad, rtol=1e-4, atol=1e-5)
    for plain, folded in zip(*(conv.parameters() for conv in layers), strict=True):
        torch.testing.assert_close(plain.grad, folded.grad, rtol=1e-4, atol=1e-4)
    for plain, folded in zip(*(conv.buffers() for conv in layers), strict=True):
        torch.testing.assert_close(plain, folded)


@pytest.mark.parametrize("norm", [FrozenBatchNorm2d, nn.BatchNorm2d])
def test_a_change_of_weights_or_statistics_is_seen(norm):
    plain, folded = pair(norm)
    plain.eval(), folded.eval()
    with torch.no_grad():
        folded(IMAGE)
        for change in (
            lambda conv: conv.weight.mul_(2),
            lambda conv: conv.norm.running_mean.add_(1),
            lambda conv: conv.load_state_dict({k: v * 1.5 for k, v in conv.state_dict().items()}),
        ):
            change(plain), change(folded)
            torch.testing.assert_close(folded(IMAGE), plain(IMAGE), rtol=1e-5, atol=1e-6)


def test_the_folded_weights_are_kept_and_follow_the_precision():
    _, folded = pair(FrozenBatchNorm2d)
    with torch.no_grad():
        full = folded(IMAGE)
        kept = folded.folded[1]
        folded(IMAGE)
        assert folded.folded[1] is kept
        with torch.autocast("cpu", dtype=torch.bfloat16):
            low = folded(IMAGE)
    assert low.dtype == torch.bfloat16 and folded.folded[1].dtype == torch.bfloat16
    torch.testing.assert_close(low.float(), full, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("norm", [FrozenBatchNorm2d, nn.BatchNorm2d])
@pytest.mark.parametrize("part", ["weight", "running_var"])
def test_eval_sees_writes_through_data(norm, part):
    """Codes that average weights write so; torch counts no version there."""
    plain, folded = (nn.Sequential(conv).eval() for conv in pair(norm))
    with torch.no_grad():
        before = folded(IMAGE)
        for model in (plain, folded):
            (model[0].weight if part == "weight" else model[0].norm.running_var).data.mul_(2)
            model.eval()
        found = folded(IMAGE)
        assert not torch.allclose(found, before)
        torch.testing.assert_close(found, plain(IMAGE), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("change", ["train", "eval", "load_state_dict"])
def test_the_folded_weights_are_forgotten(change):
    _, folded = pair(FrozenBatchNorm2d)
    model = nn.Sequential(folded)
    with torch.no_grad():
        model(IMAGE)
        assert folded.folded is not None
        if change == "load_state_dict":
            model.load_state_dict(model.state_dict())
        else:
            getattr(model, change)()
        assert folded.folded is None


@pytest.mark.parametrize("norm", [FrozenBatchNorm2d, nn.BatchNorm2d])
def test_layers_built_in_inference_mode(norm):
    """Their tensors have no version: every change must be seen without one."""
    with torch.inference_mode():
        plain, folded = (conv.eval() for conv in pair(norm))
        for _ in range(2):
            torch.testing.assert_close(folded(IMAGE), plain(IMAGE), rtol=1e-5, atol=1e-6)
            for conv in (plain, folded):
                conv.weight.mul_(2)
    with torch.no_grad():
        torch.testing.assert_close(folded(IMAGE), plain(IMAGE), rtol=1e-5, atol=1e-6)


def test_other_norms_are_left_alone():
    conv = Conv2d(3, 4, 3, norm=nn.GroupNorm(2, 4))
    assert type(fold_norms(conv)) is Conv2d
    assert type(fold_norms(Conv2d(3, 4, 3))) is Conv2d


@pytest.mark.parametrize("evaluated_before", [False, True])
def test_a_training_step_folds_a_frozen_norm_by_one_product(evaluated_before):
    """Of 53 layers it took seven small operations each, in every step."""
    _, folded = pair(FrozenBatchNorm2d)
    if evaluated_before:
        with torch.inference_mode():
            folded(IMAGE)
    folded(IMAGE).sum().backward()
    with OperationCounts() as counted:
        folded(IMAGE).sum().backward()
    assert counted.by_name["mul"] == 2  # the product and its gradient
    unfolded = {"rsqrt", "addcmul", "sub", "neg", "native_batch_norm"}
    assert not unfolded & set(counted.by_name)


def test_a_training_step_sees_a_change_of_the_statistics():
    plain, folded = pair(FrozenBatchNorm2d)
    folded(IMAGE)
    for conv in (plain, folded):
        conv.norm.running_mean.add_(0.5)
        conv.norm.weight.mul_(2)
    torch.testing.assert_close(folded(IMAGE), plain(IMAGE), rtol=1e-5, atol=1e-6)
