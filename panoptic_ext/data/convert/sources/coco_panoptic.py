"""Read COCO panoptic: a JSON and a label PNG for each image."""

from __future__ import annotations

import os
from collections.abc import Sequence

from panoptic_ext.data.coco.json_checks import check_structure, read_categories
from panoptic_ext.data.coco.json_file import read_json
from panoptic_ext.data.coco.label_png import ExpectedSize, read_id_map
from panoptic_ext.data.coco.problems import raise_if_any
from panoptic_ext.data.convert.images import ImageHeader
from panoptic_ext.data.convert.json_sniff import json_keys
from panoptic_ext.data.convert.labels import (
    Labels,
    MapSegment,
    SegmentMap,
    SourceClass,
    SourceImage,
)
from panoptic_ext.data.convert.source import Source, SourceInputs
from panoptic_ext.data.convert.sources.coco_json import images_by_id, named_images
from panoptic_ext.errors import DatasetError

__all__ = ["CocoPanopticSource"]


class CocoPanopticSource(Source):
    """A panoptic JSON; its PNGs lie in the folder of its name, or of `png_root`."""

    name = "coco-panoptic"
    description = "COCO panoptic JSON with its label PNGs"
    example = "panoptic_val.json --image-root val2017 --to semantic"
    options = ("png_root",)
    lists_all_classes = True

    def __init__(self, inputs: SourceInputs) -> None:
        super().__init__(inputs)
        path = inputs.path
        self._json = os.path.join(path, "panoptic.json") if os.path.isdir(path) else path
        info = read_json(self._json)
        raise_if_any(check_structure(info, self._json, needs_area=False), self._json)
        self._categories = read_categories(info, self._json)
        self._names = {c.id: c.name for c in self._categories}
        self._annotations = {str(a["image_id"]): a for a in info["annotations"]}
        self._entries = images_by_id(info, self._json)
        self._png_root = inputs.png_root or os.path.splitext(self._json)[0]
        if not os.path.isdir(self._png_root):
            raise DatasetError(
                f"the folder of the label PNGs is missing: {self._png_root}; name it (--png-root)"
            )

    @classmethod
    def recognises(cls, path: str) -> bool:
        if os.path.isdir(path):
            path = os.path.join(path, "panoptic.json")
        return "segments_info" in json_keys(path)

    def classes(self) -> Sequence[SourceClass]:
        return [SourceClass(c.name, c.id, c.isthing, c.color) for c in self._categories]

    def images(self) -> Sequence[SourceImage]:
        entries = [e for key, e in self._entries.items() if key in self._annotations]
        return named_images(entries, self._json, self.inputs.image_root)

    def unannotated(self) -> Sequence[str]:
        return [e["file_name"] for key, e in self._entries.items() if key not in self._annotations]

    def labels(self, image: SourceImage, header: ImageHeader) -> Labels:
        entry = self._entries[str(image.id)]
        annotation = self._annotations[str(image.id)]
        size = (entry["height"], entry["width"])
        ids = read_id_map(
            os.path.join(self._png_root, annotation["file_name"]),
            size=ExpectedSize(*size, f"{self._json} says"),
        )
        segments = {
            s["id"]: MapSegment(self._names[s["category_id"]], True, s.get("iscrowd") == 1)
            for s in annotation["segments_info"]
        }
        return Labels(size, under=SegmentMap(ids, segments))
