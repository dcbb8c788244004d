"""Names in configs of the published Mask2Former and EoMT, and the names of the same things here.

Our classes are registered under names of their own, so that an installed Mask2Former can register
its classes in the same process. Where no other package has registered a published name, a config
that uses it gets our class.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Collection, Iterator
from typing import Any

from detectron2.modeling import META_ARCH_REGISTRY

from panoptic_ext.config.mask_former import mask_former_task
from panoptic_ext.errors import ConfigError, unknown

__all__ = ["resolve_published_names"]

logger = logging.getLogger(__name__)

META_ARCH = {"MaskFormer": "PanopticExtMaskFormer", "EoMT": "PanopticExtEoMT"}
HEADS = {"MaskFormerHead": "PanopticExtMaskFormerHead"}
BACKBONES = {"D2SwinTransformer": "PanopticExtSwinTransformer"}

# Mapper -> INPUT.AUGMENTATION, MODEL.MASK_FORMER.TASK, INPUT.KEEP_EMPTY_SEGMENTS.
MAPPERS: dict[str, tuple[str, str, bool]] = {
    "coco_panoptic_lsj": ("lsj", "panoptic", True),
    "coco_instance_lsj": ("lsj", "instance", False),
    "mask_former_panoptic": ("shortest_edge", "panoptic", True),
    "mask_former_instance": ("shortest_edge", "instance", True),
    "mask_former_semantic": ("shortest_edge", "semantic", False),
}

# Panoptic and semantic models are trained from the panoptic ground truth of a data set. Instance
# data sets (coco_2017_train, cityscapes_fine_instance_seg_train, ade20k_instance_train) keep their
# names, because their ground truth differs: masks overlap, and some objects are in it alone.
DATASETS = {
    **{
        f"coco_2017_{split}{suffix}": f"coco_panoptic_{split}"
        for split in ("train", "val")
        for suffix in ("_panoptic", "_panoptic_with_sem_seg")
    },
    **{
        f"cityscapes_fine_{kind}_{split}": f"cityscapes_panoptic_{split}"
        for split in ("train", "val")
        for kind in ("panoptic", "sem_seg")
    },
    **{
        f"{name}_sem_seg_{split}": f"{name}_panoptic_{split}"
        for split in ("train", "val")
        for name in ("ade20k", "mapillary_vistas")
    },
}

# Models without a published Detectron2 form that share the keys of those with one.
_SAME_KEYS = ("PanopticExtPMT",)
_OUTPUTS = {"panoptic": "PANOPTIC_ON", "semantic": "SEMANTIC_ON", "instance": "INSTANCE_ON"}


def resolve_published_names(cfg: Any, given: Collection[str] = ()) -> None:
    """Translate a config of a published model, in place, to this project's names and keys.

    Published models are Mask2Former and EoMT, which here has Mask2Former's keys of tasks and
    outputs. A config of another model does not change. Neither does one whose
    MODEL.META_ARCHITECTURE another package has registered under the published name. Otherwise these
    change: the names of model, head, backbone and data sets; INPUT.DATASET_MAPPER_NAME sets
    INPUT.AUGMENTATION, MODEL.MASK_FORMER.TASK and, if that is None, INPUT.KEEP_EMPTY_SEGMENTS;
    TEST.EVALUATORS loses outputs that are off; Mask2Former's embeddings get no weight decay unless
    SOLVER.WEIGHT_DECAY_EMBED is set.

    Args:
        cfg: unfrozen, with the keys of `add_panoptic_ext_config`. A second call changes nothing.
        given: the keys that a file or a command line gives, as far as they are known.

    Raises:
        ConfigError: the mapper is unknown or of another task than MODEL.MASK_FORMER.TASK, or the
            backbone does not have the variant of ResNet.
    """
    model = cfg.MODEL
    if model.META_ARCHITECTURE in META_ARCH and model.META_ARCHITECTURE in META_ARCH_REGISTRY:
        _warn_of_others(cfg)
        return
    model.META_ARCHITECTURE = META_ARCH.get(model.META_ARCHITECTURE, model.META_ARCHITECTURE)
    if model.META_ARCHITECTURE not in (*META_ARCH.values(), *_SAME_KEYS):
        return
    model.SEM_SEG_HEAD.NAME = HEADS.get(model.SEM_SEG_HEAD.NAME, model.SEM_SEG_HEAD.NAME)
    model.BACKBONE.NAME = BACKBONES.get(model.BACKBONE.NAME, model.BACKBONE.NAME)
    _check_resnet(model)
    for key in ("TRAIN", "TEST"):
        cfg.DATASETS[key] = tuple(DATASETS.get(name, name) for name in cfg.DATASETS[key])
    _resolve_mapper(cfg.INPUT, model.MASK_FORMER, "MODEL.MASK_FORMER.TASK" in given)
    mask_former_task(cfg)
    cfg.INPUT.SIZE_DIVISIBILITY = max(cfg.INPUT.SIZE_DIVISIBILITY, 0)
    # The published EoMT and PMT decay their embeddings, too.
    decays_embeddings = model.META_ARCHITECTURE in ("PanopticExtEoMT", "PanopticExtPMT")
    if cfg.SOLVER.WEIGHT_DECAY_EMBED is None and not decays_embeddings:
        cfg.SOLVER.WEIGHT_DECAY_EMBED = 0.0
    switches = model.MASK_FORMER.TEST
    cfg.TEST.EVALUATORS = [
        name for name in cfg.TEST.EVALUATORS if switches.get(_OUTPUTS.get(name, ""), True)
    ]


def _warn_of_others(cfg: Any) -> None:
    """Warn that the model is another package's, and name the keys that only ours would read."""
    name = cfg.MODEL.META_ARCHITECTURE
    ours = cfg.clone()
    ours.MODEL.META_ARCHITECTURE = META_ARCH[name]
    with contextlib.suppress(ConfigError):
        resolve_published_names(ours)
    theirs = dict(_flat(cfg, ""))
    lost = [
        f"{key} {theirs[key]!r}"
        for key, value in _flat(ours, "")
        if value != theirs[key] and key != "MODEL.META_ARCHITECTURE"
    ]
    logger.warning(
        "MODEL.META_ARCHITECTURE %s is the model that %s registered. These keys stay as given, for "
        "its own trainer: %s. For the model of panoptic_ext write %s",
        name,
        META_ARCH_REGISTRY.get(name).__module__,
        "; ".join(lost) or "none",
        META_ARCH[name],
    )


def _flat(node: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    for name, value in node.items():
        if hasattr(value, "items"):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _check_resnet(model: Any) -> None:
    """Refuse values of two DeepLab keys in published files that the plain ResNet does not read."""
    keys = model.RESNETS
    for key, only in (("STEM_TYPE", "basic"), ("RES5_MULTI_GRID", [1, 1, 1])):
        value = keys[key]
        if model.BACKBONE.NAME == "build_resnet_backbone" and value != only:
            raise ConfigError(
                f"MODEL.RESNETS.{key} is {value!r}, but build_resnet_backbone has {only!r} only; "
                "set it to that, or take build_resnet_deeplab_backbone of "
                "detectron2.projects.deeplab"
            )


def _resolve_mapper(keys: Any, model: Any, task_is_given: bool) -> None:
    name = keys.DATASET_MAPPER_NAME
    if not name:
        return
    if name not in MAPPERS:
        raise ConfigError(
            unknown(
                "INPUT.DATASET_MAPPER_NAME",
                name,
                MAPPERS,
                mend='or "" with INPUT.AUGMENTATION and MODEL.MASK_FORMER.TASK',
            )
        )
    keys.AUGMENTATION, task, keep_empty = MAPPERS[name]
    # "panoptic" is the default: it contradicts the mapper only where somebody gave it.
    if task != model.TASK and (task_is_given or model.TASK != "panoptic"):
        raise ConfigError(
            f"MODEL.MASK_FORMER.TASK is {model.TASK!r}, but INPUT.DATASET_MAPPER_NAME {name} is of "
            f'the task {task!r}; set INPUT.DATASET_MAPPER_NAME "" with INPUT.AUGMENTATION, or '
            "leave TASK out"
        )
    model.TASK = task
    if keys.KEEP_EMPTY_SEGMENTS is None:
        keys.KEEP_EMPTY_SEGMENTS = keep_empty
