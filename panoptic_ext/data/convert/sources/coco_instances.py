"""Read COCO instances: a JSON of polygons and run lengths, with or without semantic PNGs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from panoptic_ext.data.coco.json_file import read_json
from panoptic_ext.data.convert.images import ImageHeader
from panoptic_ext.data.convert.json_sniff import json_keys
from panoptic_ext.data.convert.labels import LabelledObject, Labels, SourceClass, SourceImage
from panoptic_ext.data.convert.masks import Mask, Polygons, RunLengths
from panoptic_ext.data.convert.source import Source, SourceInputs
from panoptic_ext.data.convert.sources.coco_json import (
    categories_by_id,
    images_by_id,
    named_images,
)
from panoptic_ext.data.convert.sources.semantic_pngs import SemanticFolder
from panoptic_ext.errors import DatasetError, quoted
from panoptic_ext.regular_files import INSTANCES_JSON

__all__ = ["CocoInstances", "mask_of"]


class CocoInstances(Source):
    """An instances JSON: every class is a thing, unless its category has "isthing": 0."""

    name = "coco-instances"
    description = "COCO instances JSON: polygons, run lengths, crowds; semantic PNGs behind them"
    example = "instances_train.json --image-root images --semantic stuff_pngs --classes classes.txt"
    overlap = "area"
    options = ("semantic", "void_values")

    def __init__(self, inputs: SourceInputs) -> None:
        super().__init__(inputs)
        self._json = inputs.path
        info = read_json(self._json, INSTANCES_JSON)
        self._categories = categories_by_id(info, self._json)
        self._entries = images_by_id(info, self._json)
        self._annotations = self._by_image(info.get("annotations"))
        names = {number: one.name for number, one in self._categories.items()}
        self._semantic = (
            SemanticFolder(inputs.semantic, dict(inputs.names) or names, inputs.void_values)
            if inputs.semantic
            else None
        )
        self.lists_all_classes = self._semantic is None

    @classmethod
    def recognises(cls, path: str) -> bool:
        keys = json_keys(path)
        return {"annotations", "categories", "segmentation"} <= keys and "segments_info" not in keys

    def _by_image(self, annotations: Any) -> dict[str, list[dict[str, Any]]]:
        """{image id as text: annotations}."""
        if not isinstance(annotations, list):
            raise DatasetError(f"{self._json} has no annotations; expected a list of objects")
        found = defaultdict(list)
        for annotation in annotations:
            image_id = annotation.get("image_id") if isinstance(annotation, dict) else None
            if str(image_id) not in self._entries:
                raise DatasetError(
                    f"{self._json}: annotation {quoted(annotation, 80)} is of the image id "
                    f"{quoted(image_id)}, which is not in images; correct or remove it"
                )
            found[str(image_id)].append(annotation)
        return found

    def classes(self) -> Sequence[SourceClass]:
        used = {a.get("category_id") for one in self._annotations.values() for a in one}
        return [
            one
            if one.isthing is not None
            # The JSON may also list the classes of the semantic PNGs.
            else replace(one, isthing=True if self._semantic is None or one.id in used else None)
            for one in self._categories.values()
        ]

    def classes_of(self, image: SourceImage) -> Sequence[SourceClass]:
        return self._semantic.classes_of(image) if self._semantic else ()

    def images(self) -> Sequence[SourceImage]:
        return named_images(self._entries.values(), self._json, self.inputs.image_root)

    def labels(self, image: SourceImage, header: ImageHeader) -> Labels:
        entry = self._entries[str(image.id)]
        size = (entry["height"], entry["width"])
        objects = []
        for annotation in self._annotations.get(str(image.id), ()):
            where = f"{self._json}: annotation id {quoted(annotation.get('id'))}"
            category = self._categories.get(annotation.get("category_id", -1))
            if category is None:
                raise DatasetError(
                    f"{where} has the category_id {quoted(annotation.get('category_id'))}, which "
                    "is not in categories; correct it"
                )
            mask = mask_of(annotation.get("segmentation"), where)
            if mask is None:
                self.ignore("annotations without a mask (boxes or points alone)")
                continue
            is_crowd = annotation.get("iscrowd") in (1, True)
            objects.append(LabelledObject(category.name, mask, where, is_crowd=is_crowd))
        under = self._semantic.map_of(image, size) if self._semantic else None
        return Labels(size, objects, under)


def mask_of(segmentation: Any, where: str) -> Mask | None:
    """The mask of a COCO segmentation; None where it is empty.

    Raises:
        DatasetError: it is neither polygons nor run lengths.
    """
    if not segmentation:
        return None
    if isinstance(segmentation, dict) and {"size", "counts"} <= set(segmentation):
        return RunLengths(segmentation)
    if isinstance(segmentation, list):
        # Some tools write a single polygon as a flat list.
        is_flat = all(isinstance(number, (int, float)) for number in segmentation)
        outlines = [segmentation] if is_flat else segmentation
        if all(isinstance(outline, list) for outline in outlines):
            return Polygons(outlines)
    raise DatasetError(
        f"{where} has the segmentation {quoted(segmentation, 80)}, expected a list of polygons or "
        "run lengths (size and counts)"
    )
