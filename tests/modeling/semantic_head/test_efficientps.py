"""Semantic head of EfficientPS against its wiring written out, small maps, loss, errors."""

import pytest
import torch
from detectron2.layers import ShapeSpec
from torch.nn import functional as F

from panoptic_ext.errors import ConfigError
from panoptic_ext.modeling.semantic_head import DensePredictionCell, EfficientPSSemSegHead
from panoptic_ext.modeling.semantic_head.hard_pixel_loss import hard_pixel_cross_entropy

SHAPES = {f"p{i}": ShapeSpec(channels=8, stride=2**i) for i in (5, 3, 2, 4)}


def make_head(norm="BN", **options):
    torch.manual_seed(0)
    sizes = {"channels": 32, "context_channels": 32} if norm == "GN" else {}
    sizes = sizes or {"channels": 6, "context_channels": 5}
    return EfficientPSSemSegHead(SHAPES, num_classes=4, norm=norm, **sizes, **options)


def features(batch=2, height=64, width=96, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(
            batch, 8, height // s.stride, width // s.stride, generator=generator
        )
        for name, s in SHAPES.items()
    }  # fmt: skip


def up(x, scale):
    return F.interpolate(x, scale_factor=scale, mode="bilinear", align_corners=False)


def test_the_wiring_as_the_paper_draws_it():
    head, f = make_head().eval(), features()
    with torch.no_grad():
        d16, d32 = head.dpc16(f["p4"]), head.dpc32(f["p5"])

        def mc(stack, x):
            for layer in stack:
                x = layer(x)
            return up(x, 2)

        a = mc(head.correct16, d16 + up(d32, 2))
        f8 = head.lsfe8(f["p3"]) + a
        f4 = head.lsfe4(f["p2"]) + mc(head.correct8, f8)
        joined = torch.cat([f4, up(f8, 2), up(d16, 4), up(d32, 8)], dim=1)
        expected = up(head.predictor(joined), 4)
        found, losses = head(f)
    assert found.shape == (2, 4, 64, 96) and losses == {}
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_the_dense_prediction_cell():
    torch.manual_seed(0)
    cell = DensePredictionCell(3, 4, 5, norm="BN", activation="leaky_relu").eval()
    dilations = [
        layer.depthwise.dilation
        for layer in (cell.first, cell.branch1, cell.branch2, cell.branch3, cell.branch4)
    ]
    assert dilations == [(1, 6), (1, 1), (6, 21), (18, 15), (6, 3)]
    x = torch.randn(1, 3, 40, 50)
    with torch.no_grad():
        first = cell.first(x)
        third = cell.branch3(first)
        all_five = [first, cell.branch1(first), cell.branch2(first), third, cell.branch4(third)]
        torch.testing.assert_close(cell(x), cell.project(torch.cat(all_five, dim=1)))


def test_maps_smaller_than_the_dilations():
    head = make_head()
    found, losses = head.train()(features(height=32, width=32), torch.zeros(2, 32, 32).long())
    assert found is None and torch.isfinite(losses["loss_sem_seg"])
    assert head.eval()(features(1, 32, 32))[0].shape == (1, 4, 32, 32)


def test_loss_and_gradients():
    head, f = make_head(loss_weight=2.0, hard_fraction=0.5).train(), features()
    targets = torch.randint(0, 4, (2, 64, 96))
    targets[:, :9] = 255
    _, losses = head(f, targets)
    losses["loss_sem_seg"].backward()
    for name, parameter in head.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name
    expected = hard_pixel_cross_entropy(
        up(head.layers(f), 4), targets, fraction=0.5, ignore_value=255
    )
    torch.testing.assert_close(losses["loss_sem_seg"], 2 * expected)


def test_all_void_gives_zero():
    head = make_head().train()
    loss = head(features(), torch.full((2, 64, 96), 255))[1]["loss_sem_seg"]
    loss.backward()
    assert loss.item() == 0


@pytest.mark.parametrize("norm", ["BN", "FrozenBN", "SyncBN", "GN"])
def test_one_image_gives_the_same_as_in_a_batch(norm):
    head, f = make_head(norm).eval(), features()
    with torch.no_grad():
        alone = head({name: x[:1] for name, x in f.items()})[0]
        torch.testing.assert_close(head(f)[0][:1], alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("missing", ["p2", "p5"])
def test_other_strides_are_an_error(missing):
    shapes = {name: shape for name, shape in SHAPES.items() if name != missing}
    with pytest.raises(ConfigError, match="stride 4, 8, 16 and 32"):
        EfficientPSSemSegHead(shapes, num_classes=4)


@pytest.mark.parametrize("fraction", [0.0, -1.0, 1.5])
def test_a_share_outside_of_its_range_is_an_error(fraction):
    with pytest.raises(ConfigError, match="HARD_PIXEL_FRACTION"):
        make_head(hard_fraction=fraction)
