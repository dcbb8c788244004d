"""A model overfits one batch. This finds wrong losses, which a falling curve does not show."""

from __future__ import annotations

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import MetadataCatalog
from detectron2.modeling import build_model

from panoptic_ext import add_panoptic_ext_config
from panoptic_ext.engine.optimizer import build_optimizer
from tests import ROOT
from tests.tiny.model_inputs import IS_THING, NARROW_RESNET, fake_metadata
from tests.tiny.scenes import panoptic_quality, scene

NAME = "fake_overfit"
ITERATIONS = 75


@pytest.fixture
def cfg():
    fake_metadata(NAME)
    cfg = get_cfg()
    add_panoptic_ext_config(cfg)
    cfg.merge_from_file(str(ROOT / "configs/common/mask2former/Base-Mask2Former-Small.yaml"))
    cfg.MODEL.DEVICE = "cpu"
    cfg.merge_from_list([item for pair in NARROW_RESNET.items() for item in pair])
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = len(IS_THING)
    cfg.MODEL.MASK_FORMER.NUM_OBJECT_QUERIES = 20
    cfg.MODEL.MASK_FORMER.DEC_LAYERS = 4
    cfg.MODEL.MASK_FORMER.TRAIN_NUM_POINTS = 1024
    cfg.SOLVER.BASE_LR = 1e-3
    cfg.DATASETS.TRAIN = (NAME,)
    yield cfg
    MetadataCatalog.remove(NAME)


@pytest.mark.slow
@pytest.mark.parametrize(
    "decoder", ["MultiScaleMaskedTransformerDecoder", "PlacedQueryTransformerDecoder"]
)
def test_it_overfits_one_batch(cfg, decoder):
    torch.manual_seed(0)
    cfg.MODEL.MASK_FORMER.TRANSFORMER_DECODER_NAME = decoder
    model, scenes = build_model(cfg), [scene(0), scene(1)]
    optimizer = build_optimizer(cfg, model)
    model.train()
    for i in range(ITERATIONS):
        for group in optimizer.param_groups:
            group["lr"] = cfg.SOLVER.BASE_LR * min(1.0, 4 * (1 - i / ITERATIONS))
        optimizer.zero_grad()
        sum(model(scenes).values()).backward()
        optimizer.step()
    model.eval()
    with torch.no_grad():
        assert panoptic_quality(model(scenes), scenes) > 95
