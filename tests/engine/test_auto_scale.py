"""SOLVER.AUTO_SCALE: the same passes over the data with another batch, and nothing scaled twice."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from detectron2.config import CfgNode
from hypothesis import given, settings
from hypothesis import strategies as st

from panoptic_ext.config.yaml_reader import read_file, read_opts
from panoptic_ext.engine import auto_scale
from panoptic_ext.engine.auto_scale import scaled_solver, scaled_to_workers, set_reference_batch
from panoptic_ext.engine.run_config import load_cfg
from panoptic_ext.errors import ConfigError
from tests import ROOT
from tests.tiny.training import tiny_cfg, tiny_records

SHAPES = str(ROOT / "configs/shapes/panoptic_fpn/panoptic_fpn_R18_shapes.yaml")


def recipe(*, batch: int = 16, optimizer: str = "SGD", **scale: float) -> CfgNode:
    """A recipe for batches of 16 and 1000 images, with another batch."""
    cfg = tiny_cfg("out", IMS_PER_BATCH=batch, MAX_ITER=1000, BASE_LR=0.02, OPTIMIZER=optimizer)
    cfg.SOLVER.WARMUP_ITERS, cfg.SOLVER.STEPS = 100, (600, 800)
    cfg.SOLVER.CHECKPOINT_PERIOD, cfg.TEST.EVAL_PERIOD = 500, 250
    cfg.SOLVER.AUTO_SCALE.ENABLED, cfg.SOLVER.AUTO_SCALE.REFERENCE_BATCH_SIZE = True, 16
    for name, value in scale.items():
        cfg.SOLVER.AUTO_SCALE[name] = value
    return cfg


def lengths(cfg: CfgNode) -> tuple[int, ...]:
    solver = cfg.SOLVER
    return (
        solver.MAX_ITER,
        solver.WARMUP_ITERS,
        *solver.STEPS,
        solver.CHECKPOINT_PERIOD,
        cfg.TEST.EVAL_PERIOD,
    )


@pytest.mark.parametrize(("optimizer", "rate"), [("SGD", 0.005), ("ADAMW", 0.01)])
def test_a_quarter_of_the_batch(
    optimizer: str, rate: float, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "panoptic_ext.engine.auto_scale"):
        cfg = scaled_solver(recipe(batch=4, optimizer=optimizer), None)
    assert pytest.approx(rate) == cfg.SOLVER.BASE_LR
    assert lengths(cfg) == (4000, 400, 2400, 3200, 2000, 1000)
    (record,) = caplog.records
    assert record.getMessage().startswith(
        f"SOLVER.AUTO_SCALE: batch 4 instead of 16: BASE_LR 0.02 becomes {rate:g} ("
    )
    assert "MAX_ITER 1000 becomes 4000" in record.getMessage()


def test_fewer_images_and_a_smaller_batch(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "panoptic_ext.engine.auto_scale"):
        cfg = scaled_solver(recipe(batch=4, REFERENCE_IMAGES=1000), 128)
    assert lengths(cfg) == (512, 51, 307, 410, 256, 128)
    assert "128 images instead of 1000, batch 4 instead of 16: " in caplog.text


def test_passes_over_the_data_set(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "panoptic_ext.engine.auto_scale"):
        cfg = scaled_solver(recipe(EPOCHS=50), 128)
    assert lengths(cfg) == (400, 40, 240, 320, 200, 100)
    assert cfg.SOLVER.BASE_LR == 0.02
    assert "SOLVER.AUTO_SCALE: 128 images, 50 passes, batch 16: MAX_ITER 1000" in caplog.text


def test_the_end_of_the_cosine_curve_keeps_its_ratio() -> None:
    cfg = recipe(batch=4)
    cfg.SOLVER.BASE_LR_END = 0.002  # a key of Detectron2 main
    assert pytest.approx(0.0005) == scaled_solver(cfg, None).SOLVER.BASE_LR_END
    assert cfg.SOLVER.BASE_LR_END == 0.002  # the argument is not changed


def test_passes_over_a_random_subset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auto_scale, "train_records", lambda _: tiny_records(640))
    cfg = recipe(EPOCHS=10)
    cfg.DATALOADER.RANDOM_SUBSET_RATIO = 0.25
    assert auto_scale.auto_scaled(cfg).SOLVER.MAX_ITER == 400  # TrainingSampler has no subset
    cfg.DATALOADER.SAMPLER_TRAIN = "RandomSubsetTrainingSampler"
    assert auto_scale.auto_scaled(cfg).SOLVER.MAX_ITER == 100


def test_masks_of_eomt_vanish_in_proportion() -> None:
    cfg = recipe(batch=8)
    cfg.MODEL.EOMT.ANNEALING, cfg.MODEL.EOMT.ANNEALING_FIRST = [[10, 20], [30, 45]], [5, 10]
    eomt = scaled_solver(cfg, None).MODEL.EOMT
    assert (eomt.ANNEALING, eomt.ANNEALING_FIRST) == ([[20, 40], [60, 90]], [10, 20])
    assert cfg.MODEL.EOMT.ANNEALING == [[10, 20], [30, 45]]  # the argument is not changed


@settings(max_examples=20)
@given(
    batch=st.integers(1, 100),
    images=st.integers(1, 10**6),
    epochs=st.sampled_from([0.0, 0.5, 12.0]),
    optimizer=st.sampled_from(["SGD", "ADAMW"]),
)
def test_a_scaled_config_is_not_scaled_again(
    batch: int, images: int, epochs: float, optimizer: str
) -> None:
    cfg = recipe(batch=batch, optimizer=optimizer, REFERENCE_IMAGES=1000, EPOCHS=epochs)
    once = scaled_solver(cfg, images)
    again = scaled_solver(once, images)
    assert (again.SOLVER, again.TEST) == (once.SOLVER, once.TEST)
    steps = list(once.SOLVER.STEPS)
    assert steps == sorted(set(steps)) and min(lengths(once)) >= 1


def test_scaling_by_workers_is_not_repeated() -> None:
    cfg = recipe(batch=8)
    cfg.SOLVER.REFERENCE_WORLD_SIZE = 4
    cfg.freeze()
    one = scaled_to_workers(scaled_solver(cfg, None), 1)
    # To 8 images for 4 workers, and from there to 2 for one: an eighth of the batch in all.
    assert (one.SOLVER.IMS_PER_BATCH, one.SOLVER.MAX_ITER) == (2, 8000)
    assert pytest.approx(0.02 / 8) == one.SOLVER.BASE_LR and one.is_frozen()
    assert scaled_to_workers(scaled_solver(one, None), 1).dump() == one.dump()


def test_the_reference_is_the_batch_of_the_recipe(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("SOLVER: {IMS_PER_BATCH: 8, BASE_LR: 0.01}")
    mine = tmp_path / "mine.yaml"
    mine.write_text("_BASE_: base.yaml\nSOLVER: {IMS_PER_BATCH: 2}")
    own_rate = tmp_path / "own_rate.yaml"
    own_rate.write_text("_BASE_: base.yaml\nSOLVER: {BASE_LR: 0.1, IMS_PER_BATCH: 2}")
    longer = tmp_path / "longer.yaml"
    longer.write_text("_BASE_: base.yaml\nSOLVER: {MAX_ITER: 9, IMS_PER_BATCH: 2}")
    user = tmp_path / "user.yaml"  # of a base that changes the batch of its own base, and no more
    user.write_text("_BASE_: mine.yaml\nSOLVER: {IMS_PER_BATCH: 6}")
    for file, opts, expected in (
        (mine, [], 8),
        (user, [], 2),
        (user, ["SOLVER.IMS_PER_BATCH", "4"], 2),
        (mine, ["SOLVER.IMS_PER_BATCH", "4"], 8),
        (mine, ["SOLVER.IMS_PER_BATCH", "4", "SOLVER.BASE_LR", "0.5"], 8),
        (longer, ["SOLVER.IMS_PER_BATCH", "4"], 2),
        (own_rate, ["SOLVER.IMS_PER_BATCH", "4"], 2),
        (None, ["SOLVER.IMS_PER_BATCH", "4"], 16),
    ):
        cfg = tiny_cfg(tmp_path)
        cfg.SOLVER.AUTO_SCALE.ENABLED = True
        given_values = [*(read_file(str(file)) if file else []), *read_opts(opts)]
        set_reference_batch(cfg, given_values)
        assert expected == cfg.SOLVER.AUTO_SCALE.REFERENCE_BATCH_SIZE


def test_a_config_that_is_read_has_its_reference(tmp_path: Path) -> None:
    opts = ["DATASETS.SHAPES.CACHE", str(tmp_path), "DATASETS.SHAPES.NUM_TRAIN", "2"]
    opts += ["DATASETS.SHAPES.NUM_VAL", "1", "SOLVER.IMS_PER_BATCH", "3"]
    plain = load_cfg(SHAPES, opts)
    assert plain.SOLVER.AUTO_SCALE.REFERENCE_BATCH_SIZE == 0
    cfg = load_cfg(SHAPES, [*opts, "SOLVER.AUTO_SCALE.ENABLED", "True"])
    assert cfg.SOLVER.AUTO_SCALE.REFERENCE_BATCH_SIZE == load_cfg(SHAPES).SOLVER.IMS_PER_BATCH
    with pytest.raises(ConfigError, match=r"AUTO_SCALE.EPOCHS = -1.0, expected at least 0"):
        load_cfg(SHAPES, [*opts, "SOLVER.AUTO_SCALE.EPOCHS", "-1"])
