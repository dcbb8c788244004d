"""A training run becomes an entry: a folder that is enough to use its model anywhere."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from panoptic_ext import Predictor, load_run_cfg, model_zoo
from panoptic_ext.download import sha256_of
from panoptic_ext.engine.earlier_results import weights_hash
from panoptic_ext.errors import CheckpointError, ConfigError, DatasetError
from panoptic_ext.model_zoo.entry import ZooEntry
from panoptic_ext.model_zoo.from_run import entry_from_run
from tests.tiny.finished_run import CATEGORIES
from tests.tiny.finished_run import NAME as DATA_SET

TERMS = {"licence": "MIT", "commercial_use": True, "source": "tests"}


def test_the_entry_describes_the_run(tiny_entry: ZooEntry, zoo_run: Path) -> None:
    folder = Path(tiny_entry.folder)
    assert sorted(p.name for p in folder.iterdir()) == [
        "config.yaml", "metadata.json", "tiny_street.pth", "tiny_street.yaml",
    ]  # fmt: skip
    assert (tiny_entry.task, tiny_entry.data_set) == ("panoptic", DATA_SET)
    assert [
        {"id": c.id, "name": c.name, "isthing": int(c.isthing), "color": list(c.color)}
        for c in tiny_entry.classes
    ] == CATEGORIES
    path = folder / "tiny_street.pth"
    assert (tiny_entry.sha256, tiny_entry.size) == (sha256_of(str(path)), path.stat().st_size)
    assert tiny_entry.input == {"format": "RGB", "min_size": 64, "max_size": 96}
    assert tiny_entry.figures == {}
    saved = torch.load(path, weights_only=True)
    assert list(saved) == ["model"], "without the state of the training"


def test_no_path_of_this_machine_is_published(tiny_entry: ZooEntry, zoo_run: Path) -> None:
    for name in ("config.yaml", "metadata.json", "tiny_street.yaml"):
        assert str(zoo_run.parent) not in Path(tiny_entry.folder, name).read_text()


def test_the_folder_may_be_moved_and_is_enough(
    tiny_entry: ZooEntry, tmp_path: Path, zoo_run: Path
) -> None:
    moved = tmp_path / "elsewhere"
    shutil.move(tiny_entry.folder, moved)
    model_zoo.add(moved)
    cfg = model_zoo.get_config("tiny_street")
    predictor = Predictor(cfg, weights=cfg.MODEL.WEIGHTS)
    assert predictor.metadata.thing_classes == ["disc", "grass", "sky"]
    image = torch.full((48, 64, 3), 90, dtype=torch.uint8)
    found, _ = predictor(image)["panoptic_seg"]
    expected, _ = Predictor(load_run_cfg(str(zoo_run)))(image)["panoptic_seg"]
    assert torch.equal(found, expected)


def test_figures_are_those_of_an_evaluation_of_the_same_weights(
    zoo_run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    copy = tmp_path / "run"
    shutil.copytree(zoo_run, copy)
    results = copy / "inference" / DATA_SET
    results.mkdir(parents=True)
    content = {"panoptic_seg": {"PQ": 12.3456, "SQ": 1}, "segm": {"AP": None}}
    (results / "results.json").write_text(json.dumps(content))
    weights = torch.load(copy / "model_final.pth", weights_only=True)["model"]
    for hash_, expected in ((weights_hash(weights), {"PQ": 12.35}), ("other", {})):
        (results / "evaluation.json").write_text(json.dumps({"weights": hash_}))
        entry = entry_from_run(str(copy), "x", str(tmp_path / hash_), **TERMS)
        assert entry.figures == expected
    assert "is of other weights: its figures are left out" in caplog.text


def test_what_cannot_become_an_entry(zoo_run: Path, tmp_path: Path, tiny_entry: ZooEntry) -> None:
    with pytest.raises(ConfigError, match=r"tiny_street\.yaml exists; choose another"):
        entry_from_run(str(zoo_run), "a/tiny_street", tiny_entry.folder, **TERMS)
    with pytest.raises(ConfigError, match=r"has no config\.yaml; expected the output folder"):
        entry_from_run(str(tmp_path), "x", str(tmp_path / "new"), **TERMS)
    unfinished = tmp_path / "unfinished"
    unfinished.mkdir()
    shutil.copy(zoo_run / "config.yaml", unfinished)
    with pytest.raises(DatasetError, match="metadata"):
        entry_from_run(str(unfinished), "x", str(tmp_path / "new"), **TERMS)
    shutil.copy(zoo_run / "metadata.json", unfinished)
    with pytest.raises(CheckpointError, match="has no checkpoint"):
        entry_from_run(str(unfinished), "x", str(tmp_path / "new"), **TERMS)
    with pytest.raises(ConfigError, match="the name 'a b' cannot be used"):
        entry_from_run(str(zoo_run), "a b", str(tmp_path / "new"), **TERMS)
    assert not (tmp_path / "new").exists(), "what fails leaves nothing"
