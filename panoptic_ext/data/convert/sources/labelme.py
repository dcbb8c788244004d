"""Read labelme: a JSON for each image, with polygons, boxes, circles and masks."""

from __future__ import annotations

import base64
import binascii
import io
import math
import os
from collections.abc import Hashable, Sequence
from functools import partial
from typing import Any

import numpy as np
from PIL import Image

from panoptic_ext.data.coco.json_file import is_int, load_json
from panoptic_ext.data.convert.image_search import ImageSearch, files_below
from panoptic_ext.data.convert.images import ImageHeader
from panoptic_ext.data.convert.json_sniff import json_keys
from panoptic_ext.data.convert.labels import LabelledObject, Labels, SourceClass, SourceImage
from panoptic_ext.data.convert.masks import Bitmap, Mask, Polygons, box_outline, ellipse_outline
from panoptic_ext.data.convert.source import Source, SourceInputs
from panoptic_ext.data.datasets.file_search import IMAGE_EXTENSIONS
from panoptic_ext.errors import DatasetError, quoted
from panoptic_ext.regular_files import READ_ERRORS, FileKind

__all__ = ["Labelme"]

_GIB = 1 << 30
_LABELME = FileKind("labelme JSON", _GIB, bad="label the image again or remove the file")
_WITHOUT_AREA = ("point", "points", "line", "linestrip")

Points = list[tuple[float, float]]


class Labelme(Source):
    """A folder of labelme JSONs, in sub-folders or not, each beside its image.

    Shapes of one label and one group_id are one object. A later shape is in front of an earlier
    one, as labelme draws them.
    """

    name = "labelme"
    description = "folder of labelme JSONs: polygons, boxes, circles, masks, group_id"
    example = "labelled --things car,person"

    def __init__(self, inputs: SourceInputs) -> None:
        super().__init__(inputs)
        is_file = os.path.isfile(inputs.path)
        self._root = os.path.dirname(inputs.path) or os.curdir if is_file else inputs.path
        names = [os.path.basename(inputs.path)] if is_file else files_below(self._root, (".json",))
        if not names:
            raise DatasetError(f"{inputs.path} has no JSON, expected one for each labelled image")
        self._search = ImageSearch(inputs.image_root or self._root)
        self._images = [self._image(name) for name in names]

    @classmethod
    def recognises(cls, path: str) -> bool:
        if os.path.isdir(path):
            names = files_below(path, (".json",))
            path = os.path.join(path, *names[0].split("/")) if names else path
        return {"shapes", "imagePath"} <= json_keys(path)

    def images(self) -> Sequence[SourceImage]:
        return self._images

    def unannotated(self) -> Sequence[str]:
        annotated = {image.name for image in self._images}
        return [name for name in self._search.names if name not in annotated]

    def classes_of(self, image: SourceImage) -> Sequence[SourceClass]:
        shapes = _shapes(_read(str(image.labels)), str(image.labels))
        names = sorted({_label(shape, str(image.labels)) for shape in shapes})
        return [SourceClass(name) for name in names]

    def labels(self, image: SourceImage, header: ImageHeader) -> Labels:
        path = str(image.labels)
        content = _read(path)
        height, width = content.get("imageHeight"), content.get("imageWidth")
        size = header.upright
        if is_int(height) and is_int(width) and min(height, width) > 0:
            size = (height, width)
        objects = []
        for number, shape in enumerate(_shapes(content, path)):
            where = f"{path}: shape {number}"
            label, kind = _label(shape, path), shape.get("shape_type") or "polygon"
            if kind in _WITHOUT_AREA:
                self.ignore(f"shapes of the type {kind}, which have no area")
                continue
            group = shape.get("group_id")
            mask = _mask(shape, kind, f"{where} ({label})")
            objects.append(LabelledObject(label, mask, where, group=_group(group)))
        # labelme shows images turned by their tag.
        return Labels(size, objects, frame="upright")

    def _image(self, name: str) -> SourceImage:
        """The image of a JSON: of the same name, else what the JSON names, else what it holds."""
        path = os.path.join(self._root, *name.split("/"))
        stem = os.path.splitext(name)[0]
        found = self._search.of_stem(stem)
        if found is None:
            content = _content(path)
            image_path = str(content.get("imagePath") or "").replace("\\", "/")
            found = self._search.find(os.path.normpath(f"{os.path.dirname(stem)}/{image_path}"))
            found = found or self._search.find(os.path.basename(image_path))
            if found is None and isinstance(content.get("imageData"), str):
                ending = os.path.splitext(image_path)[1].lower()
                ending = ending if ending in IMAGE_EXTENSIONS else ".png"
                return SourceImage(
                    stem + ending, "", labels=path, embedded=partial(_embedded, path)
                )
        image_name = found or f"{stem}.jpg"
        return SourceImage(image_name, self._search.path(image_name), labels=path)


def _content(path: str) -> dict[str, Any]:
    """What a JSON holds; {} where it cannot be read, which is an error of its image later."""
    try:
        return _read(path)
    except DatasetError:
        return {}


def _read(path: str) -> dict[str, Any]:
    content = load_json(path, _LABELME)
    if not isinstance(content, dict) or not isinstance(content.get("shapes"), list):
        raise DatasetError(
            f"{path} is no labelme JSON: no list of shapes; remove it from the folder"
        )
    return content


def _shapes(content: dict[str, Any], path: str) -> list[dict[str, Any]]:
    for number, shape in enumerate(content["shapes"]):
        if not isinstance(shape, dict):
            raise DatasetError(f"{path}: shape {number} is {quoted(shape, 60)}, expected an object")
    return content["shapes"]


def _label(shape: dict[str, Any], path: str) -> str:
    label = shape.get("label")
    if not isinstance(label, (str, int)) or label == "":
        raise DatasetError(f"{path}: a shape has the label {quoted(label)}; give it a class")
    return str(label).strip()


def _group(group: Any) -> Hashable:
    return group if isinstance(group, (int, str)) else None


def _mask(shape: dict[str, Any], kind: str, where: str) -> Mask:
    points = _points(shape.get("points"), where)
    outline = [coordinate for point in points for coordinate in point]
    if kind == "polygon":
        return Polygons([outline])
    least = {"rectangle": 2, "circle": 2, "mask": 2, "oriented_rectangle": 4}
    if kind not in least:
        raise DatasetError(
            f"{where} has the shape_type {quoted(kind)}, expected polygon, rectangle, circle "
            "or mask"
        )
    if len(points) < least[kind]:
        raise DatasetError(f"{where} has {len(points)} points, a {kind} has {least[kind]}")
    (x0, y0), (x1, y1) = points[:2]
    if kind == "rectangle":
        return Polygons([box_outline(x0, y0, x1, y1)])
    if kind == "circle":
        radius = math.hypot(x1 - x0, y1 - y0)
        return Polygons([ellipse_outline(x0, y0, radius, radius)])
    if kind == "mask":
        return Bitmap(_bitmap(shape.get("mask"), where), round(y0), round(x0))
    return Polygons([outline])


def _points(points: Any, where: str) -> Points:
    pairs = isinstance(points, list) and all(
        isinstance(point, (list, tuple)) and len(point) == 2 for point in points
    )
    numbers = pairs and all(isinstance(n, (int, float)) for point in points for n in point)
    if not numbers or not all(math.isfinite(n) for point in points for n in point):
        raise DatasetError(f"{where} has the points {quoted(points, 80)}, expected pairs x, y")
    return [(point[0], point[1]) for point in points]


def _bitmap(text: Any, where: str) -> np.ndarray:
    """(h, w) bool of a PNG in base64."""
    try:
        with Image.open(io.BytesIO(base64.b64decode(text))) as image:
            return np.asarray(image.convert("L")) > 0
    except (TypeError, binascii.Error, *READ_ERRORS) as error:
        raise DatasetError(f"{where} has a mask that is no PNG in base64 ({error})") from error


def _embedded(path: str) -> bytes:
    """The image inside a JSON."""
    try:
        return base64.b64decode(_read(path)["imageData"])
    except (KeyError, TypeError, binascii.Error) as error:
        raise DatasetError(f"{path} has imageData that is no image in base64") from error
