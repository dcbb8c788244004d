"""MultiScaleMaskedTransformerDecoder: names, outputs, shortcuts and options."""

from __future__ import annotations

import pytest
import torch
from detectron2.config import get_cfg

from panoptic_ext import add_panoptic_ext_config
from panoptic_ext.errors import ConfigError
from panoptic_ext.modeling.transformer_decoder import (
    TRANSFORMER_DECODER_REGISTRY,
    MultiScaleMaskedTransformerDecoder,
    TransformerDecoder,
    build_transformer_decoder,
)

SMALL = {
    "in_channels": 8,
    "num_classes": 5,
    "hidden_dim": 8,
    "num_queries": 6,
    "num_heads": 2,
    "dim_feedforward": 16,
    "num_layers": 4,
    "mask_dim": 10,
}


def decoder(**changes):
    torch.manual_seed(0)
    return MultiScaleMaskedTransformerDecoder(**{**SMALL, **changes})


def features(batch=2, channels=8):
    generator = torch.Generator().manual_seed(1)
    sizes = [(3, 4), (6, 7), (11, 13)]
    levels = [torch.randn(batch, channels, *size, generator=generator) for size in sizes]
    return levels, torch.randn(batch, 10, 21, 25, generator=generator)


def test_shapes_with_and_without_auxiliary_outputs():
    model = decoder()
    outputs = model(*features(), aux=True)
    assert outputs.pred_logits.shape == (2, 6, 6)
    assert outputs.dense_masks().shape == (2, 6, 21, 25)
    shapes = [(o.pred_logits.shape, o.dense_masks().shape) for o in outputs.aux_outputs]
    assert shapes == [((2, 6, 6), (2, 6, 21, 25))] * 4
    assert outputs.semantic_logits is None and outputs.places is None
    assert model(*features(), aux=False).aux_outputs == ()


@pytest.mark.parametrize("pre_norm", [False, True])
def test_resizing_features_once_equals_resizing_every_mask(pre_norm):
    model = decoder(pre_norm=pre_norm).double().eval()
    levels, mask_features = features()
    levels, mask_features = [x.double() for x in levels], mask_features.double()
    slow = model(levels, mask_features, aux=True)
    fast = model(levels, mask_features, aux=False)
    exact = {"rtol": 1e-9, "atol": 1e-9}
    torch.testing.assert_close(fast.pred_logits, slow.pred_logits, **exact)
    torch.testing.assert_close(fast.dense_masks(), slow.dense_masks(), **exact)


def test_one_image_gives_the_same_as_in_a_batch():
    model = decoder().eval()
    levels, mask_features = features()
    both = model(levels, mask_features, aux=False).dense_masks()
    alone = model([x[1:] for x in levels], mask_features[1:], aux=False).dense_masks()
    torch.testing.assert_close(both[1:], alone)


def test_gradient_reaches_every_parameter():
    model = decoder(in_channels=7, num_layers=3)
    levels, mask_features = features(channels=7)
    outputs = model(levels, mask_features, aux=True)
    total = sum(o.pred_logits.sum() + o.dense_masks().sum() for o in outputs.predictions)
    total.backward()
    assert [n for n, p in model.named_parameters() if p.grad is None] == []


def test_gradient_checkpointing_gives_the_same_gradients():
    gradients = []
    for on in (False, True):
        model = decoder(gradient_checkpointing=on)
        model(*features(), aux=True).dense_masks().square().sum().backward()
        gradients.append([p.grad for p in model.parameters() if p.grad is not None])
    assert len(gradients[0]) == len(gradients[1])
    for plain, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, recomputed)


def test_one_pixel_levels():
    model = decoder().eval()
    outputs = model([torch.randn(1, 8, 1, 1)] * 3, torch.randn(1, 10, 1, 1), aux=False)
    assert outputs.dense_masks().shape == (1, 6, 1, 1)
    assert torch.isfinite(outputs.dense_masks()).all()


def test_input_projection_where_channels_differ_or_when_enforced():
    def projections(model):
        return sorted(n for n in model.state_dict() if n.startswith("input_proj"))

    assert projections(decoder()) == []
    expected = [f"input_proj.{i}.{kind}" for i in range(3) for kind in ("bias", "weight")]
    assert projections(decoder(enforce_input_projection=True)) == expected
    assert decoder(in_channels=7).input_proj[0].weight.shape == (8, 7, 1, 1)


def test_the_old_name_of_the_queries_is_read():
    source, target = decoder(), decoder(num_layers=4)
    weights = source.state_dict()
    weights["static_query.weight"] = weights.pop("query_feat.weight") + 1
    report = target.load_state_dict(dict(weights))
    assert not report.missing_keys and not report.unexpected_keys
    assert torch.equal(target.query_feat.weight, weights["static_query.weight"])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_is_close(dtype):
    model = decoder().eval()
    with torch.no_grad():
        full = model(*features(), aux=True)
        with torch.autocast("cpu", dtype=dtype):
            low = model(*features(), aux=True)
    torch.testing.assert_close(
        low.aux_outputs[0].dense_masks().float(),
        full.aux_outputs[0].dense_masks(),
        rtol=0.05,
        atol=0.05,
    )
    assert torch.isfinite(low.dense_masks()).all()


def test_compiled_in_place_it_gives_the_same(monkeypatch):
    model, names = decoder(num_layers=2).eval(), list(decoder(num_layers=2).state_dict())
    levels, mask_features = features()
    with torch.no_grad():
        expected = model(levels, mask_features, aux=False)
        model.compile(backend="eager")
        found = model(levels, mask_features, aux=False)
    torch.testing.assert_close(found.dense_masks(), expected.dense_masks())
    assert list(model.state_dict()) == names


def config():
    cfg = get_cfg()
    add_panoptic_ext_config(cfg)
    cfg.MODEL.MASK_FORMER.HIDDEN_DIM = 16
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = 3
    return cfg


def test_built_from_a_config():
    cfg = config()
    cfg.MODEL.MASK_FORMER.DEC_LAYERS = 4
    cfg.MODEL.MASK_FORMER.NUM_OBJECT_QUERIES = 7
    model = build_transformer_decoder(cfg, 16)
    assert len(model.transformer_ffn_layers) == 3
    assert model.query_feat.weight.shape == (7, 16)
    assert model.class_embed.weight.shape == (4, 16)
    assert model.mask_embed.layers[2].weight.shape == (256, 16)


@pytest.mark.parametrize(
    ("key", "value", "match"),
    [
        ("DEC_LAYERS", 0, "DEC_LAYERS is 0"),
        ("ENC_LAYERS", 2, "TRANSFORMER_ENC_LAYERS"),
        ("TRANSFORMER_DECODER_NAME", "MultiScaleMaskedDecoder", "did you mean"),
    ],
)
def test_configs_that_cannot_be_built_are_refused_with_the_reason(key, value, match):
    cfg = config()
    cfg.MODEL.MASK_FORMER[key] = value
    with pytest.raises(ConfigError, match=match):
        build_transformer_decoder(cfg, 16)


def test_three_levels_are_expected():
    levels, mask_features = features()
    with pytest.raises(ValueError, match="found 2 feature levels, expected 3"):
        decoder()(levels[:2], mask_features, aux=False)


def test_a_registered_class_that_is_no_transformer_decoder_is_refused(monkeypatch):
    name = "OfSomebody"
    monkeypatch.setitem(TRANSFORMER_DECODER_REGISTRY._obj_map, name, torch.nn.Identity)
    cfg = config()
    cfg.MODEL.MASK_FORMER.TRANSFORMER_DECODER_NAME = name
    with pytest.raises(ConfigError, match=r"'OfSomebody', which is registered but no subclass of"):
        build_transformer_decoder(cfg, 16)


def test_only_fewer_layers_than_levels_leave_parameters_unused():
    assert [decoder(num_layers=n).leaves_parameters_unused for n in (2, 3)] == [True, False]
    assert not TransformerDecoder().leaves_parameters_unused
    with pytest.raises(NotImplementedError, match="TransformerDecoder has no forward"):
        TransformerDecoder()([], None, aux=False)
