"""The YAML files of EoMT have the published recipe: annealing, rates, warm-ups, blocks, sizes."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_backbone

from panoptic_ext.modeling.eomt import EoMTHead, annealing_pairs
from tests import ROOT
from tests.config.shipped import failures, load_shipped, relative

FILES = sorted(
    path
    for data_set in ("coco", "ade20k", "cityscapes")
    for path in (ROOT / "configs" / data_set / "eomt").glob("eomt_*.yaml")
)

# Starts and ends of the published configs, as printed there.
_COCO = ([14782, 29564, 44346, 59128], [29564, 44346, 59128, 73910])
_ADE20K = ([6520, 13040, 19560, 26080], [13040, 19560, 26080, 32600])
ANNEALING = {
    "coco/eomt/eomt_large_640_coco": _COCO,
    "coco/eomt/eomt_large_1280_coco": _COCO,
    "coco/eomt/eomt_instance_large_640_coco": _COCO,
    "coco/eomt/eomt_instance_large_640_dinov3_coco": _COCO,
    "coco/eomt/eomt_small_640_2x_coco": ([29564, 73910, 118256], [59128, 103474, 147820]),
    "coco/eomt/eomt_base_640_2x_coco": ([29564, 73910, 118256], [59128, 103474, 147820]),
    "coco/eomt/eomt_giant_640_coco": (
        [14782, 25869, 36955, 48042, 59128],
        [29564, 40651, 51737, 62824, 73910],
    ),
    "coco/eomt/eomt_small_640_dinov3_coco": ([0, 73910, 118256], [3000, 103474, 147820]),
    "coco/eomt/eomt_base_640_dinov3_coco": ([0, 73910, 118256], [3000, 103474, 147820]),
    "coco/eomt/eomt_large_640_dinov3_coco": (
        [0, 29564, 44346, 59128],
        [3000, 44346, 59128, 73910],
    ),
    "ade20k/eomt/eomt_large_640_ade20k": _ADE20K,
    "ade20k/eomt/eomt_giant_1280_ade20k": (
        [6520, 11410, 16300, 21190, 26080],
        [13040, 17930, 22820, 27710, 32600],
    ),
    "ade20k/eomt/eomt_semantic_large_512_ade20k": _ADE20K,
    "ade20k/eomt/eomt_semantic_large_512_dinov3_ade20k": (
        [0, 6520, 9780, 13040],
        [3000, 9780, 13040, 16300],
    ),
    "cityscapes/eomt/eomt_semantic_large_1024_cityscapes": (
        [3317, 6634, 9951, 13268],
        [6634, 9951, 13268, 16585],
    ),
}

# Millions of parameters with COCO's 133 classes, counted from the published models.
PARAMETERS = {
    "small_640_2x": 23.98,
    "base_640_2x": 93.66,
    "large_640": 316.70,
    "giant_640": 1163.6,
    "small_640_dinov3": 23.35,
    "base_640_dinov3": 92.4,
    "large_640_dinov3": 315.0,
}


def check_annealing(name: str) -> None:
    cfg = load_shipped(ROOT / "configs" / f"{name}.yaml")
    keys = cfg.MODEL.EOMT
    assert keys.ANNEALING == "auto" and keys.ANNEALING_POWER == 0.9
    pairs = annealing_pairs(cfg.SOLVER.MAX_ITER, keys.NUM_BLOCKS, keys.ANNEALING_FIRST or None)
    starts, ends = ANNEALING[name]
    assert [start for start, _ in pairs] == pytest.approx(starts, abs=1)
    assert [end for _, end in pairs] == pytest.approx(ends, abs=1)


def test_annealing_is_that_of_the_published_configs(dataset_jsons):
    assert failures(check_annealing, ANNEALING) == {}


def published_recipe(name: str) -> dict[str, object]:
    """What the published training of a file's name has, by key."""
    is_v3, is_semantic = "dinov3" in name, "semantic" in name
    blocks = 5 if "giant" in name else 4 if "large" in name else 3
    decays = not (is_v3 and is_semantic)
    size = int(next(part for part in name.split("_") if part.isdigit()))
    return {
        "SOLVER.BASE_LR": 0.0002 if is_v3 else 0.0001,
        "SOLVER.WARMUP_ITERS": 2000 if is_v3 else 500,
        "SOLVER.BACKBONE_WARMUP_ITERS": 3000 if is_v3 else 1000,
        "SOLVER.LAYER_DECAY": 0.8 if decays else 1.0,
        "SOLVER.LAYER_DECAY_FREE_BLOCKS": blocks if is_v3 and decays else 0,
        "SOLVER.WEIGHT_DECAY": 0.05,
        "SOLVER.WEIGHT_DECAY_NORM": 0.05,
        "SOLVER.IMS_PER_BATCH": 16,
        "SOLVER.CLIP_GRADIENTS.CLIP_TYPE": "full_model",
        "SOLVER.CLIP_GRADIENTS.CLIP_VALUE": 0.01,
        "MODEL.EOMT.NUM_BLOCKS": blocks,
        "MODEL.EOMT.NUM_QUERIES": 100 if is_semantic else 200,
        "MODEL.MASK_FORMER.TRAIN_NUM_POINTS": 12544,
        "MODEL.MASK_FORMER.TEST.OBJECT_MASK_THRESHOLD": 0.8,
        "MODEL.MASK_FORMER.TEST.OVERLAP_THRESHOLD": 0.8,
        "INPUT.IMAGE_SIZE": size,
        "INPUT.MIN_SCALE": 0.5 if is_semantic else 0.1,
        "INPUT.MAX_SCALE": 2.0,
        "INPUT.COLOR_AUG_SSD": not name.startswith("coco"),
        "INPUT.COLOR_AUG_RULE": "ssd" if name.startswith("coco") else "torchvision",
        "INPUT.PAD_VALUE": "black",
        "INPUT.CROP_POSITION": "uniform",
        "INPUT.REDRAW_EMPTY": 10,
        "INPUT.TEST_RESIZE": "shortest_edge" if is_semantic else "longest_side",
        "INPUT.MIN_SIZE_TEST": size,
        "INPUT.MAX_SIZE_TEST": 2048 if is_semantic else size,
        "INPUT.PAD_TO_SQUARE": not is_semantic,
        "TEST.SEMANTIC_WINDOWS": is_semantic,
    }


def value(cfg: CfgNode, key: str) -> object:
    for part in key.split("."):
        cfg = cfg[part]
    return cfg


def check_recipe(path: Path) -> None:
    cfg = load_shipped(path)
    expected = published_recipe(relative(path))
    assert {key: value(cfg, key) for key in expected} == expected
    assert ("dinov3" in path.name) == ("dinov3" in cfg.MODEL.VIT.NAME)


def test_recipes_are_the_published_ones(dataset_jsons):
    assert len(FILES) == 23
    assert failures(check_recipe, FILES) == {}


def parameters(names: Iterable[str]) -> dict[str, float]:
    """Millions of parameters of the full-size networks, which are built without memory."""
    counts = {}
    for name in names:
        cfg = load_shipped(ROOT / f"configs/coco/eomt/eomt_{name}_coco.yaml", tiny=False)
        with torch.device("meta"):
            backbone = build_backbone(cfg, ShapeSpec(channels=3))
            head = EoMTHead(
                embed_dim=backbone.embed_dim,
                num_queries=cfg.MODEL.EOMT.NUM_QUERIES,
                num_blocks=cfg.MODEL.EOMT.NUM_BLOCKS,
                num_classes=cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES,
                patch_size=backbone.patch_size,
            )
        counts[name] = sum(p.numel() for m in (backbone, head) for p in m.parameters()) / 1e6
    return counts


def test_networks_have_as_many_parameters_as_the_published_ones(dataset_jsons):
    counts = parameters(PARAMETERS)
    assert counts == pytest.approx(PARAMETERS, rel=2e-3)
