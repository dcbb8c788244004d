"""Weights of a plain ViT: other patch and image sizes, other names, with and without biases."""

import logging

import pytest
import torch
from torch import nn

from panoptic_ext.errors import CheckpointError
from panoptic_ext.modeling.backbone.vit_weights import fit_vit_weights

timm = pytest.importorskip("timm", reason="the ViTs are timm's")

PREFIX = "backbone.net."
DINOV2 = "vit_small_patch14_reg4_dinov2"
DINOV3 = "vit_small_patch16_dinov3_qkvb"


def vit(name=DINOV2, **changes) -> nn.Module:
    torch.manual_seed(0)
    sizes = {"embed_dim": 32, "depth": 2, "num_heads": 2, "img_size": 64, **changes}
    net = timm.create_model(name, num_classes=0, **sizes).eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return net


def fitted(state_dict, net, prefix=PREFIX):
    """The weights under timm's names, which must fit the model."""
    state_dict = dict(state_dict)
    fit_vit_weights(state_dict, prefix, net)
    found = {n.removeprefix(prefix): v for n, v in state_dict.items() if n.startswith(prefix)}
    net.load_state_dict(found)
    return found


def prefixed(net):
    return {PREFIX + name: value for name, value in net.state_dict().items()}


def test_encoder_alone_is_resampled_as_timm_does():
    theirs, net = vit(patch_size=14, img_size=70), vit(patch_size=16, img_size=64)
    from timm.models.vision_transformer import checkpoint_filter_fn

    expected = checkpoint_filter_fn(theirs.state_dict(), net)
    for state_dict in (prefixed(theirs), theirs.state_dict()):
        found = fitted(state_dict, net)
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_same_sizes_stay_bit_for_bit():
    net = vit(patch_size=16)
    state_dict = prefixed(net)
    found = fitted(state_dict, net)
    assert all(torch.equal(found[name.removeprefix(PREFIX)], v) for name, v in state_dict.items())


def test_whole_model_of_another_image_size():
    theirs, net = vit(patch_size=16, img_size=64), vit(patch_size=16, img_size=96)
    head = {"sem_seg_head.q.weight": torch.ones(2, 32)}
    state_dict = prefixed(theirs) | head
    found = fitted(state_dict, net)
    assert found["pos_embed"].shape == (1, 36, 32)
    # The middle of a grid stays where it is.
    grids = [t.reshape(side, side, 32) for t, side in ((theirs.pos_embed, 4), (net.pos_embed, 6))]
    means = [grid.mean(dim=(0, 1)) for grid in grids]
    torch.testing.assert_close(*means, rtol=0, atol=0.1)


def test_whole_model_of_another_patch_size():
    theirs, net = vit(patch_size=16), vit(patch_size=14, img_size=70)
    state_dict = prefixed(theirs) | {"sem_seg_head.q.weight": torch.ones(2, 32)}
    with pytest.raises(CheckpointError, match=r"set MODEL\.VIT\.PATCH_SIZE 16"):
        fit_vit_weights(state_dict, PREFIX, net)


def test_class_token_in_the_position_embedding():
    theirs = vit("vit_tiny_patch16_224", img_size=64)
    net = vit("vit_tiny_patch16_224", img_size=96)
    found = fitted(theirs.state_dict(), net)
    assert torch.equal(found["pos_embed"][:, :1], theirs.pos_embed[:, :1])
    assert found["pos_embed"].shape == (1, 37, 32)


def test_missing_biases_are_0_and_said(caplog):
    theirs, net = vit("vit_small_patch16_dinov3"), vit(DINOV3)
    with caplog.at_level(logging.INFO):
        found = fitted(theirs.state_dict(), net)
    assert caplog.text.count("no biases of query and value") == 1
    assert not found["blocks.1.attn.q_bias"].any()
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(net.forward_features(images), theirs.forward_features(images))


def test_biases_without_a_place():
    theirs, net = vit(DINOV3), vit("vit_small_patch16_dinov3")
    with pytest.raises(CheckpointError, match=r"q_bias is not 0.*MODEL\.VIT\.NAME \.\.\._qkvb"):
        fitted(theirs.state_dict(), net)
    zero = {n: v * ("_bias" not in n) for n, v in theirs.state_dict().items()}
    fitted(zero, net)


def test_names_of_transformers():
    transformers = pytest.importorskip("transformers", reason="the encoder is transformers'")
    config = transformers.DINOv3ViTConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=128,
        num_register_tokens=4,
        query_bias=True,
    )
    theirs, net = transformers.DINOv3ViTModel(config).eval(), vit(DINOV3)
    fitted(theirs.state_dict(), net)
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(
            net.forward_features(images), theirs(images).last_hidden_state, rtol=1e-4, atol=1e-5
        )


def test_names_of_meta():
    expected = vit(DINOV3).state_dict()
    metas = {}
    for name, value in expected.items():
        name = name.replace("reg_token", "storage_tokens").replace("gamma_", "ls")
        if name.endswith((".ls1", ".ls2")):
            name += ".gamma"
        if name.endswith("q_bias"):
            other = expected[name.replace("q_bias", "v_bias")]
            key = torch.full_like(value, float("nan"))
            name, value = name.replace("q_bias", "qkv.bias"), torch.cat([value, key, other])
        if not name.endswith("v_bias"):
            metas[name] = value
    metas |= {"mask_token": torch.zeros(1, 32), "rope_embed.periods": torch.zeros(4)}
    # The checkpointer puts the prefix before names that are the model's.
    mixed = {PREFIX + n if n in expected else n: v for n, v in metas.items()}
    for state_dict in (metas, mixed):
        found = fitted(state_dict, vit(DINOV3))
        assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_weights_of_something_else_stay():
    for names in (["head.weight"], ["sem_seg_head.predictor.weight", "backbone.stem.weight"]):
        state_dict = {name: torch.ones(2) for name in names}
        fit_vit_weights(state_dict, PREFIX, vit())
        assert list(state_dict) == names
