"""Names, colours and kinds of the classes that pictures show. K is the number of classes."""

from __future__ import annotations

from typing import Any

from detectron2.data.catalog import Metadata
from detectron2.utils.colormap import colormap

from panoptic_ext.errors import DatasetError

__all__ = ["class_color", "class_metadata", "class_name"]


def class_metadata(metadata: Any) -> Metadata:
    """Names, colours and kinds of all classes, complete.

    Args:
        metadata: as `draw_panoptic`; missing colours are taken from Detectron2's colormap.

    Returns:
        A new Metadata with thing_classes, stuff_classes (K names), thing_colors, stuff_colors
        (K times (R, G, B), 0-255) and isthing (K bools).

    Raises:
        DatasetError: the metadata has no class names.
    """
    things = list(getattr(metadata, "thing_classes", None) or ())
    stuff = list(getattr(metadata, "stuff_classes", None) or ()) or things
    things = things or stuff
    if not things:
        raise DatasetError(
            "no class names to draw with: the metadata has neither thing_classes nor"
            " stuff_classes; register the data set with register_panoptic first"
        )
    colormap_colors = [tuple(int(v) for v in row) for row in colormap(rgb=True, maximum=255)]
    count = max(len(things), len(stuff))
    spare = [colormap_colors[i % len(colormap_colors)] for i in range(count)]
    isthing = getattr(metadata, "isthing", None)
    if isthing is None:
        ids = set(getattr(metadata, "thing_dataset_id_to_contiguous_id", {}).values())
        isthing = [i in ids for i in range(len(spare))]
    return Metadata(
        thing_classes=things,
        stuff_classes=stuff,
        thing_colors=list(getattr(metadata, "thing_colors", None) or spare),
        stuff_colors=list(getattr(metadata, "stuff_colors", None) or spare),
        isthing=tuple(bool(v) for v in isthing),
    )


def class_name(segment: dict[str, Any], metadata: Any) -> str:
    """Name of the class of a segment that has isthing and category_id."""
    names = metadata.thing_classes if segment["isthing"] else metadata.stuff_classes
    return str(names[segment["category_id"]])


def class_color(segment: dict[str, Any], metadata: Any) -> tuple[float, float, float]:
    """Colour of the class of a segment that has isthing and category_id, each 0 to 1."""
    colors = metadata.thing_colors if segment["isthing"] else metadata.stuff_colors
    red, green, blue = colors[segment["category_id"]]
    return red / 255, green / 255, blue / 255
