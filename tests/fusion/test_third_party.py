"""A fusion of somebody else's, outside the package: chosen in a YAML file, and learning."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from detectron2.data import MetadataCatalog
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage

from panoptic_ext.engine.run_config import load_cfg
from panoptic_ext.fusion import PANOPTIC_FUSION_REGISTRY
from tests import ROOT
from tests.tiny.model_inputs import IS_THING, fake_input, fake_metadata

# Each instance gets the pixels of its box that no better one has; there is no stuff.
SOURCE = '''
"""Boxes as segments."""
import torch
from detectron2.config import configurable
from panoptic_ext.fusion import PANOPTIC_FUSION_REGISTRY, PanopticFusion


@PANOPTIC_FUSION_REGISTRY.register_as("boxes")
class BoxFusion(PanopticFusion):
    wants_training = True

    @configurable
    def __init__(self, rule, *, weight=1.0):
        super().__init__(rule)
        self.bias = torch.nn.Parameter(torch.tensor(weight))

    @classmethod
    def from_config(cls, cfg, *, thing_ids):
        weight = cfg.MODEL.PANOPTIC_FUSION.INSTANCE_LOGIT_SCALE
        return {**super().from_config(cfg, thing_ids=thing_ids), "weight": weight}

    def forward(self, sem_seg, detections):
        panoptic_map = torch.zeros(sem_seg.shape[1:], dtype=torch.int32, device=sem_seg.device)
        segments = []
        for i in detections.scores.argsort(descending=True).tolist():
            x1, y1, x2, y2 = detections.boxes[i].round().int().tolist()
            free = torch.zeros_like(panoptic_map, dtype=torch.bool)
            free[y1:y2, x1:x2] = panoptic_map[y1:y2, x1:x2] == 0
            if detections.scores[i] >= self.rule.score_threshold and free.any():
                segments.append({"id": len(segments) + 1, "isthing": True,
                                 "category_id": detections.classes[i].item(),
                                 "score": detections.scores[i].item(), "instance_id": i,
                                 "area": int(free.sum())})
                panoptic_map[free] = len(segments)
        return panoptic_map, segments

    def training_losses(self, *, detections, image_size, sem_seg_target):
        return {"loss_boxes": self.bias**2}
'''
BASES = {
    "UnifiedPanopticFPN": "panoptic_fpn/Base-PanopticFPN-Small.yaml",
    "EfficientPS": "efficientps/Base-EfficientPS-Small.yaml",
}


@pytest.fixture(scope="module", autouse=True)
def third_party(tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("third_party")
    (folder / "somebodys_fusion.py").write_text(SOURCE)
    sys.path.insert(0, str(folder))
    __import__("somebodys_fusion")
    fake_metadata("fake_third_party")
    yield
    sys.path.remove(str(folder))
    del sys.modules["somebodys_fusion"], PANOPTIC_FUSION_REGISTRY._obj_map["boxes"]
    MetadataCatalog.remove("fake_third_party")


@pytest.mark.parametrize("architecture", BASES)
def test_a_fusion_from_outside_works_by_its_name_in_a_yaml(
    architecture: str, tmp_path: Path
) -> None:
    (tmp_path / "mine.yaml").write_text(
        f"_BASE_: {ROOT}/configs/common/{BASES[architecture]}\n"
        "MODEL:\n"
        "  DEVICE: cpu\n"
        "  PANOPTIC_FUSION: {NAME: boxes, INSTANCE_LOGIT_SCALE: 3.0}\n"
        f"  SEM_SEG_HEAD: {{NUM_CLASSES: {len(IS_THING)}}}\n"
        f"  ROI_HEADS: {{NUM_CLASSES: {sum(IS_THING)}, SCORE_THRESH_TEST: 0.0}}\n"
        "DATASETS: {TRAIN: [fake_third_party]}\n"
    )
    cfg = load_cfg(str(tmp_path / "mine.yaml"), use_data=False)
    model = build_model(cfg)
    assert type(model).__name__ == architecture
    assert type(model.fusion).__module__ == "somebodys_fusion"
    with EventStorage():
        losses = model.train()([fake_input()])
    assert losses["loss_boxes"].item() == 9.0 and "loss_sem_seg" in losses
    assert "fusion.bias" in model.state_dict()
    model.fusion.rule = replace(model.fusion.rule, score_threshold=0.0)
    with torch.no_grad():
        result = model.eval()([fake_input()])[0]
    panoptic_map, segments = result["panoptic_seg"]
    assert segments and all({"bbox", "instance_id"} <= set(s) for s in segments)
    assert set(panoptic_map.unique().tolist()) - {0} == {s["id"] for s in segments}
