"""compare_fusions in Python; the command is tested in tests/commands/test_compare_fusions.py."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from detectron2.data import MetadataCatalog
from detectron2.modeling import build_model

from panoptic_ext.engine.precision import FULL_PRECISION
from panoptic_ext.errors import ConfigError
from panoptic_ext.prediction.compare_fusions import compare_fusions, fusions_left_out, fusions_of
from tests.modeling.meta_arch.test_panoptic_fpn import NAME, tiny_cfg
from tests.tiny.model_inputs import fake_input, fake_metadata


class CountsPixels:
    """An evaluator whose every metric is the share of pixels that are in a segment."""

    def __init__(self) -> None:
        self.maps: list[torch.Tensor] = []

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        self.maps.append(outputs[0]["panoptic_seg"][0])

    def evaluate(self) -> dict[str, dict[str, float]]:
        share = float(torch.stack(self.maps).gt(0).float().mean())
        return {"panoptic_seg": dict.fromkeys(("PQ", "PQ_th", "PQ_st", "SQ", "RQ"), share)}


@pytest.fixture
def predictor():
    fake_metadata(NAME)
    torch.manual_seed(0)
    cfg = tiny_cfg()
    cfg.MODEL.PANOPTIC_FPN.COMBINE.INSTANCES_CONFIDENCE_THRESH = 0.0
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 0.0
    cfg.freeze()
    model = build_model(cfg).eval()
    yield SimpleNamespace(model=model, cfg=cfg, weights="w.pth", precision=FULL_PRECISION)
    MetadataCatalog.remove(NAME)


def test_panoptic_fpn_is_evaluated_with_each_fusion_and_keeps_its_own(predictor):
    fusion_of_model = predictor.model.fusion
    fusions = fusions_of(predictor)
    assert list(fusions) == ["hadamard", "heuristic", "upsnet"]  # the weights hold no ranking
    assert fusions["heuristic"] is fusion_of_model
    left_out = fusions_left_out(predictor, fusions)
    assert list(left_out) == ["heuristic_detectron2", "spatial_ranking"]
    assert "has to be learned, and w.pth was not trained with it" in left_out["spatial_ranking"]
    metrics = compare_fusions(predictor, fusions, [[fake_input()]], make_evaluator=CountsPixels)
    assert predictor.model.fusion is fusion_of_model
    assert len({quality["PQ"] for quality in metrics.values()}) > 1
    with pytest.raises(ConfigError, match=r"w\.pth was not trained with .* 'spatial_ranking'"):
        fusions_of(predictor, ["spatial_ranking"])
    with pytest.raises(ConfigError, match="did you mean 'hadamard'"):
        fusions_of(predictor, ["hadamar"])


def test_a_model_without_a_fusion_says_which_models_have_one():
    with pytest.raises(ConfigError, match=r"Linear has no fusion.*UnifiedPanopticFPN"):
        fusions_of(SimpleNamespace(model=torch.nn.Linear(1, 1)))
