"""Both pixel decoders: names and shapes, an independent version, gradients, edges, reference."""

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.layers import ShapeSpec
from torch import nn
from torch.nn import functional as F

from panoptic_ext.config import add_panoptic_ext_config
from panoptic_ext.errors import ConfigError
from panoptic_ext.modeling.layers import ms_deform_attn
from panoptic_ext.modeling.pixel_decoder import (
    BasePixelDecoder,
    MSDeformAttnPixelDecoder,
    build_pixel_decoder,
)
from panoptic_ext.modeling.pixel_decoder.deformable_encoder import DeformableEncoder, MSDeformAttn
from tests import ROOT
from tests.mask2former_reference import needs_reference, reference_arrays

STRIDES = {"res2": 4, "res3": 8, "res4": 16, "res5": 32}


def shapes_of(channels=(6, 8, 10, 12)):
    return {
        name: ShapeSpec(channels=c, stride=stride)
        for (name, stride), c in zip(STRIDES.items(), channels, strict=True)
    }


def features_of(input_shape, height=64, width=96, batch=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(
            batch, s.channels, -(-height // s.stride), -(-width // s.stride), generator=generator
        )
        for name, s in input_shape.items()
    }


def make_deformable(input_shape=None, **changes):
    torch.manual_seed(0)
    arguments = {
        "encoder_in_features": ["res3", "res4", "res5"],
        "conv_dim": 32,
        "mask_dim": 16,
        "encoder_layers": 2,
        "heads": 4,
        "points": 2,
        "width": 24,
        **changes,
    }
    decoder = MSDeformAttnPixelDecoder(input_shape or shapes_of(), **arguments)
    for layer in decoder.transformer.encoder["layers"]:  # zero by default: they would hide errors
        nn.init.normal_(layer.self_attn.sampling_offsets.weight, std=0.1)
        nn.init.normal_(layer.self_attn.attention_weights.weight, std=0.1)
    return decoder


def make_fpn():
    torch.manual_seed(0)
    return BasePixelDecoder(shapes_of(), conv_dim=32, mask_dim=16, norm="GN")


def published_config():
    cfg = get_cfg()
    add_panoptic_ext_config(cfg)
    head = cfg.MODEL.SEM_SEG_HEAD
    head.IN_FEATURES = list(STRIDES)
    head.PIXEL_DECODER_NAME = "MSDeformAttnPixelDecoder"
    head.CONVS_DIM = head.MASK_DIM = 256
    head.NORM = "GN"
    return cfg


def test_state_dict_of_the_published_size():
    """117 tensors and 6.04 M parameters on R50's features, with the published names."""
    decoder = build_pixel_decoder(published_config(), shapes_of((256, 512, 1024, 2048)))
    state = decoder.state_dict()
    assert len(state) == 117
    assert round(sum(t.numel() for t in state.values()) / 1e6, 2) == 6.04
    layer = "transformer.encoder.layers.5"
    expected = {
        "input_proj.0.0.weight": (256, 2048, 1, 1),
        "input_proj.0.0.bias": (256,),
        "input_proj.2.0.weight": (256, 512, 1, 1),
        "input_proj.2.1.weight": (256,),
        "transformer.level_embed": (3, 256),
        f"{layer}.self_attn.sampling_offsets.weight": (192, 256),
        f"{layer}.self_attn.attention_weights.weight": (96, 256),
        f"{layer}.self_attn.value_proj.weight": (256, 256),
        f"{layer}.self_attn.output_proj.bias": (256,),
        f"{layer}.norm1.weight": (256,),
        f"{layer}.linear1.weight": (1024, 256),
        f"{layer}.linear2.weight": (256, 1024),
        f"{layer}.norm2.bias": (256,),
        "adapter_1.weight": (256, 256, 1, 1),
        "adapter_1.norm.weight": (256,),
        "layer_1.weight": (256, 256, 3, 3),
        "layer_1.norm.bias": (256,),
        "mask_features.weight": (256, 256, 1, 1),
        "mask_features.bias": (256,),
    }
    assert {name: tuple(state[name].shape) for name in expected} == expected
    assert "adapter_1.bias" not in state


@pytest.mark.parametrize(
    ("key", "value", "tensor", "shape"),
    [
        ("N_POINTS", 2, "self_attn.sampling_offsets.weight", (96, 256)),
        ("N_HEADS", 4, "self_attn.attention_weights.bias", (48,)),
        ("DIM_FEEDFORWARD", 512, "linear1.weight", (512, 256)),
    ],
)
def test_encoder_keys_are_read(key, value, tensor, shape):
    cfg = published_config()
    cfg.MODEL.SEM_SEG_HEAD[f"DEFORMABLE_TRANSFORMER_ENCODER_{key}"] = value
    cfg.MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS = 1
    state = build_pixel_decoder(cfg, shapes_of()).state_dict()
    assert tuple(state[f"transformer.encoder.layers.0.{tensor}"].shape) == shape


@pytest.mark.parametrize(("own", "heads"), [(None, 4), (0, 4), (2, 2), (8, 8)])
def test_heads_are_those_of_the_transformer_decoder_unless_given(own, heads):
    cfg = published_config()
    cfg.MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS = 1
    cfg.MODEL.MASK_FORMER.NHEADS = 4
    if own is not None:
        cfg.MODEL.SEM_SEG_HEAD.DEFORMABLE_TRANSFORMER_ENCODER_N_HEADS = own
    state = build_pixel_decoder(cfg, shapes_of()).state_dict()
    layer = "transformer.encoder.layers.0.self_attn"
    assert len(state[f"{layer}.attention_weights.bias"]) == heads * 3 * 4
    assert len(state[f"{layer}.sampling_offsets.bias"]) == heads * 3 * 4 * 2


def test_small_configs_keep_the_heads_of_their_trained_weights():
    cfg = get_cfg()
    add_panoptic_ext_config(cfg)
    cfg.merge_from_file(str(ROOT / "configs/common/mask2former/Base-Mask2Former-Small.yaml"))
    state = build_pixel_decoder(cfg, shapes_of()).state_dict()
    bias = state["transformer.encoder.layers.1.self_attn.attention_weights.bias"]
    assert len(bias) == 8 * 3 * 4 and cfg.MODEL.MASK_FORMER.NHEADS == 4


def test_the_published_files_mean_full_precision_and_the_key_is_read():
    cfg = published_config()
    assert build_pixel_decoder(cfg, shapes_of()).full_precision
    cfg.MODEL.SEM_SEG_HEAD.PIXEL_DECODER_FULL_PRECISION = False
    assert not build_pixel_decoder(cfg, shapes_of()).full_precision


def test_backend_key_is_read():
    cfg = published_config()
    cfg.MODEL.SEM_SEG_HEAD.DEFORMABLE_TRANSFORMER_ENCODER_BACKEND = "reference"
    decoder = build_pixel_decoder(cfg, shapes_of())
    assert decoder.transformer.encoder["layers"][0].self_attn.backend == "reference"


def test_unknown_names_are_errors_with_hints():
    cfg = published_config()
    cfg.MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME = "MSDeformPixelDecoder"
    with pytest.raises(ConfigError, match="did you mean 'MSDeformAttnPixelDecoder'"):
        build_pixel_decoder(cfg, shapes_of())
    cfg = published_config()
    cfg.MODEL.SEM_SEG_HEAD.IN_FEATURES = ["res2", "res3", "res4", "rse5"]
    with pytest.raises(ConfigError, match=r"IN_FEATURES 'rse5'.*did you mean 'res5'"):
        build_pixel_decoder(cfg, shapes_of())


@pytest.mark.parametrize("make", [make_deformable, make_fpn])
def test_output_shapes_on_odd_sizes(make):
    decoder = make()
    features = features_of(shapes_of(), height=70, width=101)
    mask_features, levels = decoder(features)
    assert mask_features.shape == (2, 16, *features["res2"].shape[-2:])
    assert [tuple(m.shape) for m in levels] == [
        (2, 32, *features[name].shape[-2:]) for name in ("res5", "res4", "res3")
    ]


def independent(decoder, features):
    """The deformable decoder from its state dict, with plain functions and the reference core."""
    state = decoder.state_dict()
    heads, points = 4, 2

    def linear(x, name):
        return F.linear(x, state[f"{name}.weight"], state[f"{name}.bias"])

    def norm(x, name):
        return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"])

    def group_norm(x, name):
        return F.group_norm(x, 32, state[f"{name}.weight"], state[f"{name}.bias"])

    flat, positions, centres, sizes = [], [], [], []
    for i, feature in enumerate(("res5", "res4", "res3")):
        conv = f"input_proj.{i}.0"
        x = F.conv2d(features[feature], state[f"{conv}.weight"], state[f"{conv}.bias"])
        x = group_norm(x, f"input_proj.{i}.1")
        height, width = x.shape[-2:]
        half = x.shape[1] // 2
        power = 10000 ** (2 * torch.div(torch.arange(half), 2, rounding_mode="floor") / half)
        axes = []
        for length in (height, width):
            angle = torch.arange(1, length + 1)[:, None] / length * 2 * torch.pi / power
            angle[:, 0::2], angle[:, 1::2] = angle[:, 0::2].sin(), angle[:, 1::2].cos()
            axes.append(angle)
        grid = [(r, c) for r in range(height) for c in range(width)]
        embed = torch.stack([torch.cat((axes[0][r], axes[1][c])) for r, c in grid])
        positions.append(embed + state["transformer.level_embed"][i])
        centres += [((c + 0.5) / width, (r + 0.5) / height) for r, c in grid]
        flat.append(x.flatten(2).mT)
        sizes.append((height, width))
    x, position = torch.cat(flat, 1), torch.cat(positions)
    extent = torch.tensor([[w, h] for h, w in sizes]).view(1, 1, 1, 3, 1, 2)
    for i in range(2):
        name = f"transformer.encoder.layers.{i}"
        query, split = x + position, (*x.shape[:2], heads, 3, points)
        offsets = linear(query, f"{name}.self_attn.sampling_offsets").view(*split, 2)
        weights = linear(query, f"{name}.self_attn.attention_weights")
        weights = weights.view(*split[:3], -1).softmax(-1).view(split)
        value = linear(x, f"{name}.self_attn.value_proj").view(*split[:3], -1)
        places = torch.tensor(centres).view(1, -1, 1, 1, 1, 2) + offsets / extent
        attended = ms_deform_attn(value, sizes, places, weights, backend="reference")
        x = norm(x + linear(attended, f"{name}.self_attn.output_proj"), f"{name}.norm1")
        hidden = linear(x, f"{name}.linear1").relu()
        x = norm(x + linear(hidden, f"{name}.linear2"), f"{name}.norm2")
    parts = x.split([h * w for h, w in sizes], dim=1)
    levels = [p.mT.unflatten(2, size) for p, size in zip(parts, sizes, strict=True)]
    fine = group_norm(F.conv2d(features["res2"], state["adapter_1.weight"]), "adapter_1.norm")
    fine = fine + F.interpolate(levels[-1], fine.shape[-2:], mode="bilinear", align_corners=False)
    fine = F.conv2d(fine, state["layer_1.weight"], padding=1)
    fine = group_norm(fine, "layer_1.norm").relu()
    mask = F.conv2d(fine, state["mask_features.weight"], state["mask_features.bias"])
    return mask, levels


@pytest.mark.parametrize("grad", [True, False])
def test_equals_an_independent_version(grad):
    decoder = make_deformable().eval()
    features = features_of(shapes_of(), height=70, width=101)
    with torch.no_grad():
        expected = independent(decoder, features)
    with torch.set_grad_enabled(grad):
        found = decoder(features)
    torch.testing.assert_close(found[0], expected[0], atol=2e-5, rtol=2e-5)
    for ours, theirs in zip(found[1], expected[1], strict=True):
        torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("make", [make_deformable, make_fpn])
def test_gradient_reaches_every_parameter(make):
    decoder = make()
    mask_features, levels = decoder(features_of(shapes_of()))
    sum((x * torch.randn_like(x)).sum() for x in (mask_features, *levels)).backward()
    for name, parameter in decoder.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("make", [make_deformable, make_fpn])
def test_one_image_equals_the_same_image_in_a_batch(make):
    decoder = make().eval()
    features = features_of(shapes_of(), batch=3)
    together = decoder(features)[0]
    alone = decoder({name: x[1:2] for name, x in features.items()})[0]
    torch.testing.assert_close(alone[0], together[1], atol=1e-5, rtol=1e-5)


def test_image_of_one_pixel():
    mask_features, levels = make_deformable()(features_of(shapes_of(), height=1, width=1))
    assert mask_features.shape == (2, 16, 1, 1)
    assert all(torch.isfinite(x).all() for x in (mask_features, *levels))


def test_encoder_on_two_features_takes_its_third_map_from_the_fpn():
    decoder = make_deformable(encoder_in_features=["res4", "res5"])
    assert {"adapter_1", "adapter_2", "layer_1", "layer_2"} <= dict(decoder.named_modules()).keys()
    features = features_of(shapes_of())
    mask_features, levels = decoder(features)
    assert mask_features.shape[-2:] == features["res2"].shape[-2:]
    assert [m.shape[-1] for m in levels] == [
        features[n].shape[-1] for n in ("res5", "res4", "res3")
    ]


def test_too_few_maps_or_a_wrong_stride_are_errors():
    few = {name: shapes_of()[name] for name in ("res4", "res5")}
    with pytest.raises(ValueError, match="takes 3 maps"):
        make_deformable(few, encoder_in_features=["res4", "res5"], common_stride=16)
    with pytest.raises(ValueError, match=r"stride 2.*'res2' has 4"):
        make_deformable(common_stride=2)


def test_dropout_is_random_in_training_only():
    decoder, features = make_deformable(dropout=0.5), features_of(shapes_of())
    assert not torch.equal(decoder(features)[0], decoder(features)[0])
    decoder.eval()
    assert torch.equal(decoder(features)[0], decoder(features)[0])


# Under mixed precision the published decoder computes in float32.
def test_full_precision_is_that_of_the_published_decoder():
    input_shape = shapes_of()
    decoder, features = make_deformable(input_shape), features_of(input_shape)
    halved = {name: feature.bfloat16() for name, feature in features.items()}
    with torch.autocast("cpu", torch.bfloat16):
        found, multi_scale = decoder(halved)
    expected, _ = decoder({name: feature.float() for name, feature in halved.items()})
    assert {x.dtype for x in (found, *multi_scale)} == {torch.float32}
    assert torch.equal(found, expected)


def test_bfloat16_autocast_stays_near_float32():
    decoder, features = make_deformable().eval(), features_of(shapes_of())
    decoder.full_precision = False
    with torch.no_grad():
        expected = decoder(features)[0]
        with torch.autocast("cpu", torch.bfloat16):
            found = decoder(features)[0]
    assert found.dtype == torch.bfloat16
    assert (found.float() - expected).abs().mean() < 0.05 * expected.abs().mean()


def test_first_offsets_point_outwards_by_a_pixel_each():
    bias = MSDeformAttn(32, levels=3, heads=4, points=2).sampling_offsets.bias
    offsets = bias.view(4, 3, 2, 2)
    expected = torch.tensor([[1.0, 0], [0, 1], [-1, 0], [0, -1]])
    for point in range(2):
        for level in range(3):
            torch.testing.assert_close(
                offsets[:, level, point], expected * (point + 1), atol=1e-6, rtol=0
            )


@needs_reference
@pytest.mark.parametrize("name", ["resnet", "swin"])
@pytest.mark.parametrize("grad", [True, False])
def test_equals_the_published_decoder(name, grad):
    """1e-5 of the largest activation, from the published features.

    Its pixel decoder has as many heads as the transformer decoder, 4 here.
    """
    weights, activations = (reference_arrays(f"{name}_{k}") for k in ("weights", "activations"))
    prefix = "sem_seg_head.pixel_decoder."
    state = {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}
    features = {n: activations[n] for n in STRIDES}
    decoder = make_deformable(
        shapes_of([x.shape[1] for x in features.values()]),
        mask_dim=32,
        heads=4,
        points=4,
        width=1024,
    ).eval()
    decoder.load_state_dict(state)
    with torch.set_grad_enabled(grad):
        mask_features, levels = decoder(features)
    found = {"mask_features": mask_features, **{f"ms{i}": m for i, m in enumerate(levels)}}
    assert list(found) == ["mask_features", "ms0", "ms1", "ms2"]
    for key, ours in found.items():
        scale = activations[key].abs().max()
        assert (ours - activations[key]).abs().max() <= 1e-5 * scale, key


def test_the_levels_of_the_encoder_are_not_copied():
    """Each level was copied to another layout wherever it ran on a GPU."""
    encoder = DeformableEncoder(channels=32, width=16, layers=1, levels=2, heads=4, points=2)
    maps = [torch.randn(2, 32, 3, 4), torch.randn(2, 32, 6, 8)]
    levels = encoder(maps, [m[:1] for m in maps])
    assert [level.shape for level in levels] == [m.shape for m in maps]
    assert len({level.untyped_storage().data_ptr() for level in levels}) == 1
