"""Names in configs written for the published Mask2Former, and what they are called here.

Ours are registered under names of our own, so that an installed Mask2Former can register its own
beside them in the same process. Where a published name is free, a config that uses it means ours.
"""

from __future__ import annotations

from typing import Any

from detectron2.modeling import BACKBONE_REGISTRY, META_ARCH_REGISTRY

from ..errors import ConfigError, nearest

__all__ = ["resolve_published_names"]

META_ARCH = {"MaskFormer": "PanopticExtMaskFormer"}
HEADS = {"MaskFormerHead": "PanopticExtMaskFormerHead"}
BACKBONES = {"D2SwinTransformer": "PanopticExtSwinTransformer"}

# Mapper -> INPUT.AUGMENTATION, INPUT.PANOPTIC_TARGETS, INPUT.KEEP_EMPTY_SEGMENTS.
MAPPERS: dict[str, tuple[str, list[str], bool]] = {
    "coco_panoptic_lsj": ("lsj", [], True),
    "coco_instance_lsj": ("lsj", ["instances"], False),
    "mask_former_panoptic": ("shortest_edge", [], True),
    "mask_former_instance": ("shortest_edge", ["instances"], True),
    "mask_former_semantic": ("shortest_edge", ["sem_seg"], False),
}

# Panoptic and semantic models are trained from the panoptic ground truth of a data set. Instance
# data sets (coco_2017_train, cityscapes_fine_instance_seg_train, ade20k_instance_train) are read as
# they are, for their truth is another: overlapping masks, and objects that the panoptic one lacks.
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

_OUTPUTS = {"panoptic": "PANOPTIC_ON", "semantic": "SEMANTIC_ON", "instance": "INSTANCE_ON"}


def resolve_published_names(cfg: Any) -> None:
    """Rewrite, in place, what a config for the published Mask2Former says into this project's keys.

    A config of another model is left as it is, and so is one whose MODEL.META_ARCHITECTURE is
    registered by somebody else under the published name. What changes otherwise: the names of
    model, head and backbone; data sets; INPUT.DATASET_MAPPER_NAME becomes INPUT.AUGMENTATION,
    INPUT.PANOPTIC_TARGETS and, where it is None, INPUT.KEEP_EMPTY_SEGMENTS; TEST.EVALUATORS loses
    outputs that are off; embeddings get no weight decay unless SOLVER.WEIGHT_DECAY_EMBED says so.

    Args:
        cfg: unfrozen, with the keys of `add_panoptic_ext_config`. Doing it twice changes nothing.

    Raises:
        ConfigError: unknown mapper, or a ResNet variant that the backbone does not have.
    """
    model = cfg.MODEL
    model.META_ARCHITECTURE = _free_name(model.META_ARCHITECTURE, META_ARCH, META_ARCH_REGISTRY)
    if model.META_ARCHITECTURE not in META_ARCH.values():
        return
    model.SEM_SEG_HEAD.NAME = HEADS.get(model.SEM_SEG_HEAD.NAME, model.SEM_SEG_HEAD.NAME)
    model.BACKBONE.NAME = _free_name(model.BACKBONE.NAME, BACKBONES, BACKBONE_REGISTRY)
    _check_resnet(model)
    for key in ("TRAIN", "TEST"):
        cfg.DATASETS[key] = tuple(DATASETS.get(name, name) for name in cfg.DATASETS[key])
    _resolve_mapper(cfg.INPUT)
    cfg.INPUT.SIZE_DIVISIBILITY = max(cfg.INPUT.SIZE_DIVISIBILITY, 0)
    if cfg.SOLVER.WEIGHT_DECAY_EMBED is None:
        cfg.SOLVER.WEIGHT_DECAY_EMBED = 0.0
    switches = model.MASK_FORMER.TEST
    cfg.TEST.EVALUATORS = [
        name for name in cfg.TEST.EVALUATORS if switches.get(_OUTPUTS.get(name, ""), True)
    ]


def _free_name(name: str, ours: dict[str, str], registry: Any) -> str:
    return name if name in registry else ours.get(name, name)


def _check_resnet(model: Any) -> None:
    """Published files set two keys of Detectron2's DeepLab that its plain ResNet does not read."""
    keys = model.RESNETS
    for key, only in (("STEM_TYPE", "basic"), ("RES5_MULTI_GRID", [1, 1, 1])):
        found = keys[key]
        if model.BACKBONE.NAME == "build_resnet_backbone" and found != only:
            raise ConfigError(
                f"MODEL.RESNETS.{key} is {found!r}, but build_resnet_backbone has {only!r} only; "
                "set it to that, or take build_resnet_deeplab_backbone of "
                "detectron2.projects.deeplab"
            )


def _resolve_mapper(keys: Any) -> None:
    name = keys.DATASET_MAPPER_NAME
    if not name:
        return
    if name not in MAPPERS:
        raise ConfigError(
            f"INPUT.DATASET_MAPPER_NAME is {name!r}; expected one of {', '.join(MAPPERS)}, or "
            f'"" with INPUT.AUGMENTATION and INPUT.PANOPTIC_TARGETS{nearest(name, MAPPERS)}'
        )
    keys.AUGMENTATION, targets, keep_empty = MAPPERS[name]
    keys.PANOPTIC_TARGETS = list(targets)
    if keys.KEEP_EMPTY_SEGMENTS is None:
        keys.KEEP_EMPTY_SEGMENTS = keep_empty
