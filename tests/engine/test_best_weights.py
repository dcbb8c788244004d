"""model_best.pth: the weights of the best evaluation, of a run that is killed and resumed, too."""

from __future__ import annotations

import json
import logging
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.config import CfgNode
from torch import nn

from panoptic_ext.engine.checkpoint.checkpointer import Checkpointer
from panoptic_ext.prediction.predictor import find_weights
from tests.tiny.measured_training import METRIC, MeasuredTrainer, cfg_of, load, trainer_of
from tests.tiny.training import Killed


def test_the_best_weights_are_kept(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    logging.getLogger("panoptic_ext").propagate = True
    caplog.set_level(logging.INFO)
    trainer = trainer_of(cfg_of(tmp_path), [10, 30, 20, math.nan, 30, 25])
    trainer.train()
    assert trainer.best.standing[:2] == (3, 30)
    assert "panoptic_seg/PQ is 30 after iteration 3; the best is 30 after" in caplog.text
    best, then = load(tmp_path / "model_best.pth"), load(tmp_path / "model_0000003.pth")
    assert best["iteration"] == 3 and best["evaluation"] == {METRIC: 30.0, "panoptic_seg/SQ": 1.0}
    assert all(torch.equal(best["model"][k], v) for k, v in then["model"].items())
    assert "trainer" not in best
    content = json.loads((tmp_path / "best_metric.json").read_text())
    assert content["best"] == {"iteration": 3, "value": 30.0}
    # Runs go on from the last checkpoint, and predictions take the best one.
    assert (tmp_path / "last_checkpoint").read_text() == "model_final.pth"
    assert find_weights(trainer.cfg) == str(tmp_path / "model_best.pth")
    reader = Checkpointer(nn.Identity(), str(tmp_path), save_to_disk=False)
    assert reader.get_checkpoint_file() == str(tmp_path / "model_final.pth")


def test_the_best_weights_are_averages(tmp_path: Path) -> None:
    cfg = cfg_of(tmp_path)
    cfg.SOLVER.EMA.ENABLED = True
    trainer_of(cfg, [1, 2, 3, 4, 5, 6]).train()
    best, final = load(tmp_path / "model_best.pth"), load(tmp_path / "model_final.pth")
    assert all(torch.equal(best["model"][k], v) for k, v in final["model"].items())
    trained = final["trainer"]["weight_average"]["trained"]["head.weight"]
    assert not torch.equal(best["model"]["head.weight"], trained)


def test_killed_in_an_evaluation_and_resumed_equals_uninterrupted(tmp_path: Path) -> None:
    values = [3.0, 5.0, 4.0, 4.5, 6.0, 1.0]
    whole = trainer_of(cfg_of(tmp_path / "whole", patience=3), values)
    whole.train()
    evaluated = MeasuredTrainer.evaluated
    cfg = cfg_of(tmp_path / "parts", patience=3)
    with pytest.raises(Killed):
        trainer_of(cfg, values, killed_in_evaluation=5).train()
    before = MeasuredTrainer.evaluated
    second = trainer_of(cfg, values, resume=True)
    second.train()
    assert before + MeasuredTrainer.evaluated == evaluated
    assert second.losses == whole.losses[second.start_iter :]
    assert second.best.standing == whole.best.standing
    for name in ("model_best.pth", "model_final.pth"):
        ends = [load(tmp_path / folder / name) for folder in ("parts", "whole")]
        assert ends[0]["iteration"] == ends[1]["iteration"]
        assert all(torch.equal(ends[0]["model"][k], v) for k, v in ends[1]["model"].items())
    texts = [(tmp_path / f / "best_metric.json").read_text() for f in ("parts", "whole")]
    assert texts[0] == texts[1]


def test_killed_before_the_best_weights_are_written(tmp_path: Path) -> None:
    values = [3, 5, 4, 4, 4, 4]
    first = trainer_of(cfg_of(tmp_path), values)
    save_weights = first.checkpointer.save_weights

    def killed_at_the_second(*args: Any, iteration: int, **kwargs: Any) -> None:
        if iteration == 3:
            raise Killed
        save_weights(*args, iteration=iteration, **kwargs)

    first.checkpointer.save_weights = killed_at_the_second
    with pytest.raises(Killed):
        first.train()
    trainer_of(first.cfg, values, resume=True).train()
    assert load(tmp_path / "model_best.pth")["iteration"] == 3


def test_a_resumed_run_that_evaluates_otherwise(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As on a device that is not deterministic: the best evaluation of the first run is none."""
    logging.getLogger("panoptic_ext").propagate = True
    caplog.set_level(logging.INFO)
    values = [5, 4, 3, 2, 1, 1]
    trainer_of(cfg_of(tmp_path / "whole", CHECKPOINT_PERIOD=3), values).train()
    cfg = cfg_of(tmp_path / "parts", CHECKPOINT_PERIOD=3)
    with pytest.raises(Killed):
        trainer_of(cfg, [5, 8, 9], kill_at=5).train()
    folder = Path(cfg.OUTPUT_DIR)
    assert load(folder / "model_best.pth")["iteration"] == 3
    second = trainer_of(cfg, values, resume=True)
    assert "model_best.pth was of iteration 3; it has the weights of iteration 1" in caplog.text
    assert json.loads((folder / "best_metric.json").read_text())["evaluations"] == [[1, 5]]
    second.train()
    ends = [load(tmp_path / name / "model_best.pth") for name in ("parts", "whole")]
    assert ends[0]["iteration"] == ends[1]["iteration"] == 1
    assert ends[0]["evaluation"] == ends[1]["evaluation"]
    assert all(torch.equal(ends[0]["model"][k], v) for k, v in ends[1]["model"].items())
    texts = [(tmp_path / name / "best_metric.json").read_text() for name in ("parts", "whole")]
    assert texts[0] == texts[1]
    assert not (folder / "model_best_before.pth").exists()


def test_best_weights_that_only_a_checkpoint_has(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    logging.getLogger("panoptic_ext").propagate = True
    cfg = cfg_of(tmp_path, MAX_ITER=8)
    trainer_of(cfg, [5, 9, 3, 2]).train()
    (tmp_path / "last_checkpoint").write_text("model_0000005.pth")
    expected = load(tmp_path / "model_best.pth")
    (tmp_path / "model_best.pth").unlink()
    trainer_of(cfg, [], resume=True)
    mended = load(tmp_path / "model_best.pth")
    assert mended["iteration"] == 3 and mended["evaluation"] == {METRIC: 9}
    assert all(torch.equal(mended["model"][k], v) for k, v in expected["model"].items())
    for name in ("model_best.pth", "model_0000003.pth"):
        (tmp_path / name).unlink()
    last = trainer_of(cfg, [0, 0, 0, 1], resume=True)
    assert "of iteration 3, are not there any more: the best evaluation is" in caplog.text
    assert not (tmp_path / "best_metric.json").exists()
    last.train()
    assert last.best.standing[:2] == (7, 1) and load(tmp_path / "model_best.pth")["iteration"] == 7


def test_a_run_without_a_checkpoint_has_no_best_evaluation(tmp_path: Path) -> None:
    cfg = cfg_of(tmp_path, CHECKPOINT_PERIOD=9)
    with pytest.raises(Killed):
        trainer_of(cfg, [1, 2, 3], kill_at=5).train()
    assert (tmp_path / "model_best.pth").exists()
    trainer_of(cfg, [], resume=True)
    assert not [*tmp_path.glob("*best*")]


def test_a_new_run_leaves_the_old_best_aside(tmp_path: Path) -> None:
    trainer_of(cfg_of(tmp_path), [9, 8, 7, 6, 5, 4]).train()
    trainer_of(cfg_of(tmp_path), [1] * 6)
    (old,) = tmp_path.glob("previous-*")
    assert {"model_best.pth", "best_metric.json"} < {path.name for path in old.iterdir()}
    assert not (tmp_path / "model_best.pth").exists()


def test_all_of_the_kit_is_resumed(tmp_path: Path) -> None:
    """Accumulation, average, best evaluation and patience together, killed twice."""
    values = [3.0, 5.0, 4.0, 4.5, 4.2, 1.0]

    def cfg_in(folder: str) -> CfgNode:
        cfg = cfg_of(tmp_path / folder, patience=3, ACCUMULATION_STEPS=2)
        cfg.SOLVER.CHECKPOINT_PERIOD = 3
        cfg.SOLVER.EMA.ENABLED = True
        return cfg

    whole = trainer_of(cfg_in("whole"), values)
    whole.train()
    assert len(whole.losses) == 10  # of 12
    for kill_at in (4, 9):
        with pytest.raises(Killed):
            trainer_of(cfg_in("parts"), values, resume=True, kill_at=kill_at).train()
        torch.rand(17)
    second = trainer_of(cfg_in("parts"), values, resume=True)
    second.train()
    assert second.losses == whole.losses[second.start_iter :]
    assert second.best.standing == whole.best.standing == (3, 5, 3)
    for name in ("model_final.pth", "model_best.pth"):
        ends = [load(tmp_path / folder / name) for folder in ("parts", "whole")]
        assert all(torch.equal(ends[0]["model"][k], v) for k, v in ends[1]["model"].items())
    states = [load(tmp_path / f / "model_final.pth")["trainer"] for f in ("parts", "whole")]
    averages = [state["weight_average"] for state in states]
    assert averages[0]["updates"] == averages[1]["updates"] == 10
    for name, value in averages[1]["trained"].items():
        assert torch.equal(averages[0]["trained"][name], value)
    assert states[0]["best_metric"] == states[1]["best_metric"]
