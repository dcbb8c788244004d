"""Pictures of panoptic results, drawn by Detectron2's Visualizer.

Shapes: H, W height and width of the image in pixels; K number of classes; s the scale of the
picture, so that it is (round(s * H), round(s * W)) pixels large.
"""

from __future__ import annotations

import colorsys
import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from detectron2.data.catalog import Metadata
from detectron2.utils.colormap import colormap
from detectron2.utils.visualizer import GenericMask, Visualizer

from panoptic_ext.errors import DatasetError

__all__ = ["class_metadata", "draw_panoptic", "readable_scale"]

_MIN_LONG_SIDE = 480  # pixels: smaller pictures have no room for labels
_MAX_SCALE = 8.0
_GOLDEN = 0.618033988749895  # its multiples spread evenly over [0, 1) for any number of instances
_MAX_LABELS = 12  # of one category; more of them cover the picture and say nothing new
_TEXT_ASPECT = 0.6  # mean width of a letter relative to the font's height
_PIXELS_PER_POINT = 100 / 72  # matplotlib's default dpi


def readable_scale(height: int, width: int) -> float:
    """The whole factor that makes a small picture large enough for labels.

    Args:
        height, width: of the image, pixels.

    Returns:
        1.0 where the longer side has 480 pixels or more, else the smallest whole number (8 at
        most) that reaches it.
    """
    return float(min(_MAX_SCALE, max(1, math.ceil(_MIN_LONG_SIDE / max(height, width, 1)))))


def draw_panoptic(
    image_rgb: np.ndarray,
    panoptic_seg: np.ndarray | torch.Tensor,
    segments_info: Sequence[dict[str, Any]] | None,
    metadata: Any,
    *,
    scale: float | None = None,
    alpha: float = 0.5,
    labels: bool = True,
) -> np.ndarray:
    """Draw segments over an image; pixels of no segment (void) stay as they are.

    Segments whose name would not fit on them stay without text, apart from the largest of each
    category. The same input gives the same picture, and no random state is touched.

    Args:
        image_rgb: (H, W, 3) uint8 (or 0-255 of another type) in RGB order.
        panoptic_seg: (H, W) integer segment ids.
        segments_info: a dict with "id" and "category_id" (unified), optionally "isthing",
            "score" and "iscrowd", for each segment. None: ids are category_id *
            metadata.label_divisor + instance, void is -1, as in Detectron2.
        metadata: with thing_classes and stuff_classes (K names each, indexed by the unified id);
            colours and thing ids are taken from it where they are there.
        scale: size of the picture relative to the image. None: `readable_scale`.
        alpha: opacity of the segments, 0 to 1.
        labels: write class names and scores.

    Returns:
        (s * H, s * W, 3) uint8 array in RGB order. Inputs are left as they are.

    Raises:
        DatasetError: sizes differ or a category is not one of the data set's.
    """
    image = np.clip(np.asarray(image_rgb), 0, 255).astype(np.uint8)
    ids = torch.as_tensor(np.array(torch.as_tensor(panoptic_seg).cpu(), dtype=np.int64))
    _check_sizes(image, ids)
    classes = class_metadata(metadata)
    if segments_info is None:
        segments_info = _segments_of_divisor_ids(ids, int(metadata.label_divisor))
    segments = _complete_segments(segments_info, classes)
    if scale is None:
        scale = readable_scale(*image.shape[:2])
    visualizer = _PanopticVisualizer(image, classes, scale=scale, with_labels=labels)
    output = visualizer.draw_panoptic_seg_predictions(ids, segments, area_threshold=0, alpha=alpha)
    return np.array(output.get_image())


def class_metadata(metadata: Any) -> Metadata:
    """Names, colours and kinds of all classes, complete.

    Args:
        metadata: as `draw_panoptic`; what is missing of colours is made up.

    Returns:
        A new Metadata with thing_classes, stuff_classes (K names), thing_colors, stuff_colors
        (K times (R, G, B), 0-255) and isthing (K bools).
    """
    things = list(getattr(metadata, "thing_classes", None) or ())
    stuff = list(getattr(metadata, "stuff_classes", None) or ()) or things
    things = things or stuff
    if not things:
        raise DatasetError(
            "no class names to draw with: the metadata has neither thing_classes nor"
            " stuff_classes; register the data set with register_panoptic first"
        )
    made_up = [tuple(int(v) for v in row) for row in colormap(rgb=True, maximum=255)]
    spare = [made_up[i % len(made_up)] for i in range(max(len(things), len(stuff)))]
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


def _check_sizes(image: np.ndarray, ids: torch.Tensor) -> None:
    if image.ndim != 3 or image.shape[2] != 3:
        raise DatasetError(f"expected an RGB image of shape (H, W, 3), found {image.shape}")
    if tuple(ids.shape) != image.shape[:2]:
        raise DatasetError(
            f"the image is {image.shape[:2]} (height, width) and its segment ids are"
            f" {tuple(ids.shape)}; both must be of one size"
        )


def _segments_of_divisor_ids(ids: torch.Tensor, divisor: int) -> list[dict[str, Any]]:
    return [
        {"id": value, "category_id": value // divisor}
        for value in torch.unique(ids).tolist()
        if value >= 0
    ]


def _complete_segments(
    segments: Sequence[dict[str, Any]], classes: Metadata
) -> list[dict[str, Any]]:
    """Copies of the segments that all have isthing, and all or none of the things a score."""
    complete = []
    for segment in segments:
        category = int(segment["category_id"])
        if not 0 <= category < len(classes.isthing):
            raise DatasetError(
                f"segment {segment['id']} is of category {category}, expected a unified id from"
                f" 0 to {len(classes.isthing) - 1}"
            )
        isthing = bool(segment.get("isthing", classes.isthing[category]))
        complete.append({**segment, "category_id": category, "isthing": isthing})
    if not all(segment.get("score") is not None for segment in complete if segment["isthing"]):
        for segment in complete:
            segment.pop("score", None)
    return complete


class _PanopticVisualizer(Visualizer):
    """Detectron2's Visualizer with repeatable colours, holes in things, and labels that fit."""

    def __init__(
        self, image_rgb: np.ndarray, metadata: Metadata, *, scale: float, with_labels: bool
    ) -> None:
        super().__init__(image_rgb, metadata, scale=scale)
        self._with_labels = with_labels
        self._num_colors = 0

    def _jitter(self, color: Sequence[float]) -> tuple[float, float, float]:
        """Shades of `color` (RGB, 0-1) that differ from one call to the next."""
        first = (0.5 + self._num_colors * _GOLDEN) % 1.0  # 0.5: the color itself
        second = (1.0 - self._num_colors * _GOLDEN * _GOLDEN) % 1.0 or 1.0
        self._num_colors += 1
        hue, saturation, value = colorsys.rgb_to_hsv(*color)
        return colorsys.hsv_to_rgb(
            (hue + 0.16 * (first - 0.5)) % 1.0,
            min(1.0, saturation * (0.6 + 0.4 * second)),
            min(1.0, max(0.45, value) * (0.75 + 0.5 * first)),
        )

    def draw_text(self, text: str, position: Any, **kwargs: Any) -> Any:
        """As Detectron2's, inside the picture; nothing for "", and a dollar sign is only that."""
        if not text or not self._with_labels:
            return self.output
        half = self._text_width(text, kwargs.get("font_size") or self._default_font_size) / 2
        x = min(max(float(position[0]), half), max(self.output.width - half, half))
        kwargs["horizontal_alignment"] = "center"
        return super().draw_text(text.replace("$", r"\$"), (x, position[1]), **kwargs)

    def _text_width(self, text: str, font_size: float) -> float:
        """About the width of `text` in pixels of the image; `font_size` in points."""
        return font_size * _PIXELS_PER_POINT * _TEXT_ASPECT * len(text)

    def overlay_instances(self, **kwargs: Any) -> Any:
        """As Detectron2's for masks: holes stay open, and only labels that fit are drawn."""
        masks = [GenericMask(m, *m.shape) for m in kwargs["masks"]]
        colors, alpha = kwargs["assigned_colors"], kwargs["alpha"]
        texts = self._labels_that_fit(kwargs["labels"], masks)
        for mask, text, color in zip(masks, texts, colors, strict=True):
            if mask.has_holes:
                self.draw_binary_mask(mask.mask, color=color, alpha=alpha)
            else:
                super().overlay_instances(masks=[mask], assigned_colors=[color], alpha=alpha)
            if text:
                center = np.median(mask.mask.nonzero(), axis=1)[::-1]
                lighter = tuple(0.4 + 0.6 * channel for channel in color)
                self.draw_text(text, center, color=lighter, font_size=self._thing_font_size())
        return self.output

    def _thing_font_size(self) -> float:
        return 0.7 * self._default_font_size  # points; stuff is named in full size

    def _labels_that_fit(self, labels: list[str], masks: list[GenericMask]) -> list[str]:
        """Labels, "" where the text would cover its segment or stand out far beyond it.

        `masks` come by falling area, so the first of a class name is its largest.
        """
        font_size = self._thing_font_size()
        named: Counter[str] = Counter()
        kept = []
        for label, mask in zip(labels, masks, strict=True):
            name = label.rsplit(" ", 1)[0] if label.endswith("%") else label
            width = self._text_width(label, font_size)
            extent = np.ptp(mask.mask.nonzero()[1]) if mask.area() else 0
            text_area = width * font_size * _PIXELS_PER_POINT
            fits = extent >= width and float(mask.area()) >= 3 * text_area
            kept.append(label if not named[name] or (fits and named[name] < _MAX_LABELS) else "")
            named[name] += 1
        return kept
