"""Known data sets in the layout that their users already have, under $DETECTRON2_DATASETS.

Names are `<dataset>_panoptic_<split>`, and `ade20k_instance_<split>` for the instances JSON of
ADE20K; those of COCO and Cityscapes are Detectron2's own (coco_2017_train,
cityscapes_fine_instance_seg_train). A name that somebody registered before is left alone, and so
are, at import, the names of an installed Mask2Former: whoever imports it later finds them free.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from dataclasses import dataclass
from typing import Any

from detectron2.data import DatasetCatalog
from detectron2.data.datasets.builtin_meta import CITYSCAPES_CATEGORIES, COCO_CATEGORIES

from panoptic_ext.data.datasets.instances import InstanceSource, register_instance_source
from panoptic_ext.data.datasets.metadata import PanopticSource
from panoptic_ext.data.datasets.panoptic import register_source
from panoptic_ext.data.datasets.structure import Category

__all__ = ["BUILTIN", "CityscapesSource", "register_builtin"]


@dataclass(frozen=True)
class CityscapesSource(PanopticSource):
    """Cityscapes' panoptic JSON names the label map as the image; the image follows from its id."""

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


def register_builtin(*, at_import: bool = False) -> None:
    """Register the splits train and val of each; nothing is read and no folder need exist.

    Args:
        at_import: leave out what an installed Mask2Former registers when it is imported.
    """
    left_out = _ALSO_IN_MASK2FORMER if at_import and _has_mask2former() else ()
    for dataset, make in BUILTIN.items():
        if dataset in left_out:
            continue
        for split in ("train", "val"):
            name = f"{dataset}_panoptic_{split}"
            if name not in DatasetCatalog:
                register_source(name, make(split))
            instances = f"{dataset}_instance_{split}"
            if dataset == "ade20k" and instances not in DatasetCatalog:
                register_instance_source(instances, _ade20k_instances(split))


def _has_mask2former() -> bool:
    name = "mask2former"
    return name in sys.modules or importlib.util.find_spec(name) is not None
