"""Known data sets in the layout that their users already have, under $DETECTRON2_DATASETS.

Names are `<dataset>_panoptic_<split>`, and `ade20k_instance_<split>` for the instances JSON of
ADE20K. The instance data sets of COCO and Cityscapes are Detectron2's own (coco_2017_train,
cityscapes_fine_instance_seg_train). A name that is registered already is not replaced. If
Mask2Former is installed, the names that it registers too wait until a config uses them.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets.builtin_meta import CITYSCAPES_CATEGORIES, COCO_CATEGORIES

from panoptic_ext.data.coco.categories import Category
from panoptic_ext.data.datasets.instances import InstanceSource, register_instance_source
from panoptic_ext.data.datasets.metadata import PanopticSource
from panoptic_ext.data.datasets.panoptic import register_source

__all__ = ["BUILTIN", "CityscapesSource", "builtin_names", "register_builtin", "warn_of_others"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class CityscapesSource(PanopticSource):
    """Cityscapes, whose image files are derived from the image ids.

    The `file_name` of an image in its panoptic JSON is that of the label map.
    """

    def image_name(self, entry: dict[str, Any]) -> str:
        image_id = str(entry["id"])
        return os.path.join(image_id.split("_")[0], f"{image_id}_leftImg8bit.png")


def _categories(table: list[dict[str, Any]]) -> tuple[Category, ...]:
    return tuple(Category(c["id"], c["name"], bool(c["isthing"]), tuple(c["color"])) for c in table)


def _coco(split: str) -> PanopticSource:
    return PanopticSource(
        json=f"coco/annotations/panoptic_{split}2017.json",
        image_root=f"coco/{split}2017",
        png_root=f"coco/panoptic_{split}2017",
        classes=_categories(COCO_CATEGORIES),
        search_path=_SEARCH_PATH,
    )


def _cityscapes(split: str) -> PanopticSource:
    # The table's `trainId` order is the order of the rows: contiguous ids are the train ids.
    return CityscapesSource(
        json=f"cityscapes/gtFine/cityscapes_panoptic_{split}.json",
        image_root=f"cityscapes/leftImg8bit/{split}",
        png_root=f"cityscapes/gtFine/cityscapes_panoptic_{split}",
        evaluator_type="cityscapes_panoptic_seg",
        classes=_categories(CITYSCAPES_CATEGORIES),
        search_path=_SEARCH_PATH,
    )


def _ade20k(split: str) -> PanopticSource:
    folder = {"train": "training", "val": "validation"}[split]
    return PanopticSource(
        json=f"ADEChallengeData2016/ade20k_panoptic_{split}.json",
        image_root=f"ADEChallengeData2016/images/{folder}",
        png_root=f"ADEChallengeData2016/ade20k_panoptic_{split}",
        evaluator_type="ade20k_panoptic_seg",
        search_path=_SEARCH_PATH,
    )


def _ade20k_instances(split: str) -> InstanceSource:
    folder = {"train": "training", "val": "validation"}[split]
    return InstanceSource(
        json=f"ADEChallengeData2016/ade20k_instance_{split}.json",
        image_root=f"ADEChallengeData2016/images/{folder}",
        search_path=_SEARCH_PATH,
    )


def _mapillary_vistas(split: str) -> PanopticSource:
    folder = {"train": "training", "val": "validation"}[split]
    return PanopticSource(
        json=f"mapillary_vistas/{folder}/panoptic/panoptic_2018.json",
        image_root=f"mapillary_vistas/{folder}/images",
        png_root=f"mapillary_vistas/{folder}/panoptic",
        # The 65 categories have the contiguous ids 0 to 64, so 65 is the first free value.
        ignore_label=65,
        evaluator_type="mapillary_vistas_panoptic_seg",
        search_path=_SEARCH_PATH,
    )


_SEARCH_PATH = ("datasets",)
BUILTIN = {
    "coco": _coco,
    "cityscapes": _cityscapes,
    "ade20k": _ade20k,
    "mapillary_vistas": _mapillary_vistas,
}


# Mask2Former registers these under the same names, and Detectron2 takes a name only once.
_ALSO_IN_MASK2FORMER = ("ade20k", "mapillary_vistas")


def builtin_names() -> list[str]:
    """The names that `register_builtin` can register."""
    return [name for dataset in BUILTIN for name in _sources(dataset)]


def register_builtin(names: Iterable[str] | None = None) -> None:
    """Register known data sets; nothing is read and no folder need exist.

    A name that is registered already is left as it is. If other code registers one of these names
    later, its data set replaces the built-in one, with a warning.

    Args:
        names: the names to register; those that are not built in are ignored. None, as used at
            import, stands for all names except those that an installed Mask2Former registers.
    """
    left_out = _ALSO_IN_MASK2FORMER if names is None and _has_mask2former() else ()
    for dataset in BUILTIN:
        for name, source in _sources(dataset).items() if dataset not in left_out else ():
            if name not in DatasetCatalog and (names is None or name in names):
                if isinstance(source, PanopticSource):
                    register_source(name, source)
                else:
                    register_instance_source(name, source)
    # Detectron2's catalogue refuses a name that it has. An instance attribute shadows its method,
    # so that packages imported later can still register the built-in names.
    vars(DatasetCatalog)["register"] = _register_of_others


def warn_of_others(names: Iterable[str]) -> None:
    """Warn of each built-in name under which another package registered a data set."""
    for name in names:
        if name in builtin_names() and _registered_source(name) is None:
            logger.warning(
                "Data set %s is the one that %s registered, not panoptic_ext's of that name: its "
                "paths and categories count",
                name,
                getattr(DatasetCatalog[name], "__module__", "another module"),
            )


def _register_of_others(name: str, func: Callable) -> None:
    """Replace `DatasetCatalog.register`: first remove a built-in data set of that name."""
    if _is_ours(name):
        DatasetCatalog.remove(name)
        MetadataCatalog.pop(name, None)
        logger.warning(
            "Data set %s is from now on the one that %s registers, not panoptic_ext's of that name",
            name,
            getattr(func, "__module__", "another module"),
        )
    type(DatasetCatalog).register(DatasetCatalog, name, func)


def _is_ours(name: str) -> bool:
    """Whether a built-in name holds the built-in data set."""
    dataset = name.split("_panoptic_")[0].split("_instance_")[0]
    if name not in DatasetCatalog or dataset not in BUILTIN:
        return False
    # A data set that the user registered from other files under this name is not the built-in one.
    return _registered_source(name) == _sources(dataset).get(name, "none")


def _registered_source(name: str) -> Any:
    """The source that panoptic_ext registered under a name; None if another package did."""
    return getattr(MetadataCatalog.get(name), "source", None) if name in MetadataCatalog else None


def _sources(dataset: str) -> dict[str, PanopticSource | InstanceSource]:
    splits = ("train", "val")
    sources: dict[str, PanopticSource | InstanceSource] = {
        f"{dataset}_panoptic_{split}": BUILTIN[dataset](split) for split in splits
    }
    if dataset == "ade20k":
        sources |= {f"ade20k_instance_{split}": _ade20k_instances(split) for split in splits}
    return sources


def _has_mask2former() -> bool:
    name = "mask2former"
    return name in sys.modules or importlib.util.find_spec(name) is not None
