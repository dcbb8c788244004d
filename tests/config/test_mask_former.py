"""MODEL.MASK_FORMER.TASK decides what a Mask2Former learns, and the mapper of the data follows."""

from __future__ import annotations

import pytest
from detectron2.config import get_cfg

from panoptic_ext import add_panoptic_ext_config
from panoptic_ext.config.ground_truth import panoptic_targets
from panoptic_ext.config.mask_former import TASKS, mask_former_task
from panoptic_ext.data import PanopticDatasetMapper
from panoptic_ext.engine.run_config import load_cfg
from panoptic_ext.errors import ConfigError
from panoptic_ext.modeling.meta_arch.mask_former import PanopticExtMaskFormer

COMMON = "configs/common/mask2former"
SHIPPED = {
    "panoptic": "Base-Mask2Former.yaml",
    "instance": "Base-Instance.yaml",
    "semantic": "Base-Semantic.yaml",
}


def config(*opts, model="PanopticExtMaskFormer"):
    cfg = get_cfg()
    add_panoptic_ext_config(cfg)
    cfg.MODEL.META_ARCHITECTURE = model
    cfg.merge_from_list(list(opts))
    return cfg


@pytest.mark.parametrize("task", TASKS)
def test_the_shipped_base_of_a_task_names_it(task):
    cfg = config()
    cfg.merge_from_file(f"{COMMON}/{SHIPPED[task]}")
    assert task == cfg.MODEL.MASK_FORMER.TASK and cfg.INPUT.PANOPTIC_TARGETS is None


@pytest.mark.parametrize("task", TASKS)
def test_the_task_alone_decides(task):
    cfg = config("MODEL.MASK_FORMER.TASK", task)
    assert mask_former_task(cfg) == task
    assert PanopticExtMaskFormer.head_classes(cfg, 9, 4) == (4 if task == "instance" else 9)
    assert PanopticExtMaskFormer.learns_from_instances(cfg) == (task == "instance")


def test_an_unknown_task_names_the_nearest():
    with pytest.raises(
        ConfigError, match=r"unknown MODEL.MASK_FORMER.TASK 'instances'.*mean 'instance'"
    ):
        mask_former_task(config("MODEL.MASK_FORMER.TASK", "instances"))


# A run from before there was TASK has these in its config.yaml, and no TASK.
@pytest.mark.parametrize(
    ("targets", "meant"),
    [
        ([], "panoptic"),
        (["instances", "sem_seg"], "panoptic"),
        (["instances"], "instance"),
        (["sem_seg"], "semantic"),
    ],
)
@pytest.mark.parametrize("task", TASKS)
def test_targets_that_chose_a_task_choose_no_other_one_silently(task, targets, meant):
    cfg = config("MODEL.MASK_FORMER.TASK", task, "INPUT.PANOPTIC_TARGETS", targets)
    if task == meant:
        assert mask_former_task(cfg) == task
        return
    expected = f"TASK is '{task}', but INPUT.PANOPTIC_TARGETS .* set MODEL.MASK_FORMER.TASK {meant}"
    with pytest.raises(ConfigError, match=expected):
        mask_former_task(cfg)


def test_an_old_run_loads_with_its_task_or_gets_an_error_that_names_the_key(tmp_path):
    old = tmp_path / "config.yaml"
    model = "MODEL: {META_ARCHITECTURE: PanopticExtMaskFormer, WEIGHTS: ''}\n"
    old.write_text(f"{model}INPUT: {{PANOPTIC_TARGETS: [instances]}}\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"set MODEL.MASK_FORMER.TASK instance"):
        load_cfg(str(old), use_data=False)
    cfg = load_cfg(str(old), ["MODEL.MASK_FORMER.TASK", "instance"], use_data=False)
    assert cfg.MODEL.MASK_FORMER.TASK == "instance"
    old.write_text(f"{model}INPUT: {{PANOPTIC_TARGETS: []}}\n", encoding="utf-8")
    assert load_cfg(str(old), use_data=False).MODEL.MASK_FORMER.TASK == "panoptic"


@pytest.mark.parametrize("task", TASKS)
def test_the_mapper_derives_nothing_that_a_mask2former_does_not_read(task):
    cfg = config("MODEL.MASK_FORMER.TASK", task)
    assert PanopticDatasetMapper(cfg, is_train=True).targets == ()


@pytest.mark.parametrize("model", ["UnifiedPanopticFPN", "EfficientPS", "PanopticFPN", "Nobody's"])
def test_the_mapper_derives_everything_for_other_models(model):
    cfg = config(model=model)
    assert PanopticDatasetMapper(cfg, is_train=True).targets == ("instances", "sem_seg")


def test_given_targets_are_derived():
    cfg = config("INPUT.PANOPTIC_TARGETS", ["sem_seg"], model="UnifiedPanopticFPN")
    assert panoptic_targets(cfg) == ("sem_seg",)


def test_targets_are_a_list_of_names():
    with pytest.raises(ConfigError, match=r"PANOPTIC_TARGETS must be a list of names or None"):
        load_cfg("", ["INPUT.PANOPTIC_TARGETS", "sem_seg"], use_data=False)
    cfg = load_cfg("", ["INPUT.PANOPTIC_TARGETS", "('sem_seg',)"], use_data=False)
    assert cfg.INPUT.PANOPTIC_TARGETS == ["sem_seg"]
