"""Evaluation: one warning for test-time augmentation; earlier results are kept."""

from __future__ import annotations

from collections import Counter
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import logger
from detectron2.utils.events import EventStorage
from torch import nn

from panoptic_ext.engine.evaluate import evaluate
from panoptic_ext.engine.run_config import load_cfg
from panoptic_ext.errors import MemoryNeededError
from tests import ROOT
from tests.tiny.training import tiny_cfg

PUBLISHED = ROOT / "tests/config/published_yaml/cityscapes_panoptic_swin_tiny.yaml"


class Count(DatasetEvaluator):
    def reset(self) -> None:
        self.images = 0

    def process(self, inputs: Any, outputs: Any) -> None:
        self.images += len(inputs)

    def evaluate(self) -> dict[str, Any]:
        return {"count": {"images": self.images}}


class Double(nn.Module):
    def forward(self, batch: list[dict[str, Any]]) -> list[torch.Tensor]:
        return [2 * d["x"] for d in batch]


class FakeTrainer:
    @staticmethod
    def build_test_loader(cfg: CfgNode, name: str) -> list[list[dict[str, Any]]]:
        return [[{"x": torch.ones(1)}], [{"x": torch.ones(1)}]]

    @staticmethod
    def build_evaluator(cfg: CfgNode, name: str) -> Count:
        return Count()


def warnings_of(cfg: CfgNode, caplog: pytest.LogCaptureFixture) -> list[str]:
    with caplog.at_level("WARNING", "panoptic_ext"):
        for _ in range(2):
            assert evaluate(FakeTrainer, cfg, Double()) == {"count": {"images": 2}}
    return [r.getMessage() for r in caplog.records if r.name.startswith("panoptic_ext")]


@pytest.mark.parametrize("enabled", [False, True])
def test_test_time_augmentation_that_is_not_done_is_logged_once(
    tmp_path: Path,
    enabled: bool,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(logger, "_LOG_COUNTER", Counter())
    cfg = tiny_cfg(tmp_path)
    cfg.DATASETS.TEST = ("some",)
    cfg.TEST.AUG.ENABLED = enabled
    found = warnings_of(cfg, caplog)
    assert len(found) == int(enabled)
    assert not enabled or "TEST.AUG.ENABLED is True, but test-time augmentation is not" in found[0]


def test_a_published_file_that_asks_for_it_still_loads() -> None:
    cfg = load_cfg(str(PUBLISHED), ["TEST.AUG.ENABLED", "True"], use_data=False)
    assert cfg.TEST.AUG.ENABLED


def test_results_of_other_settings_are_kept(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A fusion that is tried out on a run's weights must not replace the run's own results."""
    cfg = tiny_cfg(tmp_path)
    cfg.DATASETS.TEST = ("some",)
    model = Double()
    model.weight = nn.Parameter(torch.ones(2))
    folders = tmp_path / "inference"

    def run(training: bool = False, **names: str) -> list[str]:
        cfg.MODEL.PANOPTIC_FUSION.NAME = names.get("fusion", "")
        with EventStorage() if training else nullcontext():
            evaluate(FakeTrainer, cfg, model)
        return sorted(path.name for path in folders.iterdir())

    assert run(training=True) == ["some"]
    cfg.MODEL.PIXEL_STD = tuple(cfg.MODEL.PIXEL_STD)
    assert run() == ["some"], "the same weights and settings"
    (folders / "some" / "contact_sheet.png").write_text("of the run")
    with caplog.at_level("WARNING", "panoptic_ext"):
        assert run(fusion="upsnet") == ["some", "some-1"]
    text = caplog.records[-1].getMessage()
    assert "(MODEL.PANOPTIC_FUSION.NAME was '', is 'upsnet')" in text
    assert text.endswith(f"these are now in {folders}/some-1")
    assert (folders / "some-1" / "contact_sheet.png").read_text() == "of the run"
    assert run(fusion="upsnet") == ["some", "some-1"]
    model.weight.data += 1
    assert run(fusion="upsnet") == ["some", "some-1", "some-2"]
    assert run(training=True) == ["some", "some-1", "some-2", "some-3"]
    model.weight.data += 1
    assert run(training=True) == ["some", "some-1", "some-2", "some-3"], "its next evaluation"
    (folders / "some" / "evaluation.json").unlink()  # as former versions left it
    assert run() == ["some", "some-1", "some-2", "some-3", "some-4"]


@pytest.mark.parametrize("where", ["model", "evaluator"])
def test_an_image_that_does_not_fit_into_memory_is_named(tmp_path: Path, where: str) -> None:

    def refuse(*_: Any) -> None:
        torch.empty(1 << 60, dtype=torch.uint8)

    class Loader(FakeTrainer):
        @staticmethod
        def build_test_loader(cfg: CfgNode, name: str) -> list[list[dict[str, Any]]]:
            image = {"x": torch.ones(1), "height": 13000, "width": 12000, "file_name": "big.png"}
            return [[image]]

    cfg, model, evaluator = tiny_cfg(str(tmp_path)), Double(), Count()
    cfg.DATASETS.TEST = ("some",)
    if where == "model":
        model.forward = refuse
    else:
        evaluator.process = refuse
    with pytest.raises(MemoryNeededError, match=r"^big\.png: an image of 13000 x 12000"):
        evaluate(Loader, cfg, model, [evaluator])


@pytest.mark.parametrize("training", [True, False])
def test_a_model_is_evaluated_in_its_mode_and_left_in_the_former(
    tmp_path: Path, training: bool
) -> None:
    class Mode(Double):
        def forward(self, batch: list[dict[str, Any]]) -> list[torch.Tensor]:
            assert not self.training
            return super().forward(batch)

    cfg, model = tiny_cfg(str(tmp_path)), Mode().train(training)
    cfg.DATASETS.TEST = ("some",)
    assert evaluate(FakeTrainer, cfg, model) == {"count": {"images": 2}}
    assert model.training == training


def test_windows_of_an_evaluation(tmp_path: Path) -> None:
    class Loader(FakeTrainer):
        @staticmethod
        def build_test_loader(cfg: CfgNode, name: str) -> list[list[dict[str, Any]]]:
            return [[{"image": torch.zeros(3, 8, 20), "height": 4, "width": 10}]]

    class Scores(nn.Module):
        def forward(self, batch: list[dict[str, Any]]) -> list[dict[str, torch.Tensor]]:
            seen.extend(tuple(x["image"].shape) for x in batch)
            return [{"sem_seg": x["image"]} for x in batch]

    class Shape(Count):
        def process(self, inputs: Any, outputs: Any) -> None:
            seen.append(tuple(outputs[0]["sem_seg"].shape))

    seen: list[tuple[int, ...]] = []
    cfg = tiny_cfg(tmp_path)
    cfg.DATASETS.TEST, cfg.TEST.SEMANTIC_WINDOWS = ("some",), True
    cfg.INPUT.IMAGE_SIZE = 8
    evaluate(Loader, cfg, Scores(), Shape())
    assert seen == [(3, 8, 8)] * 3 + [(3, 4, 10)]
