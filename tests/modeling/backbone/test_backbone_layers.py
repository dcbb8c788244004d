"""Layers of backbones' parameters, beside an independent reading of the modules."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

import pytest
import torch
from detectron2.modeling.backbone import FPN, ResNet
from detectron2.modeling.backbone.resnet import BasicBlock, BasicStem
from torch import nn

from panoptic_ext.modeling.backbone.backbone_layers import Layer, layers_of_names, parameter_layers
from panoptic_ext.modeling.backbone.plain_vit import PlainViT
from panoptic_ext.modeling.backbone.simple_feature_pyramid import SimpleFeaturePyramid
from panoptic_ext.modeling.backbone.swin import SwinTransformer
from panoptic_ext.modeling.backbone.timm_backbone import TimmBackbone
from panoptic_ext.modeling.backbone.two_way_fpn import TwoWayFPN
from panoptic_ext.modeling.transformers_models.families import FAMILIES
from tests.tiny.eomt_published import import_transformers
from tests.tiny.transformers_models import build_tiny


def counted(model: nn.Module, block: str, *, gap: int = 0) -> dict[str, Layer]:
    """Layers from the order of modules, `block` being the pattern of the name of a block's class.

    What is defined between two blocks, and in none, belongs to the one before, or for `gap` 1 to
    the one behind.
    """
    found: dict[str, tuple[int, bool]] = {}
    seen = -1
    for path, module in model.named_modules():
        starts = re.fullmatch(block, type(module).__name__)
        seen += bool(starts)
        inside = [name for name, _ in module.named_parameters(path)]
        for name in inside:
            if starts:
                found[name] = (seen, True)
            elif not found.get(name, (0, False))[1]:
                found[name] = (seen, False)
    number = seen + 1

    def layer(index: int, in_block: bool) -> int:
        if in_block or index < 0:
            return max(index, 0)
        return number if index == number - 1 else index + gap

    return {name: Layer(layer(*place), number) for name, place in found.items()}


def resnet18(*out_features: str) -> ResNet:
    stages = ResNet.make_default_stages(18, BasicBlock, norm="BN")
    return ResNet(BasicStem(norm="BN"), stages, out_features=out_features or ("res2", "res5"))


def tiny_swin(**options: Any) -> SwinTransformer:
    return SwinTransformer(embed_dim=12, depths=(2, 2, 3, 2), num_heads=(1, 1, 1, 1), **options)


class Pyramid(nn.Module):
    """A model whose backbone is a feature pyramid."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = nn.Linear(2, 2)


@pytest.mark.parametrize(
    ("make", "block", "number"),
    [
        (resnet18, "BasicBlock", 8),
        (lambda: tiny_swin(ape=True), "SwinBlock", 9),
        (lambda: tiny_swin(out_features=["res4"]), "SwinBlock", 9),
    ],
)
def test_layers_are_the_blocks_in_their_order(make: Any, block: str, number: int) -> None:
    model = Pyramid(make())
    got = parameter_layers(model, ("backbone.",))
    expected = counted(model.backbone, block)
    assert got == {f"backbone.{name}": layer for name, layer in expected.items()}
    assert {layer.num_blocks for layer in got.values()} == {number}
    assert {layer.block for layer in got.values()} >= set(range(number))


@pytest.mark.parametrize(
    ("name", "block", "gap", "number"),
    [
        ("resnet18", "BasicBlock", 0, 8),
        ("convnext_atto", "ConvNeXtBlock", 1, 12),
        ("efficientnet_lite0", "InvertedResidual|DepthwiseSeparableConv", 0, 16),
        ("swin_tiny_patch4_window7_224", "SwinTransformerBlock", 1, 12),
    ],
)
def test_layers_of_timm_models(name: str, block: str, gap: int, number: int) -> None:
    pytest.importorskip("timm")
    with torch.device("meta"):
        model = Pyramid(TimmBackbone(name))
    assert model.backbone.num_layers == number
    expected = counted(model.backbone, block, gap=gap)
    assert parameter_layers(model, ("backbone.",)) == {
        f"backbone.{name}": layer for name, layer in expected.items()
    }


def test_a_timm_model_that_is_cut_off_has_fewer_layers() -> None:
    pytest.importorskip("timm")
    with torch.device("meta"):
        backbone = TimmBackbone("resnet18", out_features=["res2", "res3", "res4"])
    assert backbone.num_layers == 6
    assert backbone.layer_of("net.layer3.1.conv2.weight") == 5


def test_a_timm_model_whose_layers_timm_does_not_name() -> None:
    pytest.importorskip("timm")
    with torch.device("meta"):
        backbone = TimmBackbone("poolformer_s12")
    assert backbone.num_layers == 0


def test_the_last_convolution_of_the_preset_is_behind_the_blocks() -> None:
    pytest.importorskip("timm")
    with torch.device("meta"):
        backbone = TimmBackbone("efficientnet_b0", preset="paper")
    layers = {name: backbone.layer_of(name) for name, _ in backbone.named_parameters()}
    assert {layers[name] for name in layers if name.startswith("head.")} == {16}
    assert layers["net.conv_stem.weight"] == 0 and layers["net.blocks.6.0.conv_pw.weight"] == 15


@pytest.mark.parametrize("make", [FPN, TwoWayFPN])
def test_a_pyramid_has_no_layers_and_its_backbone_has(make: Any) -> None:
    with torch.device("meta"):
        bottom_up = resnet18("res2", "res3", "res4", "res5")
        model = Pyramid(make(bottom_up, ["res2", "res3", "res4", "res5"], 8))
    got = parameter_layers(model, ("backbone.",))
    expected = counted(bottom_up, "BasicBlock")
    assert got == {f"backbone.bottom_up.{name}": layer for name, layer in expected.items()}
    assert len(got) < sum(name.startswith("backbone.") for name, _ in model.named_parameters())


def test_a_plain_vit_under_a_pyramid() -> None:
    pytest.importorskip("timm")
    with torch.device("meta"):
        vit = PlainViT("vit_tiny_patch16_224", depth=3)
        model = Pyramid(SimpleFeaturePyramid(vit, ["res3", "res4"], 8))
    got = parameter_layers(model, ("backbone.",))
    expected = counted(vit, "Block")
    assert got == {f"backbone.bottom_up.{name}": layer for name, layer in expected.items()}
    assert {layer.num_blocks for layer in got.values()} == {3}


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("cls_token", 0), ("reg_token", 0), ("pos_embed", 0), ("patch_embed.proj.weight", 0),
        ("norm_pre.weight", 0), ("blocks.0.norm1.weight", 0), ("blocks.7.ls2.gamma", 7),
        ("blocks.10.attn.qkv.weight", 10), ("blocks.11.mlp.fc2.bias", 11), ("norm.bias", 12),
        ("fc_norm.weight", 12),
    ],
)  # fmt: skip
def test_names_of_a_plain_vit(name: str, layer: int) -> None:
    blocks = [f"blocks.{i}.attn.proj.weight" for i in range(12)]
    assert layers_of_names([*blocks, name])[name] == Layer(layer, 12)


# Names as transformers' models have them.
@pytest.mark.parametrize(
    ("names", "layers"),
    [
        (
            {
                "embeddings.patch_embeddings.projection.weight": 0,
                "encoder.layers.0.blocks.0.attention.self.query.weight": 0,
                "encoder.layers.0.blocks.1.attention.self.query.weight": 1,
                "encoder.layers.0.downsample.reduction.weight": 1,
                "encoder.layers.1.blocks.0.output.dense.bias": 2,
                "hidden_states_norms.stage1.weight": 3,
            },
            3,
        ),
        (
            {
                "embeddings.patch_embeddings.weight": 0,
                "encoder.stages.0.layers.0.dwconv.weight": 0,
                "encoder.stages.1.downsampling_layer.0.weight": 1,
                "encoder.stages.1.layers.0.dwconv.weight": 1,
                "encoder.stages.1.layers.1.dwconv.weight": 2,
                "layernorm.weight": 3,
            },
            3,
        ),
        (
            {
                "embeddings.register_tokens": 0,
                "layers.0.layer_scale1.lambda1": 0,
                "layers.1.mlp.fc1.weight": 1,
                "layernorm.weight": 2,
            },
            2,
        ),
    ],
)
def test_names_of_transformers(names: dict[str, int], layers: int) -> None:
    expected = {name: Layer(layer, layers) for name, layer in names.items()}
    assert layers_of_names(names) == expected


@pytest.mark.parametrize("family", ["detr", "eomt", "eomt_dinov3", "mask2former", "oneformer"])
def test_all_of_a_transformers_backbone_has_layers(family: str) -> None:
    pytest.importorskip("transformers")
    import_transformers(dinov3=family == "eomt_dinov3")
    network, _ = build_tiny(family, ("a", "b"))
    names = {n for n, _ in network.named_parameters() if n.startswith(FAMILIES[family].backbone)}
    layers = parameter_layers(network, FAMILIES[family].backbone)
    assert layers.keys() == names
    (number,) = {layer.num_blocks for layer in layers.values()}
    assert {layer.block for layer in layers.values()} >= set(range(number))
    counts = Counter(layer.block for layer in layers.values())
    assert number >= 3 and max(counts.values()) < 2 * min(counts[i] for i in range(number)) + 8


def test_a_backbone_of_ones_own_says_its_layers() -> None:
    class Own(nn.Linear):
        num_layers = 3

        def layer_of(self, parameter_name: str) -> int:
            return {"weight": 1, "bias": 3}[parameter_name]

    model = Pyramid(nn.Sequential(Own(2, 2), nn.Linear(2, 2)))
    assert parameter_layers(model, ("backbone.",)) == {
        "backbone.0.weight": Layer(1, 3),
        "backbone.0.bias": Layer(3, 3),
    }


def test_names_without_blocks_have_no_layers() -> None:
    assert layers_of_names(["weight", "conv.bias"]) == {}
    assert parameter_layers(Pyramid(nn.Linear(2, 2)), ("backbone.",)) == {}
