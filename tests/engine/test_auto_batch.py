"""SOLVER.AUTO_BATCH_SIZE: the search, with a memory that the tests make up, and the real one."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.utils import comm
from hypothesis import given
from hypothesis import strategies as st

from panoptic_ext.engine import auto_batch
from panoptic_ext.engine.auto_batch import TrialSteps, largest_fitting, with_fitting_batch
from panoptic_ext.engine.auto_scale import auto_scaled
from panoptic_ext.engine.run_config import load_cfg
from panoptic_ext.errors import ConfigError
from tests.tiny.train_in_process import train
from tests.tiny.training import TinyTrainer, tiny_cfg, tiny_mapper, tiny_records

SIZES = sorted({n for i in range(9) for n in (2**i, 3 * 2**i) if n <= 256})


@given(st.integers(0, 300), st.integers(1, 256))
def test_the_largest_batch_is_found_in_few_trials(room: int, most: int) -> None:
    trials: list[int] = []

    def fits(number: int) -> bool:
        trials.append(number)
        return number <= room

    allowed = [size for size in SIZES if size <= min(room, most)]
    assert largest_fitting(fits, most) == max(allowed, default=0)
    assert len(trials) <= 10 and sum(number > room for number in trials) <= 2


class FakeMemory:
    """A GPU in which an image needs a twentieth, and the model with its optimizer a tenth."""

    def __init__(self) -> None:
        self.peak = 0.0
        self.steps: list[int] = []

    def make_step(self, batch: list[dict[str, Any]]) -> Any:
        memory = self

        class Step:
            def run_step(self) -> None:
                memory.steps.append(len(batch))
                memory.peak = max(memory.peak, 0.1 + len(batch) / 20)
                if memory.peak > 1:
                    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

        return Step()

    def largest_share(self) -> float:
        peak, self.peak = self.peak, 0.0
        return peak


def test_a_tenth_of_the_memory_stays_free() -> None:
    memory = FakeMemory()
    trials = TrialSteps(memory.make_step, {"image": torch.zeros(3, 4, 4)}, memory.largest_share)
    assert largest_fitting(trials.fits, 256) == 16  # 0.9 of the memory
    assert memory.steps == [1, 1, 2, 2, 4, 4, 8, 8, 16, 16, 32, 24]
    assert trials.peaks == pytest.approx({1: 0.15, 2: 0.2, 4: 0.3, 8: 0.5, 16: 0.9})


def test_the_largest_part_is_found_where_gradients_are_accumulated() -> None:
    memory = FakeMemory()
    sample = {"image": torch.zeros(3, 4, 4)}
    trials = TrialSteps(memory.make_step, sample, memory.largest_share, parts=2)
    assert largest_fitting(trials.fits, 256) == 8  # this memory holds both parts
    assert memory.steps == [2, 2, 4, 4, 8, 8, 16, 16, 32, 24]


@pytest.mark.parametrize(("steps", "parts", "batch"), [(1, 1, 8), (2, 2, 16), (5, 2, 40)])
def test_the_batch_is_as_many_parts_as_are_asked_for(
    steps: int,
    parts: int,
    batch: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Two parts are tried at most: a third one needs no more memory."""
    logging.getLogger("panoptic_ext").propagate = True
    caplog.set_level(logging.INFO)
    tried: list[tuple[int, int]] = []

    class Step:
        def __init__(self, *arguments: Any) -> None:
            self.content = (len(arguments[1][0]), arguments[-1])

        def run_step(self) -> None:
            tried.append(self.content)
            if self.content[0] / self.content[1] > 8:
                raise torch.OutOfMemoryError

    sample = {**tiny_mapper(tiny_records(1)[0]), "image": torch.zeros(3, 4, 5)}
    monkeypatch.setattr(auto_batch, "_largest_sample", lambda cfg: sample)
    monkeypatch.setattr(auto_batch, "_peak_memory", lambda: 0.5)
    monkeypatch.setattr(auto_batch, "TrainStep", Step)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    cfg = tiny_cfg(tmp_path, AUTO_BATCH_SIZE=True, ACCUMULATION_STEPS=steps)
    assert auto_batch._fitting_batch(cfg) == batch
    assert {number_of_parts for _, number_of_parts in tried} == {parts}
    assert f"{batch} images of up to 4 x 5 pixels fit" in caplog.text
    assert ("in parts of 8, in 50 %" in caplog.text) == (steps > 1)


def test_a_trainer_wants_a_batch_that_is_known(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"Call Trainer\(with_fitting_batch\(cfg\)\)"):
        TinyTrainer(tiny_cfg(tmp_path, AUTO_BATCH_SIZE=True))
    opts = ["SOLVER.ACCUMULATION_STEPS", "17", "SOLVER.AUTO_BATCH_SIZE", "True"]
    assert load_cfg("", opts, use_data=False).SOLVER.ACCUMULATION_STEPS == 17


def test_another_error_is_not_taken_for_full_memory() -> None:
    class Broken:
        def run_step(self) -> None:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")

    trials = TrialSteps(lambda batch: Broken(), {}, lambda: 0.0)
    with pytest.raises(RuntimeError, match="illegal memory access"):
        trials.fits(1)


def test_the_batch_that_fits_scales_rate_and_length(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auto_batch, "_fitting_batch", lambda cfg: 12)
    cfg = tiny_cfg(tmp_path, IMS_PER_BATCH=4, MAX_ITER=300, BASE_LR=0.1, AUTO_BATCH_SIZE=True)
    cfg.MODEL.DEVICE = "cuda"
    cfg.freeze()
    scaled = auto_scaled(with_fitting_batch(cfg))
    solver = scaled.SOLVER
    assert (solver.IMS_PER_BATCH, solver.MAX_ITER) == (12, 100)
    assert pytest.approx(0.3) == solver.BASE_LR and scaled.is_frozen()
    assert with_fitting_batch(scaled) is scaled  # it is not searched again


def test_a_resumed_run_keeps_its_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auto_batch, "_fitting_batch", lambda cfg: 12)
    cfg = tiny_cfg(tmp_path, AUTO_BATCH_SIZE=True)
    cfg.MODEL.DEVICE = "cuda"
    assert with_fitting_batch(cfg, resume=True).SOLVER.IMS_PER_BATCH == 12  # no checkpoint there
    (tmp_path / "last_checkpoint").write_text("model_0000001.pth")
    (tmp_path / "model_0000001.pth").write_bytes(b"")
    (tmp_path / "config.yaml").write_text("SOLVER:\n  IMS_PER_BATCH: 7\n")
    assert with_fitting_batch(cfg, resume=True).SOLVER.IMS_PER_BATCH == 7
    # A worker on another machine, which does not have the folder.
    monkeypatch.setattr(comm, "is_main_process", lambda: False)
    monkeypatch.setattr(comm, "all_gather", lambda own: [7, own])
    cfg.OUTPUT_DIR = str(tmp_path / "elsewhere")
    assert with_fitting_batch(cfg, resume=True).SOLVER.IMS_PER_BATCH == 7


def test_the_largest_sample_of_a_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    samples = [[{"image": torch.zeros(3, h, 4)}] for h in (2, 9, 5, *[1] * 20)]
    monkeypatch.setattr(auto_batch, "build_train_loader", lambda cfg, seed: samples)
    assert auto_batch._largest_sample(tiny_cfg(tmp_path))["image"].shape == (3, 9, 4)


def test_one_clear_error_on_the_cpu(tmp_path: Path) -> None:
    cfg = tiny_cfg(tmp_path, AUTO_BATCH_SIZE=True)
    with pytest.raises(ConfigError, match=r"MODEL.DEVICE is cpu.*give SOLVER.IMS_PER_BATCH"):
        with_fitting_batch(cfg)


@pytest.mark.gpu
@pytest.mark.slow
def test_a_training_on_a_gpu_with_the_batch_that_fits(tmp_path: Path) -> None:
    words = ["--config-file", "shapes/panoptic_fpn/panoptic_fpn_R18_shapes.yaml", "OUTPUT_DIR"]
    words += [str(tmp_path / "run"), "DATASETS.SHAPES.CACHE", str(tmp_path / "data")]
    words += ["DATASETS.SHAPES.NUM_TRAIN", "8", "DATASETS.SHAPES.NUM_VAL", "2", "MODEL.DEVICE"]
    words += ["cuda", "SOLVER.MAX_ITER", "40", "SOLVER.AUTO_BATCH_SIZE", "True"]
    assert train(words) == 0
    log = (tmp_path / "run" / "log.txt").read_text()
    assert "SOLVER.AUTO_BATCH_SIZE: " in log and "SOLVER.AUTO_SCALE: batch " in log
    assert (tmp_path / "run" / "model_final.pth").exists()
