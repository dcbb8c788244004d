"""The items that same_results.py records: shipped configs, with other values of some keys.

Keys that a version of the code does not have are left out. Images are small, so that all items
together take minutes.
"""

from __future__ import annotations

from typing import Any, NamedTuple


class Item(NamedTuple):
    """A config, with the keys that get other values.

    Attributes:
        config: path below the folder `configs` of the tree.
        changes: full key -> value.
        weights: key of WEIGHTS; "" for none.
    """

    config: str
    changes: dict[str, Any]
    weights: str = ""


FUSION = "MODEL.PANOPTIC_FUSION.NAME"
RANKING = {FUSION: "spatial_ranking"}
COMMON = {
    "MODEL.DEVICE": "cpu",
    "MODEL.TIMM.PRETRAINED": False,
    "DATALOADER.NUM_WORKERS": 0,
    "SEED": 7,
}
TRAINING = {
    "DATASETS.TEST": [],
    "SOLVER.CHECKPOINT_PERIOD": 1000000,
    "TEST.EVAL_PERIOD": 0,
}

# So few iterations bring real segments on few images, seen whole, of one size and without changes.
_SMALL = {
    "INPUT.MIN_SIZE_TRAIN": [160],
    "INPUT.MAX_SIZE_TRAIN": 256,
    "INPUT.MIN_SIZE_TEST": 160,
    "INPUT.MAX_SIZE_TEST": 256,
}
_FEW_IMAGES = {
    **_SMALL,
    "INPUT.COLOR_AUG_SSD": False,
    "INPUT.RANDOM_FLIP": "none",
    "INPUT.CROP.ENABLED": False,
    "SOLVER.IMS_PER_BATCH": 2,
    "SOLVER.MAX_ITER": 200,
    "SOLVER.WARMUP_ITERS": 20,
}


def _weights() -> dict[str, Item]:
    items = {}
    for data in ("facade", "nuclei"):
        for model in ("panoptic_fpn", "efficientps"):
            config = f"{data}/{model}/{model}_R18_{data}.yaml"
            items[f"{model}_{data}"] = Item(config, {**_FEW_IMAGES, **RANKING})
        config = f"{data}/mask2former/mask2former_R18_{data}.yaml"
        items[f"mask2former_{data}"] = Item(config, _FEW_IMAGES)
    config = "facade/mask2former/mask2former_semantic_R18_facade.yaml"
    items["mask2former_semantic_facade"] = Item(config, _FEW_IMAGES)
    config = "nuclei/mask2former/mask2former_instance_R18_nuclei.yaml"
    items["mask2former_instance_nuclei"] = Item(config, _FEW_IMAGES)
    return items


WEIGHTS = _weights()
"""Short trainings; models with a fusion train the learned one, which the other fusions ignore."""

_SHAPES = {
    "DATASETS.SHAPES.NUM_TRAIN": 40,
    "DATASETS.SHAPES.NUM_VAL": 4,
    "SOLVER.IMS_PER_BATCH": 2,
    "SOLVER.MAX_ITER": 20,
    "SOLVER.WARMUP_ITERS": 5,
}
_SHORT = {
    "INPUT.MIN_SIZE_TRAIN": [160, 192],
    "INPUT.MAX_SIZE_TRAIN": 256,
    "INPUT.CROP.ENABLED": True,
    "INPUT.CROP.TYPE": "absolute",
    "INPUT.CROP.SIZE": [128, 128],
    "SOLVER.IMS_PER_BATCH": 2,
    "SOLVER.MAX_ITER": 20,
    "SOLVER.WARMUP_ITERS": 5,
}
_LEARNED_QUERIES = {  # the published configs' values, where the small configs differ
    "MODEL.MASK_FORMER.TRANSFORMER_DECODER_NAME": "MultiScaleMaskedTransformerDecoder",
    "MODEL.MASK_FORMER.SEMANTIC_LOSS_WEIGHT": 0.0,
    "MODEL.MASK_FORMER.BOX_SAMPLE_RATIO": 0.0,
    "MODEL.MASK_FORMER.SHARED_MATCHING_POINTS": False,
    "INPUT.KEEP_EMPTY_SEGMENTS": True,
    "INPUT.AUGMENTATION": "lsj",
    "INPUT.IMAGE_SIZE": 128,
    "INPUT.MIN_SCALE": 0.5,
    "SOLVER.CLIP_GRADIENTS.CLIP_VALUE": 0.01,
}

LOSSES = {
    "mask2former": Item("shapes/mask2former/mask2former_R18_shapes.yaml", _SHAPES),
    "mask2former_learned_queries": Item(
        "shapes/mask2former/mask2former_R18_shapes.yaml", {**_SHAPES, **_LEARNED_QUERIES}
    ),
    "mask2former_instance": Item(
        "shapes/mask2former/mask2former_instance_R18_shapes.yaml", _SHAPES
    ),
    "mask2former_semantic": Item(
        "shapes/mask2former/mask2former_semantic_R18_shapes.yaml", _SHAPES
    ),
    "mask2former_facade": Item("facade/mask2former/mask2former_R18_facade.yaml", _SHORT),
    "panoptic_fpn": Item("shapes/panoptic_fpn/panoptic_fpn_R18_shapes.yaml", _SHAPES),
    "panoptic_fpn_nuclei": Item(
        "nuclei/panoptic_fpn/panoptic_fpn_R18_nuclei.yaml", {**_SHORT, **RANKING}
    ),
    "efficientps": Item("shapes/efficientps/efficientps_R18_shapes.yaml", _SHAPES),
    "efficientps_B0": Item("shapes/efficientps/efficientps_B0_shapes.yaml", _SHAPES),
    "efficientps_facade": Item(
        "facade/efficientps/efficientps_R18_facade.yaml",
        {**_SHORT, **RANKING, "MODEL.SEM_SEG_HEAD.HARD_PIXEL_FRACTION": 0.25},
    ),
}

FUSIONS = ("hadamard", "heuristic", "heuristic_detectron2", "upsnet", "spatial_ranking")
# Low thresholds, because so short a training gives low scores.
_EFFICIENTPS = {
    **_SMALL,
    "MODEL.PANOPTIC_FUSION.SCORE_THRESHOLD": 0.3,
    "MODEL.PANOPTIC_FUSION.UPSNET.SCORE_THRESHOLD": 0.3,
    "MODEL.PANOPTIC_FUSION.STUFF_AREA_THRESHOLD": 64,
}
_PANOPTIC_FPN = {
    **_SMALL,
    "MODEL.PANOPTIC_FPN.COMBINE.INSTANCES_CONFIDENCE_THRESH": 0.3,
    "MODEL.PANOPTIC_FUSION.UPSNET.SCORE_THRESHOLD": 0.3,
}
_ALL_OUTPUTS = {
    **_SMALL,
    "MODEL.MASK_FORMER.TEST.PANOPTIC_ON": True,
    "MODEL.MASK_FORMER.TEST.INSTANCE_ON": True,
    "MODEL.MASK_FORMER.TEST.SEMANTIC_ON": True,
    "MODEL.MASK_FORMER.TEST.OBJECT_MASK_THRESHOLD": 0.2,
}


def _maps() -> dict[str, Item]:
    items = {}
    for data in ("facade", "nuclei"):
        for model, changes in (("panoptic_fpn", _PANOPTIC_FPN), ("efficientps", _EFFICIENTPS)):
            name = f"{model}_{data}"
            config = WEIGHTS[name].config
            items[name] = Item(config, changes, name)
            for fusion in FUSIONS:
                items[f"{name}_{fusion}"] = Item(config, {**changes, FUSION: fusion}, name)
        name = f"mask2former_{data}"
        items[name] = Item(WEIGHTS[name].config, _ALL_OUTPUTS, name)
    name = "efficientps_facade"
    changes = {**_EFFICIENTPS, "MODEL.PANOPTIC_FUSION.VOID_POLICY": "stuff"}
    changes["MODEL.PANOPTIC_FUSION.INSTANCE_LOGIT_SCALE"] = 4.0
    items[f"{name}_no_void"] = Item(WEIGHTS[name].config, changes, name)
    for name in ("mask2former_semantic_facade", "mask2former_instance_nuclei"):
        items[name] = Item(WEIGHTS[name].config, _SMALL, name)
    name = "mask2former_semantic_facade"  # with learned queries
    items[f"{name}_all_outputs"] = Item(WEIGHTS[name].config, _ALL_OUTPUTS, name)
    return items


MAPS = _maps()
NUM_IMAGES = 10  # of a validation set

PQ = (
    "panoptic_fpn_facade",
    "panoptic_fpn_nuclei",
    "efficientps_facade",
    "efficientps_nuclei",
    "mask2former_facade",
    "mask2former_nuclei",
    "mask2former_semantic_facade_all_outputs",
)
"""Items of MAPS whose recorded predictions are evaluated."""

STATE = (
    "coco/mask2former/mask2former_R50_bs16_50ep.yaml",
    "coco/mask2former/mask2former_instance_swin_tiny_bs16_50ep.yaml",
    "coco/panoptic_fpn/panoptic_fpn_R101_3x_coco.yaml",
    "coco/efficientps/efficientps_R50_coco.yaml",
    "cityscapes/mask2former/mask2former_semantic_swin_base_IN21k_384_bs16_90k.yaml",
    "cityscapes/efficientps/efficientps_B5_paper_cityscapes.yaml",
    "cityscapes/panoptic_fpn/panoptic_fpn_R50_cityscapes.yaml",
    "ade20k/mask2former/mask2former_instance_R101_bs16_160k.yaml",
    "ade20k/panoptic_fpn/panoptic_fpn_R50_ade20k.yaml",
    "mapillary_vistas/mask2former/mask2former_semantic_swin_small_bs16_300k.yaml",
    "mapillary_vistas/efficientps/efficientps_B0_mapillary_vistas.yaml",
    "facade/mask2former/mask2former_R18_facade.yaml",
    "facade/efficientps/efficientps_R18_facade.yaml",
    "nuclei/panoptic_fpn/panoptic_fpn_R18_nuclei.yaml",
    "shapes/mask2former/mask2former_instance_R18_shapes.yaml",
    "shapes/mask2former/mask2former_semantic_R18_shapes.yaml",
)

CONFIGS = ("ade20k", "cityscapes", "coco", "facade", "mapillary_vistas", "nuclei", "shapes")
