"""PMT's decoder beside the naive one of the equations."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from panoptic_ext.errors import ConfigError
from panoptic_ext.modeling.pmt.decoder import PlainMaskDecoder
from panoptic_ext.modeling.pmt.lateral import LateralConnection
from tests.modeling.pmt import naive

timm = pytest.importorskip("timm", reason="PMT's blocks are timm's")

GRID, PREFIX, DIM, HEADS, QUERIES = (3, 4), 2, 16, 2, 5


def decoder(**changes):
    """A decoder of two blocks in which no parameter or statistic has its initial value."""
    torch.manual_seed(0)
    arguments = {
        "embed_dim": DIM, "num_queries": QUERIES, "num_blocks": 2, "num_classes": 3,
        "patch_size": 16, "num_features": 2, "num_heads": HEADS, "num_prefix_tokens": PREFIX,
    }  # fmt: skip
    built = PlainMaskDecoder(**{**arguments, **changes})
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
        for module in built.modules():
            if isinstance(module, nn.BatchNorm1d):
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2.0)
    return built


def features(batch=2):
    generator = torch.Generator().manual_seed(1)
    shape = (batch, PREFIX + GRID[0] * GRID[1], DIM)
    return [torch.randn(shape, generator=generator) for _ in range(2)]


def rope():
    embedding = timm.layers.RotaryEmbeddingDinoV3(DIM // HEADS)
    return embedding.get_embed(list(GRID))


def statistics(given):
    """Mean and variance of each feature over images and tokens."""
    return [(f.flatten(0, 1).mean(0), f.flatten(0, 1).var(0, unbiased=False)) for f in given]


def naive_outputs(built, given, **options):
    """Predictions of every depth, of each image."""
    state = {name: value.detach() for name, value in built.state_dict().items()}
    return [
        naive.decode([f[image] for f in given], state, GRID, HEADS, **options)
        for image in range(len(given[0]))
    ]


def check(outputs, expected):
    """The final prediction, then those of aux_outputs, against `naive_outputs`."""
    depths = [*outputs.aux_outputs, outputs]
    for image, predictions in enumerate(expected):
        for ours, (logits, masks) in zip(depths, predictions[-len(depths) :], strict=True):
            torch.testing.assert_close(ours.pred_logits[image], logits, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(ours.dense_masks()[image], masks, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_evaluation_equals_the_naive_decoder():
    built, given = decoder().eval(), features()
    outputs = built.decode(given, GRID, rope())
    assert not outputs.aux_outputs
    check(outputs, naive_outputs(built, given, masked=False))


@torch.no_grad()
def test_masked_training_equals_the_naive_decoder():
    built, given = decoder().train(), features()
    expected = naive_outputs(built, given, masked=True, statistics=statistics(given))
    outputs = built.decode(given, GRID, rope(), probabilities=(1.0, 1.0), aux=True)
    check(outputs, expected)
    unmasked = built.decode(given, GRID, rope(), probabilities=(0.0, 0.0), aux=True)
    assert not torch.allclose(unmasked.pred_logits, outputs.pred_logits, atol=1e-3)


@torch.no_grad()
def test_an_encoder_without_rotary_positions_gets_dinov3s():
    given = features()
    with_rope = decoder().eval().decode(given, GRID, rope())
    own = decoder(own_rope=True, rope_rescale=2.0)
    assert own.state_dict().keys() == decoder().state_dict().keys()
    outputs = own.eval().decode(given, GRID, None)
    torch.testing.assert_close(outputs.pred_logits, with_rope.pred_logits)
    draws = [own.train().decode(given, GRID, None).pred_logits for _ in range(2)]
    assert not torch.allclose(*draws, atol=1e-4)


def test_every_parameter_gets_a_gradient():
    built = decoder()
    outputs = built.decode(features(), GRID, rope(), probabilities=(1.0, 0.5), aux=True)
    sum(
        (p.pred_logits**2).sum() + (p.dense_masks() ** 2).sum() for p in outputs.predictions
    ).backward()
    assert [n for n, p in built.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_recomputed_blocks_have_the_same_gradients():
    gradients = []
    for recompute in (False, True):
        built = decoder(gradient_checkpointing=recompute).train()
        outputs = built.decode(features(), GRID, rope(), probabilities=(1.0, 1.0))
        outputs.pred_logits.square().sum().backward()
        gradients.append({n: p.grad for n, p in built.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient)


def test_a_lateral_connection_begins_with_a_normalised_feature_and_knows_all_tokens():
    lateral = LateralConnection(8)
    assert lateral.scale.tolist() == [1.0] * 8
    feature = 3 + 2 * torch.randn(2, 7, 8)
    with torch.no_grad():
        lateral.project[2].weight.zero_()
        lateral.project[2].bias.zero_()
        out = lateral(feature)
    torch.testing.assert_close(out.mean((0, 1)), torch.zeros(8), rtol=0, atol=1e-5)
    torch.testing.assert_close(lateral.norm.running_mean, feature.mean((0, 1)) / 10)


def test_statistics_of_all_gpus_have_the_same_names():
    names = LateralConnection(8).state_dict().keys()
    synchronized = LateralConnection(8, synchronized=True)
    assert synchronized.state_dict().keys() == names
    assert isinstance(synchronized.norm, nn.SyncBatchNorm)


def test_an_old_timm_is_named(monkeypatch):
    monkeypatch.delattr(timm.layers, "RotaryEmbeddingDinoV3")
    with pytest.raises(ConfigError, match=r"timm 1\.0\.20 or later"):
        decoder()
