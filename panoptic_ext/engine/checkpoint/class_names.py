"""Find out which classes a file of weights was trained on."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from detectron2.config import CfgNode
from detectron2.utils.file_io import PathManager

from panoptic_ext.data.datasets.known_classes import known_categories
from panoptic_ext.data.datasets.metadata_file import METADATA_FILE, load_metadata
from panoptic_ext.data.datasets.registered import get_metadata
from panoptic_ext.engine.checkpoint.fetch_weights import handler_of
from panoptic_ext.engine.checkpoint.parts import PartError, check_kind
from panoptic_ext.errors import ConfigError, DatasetError
from panoptic_ext.modeling.meta_arch.classes import DatasetClasses, classes_of_dataset

__all__ = [
    "check_classes",
    "classes_as_dict",
    "classes_named",
    "classes_of_checkpoint",
    "classes_of_config",
    "classes_of_weights",
]

_FINGERPRINT, _CLASSES = "panoptic_ext", "classes"  # keys of a checkpoint, the second in the first


@runtime_checkable
class _KnowsClasses(Protocol):
    """A handler that knows which classes the weights of an address were trained on."""

    def classes_of(self, path: str) -> DatasetClasses | None: ...


def classes_of_config(cfg: CfgNode) -> DatasetClasses | None:
    """The classes of a config's data set; None where it has none with names and kinds."""
    try:
        classes = classes_of_dataset(cfg)
    except (ConfigError, DatasetError):
        return None
    return classes if len(classes.names) == classes.num_classes else None


def classes_named(dataset: str) -> DatasetClasses:
    """The classes of a data set that is built in, without its files, or registered.

    Raises:
        DatasetError: no data set has that name, or its classes are not known.
    """
    categories = known_categories(dataset)
    if categories is not None:
        return DatasetClasses(
            dataset, tuple(c.isthing for c in categories), tuple(c.name for c in categories)
        )
    metadata = get_metadata(dataset)
    names = metadata.get("thing_classes", None)
    if names is None:
        raise DatasetError(f"the metadata of data set {dataset} has no names of classes")
    # Without kinds, they are those of a data set of instances: all are things.
    isthing = metadata.get("isthing", None) or [True] * len(names)
    return DatasetClasses(dataset, tuple(map(bool, isthing)), tuple(names))


def classes_of_weights(
    address: str, path: str, checkpoint: Mapping[str, Any]
) -> DatasetClasses | None:
    """The classes of weights: as their file says, their zoo entry, or their run's folder.

    Args:
        address: MODEL.WEIGHTS.
        path: the local file.
        checkpoint: its content.

    Returns:
        None where they are not known.
    """
    found = classes_of_checkpoint(checkpoint)
    # The room model_zoo, which this one must not import, has registered a handler.
    zoo = handler_of("zoo://", PathManager)
    if found is None and isinstance(zoo, _KnowsClasses):
        found = zoo.classes_of(address)
    beside = os.path.join(os.path.dirname(os.path.abspath(path)), METADATA_FILE)
    if found is None and os.path.isfile(beside):
        try:
            metadata = load_metadata(beside)
        except DatasetError:  # another program's file of that name
            return None
        found = DatasetClasses(metadata.name, metadata.isthing, tuple(metadata.thing_classes))
    return found


def classes_as_dict(classes: DatasetClasses) -> dict[str, Any]:
    """Plain values, for a checkpoint."""
    return {
        "dataset": classes.dataset_name,
        "names": list(classes.names),
        "isthing": list(classes.isthing),
    }


def classes_of_checkpoint(checkpoint: Mapping[str, Any]) -> DatasetClasses | None:
    """The classes that a checkpoint of this package holds; None of older and other ones."""
    run = checkpoint.get(_FINGERPRINT)
    content = run.get(_CLASSES) if isinstance(run, dict) else None
    if content is None:
        return None
    try:
        check_classes(_CLASSES, content)
    except PartError:  # the weights can be used without them
        return None
    return DatasetClasses(content["dataset"], tuple(content["isthing"]), tuple(content["names"]))


def check_classes(part: str, saved: Any) -> None:
    """Raise PartError unless `saved` has the structure of `classes_as_dict`."""
    check_kind(part, saved, dict)
    check_kind(f"{part}.dataset", saved.get("dataset"), str)
    for key, kind in (("names", str), ("isthing", bool)):
        values: Sequence[Any] = saved.get(key)
        check_kind(f"{part}.{key}", values, list)
        for value in values:
            check_kind(f"{part}.{key}", value, kind)
    if len(saved["names"]) != len(saved["isthing"]):
        raise PartError(part, f"has {len(saved['names'])} names of {len(saved['isthing'])} classes")
