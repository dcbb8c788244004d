"""The classes of a network of transformers: a data set's, or those that its labels name.

C labels of the network, K classes.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from detectron2.data import MetadataCatalog
from detectron2.data.datasets.builtin_meta import (
    ADE20K_SEM_SEG_CATEGORIES,
    CITYSCAPES_CATEGORIES,
    COCO_CATEGORIES,
)

from panoptic_ext.errors import ConfigError, check_known, listed, quoted, unknown
from panoptic_ext.modeling.meta_arch.classes import classes_of_dataset
from panoptic_ext.modeling.transformers_models.labels import LabelMatch, is_unused, match_labels
from panoptic_ext.modeling.transformers_models.source import Source

__all__ = ["ClassPlan", "plan_classes"]

logger = logging.getLogger(__name__)

CLASS_HEADS = ("auto", "keep", "new")
_KNOWN_SHARE = 0.9  # of the labels, from which on they are taken for those of a known data set
# The classes of ADE20K's panoptic task that are no things, by their ids.
_ADE20K_STUFF = (
    *range(7), 9, 11, 13, 16, 17, 21, 25, 26, 28, 29, 34, 40, 46, 48, 51, 52, 54, 59, 60, 61, 63,
    68, 77, 79, 84, 91, 94, 96, 99, 100, 101, 105, 106, 109, 113, 114, 117, 122, 128, 131, 140,
    141, 145,
)  # fmt: skip


@dataclass(frozen=True)
class ClassPlan:
    """The classes of a model, and how its network gets them.

    Attributes:
        match: labels of the network before its head is changed, and the classes.
        isthing: for each class whether it is a thing.
        is_new: whether the network gets a new class head with the K classes.
        metadata_name: of the metadata with the names of the classes.
    """

    match: LabelMatch
    isthing: tuple[bool, ...]
    is_new: bool
    metadata_name: str

    @property
    def label_of_class(self) -> tuple[int, ...]:
        """For each class its label id in the network, or -1."""
        return tuple(range(len(self.isthing))) if self.is_new else self.match.label_of_class


def plan_classes(cfg: Any, source: Source) -> ClassPlan:
    """Choose the classes of a model; see MODEL.TRANSFORMERS.CLASS_HEAD. Differences are logged.

    Args:
        cfg: completed; its data sets have metadata.
        source: of the network, for the names of its labels.

    Raises:
        ConfigError: the classes are to be kept, and none of the data set's has a label.
    """
    head, stuff = cfg.MODEL.TRANSFORMERS.CLASS_HEAD, cfg.MODEL.TRANSFORMERS.STUFF_CLASSES
    check_known("MODEL.TRANSFORMERS.CLASS_HEAD", head, CLASS_HEADS)
    if not (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST):
        return _classes_of_labels(source, stuff)
    dataset = classes_of_dataset(cfg)
    names = _class_names(dataset.dataset_name, dataset.num_classes, source)
    match = match_labels(source.labels, names)
    is_new = head == "new" or (head == "auto" and bool(match.missing))
    found = dataset.num_classes - len(match.missing)
    if not found and head == "keep":
        raise ConfigError(
            f"no class of data set {quoted(dataset.dataset_name)} ({listed(names)}) is a label of "
            f"{quoted(source.name)} ({listed(source.labels)}); name the data set that the model "
            "was trained on, or train a new class head: MODEL.TRANSFORMERS.CLASS_HEAD new"
        )
    plan = ClassPlan(match, dataset.isthing, is_new, dataset.dataset_name)
    _log_differences(plan, source, found)
    return plan


def _log_differences(plan: ClassPlan, source: Source, found: int) -> None:
    text = (
        f"{source.name}: {found} of the {len(plan.isthing)} classes of data set "
        f"{plan.metadata_name} are among its {len(plan.match.labels)} labels"
    )
    report = plan.match.report()
    if plan.is_new:
        logger.info(
            "%s; the network gets a new class head, with the weights of those %d. %s",
            text, found, report,
        )  # fmt: skip
    elif report:
        logger.warning("%s. %s", text, report)
    else:
        logger.info("%s", text)


def _class_names(dataset_name: str, count: int, source: Source) -> Sequence[str]:
    """Names of the classes in the order of their contiguous ids."""
    metadata = MetadataCatalog.get(dataset_name)
    for key in ("thing_classes", "stuff_classes"):
        names = metadata.get(key)
        if names is not None and len(names) == count:
            return list(names)
    if len(source.labels) == count:  # metadata without names: the order of ids is all there is
        return source.labels
    raise ConfigError(
        f"the metadata of data set {quoted(dataset_name)} has no names of its {count} classes, "
        f"which are to be matched with the {len(source.labels)} labels of {quoted(source.name)}; "
        "register it with panoptic_ext.register_panoptic"
    )


def _classes_of_labels(source: Source, stuff: Sequence[str] | None) -> ClassPlan:
    """The labels that mean something are the classes; their metadata is registered."""
    labels = [i for i, name in enumerate(source.labels) if not is_unused(name)]
    names = [source.labels[i] for i in labels]
    if not names:
        raise ConfigError(
            f"{quoted(source.name)} has {len(source.labels)} labels without a name, so its classes "
            "are not known; name a data set in DATASETS.TEST"
        )
    isthing = _kinds(stuff, source, labels)
    match = LabelMatch(tuple(source.labels), tuple(names), tuple(labels))
    name = "transformers_" + re.sub(r"\W+", "_", source.name).strip("_")
    _register(name, names, isthing, labels)
    return ClassPlan(match, isthing, False, name)


def _kinds(stuff: Sequence[str] | None, source: Source, labels: Sequence[int]) -> tuple[bool, ...]:
    """For each of the labels whether it is a thing."""
    names = [source.labels[i] for i in labels]
    if stuff is not None:
        for name in stuff:
            if name not in names:
                raise ConfigError(unknown("name in MODEL.TRANSFORMERS.STUFF_CLASSES", name, names))
        return tuple(name not in stuff for name in names)
    things = (getattr(source.processor, "metadata", None) or {}).get("thing_ids")
    if things is not None:  # OneFormer's processor read its file of classes
        return tuple(i in set(things) for i in labels)
    fused = getattr(source.processor, "label_ids_to_fuse", None)
    if fused is not None:
        return tuple(i not in set(fused) for i in labels)
    return _kinds_by_name(names) or _all_things(source)


def _kinds_by_name(names: Sequence[str]) -> tuple[bool, ...] | None:
    """Kinds of the classes of COCO, Cityscapes or ADE20K; None for other names."""
    ade20k = [(name, i not in _ADE20K_STUFF) for i, name in enumerate(ADE20K_SEM_SEG_CATEGORIES)]
    tables = [
        [(str(c["name"]), bool(c["isthing"])) for c in table]
        for table in (COCO_CATEGORIES, CITYSCAPES_CATEGORIES)
    ]
    for table in (*tables, ade20k):
        match = match_labels([name for name, _ in table], names)
        if len(match.missing) <= (1 - _KNOWN_SHARE) * len(names):
            # A name that is not in the table counts as a thing, which keeps its segments apart.
            return tuple(label < 0 or table[label][1] for label in match.label_of_class)
    return None


def _all_things(source: Source) -> tuple[bool, ...]:
    names = [name for name in source.labels if not is_unused(name)]
    logger.warning(
        "%s: nothing says which of its %d classes are stuff, so all count as things and the parts "
        "of, say, a sky stay apart; name them in MODEL.TRANSFORMERS.STUFF_CLASSES, or the data set "
        "in DATASETS.TEST",
        source.name,
        len(names),
    )
    return (True,) * len(names)


def _register(
    name: str, names: Sequence[str], isthing: Sequence[bool], labels: Sequence[int]
) -> None:
    """Register metadata; that of a model which was loaded before under the name is replaced."""
    values = {
        "thing_classes": list(names),
        "stuff_classes": list(names),
        "isthing": tuple(isthing),
        "thing_dataset_id_to_contiguous_id": {
            label: i for i, label in enumerate(labels) if isthing[i]
        },
        "stuff_dataset_id_to_contiguous_id": {
            label: i for i, label in enumerate(labels) if not isthing[i]
        },
        "ignore_label": max(255, len(names)),
        "label_divisor": 1000,
    }
    MetadataCatalog.pop(name, None)
    MetadataCatalog.get(name).set(**values)
