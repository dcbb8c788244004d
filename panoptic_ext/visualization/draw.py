"""Pictures of panoptic results: segments, boxes and names over an image.

Shapes: H, W height and width of the image in pixels; K number of classes; s the scale of the
picture, so that it is (round(s * H), round(s * W)) pixels large.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from detectron2.data.catalog import Metadata
from detectron2.utils.visualizer import Visualizer

from panoptic_ext.data.coco.divisor import segments_without_info
from panoptic_ext.errors import ConfigError, DatasetError, check_known
from panoptic_ext.postprocessing import with_extents
from panoptic_ext.visualization.classes import class_color, class_metadata, class_name
from panoptic_ext.visualization.colors import BOX_OPACITY, shade, text_color
from panoptic_ext.visualization.labels import Label, Wanted, place_labels
from panoptic_ext.visualization.legend import class_numbers, legend
from panoptic_ext.visualization.paint import paint_segments

__all__ = [
    "Drawing",
    "check_drawing_options",
    "draw_panoptic",
    "draw_segments",
    "readable_scale",
]

_MIN_LONG_SIDE = 480  # pixels; smaller pictures have no room for labels
_MAX_SCALE = 8.0
_THING_FONT_SIZE = 0.7  # relative to the font of names of stuff
_SMALLEST_FONT_SIZE = 8.0  # pixels of the picture; smaller text cannot be read
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
    font_size: float | None = None,
    boxes: bool = False,
    classes: Sequence[str] | None = None,
    legend: bool = False,
) -> np.ndarray:
    """Draw segments over an image; pixels of no segment (void) stay as they are.

    A name lies inside its segment, in a smaller font where the segment is small. Segments that
    their name would hide stay without one, apart from the largest of each category. The same input
    gives the same picture, and no random state is used.

    Args:
        image_rgb: (H, W, 3) uint8 (or 0-255 of another type) in RGB order.
        panoptic_seg: (H, W) integer segment ids.
        segments_info: a dict with "id" and "category_id" (contiguous id), optionally "isthing",
            "score" and "full_bbox" (x, y, width and height of an object that others cover in
            part, pixels of the image), for each segment. None: ids are category_id *
            metadata.label_divisor + instance, void is -1, as in Detectron2.
        metadata: with thing_classes and stuff_classes (K names each, indexed by the contiguous id);
            colours and thing ids are taken from it where they are there.
        scale: size of the picture relative to the image. None: `readable_scale`.
        alpha: opacity of the segments, 0 to 1.
        labels: write class names and scores.
        font_size: of the names, pixels of the picture. None: by the size of the picture, things
            smaller than stuff, and smaller where a segment is small.
        boxes: draw the boxes of things.
        classes: names; segments of all others are left out. None: all are drawn.
        legend: add the drawn classes, their colours and numbers below. A segment without room for
            its class's name gets the number. A last line counts the segments without either.

    Returns:
        (s * H, s * W, 3) uint8 array in RGB order; a legend adds rows. Inputs are not changed.

    Raises:
        DatasetError: sizes differ or a category is not one of the data set's.
        ConfigError: an option is out of its range, or a class is unknown.
    """
    return draw_segments(
        image_rgb,
        panoptic_seg,
        segments_info,
        metadata,
        scale=scale,
        alpha=alpha,
        labels=labels,
        font_size=font_size,
        boxes=boxes,
        classes=classes,
        legend=legend,
    ).picture


@dataclass(frozen=True)
class Drawing:
    """A picture and what it shows.

    Attributes:
        picture: (s * H, s * W, 3) uint8 RGB, and the legend below where one was wanted.
        classes: names of the drawn segments' classes.
        num_segments: that were drawn.
        num_labels: of these, with a text.
        num_unlabelled: of these, without one for want of room; 0 where no labels were wanted.
    """

    picture: np.ndarray
    classes: frozenset[str]
    num_segments: int
    num_labels: int
    num_unlabelled: int

    @property
    def unlabelled_line(self) -> str:
        """A line with the number of segments without a name; "" if all have one."""
        if not self.num_unlabelled:
            return ""
        return f"{self.num_unlabelled} of {self.num_segments} segments without a label: too small"


def draw_segments(
    image_rgb: np.ndarray,
    panoptic_seg: np.ndarray | torch.Tensor,
    segments_info: Sequence[dict[str, Any]] | None,
    metadata: Any,
    *,
    keys: Mapping[str, str] | None = None,
    scale: float | None = None,
    **options: Any,
) -> Drawing:
    """As `draw_panoptic`, but return the picture with what it shows.

    Args:
        keys: a short text for each class name, written where the name does not fit.
        **options: alpha, labels, font_size, boxes, classes and legend of `draw_panoptic`.
    """
    check_drawing_options(metadata, **options)
    image = np.clip(np.asarray(image_rgb), 0, 255).astype(np.uint8)
    ids = torch.as_tensor(panoptic_seg).cpu().to(torch.int64, copy=True)
    _check_sizes(image, ids)
    classes = class_metadata(metadata)
    if segments_info is None:
        segments_info = segments_without_info(
            torch.unique(ids).tolist(), int(metadata.label_divisor)
        )
    segments = _complete_segments(segments_info, classes)
    if options.get("classes") is not None:
        segments = [s for s in segments if class_name(s, classes) in options["classes"]]
    _, segments = with_extents(ids, segments)
    segments = [segment for segment in segments if segment["area"]]
    if scale is None:
        scale = readable_scale(*image.shape[:2])
    visualizer = _PanopticVisualizer(image, classes, scale=scale)
    visualizer.draw_masks(ids, segments, alpha=options.get("alpha", 0.5))
    if options.get("boxes"):
        visualizer.draw_boxes(segments)
    if options.get("legend"):
        keys = {**class_numbers(metadata), **(keys or {})}
    num_labels, wants_labels = 0, options.get("labels", True)
    if wants_labels:
        num_labels = visualizer.draw_labels(ids, segments, options.get("font_size"), keys or {})
    drawing = Drawing(
        np.array(visualizer.output.get_image()),
        frozenset(class_name(segment, classes) for segment in segments),
        len(segments),
        num_labels,
        len(segments) - num_labels if wants_labels else 0,
    )
    if not options.get("legend"):
        return drawing
    strips = legend(metadata, drawing.classes, drawing.picture.shape[1], drawing.unlabelled_line)
    return replace(drawing, picture=np.concatenate([drawing.picture, *strips]))


def check_drawing_options(
    metadata: Any,
    *,
    alpha: float = 0.5,
    font_size: float | None = None,
    classes: Sequence[str] | None = None,
    **_switches: Any,
) -> None:
    """Check the options of `draw_panoptic` before the first image is predicted.

    Raises:
        ConfigError: an option is out of its range, or a class is unknown.
    """
    if not 0 <= alpha <= 1:
        raise ConfigError(f"alpha, the opacity of segments, is {alpha}; expected 0 to 1")
    if font_size is not None and not 1 <= font_size <= 1000:
        raise ConfigError(f"font_size is {font_size} pixels; expected 1 to 1000")
    data = class_metadata(metadata)
    known = {*data.thing_classes, *data.stuff_classes}
    for name in classes or ():
        check_known("class to draw", name, sorted(known))


def _check_sizes(image: np.ndarray, ids: torch.Tensor) -> None:
    if image.ndim != 3 or image.shape[2] != 3:
        raise DatasetError(f"expected an RGB image of shape (H, W, 3), found {image.shape}")
    if tuple(ids.shape) != image.shape[:2]:
        raise DatasetError(
            f"the image is {image.shape[:2]} (height, width) and its segment ids are"
            f" {tuple(ids.shape)}; both must be of one size"
        )


def _complete_segments(
    segments: Sequence[dict[str, Any]], classes: Metadata
) -> list[dict[str, Any]]:
    """Copy the segments; all get isthing, and scores are kept only if all things have one."""
    complete = []
    for segment in segments:
        category = int(segment["category_id"])
        if not 0 <= category < len(classes.isthing):
            raise DatasetError(
                f"segment {segment['id']} is of category {category}, expected a contiguous id from"
                f" 0 to {len(classes.isthing) - 1}"
            )
        isthing = bool(segment.get("isthing", classes.isthing[category]))
        complete.append({**segment, "category_id": category, "isthing": isthing})
    if not all(segment.get("score") is not None for segment in complete if segment["isthing"]):
        for segment in complete:
            segment.pop("score", None)
    return complete


class _PanopticVisualizer(Visualizer):
    """Detectron2's Visualizer with masks of one style, and labels that fit."""

    def draw_masks(
        self, ids: torch.Tensor, segments: Sequence[dict[str, Any]], *, alpha: float
    ) -> None:
        """Fill all segments: stuff in its class's colour, things in shades of it with an edge."""
        # Detectron2 outlines masks in white if they have no holes. One class then has an outline in
        # one picture and none in the next, and among many objects the outlines hide the rest.
        colors, number = [], 0
        for segment in segments:
            colors.append(class_color(segment, self.metadata))
            if segment["isthing"]:
                colors[-1] = shade(colors[-1], number)
                number += 1
        width, height = self.output.canvas.get_width_height()
        painted = paint_segments(
            self.img,
            ids.numpy(),
            [int(segment["id"]) for segment in segments],
            colors,
            [segment["isthing"] for segment in segments],
            alpha=alpha,
            size=(height, width),
        )
        self.output.reset_image(painted)

    def draw_boxes(self, segments: Sequence[dict[str, Any]]) -> None:
        """Draw the boxes of things in the colour of their class."""
        for segment in segments:
            if segment["isthing"]:
                x, y, width, height = segment.get("full_bbox", segment["bbox"])
                color = class_color(segment, self.metadata)
                self.draw_box((x, y, x + width, y + height), alpha=1.0, edge_color=color)

    def draw_labels(
        self,
        ids: torch.Tensor,
        segments: Sequence[dict[str, Any]],
        font_size: float | None,
        keys: Mapping[str, str],
    ) -> int:
        """Write the names that fit; returns how many.

        Args:
            font_size: pixels of the picture, or None.
            keys: a short text for each class name.
        """
        scale = self.output.scale
        default = float(self._default_font_size) * _PIXELS_PER_POINT
        # The largest segment of each class gets its name even where it does not fit, so that no
        # class is without one.
        named: set[str] = set()
        wanted = []
        for segment in sorted(segments, key=lambda s: -s["area"]):
            name, isthing = class_name(segment, self.metadata), segment["isthing"]
            size = (
                font_size / scale if font_size else default * (_THING_FONT_SIZE if isthing else 1)
            )
            texts = self._texts(segment, keys)
            wanted.append(Wanted(segment, texts, size, is_due=name not in named))
            named.add(name)
        smallest = font_size or _SMALLEST_FONT_SIZE
        labels = place_labels(ids.numpy(), wanted, smallest / scale)
        for label in labels:
            self._write(label)
        return len(labels)

    def _texts(self, segment: dict[str, Any], keys: Mapping[str, str]) -> list[str]:
        name = class_name(segment, self.metadata)
        texts = [name, keys[name]] if name in keys else [name]
        if segment["isthing"] and segment.get("score") is not None:
            texts.insert(0, f"{name} {segment['score'] * 100:.0f}%")
        return texts

    def _write(self, label: Label) -> None:
        """Write a label in a light shade of its class's colour."""
        # matplotlib would typeset what lies between two dollar signs as a formula.
        self.output.ax.text(
            label.x,
            label.y,
            label.text.replace("$", r"\$"),
            size=label.size / _PIXELS_PER_POINT * self.output.scale,
            family="sans-serif",
            color=text_color(class_color(label.segment, self.metadata)),
            bbox={"facecolor": "black", "alpha": BOX_OPACITY, "pad": 0.5, "edgecolor": "none"},
            verticalalignment="center_baseline",
            horizontalalignment="center",
            zorder=10,
        )
