"""Mask2Former's shipped configs have the published values: a table, and the published files.

The table has every key that any published file gives; the test of a checkout holds it against the
published files, where they are. No model is built and no data is read.
"""

from __future__ import annotations

import os
import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from detectron2.config import CfgNode

from panoptic_ext.config.yaml_reader import read_file
from panoptic_ext.engine.run_config import load_cfg
from tests import ROOT
from tests.config.shipped import failures

# Folder `configs` of a checkout of the published code, for who has one.
CHECKOUT = os.environ.get("PANOPTIC_EXT_PUBLISHED_CONFIGS", "")
PUBLISHED = Path(__file__).with_name("published_yaml")

# The depth of a ResNet, or the values of these keys below MODEL.SWIN.
SWIN_KEYS = ("EMBED_DIM", "DEPTHS", "NUM_HEADS", "WINDOW_SIZE", "PRETRAIN_IMG_SIZE")
BACKBONES: dict[str, int | tuple[Any, ...]] = {
    "R50": 50,
    "R101": 101,
    "swin_tiny": (96, [2, 2, 6, 2], [3, 6, 12, 24], 7, 224),
    "swin_small": (96, [2, 2, 18, 2], [3, 6, 12, 24], 7, 224),
    "swin_base_384": (128, [2, 2, 18, 2], [4, 8, 16, 32], 12, 384),
    "swin_base_IN21k_384": (128, [2, 2, 18, 2], [4, 8, 16, 32], 12, 384),
    "swin_large_IN21k_384": (192, [2, 2, 18, 2], [6, 12, 24, 48], 12, 384),
}
WEIGHTS = {
    "R50": "detectron2://ImageNetPretrained/torchvision/R-50.pkl",
    "R101": "R-101.pkl",
    "swin_tiny": "swin_tiny_patch4_window7_224.pkl",
    "swin_small": "swin_small_patch4_window7_224.pkl",
    "swin_base_384": "swin_base_patch4_window12_384.pkl",
    "swin_base_IN21k_384": "swin_base_patch4_window12_384_22k.pkl",
    "swin_large_IN21k_384": "swin_large_patch4_window12_384_22k.pkl",
}
CLASSES = {
    "coco": {"panoptic": 133, "instance": 80},
    "cityscapes": {"panoptic": 19, "instance": 8, "semantic": 19},
    "ade20k": {"panoptic": 150, "instance": 100, "semantic": 150},
    "mapillary_vistas": {"panoptic": 65, "semantic": 65},
}
TASKS = {"": "panoptic", "instance_": "instance", "semantic_": "semantic"}
SCHEDULES = {
    "50ep": (368750, (327778, 355092)),
    "100ep": (737500, (655556, 710184)),
    "90k": (90000, None),
    "160k": (160000, None),
    "300k": (300000, None),
}
SCHEDULE_OF = {"cityscapes": "90k", "ade20k": "160k", "mapillary_vistas": "300k"}

EVERYWHERE = {
    "MODEL.META_ARCHITECTURE": "PanopticExtMaskFormer",
    "MODEL.BACKBONE.FREEZE_AT": 0,
    "MODEL.PIXEL_MEAN": [123.675, 116.28, 103.53],
    "MODEL.PIXEL_STD": [58.395, 57.12, 57.375],
    "MODEL.RESNETS.OUT_FEATURES": ["res2", "res3", "res4", "res5"],
    "MODEL.RESNETS.RES5_MULTI_GRID": [1, 1, 1],
    "MODEL.RESNETS.STEM_TYPE": "basic",
    "MODEL.RESNETS.STEM_OUT_CHANNELS": 64,
    "MODEL.RESNETS.STRIDE_IN_1X1": False,
    "MODEL.SEM_SEG_HEAD.NAME": "PanopticExtMaskFormerHead",
    "MODEL.SEM_SEG_HEAD.LOSS_WEIGHT": 1.0,
    "MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME": "MSDeformAttnPixelDecoder",
    "MODEL.SEM_SEG_HEAD.IN_FEATURES": ["res2", "res3", "res4", "res5"],
    "MODEL.SEM_SEG_HEAD.DEFORMABLE_TRANSFORMER_ENCODER_IN_FEATURES": ["res3", "res4", "res5"],
    "MODEL.SEM_SEG_HEAD.DEFORMABLE_TRANSFORMER_ENCODER_N_POINTS": 4,
    "MODEL.SEM_SEG_HEAD.DEFORMABLE_TRANSFORMER_ENCODER_N_HEADS": 0,  # as MASK_FORMER.NHEADS, 8
    "MODEL.SEM_SEG_HEAD.DEFORMABLE_TRANSFORMER_ENCODER_DIM_FEEDFORWARD": 1024,
    "MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS": 6,
    "MODEL.SEM_SEG_HEAD.CONVS_DIM": 256,
    "MODEL.SEM_SEG_HEAD.MASK_DIM": 256,
    "MODEL.SEM_SEG_HEAD.NORM": "GN",
    "MODEL.SEM_SEG_HEAD.COMMON_STRIDE": 4,
    "MODEL.MASK_FORMER.TRANSFORMER_DECODER_NAME": "MultiScaleMaskedTransformerDecoder",
    "MODEL.MASK_FORMER.DEEP_SUPERVISION": True,
    "MODEL.MASK_FORMER.NO_OBJECT_WEIGHT": 0.1,
    "MODEL.MASK_FORMER.CLASS_WEIGHT": 2.0,
    "MODEL.MASK_FORMER.MASK_WEIGHT": 5.0,
    "MODEL.MASK_FORMER.DICE_WEIGHT": 5.0,
    "MODEL.MASK_FORMER.HIDDEN_DIM": 256,
    "MODEL.MASK_FORMER.NHEADS": 8,
    "MODEL.MASK_FORMER.DROPOUT": 0.0,
    "MODEL.MASK_FORMER.DIM_FEEDFORWARD": 2048,
    "MODEL.MASK_FORMER.DEC_LAYERS": 10,
    "MODEL.MASK_FORMER.PRE_NORM": False,
    "MODEL.MASK_FORMER.SIZE_DIVISIBILITY": 32,
    "MODEL.MASK_FORMER.TRAIN_NUM_POINTS": 12544,
    "MODEL.MASK_FORMER.OVERSAMPLE_RATIO": 3.0,
    "MODEL.MASK_FORMER.IMPORTANCE_SAMPLE_RATIO": 0.75,
    "MODEL.MASK_FORMER.ENC_LAYERS": 0,
    "MODEL.MASK_FORMER.ENFORCE_INPUT_PROJ": False,
    "MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE": "multi_scale_pixel_decoder",
    "MODEL.MASK_FORMER.TEST.OVERLAP_THRESHOLD": 0.8,
    "SOLVER.OPTIMIZER": "ADAMW",
    "SOLVER.BASE_LR": 1e-4,
    "SOLVER.IMS_PER_BATCH": 16,
    "SOLVER.WEIGHT_DECAY": 0.05,
    "SOLVER.WEIGHT_DECAY_NORM": 0.0,
    "SOLVER.WEIGHT_DECAY_EMBED": 0.0,
    "SOLVER.BACKBONE_MULTIPLIER": 0.1,
    "SOLVER.CLIP_GRADIENTS.ENABLED": True,
    "SOLVER.CLIP_GRADIENTS.CLIP_TYPE": "full_model",
    "SOLVER.CLIP_GRADIENTS.CLIP_VALUE": 0.01,
    "SOLVER.CLIP_GRADIENTS.NORM_TYPE": 2.0,
    "SOLVER.AMP.ENABLED": True,
    "INPUT.FORMAT": "RGB",
    "DATALOADER.FILTER_EMPTY_ANNOTATIONS": True,
    "TEST.AUG.ENABLED": False,
    "TEST.AUG.FLIP": True,
    "VERSION": 2,
}
LSJ = {
    "INPUT.AUGMENTATION": "lsj",
    "INPUT.IMAGE_SIZE": 1024,
    "INPUT.MIN_SCALE": 0.1,
    "INPUT.MAX_SCALE": 2.0,
    "INPUT.COLOR_AUG_SSD": False,
    "INPUT.CROP.ENABLED": False,
}
# Keys at which a shipped config differs from the published file of the same model on purpose.
OURS = {
    "MODEL.SEM_SEG_HEAD.NUM_CLASSES": "left out in ours: the data set has it",
    "MODEL.SEM_SEG_HEAD.IGNORE_VALUE": "left out in ours: the data set has it",
    "TEST.AUG.MIN_SIZES": "off in both; ours has no test-time augmentation that would read it",
    "TEST.AUG.MAX_SIZE": "off in both; ours has no test-time augmentation that would read it",
}
OURS_OF_INSTANCES = {
    "MODEL.MASK_FORMER.TEST.PANOPTIC_ON": "on in ADE20K's, whose evaluation throws it away",
    "MODEL.MASK_FORMER.TEST.SEMANTIC_ON": "on in ADE20K's, whose evaluation throws it away",
}
# What differs between a published file kept here and the shipped config of the same model.
DIFFERENT = {
    "OUTPUT_DIR": "each shipped config has a folder of its own",
    "INPUT.DATASET_MAPPER_NAME": "read for AUGMENTATION and TASK, which are equal",
    "MODEL.SEM_SEG_HEAD.NUM_CLASSES": "left out in ours: the data set has it",
    "SOLVER.STEPS": "Detectron2's default; polynomial decay has no steps",
    "TEST.AUG.MIN_SIZES": "Detectron2's default; TEST.AUG is off",
    "TEST.AUG.MAX_SIZE": "Detectron2's default; TEST.AUG is off",
}
VISTAS_DIFFERENT = {
    "MODEL.SEM_SEG_HEAD.IGNORE_VALUE": "left out in ours: the data set has it",
}


def scales(shortest: int) -> tuple[int, ...]:
    """0.5 to 2 times a length in steps of 0.1."""
    return tuple(shortest * tenth // 10 for tenth in range(5, 21))


def cropped(
    shortest: int, crop: tuple[int, int], max_train: int, max_test: int, divisible: int
) -> dict[str, Any]:
    """Random scales around `shortest`, crops of a fixed size, images of `shortest` in tests."""
    return {
        "INPUT.AUGMENTATION": "shortest_edge",
        "INPUT.MIN_SIZE_TRAIN": scales(shortest),
        "INPUT.MIN_SIZE_TRAIN_SAMPLING": "choice",
        "INPUT.MAX_SIZE_TRAIN": max_train,
        "INPUT.MIN_SIZE_TEST": shortest,
        "INPUT.MAX_SIZE_TEST": max_test,
        "INPUT.COLOR_AUG_SSD": True,
        "INPUT.SIZE_DIVISIBILITY": divisible,
        "INPUT.CROP.ENABLED": True,
        "INPUT.CROP.TYPE": "absolute",
        "INPUT.CROP.SIZE": list(crop),
        "INPUT.CROP.SINGLE_CATEGORY_MAX_AREA": 1.0,
    }


def expected_input(data: str, task: str, backbone: str) -> dict[str, Any]:
    if data == "coco":
        return LSJ
    if data == "cityscapes":
        return cropped(1024, (512, 1024), 4096, 2048, 0)
    if data == "mapillary_vistas":
        return cropped(2048, (1024, 1024), 8192, 2048, 1024)
    shortest = 512 if task == "semantic" and "384" not in backbone else 640
    return cropped(shortest, (shortest, shortest), 4 * shortest, 4 * shortest, shortest)


def name_of_split(data: str, task: str, split: str) -> str:
    """Instance models learn from instances; Vistas has none published."""
    instances = {
        "coco": "coco_2017",
        "cityscapes": "cityscapes_fine_instance_seg",
        "ade20k": "ade20k_instance",
    }
    known = task == "instance" and data in instances
    return f"{instances[data] if known else f'{data}_panoptic'}_{split}"


def has_200_queries(data: str, task: str, backbone: str) -> bool:
    """Of Swin-L, all but the published semantic models; COCO has none of those."""
    return "large" in backbone and (task != "semantic" or data == "coco")


def expected_outputs(data: str, task: str) -> dict[str, Any]:
    is_vistas = data == "mapillary_vistas"
    all_on = (data, task) == ("ade20k", "instance")
    values = {
        "MODEL.MASK_FORMER.TEST.PANOPTIC_ON": task == "panoptic" or all_on,
        "MODEL.MASK_FORMER.TEST.INSTANCE_ON": task == ("instance")
        or (task == "panoptic" and not is_vistas),
        "MODEL.MASK_FORMER.TEST.SEMANTIC_ON": task != "instance" or all_on,
        "MODEL.MASK_FORMER.TEST.OBJECT_MASK_THRESHOLD": 0.0 if is_vistas else 0.8,
        "MODEL.SEM_SEG_HEAD.IGNORE_VALUE": 65 if is_vistas else 255,
    }
    if task in CLASSES[data]:
        values["MODEL.SEM_SEG_HEAD.NUM_CLASSES"] = CLASSES[data][task]
    return values


def expected_values(data: str, task: str, backbone: str, schedule: str) -> dict[str, Any]:
    iterations, steps = SCHEDULES[schedule]
    size = BACKBONES[backbone]
    values = {
        **EVERYWHERE,
        **expected_input(data, task, backbone),
        "DATASETS.TRAIN": (name_of_split(data, task, "train"),),
        "DATASETS.TEST": (name_of_split(data, task, "val"),),
        "MODEL.MASK_FORMER.TASK": task,
        **expected_outputs(data, task),
        "MODEL.WEIGHTS": WEIGHTS[backbone],
        "MODEL.MASK_FORMER.NUM_OBJECT_QUERIES": 200
        if has_200_queries(data, task, backbone)
        else 100,
        "SOLVER.MAX_ITER": iterations,
        "SOLVER.LR_SCHEDULER_NAME": "WarmupMultiStepLR" if steps else "WarmupPolyLR",
        "SOLVER.WARMUP_ITERS": 10 if data == "coco" else 0,
        "TEST.EVAL_PERIOD": 0 if data == "mapillary_vistas" else 5000,
        "DATALOADER.NUM_WORKERS": 10 if data == "mapillary_vistas" else 4,
        "SOLVER.WARMUP_FACTOR": 1.0,
    }
    if steps:
        values |= {"SOLVER.STEPS": steps, "SOLVER.GAMMA": 0.1}
    if isinstance(size, int):
        values["MODEL.BACKBONE.NAME"] = "build_resnet_backbone"
        values["MODEL.RESNETS.DEPTH"] = size
        semantic_101 = (data, task, backbone) == ("ade20k", "semantic", "R101")
        synchronized = data == "cityscapes" or semantic_101
        values["MODEL.RESNETS.NORM"] = "SyncBN" if synchronized else "FrozenBN"
    else:
        values["MODEL.BACKBONE.NAME"] = "PanopticExtSwinTransformer"
        values |= {f"MODEL.SWIN.{k}": v for k, v in zip(SWIN_KEYS, size, strict=True)}
        values |= {"MODEL.SWIN.DROP_PATH_RATE": 0.3, "MODEL.SWIN.APE": False}
        values["MODEL.SWIN.PATCH_NORM"] = True
    return values


def schedule_of(data: str, backbone: str) -> str:
    return SCHEDULE_OF.get(data, "100ep" if "large" in backbone else "50ep")


def leaves() -> dict[str, tuple[str, str, str, str]]:
    """Path below configs -> data set, task, backbone, schedule, of every published model."""
    found = {}
    for data in ("coco", *SCHEDULE_OF):
        for prefix, task in TASKS.items():
            for backbone in BACKBONES:
                only_21k = data != "coco" and (data, task) != ("ade20k", "semantic")
                if only_21k and backbone == "swin_base_384":
                    continue
                schedule = schedule_of(data, backbone)
                name = f"mask2former_{prefix}{backbone}_bs16_{schedule}"
                found[f"{data}/mask2former/{name}.yaml"] = (data, task, backbone, schedule)
    return found


@cache
def load(path: Path) -> dict[str, Any]:
    """Every key of a resolved config as one flat table."""
    return dict(flat(load_cfg(str(path), use_data=False)))


def flat(node: CfgNode, prefix: str = "") -> list[tuple[str, Any]]:
    rows: list[tuple[str, Any]] = []
    for key, value in node.items():
        name = prefix + key
        rows += flat(value, f"{name}.") if isinstance(value, CfgNode) else [(name, value)]
    return rows


def test_the_leaves_are_those_of_the_table():
    shipped = {
        path.relative_to(ROOT / "configs").as_posix()
        for data in ("coco", *SCHEDULE_OF)
        for path in ROOT.glob(f"configs/{data}/mask2former/*.yaml")
        # The published Mask2Former has no plain ViT.
        if not path.name.startswith(("Base-", "mask2former_vit_"))
    }
    assert shipped == set(leaves())


def check_values(leaf: str) -> None:
    kind = leaves()[leaf]
    cfg = load(ROOT / "configs" / leaf)
    on_purpose = OURS | (OURS_OF_INSTANCES if kind[1] == "instance" else {})
    differ = {
        key: f"is {cfg[key]!r}, published {value!r}"
        for key, value in expected_values(*kind).items()
        if cfg[key] != value and key not in on_purpose
    }
    assert not differ, differ


def test_configs_have_the_published_values():
    assert failures(check_values, leaves()) == {}


def test_another_value_than_the_published_is_reported(monkeypatch):
    leaf = "coco/mask2former/mask2former_R50_bs16_50ep.yaml"
    monkeypatch.setitem(EVERYWHERE, "SOLVER.WEIGHT_DECAY", 0.06)
    report = failures(check_values, [leaf])
    assert (
        list(report) == [leaf] and "SOLVER.WEIGHT_DECAY': 'is 0.05, published 0.06'" in report[leaf]
    )


def published_files() -> list[Path]:
    """The leaves of the four data sets in a checkout; those of videos are other models."""
    return sorted(Path(CHECKOUT).glob("*/*-segmentation/**/maskformer*.yaml"))


@pytest.mark.skipif(not CHECKOUT, reason="PANOPTIC_EXT_PUBLISHED_CONFIGS names no checkout")
def test_the_table_equals_the_published_files():
    """Every published file has its row, and every key that it gives is in the row."""
    assert len(published_files()) == 47
    renamed = {"INPUT.DATASET_MAPPER_NAME", "TEST.AUG.MIN_SIZES", "TEST.AUG.MAX_SIZE"}
    for path in published_files():
        data, task, backbone = kind_of_published(path)
        expected = expected_values(data, task, backbone, schedule_of(data, backbone))
        found = load(path)
        differ = {k: (found[k], value) for k, value in expected.items() if found[k] != value}
        unread = "MODEL.RESNETS." if "swin" in backbone else "-"
        given = {s.key for s in read_file(str(path)) if not s.key.startswith(unread)}
        assert (differ, given - expected.keys() - renamed - {"SOLVER.STEPS"}) == ({}, set()), path


def kind_of_published(path: Path) -> tuple[str, str, str]:
    data, task = path.relative_to(CHECKOUT).parts[:2]
    backbone = re.sub(r"_bs16.*|maskformer2?_", "", path.stem)
    return data.replace("-", "_"), task.split("-")[0], backbone


@pytest.mark.parametrize(
    ("published", "leaf"),
    [
        ("coco_panoptic_R50", "coco/mask2former/mask2former_R50_bs16_50ep"),
        ("coco_instance_R50", "coco/mask2former/mask2former_instance_R50_bs16_50ep"),
        ("ade20k_semantic_R50", "ade20k/mask2former/mask2former_semantic_R50_bs16_160k"),
        (
            "cityscapes_panoptic_swin_tiny",
            "cityscapes/mask2former/mask2former_swin_tiny_bs16_90k",
        ),
        (
            "mapillary_vistas_panoptic_R50",
            "mapillary_vistas/mask2former/mask2former_R50_bs16_300k",
        ),
    ],
)
def test_a_published_file_loads_as_the_config_of_ours(published, leaf):
    theirs = load(PUBLISHED / f"{published}.yaml")
    ours = load(ROOT / "configs" / f"{leaf}.yaml")
    allowed = DIFFERENT | (VISTAS_DIFFERENT if "vistas" in leaf else {})
    assert theirs.keys() == ours.keys()
    differ = {key: (value, ours[key]) for key, value in theirs.items() if value != ours[key]}
    assert not {key: values for key, values in differ.items() if key not in allowed}


def test_no_exception_is_left_over():
    """Every key that may differ does so somewhere."""
    vistas = load(ROOT / "configs/mapillary_vistas/mask2former/mask2former_R50_bs16_300k.yaml")
    cityscapes = load(ROOT / "configs/cityscapes/mask2former/mask2former_swin_tiny_bs16_90k.yaml")
    theirs = load(PUBLISHED / "mapillary_vistas_panoptic_R50.yaml")
    for key in VISTAS_DIFFERENT:
        assert theirs[key] != vistas[key], key
    theirs = load(PUBLISHED / "cityscapes_panoptic_swin_tiny.yaml")
    for key in DIFFERENT:
        assert theirs[key] != cityscapes[key], key
    assert not theirs["TEST.AUG.ENABLED"] and not cityscapes["TEST.AUG.ENABLED"]
