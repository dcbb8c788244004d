"""Configs written for the published Mask2Former: they load unchanged and mean the same here."""

from __future__ import annotations

from pathlib import Path

import pytest
from detectron2.config import get_cfg
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.utils.registry import Registry

from panoptic_ext import add_panoptic_ext_config
from panoptic_ext.config import published_names
from panoptic_ext.config.published_names import resolve_published_names
from panoptic_ext.engine.run_config import load_cfg
from panoptic_ext.errors import ConfigError
from tests import ROOT

FOLDER = Path(__file__).with_name("published_yaml")


def load(name):
    return load_cfg(str(FOLDER / f"{name}.yaml"), use_data=False)


def resolved(**keys):
    cfg = get_cfg()
    add_panoptic_ext_config(cfg)
    cfg.MODEL.META_ARCHITECTURE = "MaskFormer"
    cfg.merge_from_list([x for pair in keys.items() for x in pair])
    resolve_published_names(cfg)
    return cfg


@pytest.mark.parametrize(
    ("name", "backbone", "data", "augmentation", "task", "evaluators"),
    [
        ("coco_panoptic_R50", "build_resnet_backbone", "coco", "lsj", "panoptic", 3),
        ("coco_instance_R50", "build_resnet_backbone", "coco", "lsj", "instance", 1),
        (
            "cityscapes_panoptic_swin_tiny",
            "PanopticExtSwinTransformer",
            "cityscapes",
            "shortest_edge",
            "panoptic",
            3,
        ),
        ("ade20k_semantic_R50", "build_resnet_backbone", "ade20k", "shortest_edge", "semantic", 1),
        (
            "mapillary_vistas_panoptic_R50",
            "build_resnet_backbone",
            "mapillary_vistas",
            "shortest_edge",
            "panoptic",
            2,
        ),
    ],
)
def test_a_published_file_loads_unchanged(name, backbone, data, augmentation, task, evaluators):
    cfg = load(name)
    assert cfg.MODEL.META_ARCHITECTURE == "PanopticExtMaskFormer"
    assert cfg.MODEL.SEM_SEG_HEAD.NAME == "PanopticExtMaskFormerHead"
    assert backbone == cfg.MODEL.BACKBONE.NAME
    data = "coco_2017" if name == "coco_instance_R50" else f"{data}_panoptic"
    assert (f"{data}_train",) == cfg.DATASETS.TRAIN
    assert (f"{data}_val",) == cfg.DATASETS.TEST
    assert augmentation == cfg.INPUT.AUGMENTATION
    assert task == cfg.MODEL.MASK_FORMER.TASK and cfg.INPUT.PANOPTIC_TARGETS is None
    assert cfg.INPUT.SIZE_DIVISIBILITY >= 0
    assert len(cfg.TEST.EVALUATORS) == evaluators
    assert cfg.SOLVER.WEIGHT_DECAY_EMBED == 0


CONFIGS = ROOT / "configs"


# A published file means the published behaviour, and so do our full-size configs.
@pytest.mark.parametrize(
    ("published", "ours", "keeps_empty"),
    [
        ("coco_panoptic_R50", "coco/mask2former/mask2former_R50_bs16_50ep", True),
        ("coco_instance_R50", "coco/mask2former/mask2former_instance_R50_bs16_50ep", False),
        (
            "cityscapes_panoptic_swin_tiny",
            "cityscapes/mask2former/mask2former_swin_tiny_bs16_90k",
            True,
        ),
        ("ade20k_semantic_R50", "ade20k/mask2former/mask2former_semantic_R50_bs16_160k", False),
        (None, "ade20k/mask2former/mask2former_instance_R50_bs16_160k", True),
        (None, "shapes/mask2former/mask2former_R18_shapes", False),
    ],
)
def test_what_a_key_chooses_is_as_published_unless_the_config_is_small(
    published, ours, keeps_empty
):
    cfgs = [load_cfg(str(CONFIGS / f"{ours}.yaml"), use_data=False)]
    cfgs += [load(published)] if published else []
    for cfg in cfgs:
        assert keeps_empty == cfg.INPUT.KEEP_EMPTY_SEGMENTS
        assert cfg.MODEL.SEM_SEG_HEAD.PIXEL_DECODER_FULL_PRECISION
        assert ("shapes" in ours) == cfg.MODEL.MASK_FORMER.SHARED_MATCHING_POINTS


def test_a_given_key_wins_over_the_published_mapper():
    opts = ["INPUT.KEEP_EMPTY_SEGMENTS", "False"]
    cfg = load_cfg(str(FOLDER / "coco_panoptic_R50.yaml"), opts, use_data=False)
    assert cfg.INPUT.KEEP_EMPTY_SEGMENTS is False


def test_resolving_twice_changes_nothing():
    cfg = load("coco_panoptic_R50").clone()
    before = cfg.dump()
    cfg.defrost()
    resolve_published_names(cfg)
    assert cfg.dump() == before


def test_a_published_name_that_somebody_registered_is_theirs(monkeypatch, caplog):
    registry = Registry("META_ARCH")
    registry._do_register("MaskFormer", object)
    monkeypatch.setattr(published_names, "META_ARCH_REGISTRY", registry)
    cfg = resolved(**{"INPUT.DATASET_MAPPER_NAME": "coco_panoptic_lsj"})
    assert cfg.MODEL.META_ARCHITECTURE == "MaskFormer"
    assert cfg.INPUT.AUGMENTATION == "shortest_edge"
    # Whose model it is, and what does not mean what it means with ours.
    (line,) = caplog.messages
    assert "MaskFormer is the model that builtins registered" in line
    assert "INPUT.AUGMENTATION 'shortest_edge'" in line
    assert "SOLVER.WEIGHT_DECAY_EMBED None" in line
    assert line.endswith("write PanopticExtMaskFormer")


def test_the_published_names_stay_free_for_an_installed_mask2former():
    names = {name for name, _ in META_ARCH_REGISTRY}
    assert "PanopticExtMaskFormer" in names and "MaskFormer" not in names


def test_a_config_of_another_model_is_left_alone():
    cfg = get_cfg()
    add_panoptic_ext_config(cfg)
    cfg.DATASETS.TRAIN = ("coco_2017_train",)
    before = cfg.dump()
    resolve_published_names(cfg)
    assert cfg.dump() == before


def test_an_unknown_mapper_names_the_nearest():
    with pytest.raises(ConfigError, match="did you mean 'coco_panoptic_lsj'"):
        resolved(**{"INPUT.DATASET_MAPPER_NAME": "coco_panoptic_ljs"})


def test_a_mapper_of_another_task_is_refused():
    keys = {"MODEL.MASK_FORMER.TASK": "semantic", "INPUT.DATASET_MAPPER_NAME": "coco_instance_lsj"}
    with pytest.raises(ConfigError, match=r"TASK is 'semantic', but .*coco_instance_lsj is of the"):
        resolved(**keys)
    assert resolved(**{**keys, "MODEL.MASK_FORMER.TASK": "instance"}).INPUT.AUGMENTATION == "lsj"


def test_a_given_default_task_is_a_task_that_was_given():
    opts = ["INPUT.DATASET_MAPPER_NAME", "coco_instance_lsj"]
    config = str(ROOT / "configs/shapes/mask2former/mask2former_R18_shapes.yaml")
    assert load_cfg(config, opts, use_data=False).MODEL.MASK_FORMER.TASK == "instance"
    with pytest.raises(ConfigError, match=r"TASK is 'panoptic', but .* of the task 'instance'"):
        load_cfg(config, [*opts, "MODEL.MASK_FORMER.TASK", "panoptic"], use_data=False)


def test_a_resnet_that_would_be_built_otherwise_is_refused():
    with pytest.raises(ConfigError, match=r"STEM_TYPE is 'deeplab'.*has 'basic' only"):
        resolved(
            **{
                "MODEL.BACKBONE.NAME": "build_resnet_backbone",
                "MODEL.RESNETS.STEM_TYPE": "deeplab",
            }
        )


def test_the_new_keys_leave_detectron2s_own_alone():
    plain, ours = get_cfg(), get_cfg()
    add_panoptic_ext_config(ours)

    def same(a, b, path=""):
        for key, value in a.items():
            if hasattr(value, "items"):
                same(value, b[key], f"{path}{key}.")
            else:
                assert b[key] == value, f"{path}{key}"

    same(plain, ours)


def test_the_published_eomt_decays_its_embeddings() -> None:
    cfg = get_cfg()
    add_panoptic_ext_config(cfg)
    cfg.MODEL.META_ARCHITECTURE = "EoMT"
    cfg.MODEL.MASK_FORMER.TEST.PANOPTIC_ON = True
    cfg.MODEL.MASK_FORMER.TEST.SEMANTIC_ON = False
    resolve_published_names(cfg)
    assert cfg.MODEL.META_ARCHITECTURE == "PanopticExtEoMT"
    assert cfg.SOLVER.WEIGHT_DECAY_EMBED is None
    assert cfg.TEST.EVALUATORS == ["panoptic"]
