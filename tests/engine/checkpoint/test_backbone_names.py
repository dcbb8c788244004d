"""Weights of a backbone alone: published Swin files in every form, Caffe2's, and misfits."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from panoptic_ext.engine.checkpoint.checkpointer import Checkpointer
from panoptic_ext.errors import CheckpointError
from panoptic_ext.modeling.backbone import SwinTransformer

FORMS = ["dict.pkl", "arrays.pkl", "model.pkl", "converted.pkl", "plain.pth", "model.pth"]


def swin(seed: int, **changes: Any) -> SwinTransformer:
    """All parameters random, so that none is equal in two of them by chance."""
    torch.manual_seed(seed)
    keys = {"embed_dim": 8, "depths": [2, 1, 1, 1], "num_heads": [1, 2, 2, 4], "window_size": 4}
    model = SwinTransformer(**{**keys, **changes})
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    return model


class Nested(nn.Module):
    def __init__(self, bottom_up: nn.Module) -> None:
        super().__init__()
        self.bottom_up = bottom_up
        self.lateral = nn.Conv2d(8, 8, 1)


class Model(nn.Module):
    """A head with names that end as some of the file do, of the same shape."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.sem_seg_head = nn.ModuleDict(
            {"a": nn.ModuleDict({"norm": nn.LayerNorm(64)}), "b": nn.ModuleDict()}
        )
        self.sem_seg_head["b"]["norm"] = nn.LayerNorm(64)


def published(model: SwinTransformer) -> dict[str, torch.Tensor]:
    """The state dict as an image classifier has it: no norm0 to norm3, but masks, norm and head."""
    state = {k: v for k, v in model.state_dict().items() if not k.startswith("norm")}
    state["layers.0.blocks.1.attn_mask"] = torch.zeros(4, 16, 16)
    state |= {"norm.weight": torch.randn(64), "norm.bias": torch.randn(64)}
    return state | {"head.weight": torch.randn(10, 64), "head.bias": torch.randn(10)}


def write(path: Path, state: dict[str, torch.Tensor]) -> str:
    kind = path.stem
    content: Any = state if kind in ("dict", "plain") else {"model": state}
    if kind == "arrays":
        content = {name: value.numpy() for name, value in state.items()}
    if kind == "converted":
        content |= {"__author__": "third_party", "matching_heuristics": True}
    if path.suffix == ".pth":
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps(content))
    return str(path)


def same(model: nn.Module, state: dict[str, torch.Tensor]) -> list[str]:
    """Names of the model's tensors that are those of the file."""
    return [n for n, v in model.state_dict().items() if n in state and torch.equal(v, state[n])]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("prefix", ["", "module."])
def test_published_swin_weights_load_in_every_form(tmp_path: Path, form: str, prefix: str) -> None:
    state, backbone = published(swin(0)), swin(1)
    path = write(tmp_path / form, {prefix + name: value for name, value in state.items()})
    if form == "converted.pkl":  # its heuristics look at the whole model
        model: nn.Module = nn.ModuleDict({"backbone": backbone})
    else:
        model = Model(backbone)
    untouched = {k: v.clone() for k, v in model.state_dict().items() if "norm" in k.split(".")[-2]}
    Checkpointer(model).load(path)
    shared = state.keys() & backbone.state_dict().keys()
    assert len(shared) == len(backbone.state_dict()) - 8  # norm0 to norm3
    assert set(same(backbone, state)) == shared
    for name in (n for n in untouched if "head" in n or n.startswith("backbone.norm")):
        assert torch.equal(model.state_dict()[name], untouched[name]), name


def test_heuristics_by_the_address(tmp_path: Path) -> None:
    state, backbone = published(swin(0)), swin(1)
    path = write(tmp_path / "model.pth", state)
    Checkpointer(nn.ModuleDict({"backbone": backbone})).load(f"{path}?matching_heuristics=True")
    assert len(same(backbone, state)) == len(backbone.state_dict()) - 8


def test_a_backbone_within_another(tmp_path: Path) -> None:
    state, backbone = published(swin(0)), swin(1)
    path = write(tmp_path / "model.pth", state)
    Checkpointer(Model(Nested(backbone))).load(path)
    assert len(same(backbone, state)) == len(backbone.state_dict()) - 8


def test_another_window_size_loads_the_rest(tmp_path: Path) -> None:
    state, backbone = published(swin(0)), swin(1, window_size=3)
    Checkpointer(Model(backbone)).load(write(tmp_path / "dict.pkl", state))
    tables = {n for n in state if "relative_position" in n}
    assert set(same(backbone, state)) == (state.keys() & backbone.state_dict().keys()) - tables


@pytest.mark.parametrize("form", ["dict.pkl", "model.pkl", "plain.pth", "model.pth"])
def test_another_size_is_refused(tmp_path: Path, form: str) -> None:
    """Buffers of the window alone are the same in all sizes."""
    path = write(tmp_path / form, published(swin(0, embed_dim=16)))
    with pytest.raises(
        CheckpointError,
        match=r"do not fit the backbone.*patch_embed.proj.weight is \(16, 3, 4, 4\), the model's is"
        r" \(8, 3, 4, 4\)",
    ):
        Checkpointer(Model(swin(1))).load(path)


@pytest.mark.parametrize("form", ["dict.pkl", "model.pkl", "plain.pth", "model.pth"])
def test_names_of_something_else_are_refused(tmp_path: Path, form: str) -> None:
    """A few names and shapes that are, by chance, those of a part of the backbone."""
    state = {f"layer1.{i}.conv1.weight": torch.zeros(8, 8, 1, 1) for i in range(9)}
    own = {"proj.weight": torch.zeros(8, 3, 4, 4), "norm1.weight": torch.zeros(8)}
    with pytest.raises(CheckpointError, match=r"loaded 0 of"):
        Checkpointer(Model(swin(1))).load(write(tmp_path / form, state | own))


def test_backbone_weights_alone_are_not_enough_to_evaluate(tmp_path: Path) -> None:
    path = write(tmp_path / "model.pkl", published(swin(0)))
    with pytest.raises(CheckpointError, match=r"backbone.norm0.weight is missing"):
        Checkpointer(Model(swin(1))).load(path, strict=True)


@pytest.mark.parametrize("form", FORMS)
def test_names_of_the_whole_model_stay(tmp_path: Path, form: str) -> None:
    source, target = Model(swin(0)), Model(swin(1))
    Checkpointer(target).load(write(tmp_path / form, source.state_dict()), strict=True)
    assert len(same(target, source.state_dict())) == len(source.state_dict())


@pytest.mark.parametrize("key", ["", "blobs", "model"])
def test_caffe2_names_are_converted(tmp_path: Path, key: str) -> None:
    """As Detectron1's ImageNet pickles have them: blobs alone, or under a key."""
    stem = nn.ModuleDict({"conv1": nn.Conv2d(3, 4, 7, bias=False)})
    stem["conv1"].norm = nn.BatchNorm2d(4)
    model = nn.ModuleDict({"backbone": nn.ModuleDict({"stem": stem})})
    blobs = {"conv1_w": np.full((4, 3, 7, 7), 2.0, np.float32), "fc1000_w": np.ones((9, 4))}
    blobs |= {"res_conv1_bn_s": np.full(4, 3.0, np.float32), "conv1_w_momentum": np.ones(3)}
    (tmp_path / "R-50.pkl").write_bytes(pickle.dumps({key: blobs} if key else blobs))
    Checkpointer(model).load(str(tmp_path / "R-50.pkl"))
    assert bool((stem["conv1"].weight == 2).all()) and bool((stem["conv1"].norm.weight == 3).all())
