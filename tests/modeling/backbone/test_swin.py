"""Swin: published names, an independent window attention, edges, the published numbers."""

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.modeling import build_backbone

from panoptic_ext.config import add_panoptic_ext_config
from panoptic_ext.errors import ConfigError
from panoptic_ext.modeling.backbone import SwinTransformer
from panoptic_ext.modeling.backbone.swin import SwinBlock, WindowAttention, _shift_mask
from tests.mask2former_reference import needs_reference, reference_arrays

# The published COCO models' statistics for RGB images.
PIXEL_MEAN = torch.tensor([123.675, 116.28, 103.53]).view(3, 1, 1)
PIXEL_STD = torch.tensor([58.395, 57.12, 57.375]).view(3, 1, 1)


def make_swin(**changes):
    torch.manual_seed(0)
    arguments = {
        "embed_dim": 8,
        "depths": [2, 2, 2, 2],
        "num_heads": [1, 2, 2, 4],
        "window_size": 4,
        **changes,
    }
    swin = SwinTransformer(**arguments)
    for name, parameter in swin.named_parameters():
        if "bias" in name:  # zero or tiny by default: they would hide errors
            torch.nn.init.normal_(parameter)
    return swin


def test_names_of_published_tiny():
    state = SwinTransformer().state_dict()
    block = "layers.2.blocks.5"
    expected = {
        "patch_embed.proj.weight": (96, 3, 4, 4),
        "patch_embed.norm.weight": (96,),
        f"{block}.norm1.weight": (384,),
        f"{block}.attn.relative_position_bias_table": (169, 12),
        f"{block}.attn.relative_position_index": (49, 49),
        f"{block}.attn.qkv.bias": (1152,),
        f"{block}.attn.proj.weight": (384, 384),
        f"{block}.mlp.fc1.weight": (1536, 384),
        f"{block}.mlp.fc2.bias": (384,),
        "layers.2.downsample.reduction.weight": (768, 1536),
        "layers.2.downsample.norm.bias": (1536,),
        "norm0.weight": (96,),
        "norm3.bias": (768,),
    }
    assert {name: tuple(state[name].shape) for name in expected} == expected
    assert "layers.3.downsample.reduction.weight" not in state
    parameters = sum(p.numel() for p in SwinTransformer().parameters())
    assert round(parameters / 1e6, 1) == 27.5  # Swin-T without its classifier


def test_config_keys_are_read():
    cfg = get_cfg()
    add_panoptic_ext_config(cfg)
    cfg.MODEL.BACKBONE.NAME = "PanopticExtSwinTransformer"
    cfg.MODEL.SWIN.EMBED_DIM = 8
    cfg.MODEL.SWIN.NUM_HEADS = [1, 2, 2, 4]
    cfg.MODEL.SWIN.APE = True
    cfg.MODEL.SWIN.PRETRAIN_IMG_SIZE = 64
    cfg.MODEL.SWIN.OUT_FEATURES = ["res3", "res5"]
    swin = build_backbone(cfg)
    shapes = {name: (s.channels, s.stride) for name, s in swin.output_shape().items()}
    assert shapes == {"res3": (16, 8), "res5": (64, 32)}
    assert swin.absolute_pos_embed.shape == (1, 8, 16, 16)
    assert not any(name.startswith(("norm0", "norm2")) for name in swin.state_dict())
    cfg.MODEL.SWIN.OUT_FEATURES = ["res6"]
    with pytest.raises(ConfigError, match=r"OUT_FEATURES 'res6'.*known: res2"):
        build_backbone(cfg)


@pytest.mark.parametrize("size", [(64, 96), (37, 50), (1, 1)])
def test_any_size(size):
    features = make_swin().eval()(torch.randn(2, 3, *size))
    assert len(features) == 4
    for i, (name, x) in enumerate(features.items()):
        stride = 4 * 2**i
        expected = (8 * 2**i, -(-size[0] // stride), -(-size[1] // stride))
        assert (name, x.shape[1:]) == (f"res{i + 2}", expected)
        assert torch.isfinite(x).all()


def naive_attention(attention, x, allowed):
    """Window attention of one window x (N, C) patch by patch; `allowed` (N, N) or None."""
    patches, channels = x.shape
    window, heads = attention.window, attention.heads
    size = channels // heads
    qkv = attention.qkv(x).view(patches, 3, heads, size)
    out = torch.zeros(patches, heads, size)
    for m in range(heads):
        for i in range(patches):
            scores = []
            for j in range(patches):
                down = i // window - j // window + window - 1
                right = i % window - j % window + window - 1
                bias = attention.relative_position_bias_table[down * (2 * window - 1) + right, m]
                score = qkv[i, 0, m] @ qkv[j, 1, m] / size**0.5 + bias
                scores.append(score if allowed is None or allowed[i, j] else score - 100)
            out[i, m] = torch.stack(scores).softmax(0) @ qkv[:, 2, m]
    return attention.proj(out.view(patches, channels))


@torch.no_grad()
def test_attention_equals_a_naive_one():
    torch.manual_seed(0)
    attention = WindowAttention(6, window=3, heads=2)
    torch.nn.init.normal_(attention.relative_position_bias_table)
    x = torch.randn(2, 4, 9, 6)
    mask = _shift_mask(6, 6, 3, 1, torch.device("cpu"))
    plain, masked = attention(x, None), attention(x, mask)
    for image in range(2):
        for window in range(4):
            one, allowed = x[image, window], mask[window, 0] == 0
            torch.testing.assert_close(plain[image, window], naive_attention(attention, one, None))
            torch.testing.assert_close(
                masked[image, window], naive_attention(attention, one, allowed)
            )


def test_mask_separates_exactly_what_rolling_joined():
    """Patches of a window see each other if, before rolling, they were not at opposite borders."""
    height, width, window, shift = 8, 12, 4, 2
    mask = _shift_mask(height, width, window, shift, torch.device("cpu"))
    place = torch.cartesian_prod(torch.arange(height), torch.arange(width)).view(height, width, 2)
    rolled = place.roll((-shift, -shift), dims=(0, 1))
    for index in range(mask.shape[0]):
        row, column = divmod(index, width // window)
        inside = rolled[row * window :, column * window :][:window, :window].reshape(-1, 2)
        distance = (inside[:, None] - inside[None]).abs()
        torch.testing.assert_close(mask[index, 0] == 0, (distance < window).all(-1))


def test_shifted_block_without_padding_does_not_see_padding():
    """Padding to whole windows happens after the norm: padded patches hold zeros."""
    torch.manual_seed(0)
    block = SwinBlock(4, window=3, shift=0, heads=1, mlp_ratio=1.0, drop_path=0.0).eval()
    x = torch.randn(1, 2, 2, 4)
    window = torch.zeros(1, 1, 9, 4)
    window[0, 0, [0, 1, 3, 4]] = block.norm1(x).view(4, 4)
    attended = block.attn(window, None)[0, 0, [0, 1, 3, 4]].view(1, 2, 2, 4)
    expected = x + attended
    expected = expected + block.mlp(block.norm2(expected))
    torch.testing.assert_close(block(x), expected)


def test_gradient_reaches_every_parameter():
    swin = make_swin(ape=True, pretrain_img_size=32, drop_path_rate=0.0)
    features = swin(torch.randn(1, 3, 50, 70))
    sum((x * torch.randn_like(x)).sum() for x in features.values()).backward()
    for name, parameter in swin.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


def test_checkpointing_changes_no_gradient():
    image, gradients = torch.randn(1, 3, 32, 40), []
    for use in (False, True):
        swin = make_swin(use_checkpoint=use, drop_path_rate=0.0)
        sum(x.square().sum() for x in swin(image).values()).backward()
        gradients.append({name: p.grad for name, p in swin.named_parameters()})
    for name, expected in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], expected)


def test_one_image_equals_the_same_image_in_a_batch():
    swin, images = make_swin().eval(), torch.randn(3, 3, 40, 56)
    together, alone = swin(images), swin(images[1:2])
    for name, x in alone.items():
        torch.testing.assert_close(x[0], together[name][1], atol=1e-5, rtol=1e-5)


@needs_reference
def test_equals_the_published_swin():
    weights, expected = (reference_arrays(f"swin_{kind}") for kind in ("weights", "activations"))
    swin = make_swin(embed_dim=12, num_heads=[1, 2, 3, 4]).eval()
    prefix = "backbone."
    swin.load_state_dict(
        {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}
    )
    image = (expected["image"].permute(2, 0, 1).float() - PIXEL_MEAN) / PIXEL_STD
    padding = (0, -image.shape[2] % 32, 0, -image.shape[1] % 32)
    with torch.no_grad():
        found = swin(torch.nn.functional.pad(image, padding)[None])
    assert list(found) == ["res2", "res3", "res4", "res5"]
    for name, ours in found.items():
        scale = expected[name].abs().max()
        assert (ours - expected[name]).abs().max() <= 1e-5 * scale, name
