"""The classes of the data set that a config names, for `from_config` of the meta-architectures."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from detectron2.data import MetadataCatalog

from panoptic_ext.errors import ConfigError, quoted

__all__ = ["DatasetClasses", "classes_of_dataset"]


@dataclass(frozen=True)
class DatasetClasses:
    """Things and stuff of a data set in one space of contiguous ids, 0..K-1.

    Args:
        dataset_name: the registered data set.
        isthing: for each contiguous id whether it is a thing (K bools).
        names: of the classes (K), or () where they are not known.
    """

    dataset_name: str
    isthing: tuple[bool, ...]
    names: tuple[str, ...] = field(default=(), compare=False)

    @property
    def num_classes(self) -> int:
        """K."""
        return len(self.isthing)

    @property
    def thing_ids(self) -> list[int]:
        """Contiguous ids of the things, ascending."""
        return [i for i, isthing in enumerate(self.isthing) if isthing]


def classes_of_dataset(cfg: Any) -> DatasetClasses:
    """Classes of the first data set of DATASETS.TRAIN, or else of DATASETS.TEST.

    The classes are read from the data set's metadata.

    Raises:
        ConfigError: no data set is named, or its metadata has no `isthing`.
    """
    names = (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST)
    if not names:
        raise ConfigError(
            "DATASETS.TRAIN and DATASETS.TEST are both empty, but the model takes its thing "
            "classes from a data set; name one in either"
        )
    metadata = MetadataCatalog.get(names[0])
    isthing = getattr(metadata, "isthing", None)
    if isthing is None:
        raise ConfigError(
            f"the metadata of data set {quoted(names[0])} has no `isthing`, which tells things "
            "from stuff in contiguous ids; register it with panoptic_ext.register_panoptic or in "
            "DATASETS.PANOPTIC (instances alone: panoptic_ext.data.register_instances, "
            "DATASETS.INSTANCES)"
        )
    class_names = tuple(getattr(metadata, "thing_classes", ()))
    return DatasetClasses(names[0], tuple(bool(thing) for thing in isthing), class_names)
