"""Runs of wandb and mlflow: values, config, pictures, resumed runs, and trackers that fail."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.config import CfgNode
from PIL import Image
from torch import nn

from panoptic_ext.config.loggers import check_loggers
from panoptic_ext.engine import trackers
from panoptic_ext.engine.trackers import Tracker, changed_values
from panoptic_ext.errors import ConfigError
from panoptic_ext.evaluation.build import result_folder
from tests.engine.test_trainer import lines
from tests.tiny.training import Killed, TinyTrainer, tiny_cfg


class Evaluated(TinyTrainer):
    """A trainer whose evaluation gives a PQ and a contact sheet."""

    @classmethod
    def test(cls, cfg: CfgNode, model: nn.Module, evaluators: Any = None) -> dict[str, Any]:
        folder = Path(result_folder(cfg, "tiny"))
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(folder / "contact_sheet.png")
        return {"panoptic_seg": {"PQ": 42.5}}


def train(folder: Path, loggers: list[str], *, resume: bool = False, kill_at: int = -1) -> None:
    cfg = tiny_cfg(folder, MAX_ITER=45, CHECKPOINT_PERIOD=10)
    cfg.LOGGERS, cfg.DATASETS.TEST, cfg.TEST.EVAL_PERIOD = loggers, ("tiny",), 30
    torch.manual_seed(cfg.SEED)
    trainer = Evaluated(cfg)
    trainer.kill_at = kill_at
    trainer.resume_or_load(resume=resume)
    if kill_at < 0:
        trainer.train()
        return
    with pytest.raises(Killed):
        trainer.train()


def train_in_parts(folder: Path, loggers: list[str]) -> None:
    train(folder, loggers, kill_at=35)
    train(folder, loggers, resume=True)


def test_mlflow_has_what_metrics_json_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow", reason="pip install 'panoptic_ext[mlflow]'")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    for name in ("MLFLOW_ALLOW_FILE_STORE", "MLFLOW_HTTP_REQUEST_MAX_RETRIES"):
        monkeypatch.setenv(name, os.environ.get(name, "true" if "STORE" in name else "2"))
    train_in_parts(tmp_path, ["json", "mlflow"])
    client = mlflow.MlflowClient(tracking_uri=(tmp_path / "mlruns").as_uri())
    experiment = client.get_experiment_by_name("panoptic_ext")
    (run,) = client.search_runs([experiment.experiment_id])  # one run, which was resumed
    assert run.info.status == "FINISHED" and run.info.run_name == tmp_path.name
    assert run.data.params["SOLVER.MAX_ITER"] == "45"
    for row in lines(tmp_path):
        if "total_loss" in row:
            history = client.get_metric_history(run.info.run_id, "total_loss")
            values = {metric.step: metric.value for metric in history}
            assert values[row["iteration"]] == row["total_loss"]
    assert {m.value for m in client.get_metric_history(run.info.run_id, "panoptic_seg/PQ")} == {
        42.5
    }
    sheets = tmp_path / "mlruns" / experiment.experiment_id / run.info.run_id / "artifacts"
    assert {path.parent.name for path in sheets.rglob("contact_sheet.png")} == {"29", "45"}
    assert "MAX_ITER: 45" in (sheets / "config.yaml").read_text()


def test_wandb_offline_goes_on_in_the_same_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb", reason="pip install 'panoptic_ext[wandb]'")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    train_in_parts(tmp_path, ["json", "wandb"])
    folders = sorted((tmp_path / "wandb").glob("offline-run-*"))
    ids = {folder.name.rsplit("-", 1)[1] for folder in folders}
    assert len(ids) == 1 and len(folders) >= 1
    content = b"".join(file.read_bytes() for f in folders for file in f.glob("*.wandb"))
    for word in (
        b"total_loss",
        b"panoptic_seg/PQ",
        b"contact_sheet/tiny",
        b"MAX_ITER",
        b"iteration",
    ):
        assert word in content
    assert len(list((tmp_path / "wandb").rglob("contact_sheet/*.png"))) == 2


def test_mlflow_gets_metrics_of_any_classes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One name that it refuses would cost the row of an evaluation all its values."""
    mlflow = pytest.importorskip("mlflow", reason="pip install 'panoptic_ext[mlflow]'")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    monkeypatch.setattr(trackers, "_MAX_METRICS", 2)
    writer = trackers.MlflowWriter(tiny_cfg(tmp_path), 0)
    names = {
        "panoptic_seg/PQ": "panoptic_seg/PQ",
        "sem_seg/IoU-door;double door": "sem_seg/IoU-door_double door",
        "sem_seg/IoU-chest of drawers, chest": "sem_seg/IoU-chest of drawers_ chest",
        "sem_seg/IoU-a//../b (c)": "sem_seg/IoU-a/b _c_",
        f"segm/AP-{'x' * 300}": f"segm/AP-{'x' * 242}",
    }
    writer._log(3, {name: float(i) for i, name in enumerate(names)})
    client = mlflow.MlflowClient(tracking_uri=(tmp_path / "mlruns").as_uri())
    found = client.get_run(writer._run_id).data.metrics
    assert found == {name: float(i) for i, name in enumerate(names.values())}


def test_a_tracker_that_fails_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("mlflow", reason="pip install 'panoptic_ext[mlflow]'")

    class Failing(trackers.MlflowWriter):
        def _log(self, iteration: int, values: dict[str, float]) -> None:
            raise ConnectionError("the server\nis gone")

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr("panoptic_ext.engine.writers._TRACKERS", {"mlflow": Failing})
    monkeypatch.setattr(trackers, "_NUM_FAILURES", 2)
    train(tmp_path / "failing", ["json", "mlflow"])
    texts = [r.getMessage() for r in caplog.records if r.name == trackers.__name__]
    assert texts.count("mlflow could not be written: ConnectionError: the server") == 2
    assert texts[-1] == "mlflow is left out from now on"
    train(tmp_path / "plain", ["json"])
    assert lines(tmp_path / "failing") == lines(tmp_path / "plain")


def test_wandb_that_cannot_go_online_is_offline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    wandb = pytest.importorskip("wandb", reason="pip install 'panoptic_ext[wandb]'")
    init = wandb.init

    def without_network(**options: Any) -> Any:
        if options["mode"] != "offline":
            raise wandb.errors.CommError("no route to host")
        return init(**options)

    monkeypatch.setattr(wandb, "init", without_network)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv("WANDB_SILENT", "true")
    with caplog.at_level(logging.WARNING, trackers.__name__):
        train(tmp_path, ["wandb"])
    assert "wandb cannot go online (no route to host): the run is offline" in caplog.text
    assert len(list((tmp_path / "wandb").glob("offline-run-*/*.wandb"))) == 1


def test_wandb_that_fails_offline_does_not_blame_the_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    wandb = pytest.importorskip("wandb", reason="pip install 'panoptic_ext[wandb]'")

    def on_a_full_disk(**_: Any) -> Any:
        raise OSError("no space left")

    monkeypatch.setattr(wandb, "init", on_a_full_disk)
    cfg = tiny_cfg(tmp_path)
    cfg.WANDB.MODE = "offline"
    with caplog.at_level(logging.WARNING, trackers.__name__):
        trackers.WandbWriter(cfg, 0)
    texts = [r.getMessage() for r in caplog.records if r.name == trackers.__name__]
    assert texts == ["wandb could not be written: OSError: no space left"]


@pytest.mark.parametrize("package", ["wandb", "mlflow"])
def test_a_logger_without_its_package_is_refused_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    monkeypatch.setitem(__import__("sys").modules, package, None)
    with pytest.raises(ConfigError, match=rf"LOGGERS {package} needs .*panoptic_ext\[{package}\]"):
        train(tmp_path, ["json", package])
    assert not (tmp_path / "metrics.json").exists()


def test_an_unknown_logger_is_refused(tmp_path: Path) -> None:
    cfg = tiny_cfg(tmp_path)
    cfg.LOGGERS = ["console", "tensorbord"]
    with pytest.raises(ConfigError, match=r"tensorbord.*tensorboard"):
        check_loggers(cfg)
    cfg.LOGGERS = "json"
    with pytest.raises(ConfigError, match=r"write \['json'\]"):
        check_loggers(cfg)


def test_the_values_that_a_config_changes(tmp_path: Path) -> None:
    changed = changed_values(tiny_cfg(tmp_path))
    assert changed["SOLVER.MAX_ITER"] == 12 and changed["SEED"] == 3
    assert "SOLVER.GAMMA" not in changed and "DATASETS.SHAPES.SEED" not in changed


def test_ids_that_cannot_be_read_begin_a_new_run(tmp_path: Path) -> None:
    (tmp_path / "trackers.json").write_text("{")
    assert trackers._read_ids(str(tmp_path)) == {} and issubclass(trackers.WandbWriter, Tracker)
