"""The YAML files of PMT have the published recipe: annealing, rates, blocks, sizes."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from detectron2.config import CfgNode
from torch import nn

from panoptic_ext.engine.optimizer import build_lr_scheduler
from panoptic_ext.modeling import PanopticExtPMT
from panoptic_ext.modeling.eomt import annealing_pairs
from tests import ROOT
from tests.config.shipped import failures, load_shipped, relative

FILES = sorted(
    path
    for data_set in ("coco", "ade20k")
    for path in (ROOT / "configs" / data_set / "pmt").glob("pmt_*.yaml")
)
# Starts and ends of the published configs, as printed there.
ANNEALING = {
    "coco": (
        [0, 23651, 32520, 41389, 50258, 59128],
        [3000, 38433, 47302, 56171, 65040, 73910],
    ),
    "ade20k": ([0, 5384, 7403, 9422, 11442, 13461], [3000, 8749, 10769, 12788, 14807, 16826]),
}
# Parameters of the published decoders with 133 classes and 200 queries, and the features' blocks.
DECODERS = {
    "small_640": (7692038, (2, 5, 8, 11)),
    "base_640": (30424454, (2, 5, 8, 11)),
    "large_640": (53935238, (5, 11, 17, 23)),
}


def value(cfg: CfgNode, key: str) -> object:
    for part in key.split("."):
        cfg = cfg[part]
    return cfg


def check_recipe(path: Path) -> None:
    cfg, is_semantic = load_shipped(path), "semantic" in path.name
    size = int(next(part for part in path.name.split("_") if part.isdigit()))
    expected = {
        "SOLVER.BASE_LR": 0.0002,
        "SOLVER.WARMUP_ITERS": 6000,
        "SOLVER.LAYER_DECAY": 1.0,
        "SOLVER.WEIGHT_DECAY": 0.05,
        "SOLVER.WEIGHT_DECAY_NORM": 0.05,
        "SOLVER.WEIGHT_DECAY_EMBED": None,
        "SOLVER.IMS_PER_BATCH": 16,
        "SOLVER.CLIP_GRADIENTS.CLIP_TYPE": "full_model",
        "SOLVER.CLIP_GRADIENTS.CLIP_VALUE": 0.01,
        "MODEL.PMT.NUM_LAYERS": 6,
        "MODEL.PMT.MLP_RATIO": 1.0,
        "MODEL.EOMT.NUM_QUERIES": 100 if is_semantic else 200,
        "MODEL.MASK_FORMER.TRAIN_NUM_POINTS": 12544,
        "MODEL.MASK_FORMER.TEST.OBJECT_MASK_THRESHOLD": 0.8,
        "MODEL.MASK_FORMER.TEST.OVERLAP_THRESHOLD": 0.8,
        "INPUT.IMAGE_SIZE": size,
        "INPUT.MIN_SCALE": 0.5 if is_semantic else 0.1,
        "INPUT.MAX_SCALE": 2.0,
        "INPUT.COLOR_AUG_SSD": is_semantic,
        "INPUT.PAD_VALUE": "black",
        "INPUT.CROP_POSITION": "uniform",
        "INPUT.REDRAW_EMPTY": 10,
        "INPUT.TEST_RESIZE": "shortest_edge" if is_semantic else "longest_side",
        "INPUT.PAD_TO_SQUARE": not is_semantic,
        "TEST.SEMANTIC_WINDOWS": is_semantic,
    }
    assert {key: value(cfg, key) for key in expected} == expected
    assert cfg.MODEL.EOMT.ENCODER_WEIGHTS == cfg.MODEL.WEIGHTS
    assert f"timm://{cfg.MODEL.VIT.NAME}.lvd1689m" == cfg.MODEL.WEIGHTS


def test_recipes_are_the_published_ones(dataset_jsons):
    assert len(FILES) == 7
    assert failures(check_recipe, FILES) == {}


def check_annealing(path: Path) -> None:
    cfg = load_shipped(path)
    keys = cfg.MODEL.EOMT
    assert keys.ANNEALING == "auto" and keys.ANNEALING_POWER == 0.9
    pairs = annealing_pairs(cfg.SOLVER.MAX_ITER, cfg.MODEL.PMT.NUM_LAYERS, keys.ANNEALING_FIRST)
    starts, ends = ANNEALING[relative(path).split("/")[0]]
    assert [start for start, _ in pairs] == pytest.approx(starts, abs=1)
    assert [end for _, end in pairs] == pytest.approx(ends, abs=1)


def test_annealing_is_that_of_the_published_configs(dataset_jsons):
    assert failures(check_annealing, FILES) == {}


def test_the_rate_is_half_a_cosine_behind_the_warmup(dataset_jsons):
    cfg = load_shipped(ROOT / "configs/coco/pmt/pmt_large_640_coco.yaml")
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = build_lr_scheduler(cfg, optimizer)
    for iteration in (0, 3000, 6000, 44346, 88691):
        schedule.last_epoch = iteration
        share = (iteration - 6000) / (88692 - 6000)
        cosine = (1 + math.cos(math.pi * share)) / 2
        expected = iteration / 6000 if iteration < 6000 else cosine
        assert schedule.get_lr() == [pytest.approx(expected)]


def check_decoder(name: str) -> None:
    cfg = load_shipped(ROOT / f"configs/coco/pmt/pmt_{name}_coco.yaml", tiny=False)
    with torch.device("meta"):
        arguments = PanopticExtPMT.from_config(cfg)
    count = sum(p.numel() for p in arguments["sem_seg_head"].parameters())
    assert (count, arguments["feature_blocks"]) == DECODERS[name]


def test_decoders_have_as_many_parameters_as_the_published_ones(dataset_jsons):
    pytest.importorskip("timm", reason="PMT's ViT is a timm model")
    assert failures(check_decoder, DECODERS) == {}
