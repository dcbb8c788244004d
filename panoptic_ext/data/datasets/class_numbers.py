"""Derive numbers of a config from its data sets: classes, things, the value of void."""

from __future__ import annotations

from typing import Any, NamedTuple

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog

from panoptic_ext.config.fusion_keys import check_fusion_keys
from panoptic_ext.config.left_out import (
    DERIVED_KEYS,
    Architecture,
    is_left_out,
    set_key,
)
from panoptic_ext.data.datasets.builtin import register_builtin
from panoptic_ext.data.datasets.from_config import register_from_config
from panoptic_ext.data.datasets.instances import describe_instances, has_instances_alone
from panoptic_ext.data.datasets.registered import get_metadata, num_classes, thing_ids
from panoptic_ext.errors import ConfigError

__all__ = ["DerivedNumber", "class_numbers", "dataset_names", "derive_left_out", "void_number"]


class DerivedNumber(NamedTuple):
    """A number that a data set implies.

    Attributes:
        key: the full config key.
        value: the value of the key.
        reason: text for messages, such as "data set x has 3 categories".
    """

    key: str
    value: int
    reason: str


def dataset_names(cfg: CfgNode) -> list[str]:
    """Return the names of DATASETS.TRAIN, followed by those of DATASETS.TEST."""
    return [*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST]


def class_numbers(cfg: CfgNode, arch: Architecture) -> list[DerivedNumber]:
    """Derive the numbers of classes of the heads from the first data set; [] if there is none.

    Args:
        cfg: config whose data sets are registered, or at least have metadata.
        arch: the meta-architecture. Without contiguous classes, nothing is derived for it.

    Raises:
        DatasetError: the data set cannot be read, or has no contiguous ids.
    """
    names = dataset_names(cfg)
    if not names or not arch.has_contiguous_classes:
        return []
    classes, things = _counts(names[0])
    in_head = arch.head_classes(cfg, classes, things)
    what_in_head = "categories" if in_head == classes else "thing categories"
    return [
        DerivedNumber(key, value, f"data set {names[0]} has {value} {what}")
        for key, value, what in (
            ("MODEL.SEM_SEG_HEAD.NUM_CLASSES", in_head, what_in_head),
            ("MODEL.ROI_HEADS.NUM_CLASSES", things, "thing categories"),
        )
    ]


def void_number(cfg: CfgNode, arch: Architecture) -> list[DerivedNumber]:
    """Derive the label of void, which the losses ignore; [] if no data set has label maps.

    Raises:
        ConfigError: data sets that are used together have different labels of void, or the label
            is the id of a class.
    """
    labels = {
        name: get_metadata(name).get("ignore_label", 255)
        for name in dataset_names(cfg)
        if not has_instances_alone(name)  # their pixels without an instance have no label
    }
    if not labels:
        return []
    (name, label), *others = labels.items()
    for other, other_label in others:
        if other_label != label:
            raise ConfigError(
                f"void is {label} in data set {name} and {other_label} in {other}; give both the "
                "same ignore_label (IGNORE_LABEL in DATASETS.PANOPTIC)"
            )
    if arch.has_contiguous_classes and 0 <= label < num_classes(name):
        raise ConfigError(
            f"void is {label} in data set {name}, within its {num_classes(name)} class ids, so that"
            f" class would be ignored; register it with ignore_label={max(255, num_classes(name))}"
        )
    reason = (
        f"void is {label} in data set {name} (its ignore_label, "
        f"DATASETS.PANOPTIC.{name}.IGNORE_LABEL)"
    )
    return [DerivedNumber("MODEL.SEM_SEG_HEAD.IGNORE_VALUE", label, reason)]


def derive_left_out(cfg: CfgNode, arch: Any) -> None:
    """Register the data sets of a config and set its left-out numbers, in place.

    This serves models that are built from a config that load_cfg has not read. Numbers in the
    config stay as they are; the model compares them with the data set.

    Args:
        cfg: config that is not frozen.
        arch: see `class_numbers`.
    """
    # Only models without a fusion are checked here. In other models a threshold that is not read
    # may stem from the config of the model from which this one was made.
    if getattr(arch, "default_fusion", None) == "":
        check_fusion_keys(cfg, {}, default_fusion="", combine_keys={})
    names = dataset_names(cfg)
    register_builtin([name for name in names if name not in DatasetCatalog])
    # If all names are registered, no block is registered: a run may predict with another
    # registration of its data set, which a block with other files would contradict.
    if any(name not in DatasetCatalog for name in names):
        register_from_config(cfg)
    for name in names:
        if name in DatasetCatalog:
            describe_instances(name)
    if not any(is_left_out(cfg, key) for key in DERIVED_KEYS):
        return  # No JSON is read, because prediction has to work without the data.
    if not all(name in DatasetCatalog or _has_classes(name) for name in names):
        return  # The model raises the error that names the missing data set.
    numbers = class_numbers(cfg, arch)
    if all(name in DatasetCatalog for name in names):
        numbers += void_number(cfg, arch)
    for number in numbers:
        if is_left_out(cfg, number.key):
            set_key(cfg, number.key, number.value)


def _counts(name: str) -> tuple[int, int]:
    """Return the numbers of classes and of things; metadata alone suffices for prediction."""
    if name not in DatasetCatalog and _has_classes(name):
        isthing = MetadataCatalog.get(name).isthing
        return len(isthing), sum(map(bool, isthing))
    return num_classes(name), len(thing_ids(name))


def _has_classes(name: str) -> bool:
    return getattr(MetadataCatalog.get(name), "isthing", None) is not None
