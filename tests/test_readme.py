"""What the README says can be done: its YAML loads, its files and links exist."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from panoptic_ext.engine.setup import load_cfg
from tests.data.tiny import TinyDataset

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_own_data_yaml_loads_and_trains_in_minutes(tmp_path, monkeypatch, clean_catalogs):
    block = re.search(r"```yaml\n(.*?)```", README, re.DOTALL).group(1)
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    (tmp_path / "my.yaml").write_text(block)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    data = TinyDataset(tmp_path / "street")
    for split in ("train", "val"):
        shutil.copy(data.json, data.root / f"panoptic_{split}.json")
    cfg = load_cfg(str(tmp_path / "my.yaml"), ["MODEL.DEVICE", "cpu"])
    assert cfg.DATASETS.TRAIN == ("street_train",)
    assert cfg.SOLVER.MAX_ITER <= 2000 and cfg.TEST.EVAL_PERIOD > 0


@pytest.mark.parametrize("link", sorted(set(re.findall(r"\]\(((?!http)[^)#]+)\)", README))))
def test_links_lead_somewhere(link):
    assert (ROOT / link).exists()


@pytest.mark.parametrize("command", sorted(set(re.findall(r"python ([\w/]+\.py)", README))))
def test_commands_exist(command):
    assert (ROOT / command).is_file()
