"""A run of Detectron2 main is read by v0.6, where main's keys are at its defaults."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import yaml
from detectron2.config import CfgNode, get_cfg

from panoptic_ext.config.detectron2_main import MAIN_DEFAULTS, lacks
from panoptic_ext.engine import load_cfg
from panoptic_ext.engine import run_config as setup
from panoptic_ext.engine.checkpoint.fingerprint import compare_runs, run_fingerprint
from panoptic_ext.errors import ConfigError
from panoptic_ext.prediction.predictor import load_run_cfg


def without_main_keys() -> CfgNode:
    """Detectron2 v0.6's config, whichever Detectron2 is installed."""
    cfg = get_cfg()
    for key in MAIN_DEFAULTS:
        *parents, leaf = key.split(".")
        node = cfg
        for name in parents:
            node = node[name]
        node.pop(leaf, None)
    return cfg


@pytest.fixture
def v06(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(setup, "get_cfg", without_main_keys)


def with_main_keys(text: str, **values: object) -> dict:
    """The YAML `text` with main's keys: at their defaults, or at `values` by their last names."""
    content = yaml.safe_load(text)
    for key, default in MAIN_DEFAULTS.items():
        *parents, leaf = key.split(".")
        node = content
        for name in parents:
            node = node.setdefault(name, {})
        node[leaf] = values.get(leaf, default)
    return content


def write_run(folder: Path, **values: object) -> str:
    """The path of a run's config.yaml as main writes it."""
    content = with_main_keys(without_main_keys().dump(), **values)
    content["SOLVER"]["MAX_ITER"] = 7
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(content))
    return str(path)


def test_the_table_is_what_main_adds_to_the_config() -> None:
    cfg = get_cfg()
    there = {key for key in MAIN_DEFAULTS if not lacks(cfg, key)}
    assert len(MAIN_DEFAULTS) == 9 and there in (set(), set(MAIN_DEFAULTS))  # v0.6, main
    v06 = without_main_keys().dump()
    assert yaml.safe_load(cfg.dump()) == (with_main_keys(v06) if there else yaml.safe_load(v06))


@pytest.mark.usefixtures("v06")
@pytest.mark.parametrize("read", [load_cfg, load_run_cfg])
def test_defaults_of_main_are_left_out_with_one_line(
    read, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write_run(tmp_path)
    with caplog.at_level(logging.WARNING, "panoptic_ext.config.yaml_reader"):
        cfg = read(path)
    lines = [r.getMessage() for r in caplog.records if r.name.endswith("yaml_reader")]
    assert len(lines) == 1 and lines[0].startswith("Left out 9 keys of Detectron2 main")
    assert all(key in lines[0] for key in MAIN_DEFAULTS)
    assert cfg.SOLVER.MAX_ITER == 7 and "REPEAT_SQRT" not in cfg.DATALOADER


@pytest.mark.usefixtures("v06")
@pytest.mark.parametrize("key", MAIN_DEFAULTS)
def test_another_value_needs_main(key: str, tmp_path: Path) -> None:
    value = {False: True, True: False, "": "high"}.get(MAIN_DEFAULTS[key], 7)
    leaf = key.split(".")[-1]
    path = write_run(tmp_path, **{leaf: value})
    with pytest.raises(ConfigError) as caught:
        load_cfg(path, use_data=False)
    message = str(caught.value)
    assert f"{key} = {value!r} needs Detectron2 main" in message and len(message) < 400
    line = int(message.removeprefix(f"{path}:").split(":")[0])
    assert Path(path).read_text().splitlines()[line - 1].strip().startswith(f"{leaf}:")
    # As the message says: the default behind it wins.
    load_cfg(path, [key, str(MAIN_DEFAULTS[key])], use_data=False)


@pytest.mark.usefixtures("v06")
def test_a_checkpoint_of_main_differs_by_no_key() -> None:
    cfg = load_cfg("", use_data=False)
    saved = run_fingerprint(cfg)
    saved["config"] = yaml.safe_dump(with_main_keys(saved["config"]))
    assert compare_runs(saved, cfg) == []
    saved["config"] = yaml.safe_dump(with_main_keys(saved["config"], NUM_DECAYS=5))
    assert compare_runs(saved, cfg) == ["SOLVER.NUM_DECAYS: 5 in the checkpoint, 3 now"]
