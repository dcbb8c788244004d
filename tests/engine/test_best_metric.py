"""TEST.BEST_METRIC and TEST.EARLY_STOPPING: names of metrics; a stalled training ends."""

from __future__ import annotations

import json
import logging
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from panoptic_ext.data import register_panoptic
from panoptic_ext.engine.best_metric import BestMetric, evaluator_metrics, standing
from panoptic_ext.engine.run_config import load_cfg
from panoptic_ext.engine.trainer import Trainer
from panoptic_ext.errors import CheckpointError, ConfigError
from tests.tiny.measured_training import METRIC, MeasuredTrainer, cfg_of, load, trainer_of
from tests.tiny.panoptic_dataset import TinyDataset
from tests.tiny.training import Killed, TinyTrainer

VALUE = st.one_of(st.floats(-5, 5, width=16), st.just(math.nan))


@settings(max_examples=60, deadline=None)
@given(values=st.lists(VALUE, max_size=9), lower=st.booleans(), delta=st.sampled_from([0.0, 0.5]))
def test_standing_equals_a_naive_loop(values: list[float], lower: bool, delta: float) -> None:
    best: tuple[int | None, float] = (None, math.nan)
    reference, waited = math.nan, 0
    for i, value in enumerate(values):
        if math.isnan(value):
            waited += 1
            continue
        if best[0] is None or (value < best[1] if lower else value > best[1]):
            best = (i, value)
        gain = reference - value if lower else value - reference
        if math.isnan(reference) or gain > delta:
            reference, waited = value, 0
        else:
            waited += 1
    found = standing(enumerate(values), lower=lower, min_delta=delta)
    assert (found.iteration, found.waited) == (best[0], waited)
    assert best[0] is None or found.value == best[1]


def test_a_stalled_training_ends(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    logging.getLogger("panoptic_ext").propagate = True
    caplog.set_level(logging.INFO)
    trainer = trainer_of(cfg_of(tmp_path, patience=2, min_delta=1), [10, 12, 12.5, 13, 99])
    trainer.train()
    assert MeasuredTrainer.evaluated == [1, 3, 5, 7] and len(trainer.losses) == 8
    assert (
        "Training ends after iteration 7: 2 evaluations in a row brought panoptic_seg/PQ no "
        "improvement of more than 1 (TEST.EARLY_STOPPING). The best is 13 after iteration 7, in "
        "model_best.pth; model_final.pth has the last"
    ) in caplog.text
    assert load(tmp_path / "model_final.pth")["iteration"] == 7
    assert load(tmp_path / "model_best.pth")["iteration"] == 7
    again = trainer_of(trainer.cfg, [10, 12, 12.5, 13, 99], resume=True)
    again.train()
    assert MeasuredTrainer.evaluated == [] and again.losses == []
    patient = trainer_of(
        cfg_of(tmp_path, patience=3, min_delta=1), [0, 0, 0, 0, 99, 0], resume=True
    )
    patient.train()
    assert len(patient.losses) == 4 and patient.best.standing == (9, 99, 1)


def test_killed_between_the_last_evaluation_and_the_end(tmp_path: Path) -> None:
    cfg = cfg_of(tmp_path, patience=1)
    first = trainer_of(cfg, [5, 4, 9])

    def killed(*_: Any) -> None:
        raise Killed

    first.after_train = killed
    with pytest.raises(Killed):
        first.train()
    (tmp_path / "last_checkpoint").write_text("model_0000003.pth")
    (tmp_path / "model_final.pth").unlink()
    second = trainer_of(cfg, [5, 4, 9], resume=True)
    second.train()
    assert second.losses == [] and load(tmp_path / "model_final.pth")["iteration"] == 3
    assert second.best.why().startswith("1 evaluation brought panoptic_seg/PQ no improvement")


def test_an_unknown_metric_loses_nothing(tmp_path: Path) -> None:
    cfg = cfg_of(tmp_path, MAX_ITER=6)
    cfg.SOLVER.CHECKPOINT_PERIOD = 6
    cfg.TEST.BEST_METRIC = "panoptic_seg/QP"
    with pytest.raises(ConfigError, match=r"TEST.BEST_METRIC 'panoptic_seg/QP'; did you mean 'pan"):
        trainer_of(cfg, [1, 2, 3]).train()
    assert load(tmp_path / "model_0000001.pth")["iteration"] == 1
    cfg.TEST.BEST_METRIC = METRIC
    mended = trainer_of(cfg, [1, 2, 3], resume=True)
    mended.train()
    assert mended.best.standing == (5, 3, 0) and MeasuredTrainer.evaluated == [1, 3, 5]


def test_losses_of_the_training_are_metrics_of_which_less_is_better(tmp_path: Path) -> None:
    cfg = cfg_of(tmp_path)
    cfg.TEST.BEST_METRIC = "total_loss"
    trainer = trainer_of(cfg, [0] * 6)
    trainer.train()
    rows = [json.loads(line) for line in (tmp_path / "metrics.json").read_text().splitlines()]
    at_end = next(row["total_loss"] for row in rows if row["iteration"] == 11)
    content = json.loads((tmp_path / "best_metric.json").read_text())
    assert content["evaluations"][-1] == [11, at_end]
    assert content["best"]["value"] == min(value for _, value in content["evaluations"])


def test_another_metric_is_looked_for_anew(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    logging.getLogger("panoptic_ext").propagate = True
    metric = BestMetric("a/PQ", folder=str(tmp_path))
    metric.add(3, {"a": {"PQ": 4}}, {})
    metric.write()
    other = BestMetric("a/SQ", folder=str(tmp_path))
    other.load_state_dict(metric.state_dict(), 3)
    assert not other.has(3) and "TEST.BEST_METRIC was a/PQ and is a/SQ" in caplog.text
    (tmp_path / "best_metric.json").write_text("{}")
    same = BestMetric("a/PQ", folder=str(tmp_path))
    same.load_state_dict(metric.state_dict(), 3)
    assert same.has(3) and "is left aside" in caplog.text
    same.load_state_dict(metric.state_dict(), 2)
    assert not same.has(3)


def test_a_damaged_state_is_refused(tmp_path: Path) -> None:
    cfg = cfg_of(tmp_path)
    trainer_of(cfg, [1] * 6).train()
    content = load(tmp_path / "model_final.pth")
    content["trainer"]["best_metric"]["evaluations"][0] = [1, "much"]
    torch.save(content, tmp_path / "model_final.pth")
    with pytest.raises(CheckpointError, match=r"best_metric.evaluations has \[1, 'much'\], expect"):
        trainer_of(cfg, [1] * 6, resume=True)


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (["TEST.BEST_METRIC", "a/PQ"], "DATASETS.TEST is empty"),
        (["TEST.EARLY_STOPPING.PATIENCE", "2"], "TEST.BEST_METRIC is empty: name the metric"),
        (["TEST.EARLY_STOPPING.MIN_DELTA", "-1.0"], "expected at least 0"),
    ],
)
def test_keys_that_contradict_each_other(opts: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_cfg("", opts, use_data=False)


def test_patience_needs_evaluations(tmp_path: Path) -> None:
    cfg = cfg_of(tmp_path, patience=2)
    cfg.TEST.EVAL_PERIOD = 0
    with pytest.raises(ConfigError, match=r"TEST.EVAL_PERIOD is 0: set it"):
        trainer_of(cfg, [])


def test_a_metric_that_does_not_exist_is_an_error_before_the_training(
    tmp_path: Path, clean_catalogs: None
) -> None:
    data = TinyDataset(tmp_path / "data")
    register_panoptic("tiny", data.json, data.images, data.pngs)
    cfg = cfg_of(tmp_path)
    cfg.DATASETS.TEST = ["tiny"]
    for name, message in (
        ("panoptic/PQ", r"did you mean 'panoptic_seg/PQ'"),
        ("panoptic_seg/PQx", r"did you mean 'panoptic_seg/PQ'.*losses of the training are metrics"),
        ("sem_seg/IoU-roads", r"did you mean 'sem_seg/IoU-road'"),
        ("segm/AP-gloss", r"did you mean 'segm/AP"),
    ):
        cfg.TEST.BEST_METRIC = name
        with pytest.raises(ConfigError, match=message):
            Trainer.__init__(Trainer.__new__(PlainTrainer), cfg)
    for name in ("sem_seg/IoU-road", "segm/AP-car", "bbox/APl", "panoptic_seg/RQ_st"):
        cfg.TEST.BEST_METRIC = name
        assert name in evaluator_metrics(cfg)
    cfg.TEST.BEST_METRIC = "loss_mask"  # known after a step alone
    assert evaluator_metrics(cfg) == ()


def test_metrics_of_several_data_sets_and_of_others(tmp_path: Path) -> None:
    cfg = cfg_of(tmp_path)
    cfg.DATASETS.TEST = ["a", "b"]
    with pytest.raises(ConfigError, match=r"known: a/panoptic_seg/PQ, "):
        evaluator_metrics(cfg)
    cfg.TEST.BEST_METRIC = "b/panoptic_seg/PQ_th"
    assert evaluator_metrics(cfg)[0] == "b/panoptic_seg/PQ"
    # Data sets that are not registered have classes that are not known.
    cfg.TEST.BEST_METRIC = "b/sem_seg/IoU-any"
    assert evaluator_metrics(cfg) == ()


def test_a_model_that_predicts_nothing_yet_has_no_value() -> None:
    """COCO's evaluation then gives the AP of boxes alone, NaN."""
    metric = BestMetric("segm/AP", beside=("segm/AP", "bbox/AP"))
    assert not metric.add(1, {"bbox": {"AP": math.nan}}, {})
    assert metric.add(3, {"bbox": {"AP": 1.0}, "segm": {"AP": 2.0}}, {})
    with pytest.raises(ConfigError, match=r"unknown TEST.BEST_METRIC 'segm/AP'"):
        metric.add(5, {"bbox": {"AP": 1.0}}, {})  # a model without masks


def test_a_class_may_be_called_glossy() -> None:
    for name in ("sem_seg/IoU-glossy", "val/total_error"):
        metric = BestMetric(name)
        block, own = name.split("/")
        metric.add(1, {block: {own: 5.0}}, {})
        metric.add(3, {block: {own: 7.0}}, {})
        assert metric.standing.iteration == (3 if "glossy" in name else 1)


class PlainTrainer(Trainer):
    """The trainer on the tiny data, with its own evaluators."""

    build_train_loader = TinyTrainer.build_train_loader
