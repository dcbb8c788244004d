"""Key by key: the state dict of the published COCO R50 model as the spec lists it."""

from __future__ import annotations

from collections import OrderedDict

import pytest
from detectron2.config import get_cfg
from detectron2.data import MetadataCatalog
from detectron2.modeling import build_model

from panoptic_ext import add_panoptic_ext_config
from panoptic_ext.modeling import resolve_published_names
from tests import ROOT

PUBLISHED = ROOT / "tests/config/published_yaml" / "coco_panoptic_R50.yaml"
NAME = "fake_coco_of_133_classes"


def affine(name, *shape):
    """A weight of that shape and its bias."""
    return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}


def convolution(name, out_channels, in_channels, size):
    """A convolution without bias and its frozen norm."""
    names = {f"{name}.weight": (out_channels, in_channels, size, size)}
    statistics = ("weight", "bias", "running_mean", "running_var")
    return names | {f"{name}.norm.{own}": (out_channels,) for own in statistics}


def resnet50():
    """Bottlenecks 1x1, 3x3, 1x1; the first of a stage has a shortcut of other channels."""
    names, inside = convolution("stem.conv1", 64, 3, 7), 64
    for stage, (blocks, narrow) in enumerate(((3, 64), (4, 128), (6, 256), (3, 512)), start=2):
        for i in range(blocks):
            block = f"res{stage}.{i}"
            if i == 0:
                names |= convolution(f"{block}.shortcut", 4 * narrow, inside, 1)
            names |= convolution(f"{block}.conv1", narrow, inside, 1)
            names |= convolution(f"{block}.conv2", narrow, narrow, 3)
            names |= convolution(f"{block}.conv3", 4 * narrow, narrow, 1)
            inside = 4 * narrow
    return names


def pixel_decoder():
    names = {"transformer.level_embed": (3, 256)}
    for i, channels in enumerate((2048, 1024, 512)):
        names |= affine(f"input_proj.{i}.0", 256, channels, 1, 1) | affine(f"input_proj.{i}.1", 256)
    for i in range(6):
        layer = f"transformer.encoder.layers.{i}"
        names |= affine(f"{layer}.self_attn.sampling_offsets", 192, 256)
        names |= affine(f"{layer}.self_attn.attention_weights", 96, 256)
        names |= affine(f"{layer}.self_attn.value_proj", 256, 256)
        names |= affine(f"{layer}.self_attn.output_proj", 256, 256)
        names |= affine(f"{layer}.norm1", 256) | affine(f"{layer}.norm2", 256)
        names |= affine(f"{layer}.linear1", 1024, 256) | affine(f"{layer}.linear2", 256, 1024)
    names |= {"adapter_1.weight": (256, 256, 1, 1), "layer_1.weight": (256, 256, 3, 3)}
    names |= affine("adapter_1.norm", 256) | affine("layer_1.norm", 256)
    return names | affine("mask_features", 256, 256, 1, 1)


def predictor():
    names = affine("decoder_norm", 256) | affine("class_embed", 134, 256)
    names |= {"query_feat.weight": (100, 256), "query_embed.weight": (100, 256)}
    names |= {"level_embed.weight": (3, 256)}
    for i in range(3):
        names |= affine(f"mask_embed.layers.{i}", 256, 256)
    for i in range(9):
        for kind, attention in (("self", "self_attn"), ("cross", "multihead_attn")):
            layer = f"transformer_{kind}_attention_layers.{i}"
            names[f"{layer}.{attention}.in_proj_weight"] = (768, 256)
            names[f"{layer}.{attention}.in_proj_bias"] = (768,)
            names |= affine(f"{layer}.{attention}.out_proj", 256, 256)
            names |= affine(f"{layer}.norm", 256)
        layer = f"transformer_ffn_layers.{i}"
        names |= affine(f"{layer}.linear1", 2048, 256) | affine(f"{layer}.linear2", 256, 2048)
        names |= affine(f"{layer}.norm", 256)
    return names


def published():
    """Every name of the published checkpoint and its shape."""
    parts = {
        "backbone": resnet50(),
        "sem_seg_head.pixel_decoder": pixel_decoder(),
        "sem_seg_head.predictor": predictor(),
        "criterion": {"empty_weight": (134,)},
    }
    return {f"{part}.{name}": shape for part, own in parts.items() for name, shape in own.items()}


@pytest.fixture(scope="module")
def model():
    MetadataCatalog.get(NAME).set(isthing=(True,) * 80 + (False,) * 53)
    cfg = get_cfg()
    add_panoptic_ext_config(cfg)
    cfg.merge_from_file(str(PUBLISHED))
    cfg.MODEL.DEVICE = "cpu"
    resolve_published_names(cfg)
    cfg.DATASETS.TRAIN = (NAME,)
    yield build_model(cfg)
    MetadataCatalog.remove(NAME)


def test_key_for_key(model):
    found = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    assert found == published()


def test_the_numbers_of_tensors_are_those_of_the_spec():
    parts = (resnet50(), pixel_decoder(), predictor())
    assert [len(part) for part in parts] == [265, 117, 175]
    assert len(published()) == 558


def test_a_checkpoint_says_version_2_of_head_and_predictor(model):
    """The published code renames the tensors of older ones, and leaves 117 random."""
    versions = model.state_dict()._metadata
    for part in ("sem_seg_head", "sem_seg_head.predictor"):
        assert versions[part]["version"] == 2


@pytest.mark.parametrize("version", [None, 1, 2])
@pytest.mark.parametrize("has_old_names", [False, True])
def test_names_and_not_the_version_tell_old_checkpoints(model, version, has_old_names):
    """Older checkpoints of panoptic_ext have version 1 with today's names."""
    head = model.sem_seg_head
    weights, versions = OrderedDict(head.state_dict()), {"": {}, "predictor": {}}
    if version is not None:
        versions = {part: {"version": version} for part in versions}
    if has_old_names:
        weights = OrderedDict((k.removeprefix("pixel_decoder."), v) for k, v in weights.items())
        weights["predictor.static_query.weight"] = weights.pop("predictor.query_feat.weight")
    weights._metadata = versions
    assert not any(head.load_state_dict(weights, strict=False))


def test_numbers_of_parameters_in_millions(model):
    def millions(module):
        return round(sum(p.numel() for p in module.parameters()) / 1e6, 2)

    assert millions(model) == 43.98
    assert millions(model.backbone) == 23.45
    assert millions(model.sem_seg_head.pixel_decoder) == 6.04
    assert millions(model.sem_seg_head.predictor) == 14.49
