"""Narrow EoMT and PMT from scratch overfit one batch, while their masks vanish on the way."""

from __future__ import annotations

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage

from panoptic_ext.engine.optimizer import build_optimizer
from tests.tiny.eomt import tiny_cfg
from tests.tiny.scenes import panoptic_quality, scene

pytest.importorskip("timm", reason="EoMT's ViT is a timm model")

ITERATIONS = 100
NARROW = {
    "MODEL.VIT.NAME": "vit_tiny_patch16_224",
    "MODEL.VIT.PATCH_SIZE": 8,
    "MODEL.VIT.IMAGE_SIZE": 128,
    "MODEL.VIT.EMBED_DIM": 96,
    "MODEL.VIT.NUM_HEADS": 3,
    "MODEL.EOMT.NUM_QUERIES": 20,
    "MODEL.EOMT.NUM_BLOCKS": 2,
    "MODEL.MASK_FORMER.TRAIN_NUM_POINTS": 1024,
    "MODEL.MASK_FORMER.SHARED_MATCHING_POINTS": True,
    "MODEL.MASK_FORMER.TEST.OBJECT_MASK_THRESHOLD": 0.8,
    "MODEL.MASK_FORMER.TEST.OVERLAP_THRESHOLD": 0.8,
    "SOLVER.OPTIMIZER": "ADAMW",
    "SOLVER.BASE_LR": 1e-3,
    "SOLVER.WEIGHT_DECAY": 0.05,
    "SOLVER.MAX_ITER": ITERATIONS,
    "SOLVER.CLIP_GRADIENTS.ENABLED": True,
    "SOLVER.CLIP_GRADIENTS.CLIP_TYPE": "full_model",
    "SOLVER.CLIP_GRADIENTS.CLIP_VALUE": 1.0,
}
# Its random encoder stays as it is.
PMT = {
    "MODEL.META_ARCHITECTURE": "PanopticExtPMT",
    "MODEL.PMT.NUM_LAYERS": 2,
}


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{}, PMT], ids=["EoMT", "PMT"])
def test_it_overfits_one_batch(changes):
    torch.manual_seed(0)
    cfg = tiny_cfg(**{**NARROW, **changes})
    model, scenes = build_model(cfg), [scene(0), scene(1)]
    optimizer = build_optimizer(cfg, model)
    model.train()
    with EventStorage() as storage:
        for i in range(ITERATIONS):
            for group in optimizer.param_groups:
                group["lr"] = cfg.SOLVER.BASE_LR * min(1.0, (i + 1) / 20, 4 * (1 - i / ITERATIONS))
            optimizer.zero_grad()
            sum(model(scenes).values()).backward()
            optimizer.step()
            storage.step()
    model.eval()
    with torch.no_grad():
        assert panoptic_quality(model(scenes), scenes) > 95
