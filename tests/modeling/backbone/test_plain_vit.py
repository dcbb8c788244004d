"""Plain ViTs of timm against timm's own features, and what a dense task adds to them."""

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.modeling import build_backbone
from torch import nn

from panoptic_ext.config import add_panoptic_ext_config
from panoptic_ext.engine.checkpoint.checkpointer import Checkpointer
from panoptic_ext.errors import ConfigError
from panoptic_ext.modeling.backbone.plain_vit import PlainViT

timm = pytest.importorskip("timm")

SMALL = {"embed_dim": 24, "depth": 2, "num_heads": 2}
DINOV2, DINOV3 = "vit_small_patch14_reg4_dinov2", "vit_small_patch16_dinov3_qkvb"
# One of each kind: class token and registers, none, two; norm before the blocks (CLIP), behind the
# average, or none; a pooling to leave out (SigLIP); blocks in parallel, norm behind the residual;
# rotary embeddings (EVA-02, DINOv3), with absolute ones or for each block.
FAMILIES = [
    DINOV2,
    DINOV3,
    "vit_small_patch16_224",
    "vit_base_patch16_clip_224",
    "vit_base_patch16_siglip_224",
    "vit_base_patch16_radio_v3",
    "deit3_small_patch16_224",
    "deit_small_distilled_patch16_224",
    "beit3_base_patch16_224",
    "vit_base_patch16_xp_224",
    "vit_base_patch16_rpn_224",
    "vit_small_patch16_18x2_224",
    "eva02_tiny_patch14_224",
    "eva02_enormous_patch14_clip_224",
    "vit_small_patch16_rope_mixed_224",
    "vit_pe_core_base_patch16_224",
    "vit_tiny_r_s16_p8_224",
]


def small_vit(name=DINOV2, **changes):
    """A narrow ViT, each of whose parameters changes the result."""
    torch.manual_seed(0)
    net = PlainViT(name, **{**SMALL, **changes})
    for parameter in net.parameters():
        if parameter.dim() == 1 or parameter.std() < 1e-3:
            nn.init.normal_(parameter, std=0.3)
    return net


def timms_features(net, images):
    """The same by timm's own way, for sizes that the patch divides."""
    arguments = {**SMALL, "num_classes": 0, "dynamic_img_size": True}
    own = timm.create_model(net.timm_name, **arguments).eval()
    missing, unexpected = own.load_state_dict(net.net.state_dict(), strict=False)
    assert not unexpected and all(name.startswith("attn_pool.") for name in missing)
    tokens = own.forward_features(images)
    if isinstance(own.norm, nn.Identity):
        tokens = own.fc_norm(tokens)
    grid = [side // net.patch_size for side in images.shape[-2:]]
    return tokens[:, own.num_prefix_tokens :].mT.unflatten(2, grid)


FAMILIES = [name for name in FAMILIES if timm.is_model(name)]  # RADIO is not in timm 1.0.26


@pytest.mark.parametrize("name", FAMILIES)
def test_features_are_timms_at_the_own_size_and_at_others(name):
    net = small_vit(name).eval()
    side = net.patch_size * net.net.patch_embed.grid_size[0]
    for size in ((side, side), (3 * net.patch_size, 5 * net.patch_size)):
        images = torch.randn(2, 3, *size)
        with torch.no_grad():
            found = net(images)["last_feat"]
            torch.testing.assert_close(found, timms_features(net, images), rtol=1e-5, atol=1e-5)
            assert torch.equal(net(images)["last_feat"], found)  # positions of the cache


def test_intermediate_blocks_are_timms():
    net = small_vit(depth=4).eval()
    images = torch.randn(1, 3, 42, 56)
    with torch.no_grad():
        expected = net.net.get_intermediate_layers(images, n=[1], norm=True)[0]
        tokens, _, rope = net.embed(images)
        found = net.norm(net.blocks(tokens, 0, 2, rope=rope))
        torch.testing.assert_close(found[:, net.num_prefix_tokens :], expected)
        rest = net.norm(net.blocks(net.blocks(tokens, 0, 2), 2, 4))
        torch.testing.assert_close(rest, net.net.forward_features(images))


@pytest.mark.parametrize("name", [DINOV2, DINOV3])
def test_images_of_any_size_are_padded_to_patches(name):
    net = small_vit(name, patch_size=16).eval()
    images = torch.randn(1, 3, 40, 65)
    with torch.no_grad():
        found = net(images)["last_feat"]
        padded = nn.functional.pad(images, (0, 15, 0, 8))
        torch.testing.assert_close(found, net(padded)["last_feat"])
    assert found.shape == (1, 24, 3, 5)


@pytest.mark.parametrize("name", [DINOV2, DINOV3, "vit_small_patch16_rope_mixed_224"])
def test_added_tokens_are_not_rotated_and_masked_ones_change_nothing(name):
    net = small_vit(name).eval()
    with torch.no_grad():
        tokens, grid, rope = net.embed(torch.randn(2, 3, 2 * net.patch_size, 3 * net.patch_size))
        assert grid == (2, 3) and tokens.shape[1] == net.num_prefix_tokens + 6
        expected = net.blocks(tokens, 0, 2, rope=rope)
        added = torch.cat((torch.randn(2, 4, 24), tokens), dim=1)
        mask = torch.ones(2, 1, added.shape[1], added.shape[1], dtype=torch.bool)
        mask[:, :, 4:, :4] = False
        prefix = net.num_prefix_tokens + 4
        found = net.blocks(added, 0, 2, rope=rope, num_prefix_tokens=prefix, attention_mask=mask)
        torch.testing.assert_close(found[:, 4:], expected)
        # Without position, the order of the added tokens is that of their results.
        swapped = torch.cat((added[:, [1, 0, 2, 3]], tokens), dim=1)
        other = net.blocks(swapped, 0, 2, rope=rope, num_prefix_tokens=prefix)
        same = net.blocks(added, 0, 2, rope=rope, num_prefix_tokens=prefix)
        torch.testing.assert_close(other[:, [1, 0]], same[:, :2])


@pytest.mark.parametrize("name", FAMILIES)
def test_every_parameter_gets_a_gradient(name):
    net = small_vit(name)
    features = net(torch.randn(2, 3, 50, 40))["last_feat"]
    (features * torch.randn_like(features)).sum().backward()
    for parameter_name, parameter in net.named_parameters():
        assert parameter.grad is not None and parameter.grad.any(), parameter_name


def test_one_image_is_the_same_as_in_a_batch():
    net = small_vit(DINOV3).eval()
    images = torch.randn(2, 3, 32, 48)
    with torch.no_grad():
        both, alone = net(images)["last_feat"], net(images[1:])["last_feat"]
    torch.testing.assert_close(both[1:], alone)


def test_gradient_checkpointing_changes_no_gradient():
    images = torch.randn(1, 3, 28, 28)
    gradients = []
    for recompute in (False, True):
        net = small_vit(gradient_checkpointing=recompute)
        net(images)["last_feat"].square().sum().backward()
        gradients.append([parameter.grad for parameter in net.parameters()])
    for plain, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, recomputed)


@pytest.mark.parametrize("name", [DINOV2, DINOV3])
def test_compiled_blocks_keep_names_and_results(name, monkeypatch):
    """With the backend that writes no code, which would take half a minute."""
    graphs = []

    def compile_eagerly(block):
        block._compiled_call_impl = torch.compile(block._call_impl, backend=count_graph)

    def count_graph(graph, inputs):
        graphs.append(graph)
        return graph.forward

    monkeypatch.setattr(nn.Module, "compile", compile_eagerly)
    net, plain = small_vit(name, compile_blocks=True).eval(), small_vit(name).eval()
    images = torch.randn(1, 3, 28, 42)
    with torch.no_grad():
        torch.testing.assert_close(net(images)["last_feat"], plain(images)["last_feat"])
    assert graphs and list(net.state_dict()) == list(plain.state_dict())


def test_stochastic_depth_and_the_augmentation_of_positions_are_for_training_alone():
    for name, changes in ((DINOV2, {"drop_path_rate": 0.9}), (DINOV3, {"rope_rescale_coords": 2})):
        net, plain = small_vit(name, **changes), small_vit(name)
        images = torch.randn(4, 3, 2 * net.patch_size, 3 * net.patch_size)
        with torch.no_grad():
            varied = [net(images)["last_feat"] for _ in range(3)]
            assert not torch.equal(varied[0], varied[1]) or not torch.equal(varied[1], varied[2])
            expected = plain.eval()(images)["last_feat"]
            torch.testing.assert_close(net.eval()(images)["last_feat"], expected)


def test_a_frozen_vit_is_not_trained_and_lets_gradients_through():
    net = small_vit(freeze=True, drop_path_rate=0.9).train()
    assert not net.training and not any(module.training for module in net.modules())
    assert not net(torch.randn(1, 3, 28, 28))["last_feat"].requires_grad
    tokens, _, _ = net.embed(torch.randn(1, 3, 28, 28))
    query = torch.randn(1, 1, 24, requires_grad=True)
    joined = net.blocks(torch.cat((query, tokens), 1), 0, 2, num_prefix_tokens=6)
    joined[:, -1].sum().backward()
    assert query.grad.any() and all(parameter.grad is None for parameter in net.parameters())


def test_layers_for_learning_rates():
    net = small_vit()
    layers = {name: net.layer_of(name) for name, _ in net.named_parameters()}
    assert layers["net.pos_embed"] == layers["net.reg_token"] == layers["net.cls_token"] == 0
    assert layers["net.patch_embed.proj.weight"] == layers["net.blocks.0.norm1.bias"] == 0
    assert layers["net.blocks.1.attn.qkv.weight"] == 1 and layers["net.norm.weight"] == 2
    assert net.num_layers == 2 and set(layers.values()) == {0, 1, 2}
    assert small_vit("beit3_base_patch16_224").layer_of("net.fc_norm.weight") == 2


def test_a_changed_position_embedding_is_noticed():
    net = small_vit().eval()
    images = torch.randn(1, 3, 28, 42)
    with torch.no_grad():
        before = net(images)["last_feat"]
        net.net.pos_embed.normal_()
        assert not torch.equal(net(images)["last_feat"], before)


def vit_cfg(**keys):
    cfg = get_cfg()
    add_panoptic_ext_config(cfg)
    cfg.MODEL.BACKBONE.NAME = "build_plain_vit_backbone"
    narrow = {"NAME": DINOV2, "EMBED_DIM": 24, "DEPTH": 2, "NUM_HEADS": 2}
    for key, value in {**narrow, **keys}.items():
        cfg.MODEL.VIT[key] = value
    return cfg


def test_keys_reach_the_backbone():
    keys = {"PATCH_SIZE": 16, "IMAGE_SIZE": 64, "FREEZE": True, "GRADIENT_CHECKPOINTING": True}
    net = build_backbone(vit_cfg(**keys, DROP_PATH_RATE=0.5))
    assert (net.patch_size, net.embed_dim, net.depth, net.num_prefix_tokens) == (16, 24, 2, 5)
    assert net.net.pos_embed.shape == (1, 16, 24) and net.net.blocks[0].attn.num_heads == 2
    assert net.freeze and net.gradient_checkpointing
    assert net.net.blocks[1].drop_path1.drop_prob == 0.5
    shape = net.output_shape()["last_feat"]
    assert (shape.channels, shape.stride, net.size_divisibility) == (24, 16, 16)
    with pytest.raises(ConfigError, match=r"MODEL\.VIT\.NAME is empty; give a ViT of timm"):
        build_backbone(vit_cfg(NAME=""))


def test_weights_of_other_patches_and_images_are_resampled_as_timm_does(tmp_path, caplog):
    caplog.set_level("INFO", logger="panoptic_ext")
    first = small_vit(img_size=70)
    path = str(tmp_path / "vit.pth")
    torch.save(first.net.state_dict(), path)
    model = nn.Module()
    model.backbone = small_vit(patch_size=16, img_size=64)
    Checkpointer(model).load(path, strict=True)
    # timm's own function for this is the loading of its pretrained weights.
    filtered = timm.models.vision_transformer.checkpoint_filter_fn(
        first.net.state_dict(), model.backbone.net
    )
    state = model.backbone.net.state_dict()
    assert set(filtered) == set(state)
    for name, value in filtered.items():
        torch.testing.assert_close(state[name], value)
    assert "Position embedding resampled from 5 x 5 to 4 x 4 patches" in caplog.text


def test_patches_behind_a_stem_have_its_stride_too():
    net = small_vit("vit_tiny_r_s16_p8_224", patch_size=2, img_size=32).eval()
    assert net.patch_size == net.size_divisibility == net.output_shape()["last_feat"].stride == 8
    assert net(torch.zeros(1, 3, 40, 52))["last_feat"].shape == (1, 24, 5, 7)
