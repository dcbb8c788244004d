"""The order of precedence of weights, for the commands and for Predictor(load_run_cfg(...))."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from detectron2.config import CfgNode

from panoptic_ext.engine.checkpoint.checkpointer import Checkpointer
from panoptic_ext.engine.run_config import load_cfg
from panoptic_ext.errors import ConfigError
from panoptic_ext.prediction.predictor import find_weights, load_run_cfg


def checkpoint(folder: Path, name: str = "model_0000009") -> str:
    """Save a checkpoint as a training does; its path."""
    folder.mkdir(exist_ok=True)
    Checkpointer(torch.nn.Linear(1, 1), str(folder)).save(name)
    return str(folder / f"{name}.pth")


def config(folder: Path, weights: str) -> CfgNode:
    return load_cfg("", ["OUTPUT_DIR", str(folder), "MODEL.WEIGHTS", weights])


def test_the_last_checkpoint_comes_before_the_initial_weights(tmp_path: Path) -> None:
    cfg = config(tmp_path / "run", "pretrained.pkl")
    assert find_weights(cfg) == "pretrained.pkl"
    checkpoint(tmp_path / "run")
    last = checkpoint(tmp_path / "run", "model_0000019")
    assert find_weights(cfg) == last
    assert find_weights(cfg, opts=["MODEL.DEVICE", "cpu"]) == last


def test_weights_in_the_options_come_first(tmp_path: Path) -> None:
    checkpoint(tmp_path / "run")
    opts = ["MODEL.WEIGHTS", "mine.pth"]
    assert find_weights(config(tmp_path / "run", "mine.pth"), opts=opts) == "mine.pth"
    value = ["OUTPUT_DIR", "MODEL.WEIGHTS"]  # a value that looks like the key
    assert find_weights(config(tmp_path / "run", "a.pth"), opts=value).endswith("9.pth")


def test_no_weights_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"run' has no checkpoint and MODEL\.WEIGHTS is empty"):
        find_weights(config(tmp_path / "run", ""))


@pytest.mark.parametrize("name", ["config.yaml", "my.yaml"])
def test_a_checkpoint_beside_the_config_makes_its_folder_the_output_folder(
    name: str, tmp_path: Path
) -> None:
    """Also where metadata.json is missing, as in runs of older versions and in copied folders."""
    last = checkpoint(tmp_path / "run")
    path = tmp_path / "run" / name
    path.write_text("OUTPUT_DIR: output/as_it_was\n")
    assert find_weights(load_run_cfg(str(path))) == last
    other = checkpoint(tmp_path / "other")
    opts = ["OUTPUT_DIR", str(tmp_path / "other")]
    assert find_weights(load_run_cfg(str(path), opts), opts=opts) == other


def test_the_runs_own_checkpoint_serves_where_another_output_folder_has_none(
    tmp_path: Path,
) -> None:
    last = checkpoint(tmp_path / "run")
    (tmp_path / "run" / "config.yaml").write_text("MODEL: {WEIGHTS: pretrained.pkl}\n")
    opts = ["OUTPUT_DIR", str(tmp_path / "nowhere")]
    for path in (tmp_path / "run", tmp_path / "run" / "config.yaml"):
        cfg = load_run_cfg(str(path), opts)
        assert find_weights(cfg, opts=opts, path=str(path)) == last
