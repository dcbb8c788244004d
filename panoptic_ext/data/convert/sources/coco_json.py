"""What JSONs in COCO's layout have in common: images with ids, categories, a folder of images."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import Any

from panoptic_ext.data.coco.json_checks import safe_name
from panoptic_ext.data.coco.json_file import is_int
from panoptic_ext.data.convert.class_file import class_from_entry
from panoptic_ext.data.convert.image_search import ImageSearch
from panoptic_ext.data.convert.labels import SourceClass, SourceImage
from panoptic_ext.errors import DatasetError, listed, quoted

__all__ = ["categories_by_id", "images_by_id", "named_images"]

_IMAGE_FOLDERS = ("images", "data", "")
"""Where exports have images, relative to the JSON's folder and to the folder above."""


def images_by_id(info: dict[str, Any], path: str) -> dict[str, dict[str, Any]]:
    """{id as text: entry} of the JSON's images, checked.

    Raises:
        DatasetError: there is no list of images, or an entry lacks an id, a file name or a size.
    """
    images = info.get("images")
    if not isinstance(images, list) or not images:
        raise DatasetError(f"{path} has no images; expected a list of objects with id, file_name")
    entries: dict[str, dict[str, Any]] = {}
    for entry in images:
        number = entry.get("id") if isinstance(entry, dict) else None
        if not (is_int(number) or isinstance(number, str)):
            raise DatasetError(f"{path}: image {quoted(entry, 80)} has no id; give each image one")
        if str(number) in entries:
            raise DatasetError(f"{path}: two images have the id {quoted(number)}; renumber one")
        if not safe_name(entry.get("file_name")):
            raise DatasetError(
                f"{path}: image id {quoted(number)} has the file_name "
                f"{quoted(entry.get('file_name'))}, expected a relative path without '..'"
            )
        sides = (entry.get("height"), entry.get("width"))
        if not all(is_int(side) and side > 0 for side in sides):
            raise DatasetError(
                f"{path}: image id {quoted(number)} has height, width {quoted(sides)}, expected "
                "its size in pixels"
            )
        entries[str(number)] = entry
    return entries


def categories_by_id(info: dict[str, Any], path: str) -> dict[int, SourceClass]:
    """{id: class} of the JSON's categories, checked.

    Raises:
        DatasetError: there are none, or an id or a name is missing or there twice.
    """
    categories = info.get("categories")
    if not isinstance(categories, list) or not categories:
        raise DatasetError(f"{path} has no categories; expected a list of objects with id and name")
    classes: dict[int, SourceClass] = {}
    for entry in categories:
        one = class_from_entry(entry, path)
        if one.id is None or one.id in classes:
            what = "no id" if one.id is None else f"the id {one.id}, as another one has"
            raise DatasetError(f"{path}: category {quoted(one.name)} has {what}; number them")
        classes[one.id] = one
    return classes


def named_images(
    entries: Iterable[dict[str, Any]], path: str, image_root: str | None
) -> Sequence[SourceImage]:
    """The images of entries of a JSON; each keeps its id.

    Args:
        entries: checked, see `images_by_id`.
        path: of the JSON.
        image_root: folder of the images; None looks for them near the JSON.

    Raises:
        DatasetError: there is no entry, or none of the images is there.
    """
    entries = list(entries)
    if not entries:
        raise DatasetError(f"{path} annotates no image; annotate some")
    search = ImageSearch(image_root or _near(path, entries[0]["file_name"]))
    images = []
    for entry in entries:
        # An image that is missing is an error of its own, which names its path.
        name = search.find(entry["file_name"]) or entry["file_name"].replace("\\", "/")
        images.append(SourceImage(name, search.path(name), id=entry["id"]))
    if not any(os.path.exists(image.path) for image in images):
        names = listed((entry["file_name"] for entry in entries), 3)
        raise DatasetError(
            f"{search.root} has none of the {len(images)} images of {path}, such as {names}; name "
            "the folder of the images (--image-root)"
        )
    return images


def _near(path: str, name: str) -> str:
    """The folder near a JSON that holds an image."""
    folder = os.path.dirname(os.path.abspath(path))
    places = [os.path.join(f, i) for f in (folder, os.path.dirname(folder)) for i in _IMAGE_FOLDERS]
    for place in places:
        if os.path.isfile(os.path.join(place, *name.replace("\\", "/").split("/"))):
            return place
    return folder
