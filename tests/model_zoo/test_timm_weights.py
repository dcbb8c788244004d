"""MODEL.WEIGHTS timm://NAME takes timm's own weights, here from the cache of the hub's package."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from detectron2.utils.file_io import PathManager
from torch import nn

from panoptic_ext.engine.checkpoint.checkpointer import Checkpointer
from panoptic_ext.errors import CheckpointError, ConfigError
from panoptic_ext.modeling.backbone.timm_backbone import TimmBackbone

timm = pytest.importorskip("timm")
hub = pytest.importorskip("huggingface_hub")
NAME = "test_resnet"


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch) -> Path:
    """An empty cache of the hub's package, which then asks no server."""
    monkeypatch.setattr(hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


def put_into_cache(cache: Path, name: str = NAME, file: str = "model.safetensors") -> nn.Module:
    """Random weights of a small model, in the cache as after a download."""
    config = timm.get_pretrained_cfg(name)
    model = timm.create_model(name)
    folder = cache / f"models--{config.hf_hub_id.replace('/', '--')}"
    snapshot = folder / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("0" * 40)
    if file.endswith(".bin"):
        torch.save(model.state_dict(), snapshot / file)
    else:
        pytest.importorskip("safetensors.torch").save_file(model.state_dict(), snapshot / file)
    return model


def load(address: str, name: str = NAME) -> TimmBackbone:
    backbone = TimmBackbone(name)
    Checkpointer(nn.ModuleDict({"backbone": backbone})).load(address, strict=True)
    return backbone


@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin"])
def test_weights_without_a_network(hub_cache: Path, file: str) -> None:
    expected = put_into_cache(hub_cache, file=file).state_dict()
    loaded = load(f"timm://{NAME}").net.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in loaded.items())
    tag = timm.get_pretrained_cfg(NAME).tag
    path = PathManager.get_local_path(f"timm://{NAME}.{tag}")
    assert path == PathManager.get_local_path(f"timm://{NAME}")
    content = torch.load(path, weights_only=True)
    assert content["backbone_input"]["timm_name"] == NAME
    assert content["backbone_input"]["pixel_mean"] == (127.5,) * 3


def test_names_of_a_model_whose_feature_maps_have_other_names(hub_cache: Path) -> None:
    expected = put_into_cache(hub_cache, "test_convnext").state_dict()
    loaded = load("timm://test_convnext", "test_convnext").net.state_dict()
    assert torch.equal(loaded["stem_0.weight"], expected["stem.0.weight"])


def test_a_plain_vit_keeps_its_names_and_its_last_norm(hub_cache: Path) -> None:
    expected = put_into_cache(hub_cache, "test_vit").state_dict()
    path = PathManager.get_local_path("timm://test_vit")
    found = torch.load(path, weights_only=True)["model"]
    assert found.keys() == {name for name in expected if not name.startswith("head.")}
    assert all(torch.equal(tensor, expected[name]) for name, tensor in found.items())
    assert "norm.weight" in found


def test_without_a_network_and_a_file(hub_cache: Path, monkeypatch) -> None:
    def unknown_host(*args: object) -> None:
        raise OSError(-2, "Name or service not known")

    monkeypatch.setattr("urllib.request.getproxies", dict)
    monkeypatch.setattr("socket.getaddrinfo", unknown_host)
    with pytest.raises(CheckpointError) as error:
        load(f"timm://{NAME}")
    assert "\n" not in str(error.value)
    assert "the host huggingface.co cannot be found" in str(error.value)
    assert str(error.value).endswith("give its path as MODEL.WEIGHTS")


def test_a_hub_that_does_not_answer(hub_cache: Path, monkeypatch) -> None:
    monkeypatch.setattr("socket.getaddrinfo", lambda *args: [])
    with pytest.raises(CheckpointError, match=f"timm's weights {NAME} cannot be loaded") as error:
        load(f"timm://{NAME}")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("resnet81", "did you mean 'resnet18'"),
        ("resnet18.tv_in2k", r"did you mean 'resnet18.tv_in1k'\? known: resnet18.a1_in1k"),
        ("efficientnet_b6", "has no pretrained weights of efficientnet_b6"),
    ],
)
def test_unknown_names(name: str, text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        PathManager.get_local_path(f"timm://{name}")


def test_timm_is_missing(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ConfigError, match=r"pip install 'panoptic_ext\[timm\]'"):
        PathManager.get_local_path("timm://resnet18")
