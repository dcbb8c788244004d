"""Instances as windows of the output: which are looked at, where, and their masks there.

A fusion visits the instances one by one, best first, and touches only the pixels of their boxes, so
that its memory does not grow with their number.

Shapes: N instances of m x m mask logits, H x W output, a window of h x w pixels. A box is
(x1, y1, x2, y2) in pixels of the output, the centre of the first pixel being (0.5, 0.5).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from panoptic_ext.fusion.base import Detections, FusionRule
from panoptic_ext.postprocessing.tiled_resize import Size

__all__ = [
    "Instance",
    "count_marked",
    "overlaps_little",
    "paste_logits",
    "paste_marks",
    "select_instances",
    "update_best",
    "update_covered",
    "window_strips",
]

# Values of a strip of a window, just below torch's threshold for multithreading; for work this
# short, synchronising threads costs more than it saves.
_STRIP_VALUES = 2**15 - 1
# Rows of resizing weights that are held at once.
_GROUP_LENGTH = 2**14
# Closer to the threshold than this, rounding may decide (see `paste_marks`).
_UNSURE = 1e-4


@dataclass(frozen=True)
class Instance:
    """An instance that a fusion looks at.

    Attributes:
        index: its row in the detections.
        score: 0..1.
        category: contiguous class id.
        box: x1, y1, x2, y2 in pixels.
        rows, columns: the window, within the output and not empty.
    """

    index: int
    score: float
    category: int
    box: tuple[float, float, float, float]
    rows: slice
    columns: slice

    @property
    def where(self) -> tuple[slice, slice]:
        return self.rows, self.columns

    @property
    def size(self) -> Size:
        return self.rows.stop - self.rows.start, self.columns.stop - self.columns.start


def select_instances(
    detections: Detections, rule: FusionRule, size: Size, *, margin: int = 0
) -> list[Instance]:
    """Instances of at least the score threshold whose box holds a pixel of the output, best first.

    One copy to the host. Equal scores keep their order; a box that is empty, not finite or outside
    the output is left out.

    Args:
        detections: N of them.
        rule: its score threshold, and the classes that an instance may have.
        size: of the output.
        margin: 0 for a window of the pixels whose centre is in the box; otherwise pixels to add
            around every pixel that the box touches.

    Raises:
        ValueError: an instance whose class is not a thing.
    """
    # One tensor of boxes, scores and classes, so that the host waits for the device once.
    columns = (detections.boxes, detections.scores[:, None], detections.classes[:, None])
    table = torch.cat([column.double() for column in columns], 1).tolist()
    rows = [row for row in enumerate(table) if row[1][4] >= rule.score_threshold]
    selected = []
    for index, (*box, score, category) in sorted(rows, key=lambda row: -row[1][4]):
        if category not in rule.thing_ids:
            raise ValueError(
                f"instance {index} has class {int(category)}; things are {list(rule.thing_ids)}. "
                "Fusion takes contiguous class ids, not the indices of the box head"
            )
        if not all(map(math.isfinite, box)) or box[0] >= box[2] or box[1] >= box[3]:
            continue
        height, width = (_span(box[axis], box[axis + 2], size[1 - axis], margin) for axis in (1, 0))
        if height.start < height.stop and width.start < width.stop:
            selected.append(Instance(index, score, int(category), tuple(box), height, width))
    return selected


def _span(low: float, high: float, length: int, margin: int) -> slice:
    """Pixels of an axis between two edges of a box."""
    if margin:
        start, stop = math.floor(low) - margin, math.ceil(high) + margin
    else:
        start, stop = math.ceil(low - 0.5), math.ceil(high - 0.5)
    return slice(max(start, 0), min(stop, length))


def paste_logits(
    detections: Detections, instances: Sequence[Instance]
) -> Iterator[tuple[Instance, Tensor]]:
    """Mask logits resized to the box, bilinear; beyond the outermost cells' centres constant.

    Args:
        detections: those that `instances` were selected from.
        instances: those wanted.

    Yields:
        Each instance and its window's logits, (h, w) float32, new memory.
    """
    masks = detections.mask_logits.float()
    if _runs_async(masks):
        boxes = detections.boxes.float()
        for instance in instances:
            where = instance.index
            yield instance, _sample(masks[where], boxes[where], instance, "border")
        return
    for group in _groups(instances):
        weights = _group_weights(group, masks.shape[-1], clamped=True)
        for instance, (rows, columns) in zip(group, weights, strict=True):
            yield instance, _resized(masks[instance.index], rows, columns)


def paste_marks(
    detections: Detections, instances: Sequence[Instance]
) -> Iterator[tuple[Instance, Tensor]]:
    """Where Detectron2's `paste_masks_in_image` has the mask, at its threshold of 0.5.

    It resizes probabilities, with zeros around the mask. Here a product of small matrices does so,
    and the few pixels where its rounding may matter are sampled as Detectron2 samples them.

    Args:
        detections: those that `instances` were selected from, with a margin of 1.
        instances: those wanted.

    Yields:
        Each instance and its window's mask, (h, w) float32 of 0 and 1, new memory.
    """
    masks, boxes = detections.mask_logits.float().sigmoid(), detections.boxes.float()
    if _runs_async(masks):
        for instance in instances:
            where = instance.index
            sampled = _sample(masks[where], boxes[where], instance, "zeros")
            yield instance, torch.ge(sampled, 0.5, out=torch.empty_like(sampled))
        return
    for group in _groups(instances):
        weights = _group_weights(group, masks.shape[-1], clamped=False)
        for instance, (rows, columns) in zip(group, weights, strict=True):
            mask = masks[instance.index]
            values = _resized(mask, rows, columns)
            places = _grid(boxes[instance.index], instance)
            for strip in window_strips(values):
                _mark_strip(values[strip], mask, places[0], places[1][strip])
            yield instance, values


def _resized(mask: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """(h, w) from an (m, m) mask and weights (h, m) and (w, m)."""
    tall, wide = rows @ mask, columns.t()
    values = mask.new_empty(len(rows), len(columns))
    for strip in window_strips(values):
        torch.mm(tall[strip], wide, out=values[strip])
    return values


def _mark_strip(values: Tensor, mask: Tensor, x: Tensor, y: Tensor) -> None:
    """Replace resized probabilities (r, w) by 1 and 0, with places x (w,) and y (r,) in the box."""
    distance = values.sub_(0.5).abs()
    torch.ge(values, 0, out=values)
    if distance.amin() < _UNSURE:
        row, column = (distance < _UNSURE).nonzero(as_tuple=True)
        grid = torch.stack((x[column], y[row]), -1)[None, None]
        values[row, column] = _grid_sample(mask, grid, "zeros")[0].ge(0.5).float()


def window_strips(window: Tensor) -> list[slice]:
    """Rows that cover a window (h, w) in pieces of about 128 KiB; on a device all at once."""
    height, width = window.shape
    step = height if _runs_async(window) else max(1, _STRIP_VALUES // width)
    return [slice(start, min(start + step, height)) for start in range(0, height, step)]


def overlaps_little(counts: list[tuple[Tensor, Tensor]], overlap_threshold: float) -> bool | Tensor:
    """Whether a mask is not empty and at most a share of it is common with others.

    Args:
        counts: `count_marked` of the mask and of the common part, for each strip of a window.
    """
    area, common = (torch.stack(values).sum() for values in zip(*counts, strict=True))
    kept = (area > 0) & ~(common / area > overlap_threshold)
    return kept if _runs_async(kept) else bool(kept)


def count_marked(marks: Tensor) -> Tensor:
    """Ones in (h, w) float32 marks, exactly: float64 without dimensions."""
    return marks.sum(1).double().sum()


def update_covered(logits: Tensor, covered: Tensor, overlap_threshold: float) -> bool | Tensor:
    """Whether an instance's mask is not empty and overlaps the better ones little enough.

    Args:
        logits: (h, w) mask logits; the mask is where they are above 0.
        covered: (h, w) float32 of 0 and 1, the union of the masks kept so far. This one's is added
            if it is kept.

    Returns:
        The answer; on CUDA as a bool tensor without dimensions, which the host does not wait for.
    """
    strips = window_strips(logits)
    counts = []
    for rows in strips:
        marks = _positive(logits[rows])
        counts.append((count_marked(marks), count_marked(marks.mul_(covered[rows]))))
    kept = overlaps_little(counts, overlap_threshold)
    if kept is not False:
        for rows in strips:
            marks = _positive(logits[rows]).mul_(kept)
            torch.maximum(covered[rows], marks, out=covered[rows])
    return kept


def _positive(logits: Tensor) -> Tensor:
    return torch.gt(logits, 0, out=torch.empty_like(logits))


def update_best(logits: Tensor, code: int, *, best: Tensor, codes: Tensor) -> None:
    """Writes `code`, which is larger than all before it, where `logits` are above `best`.

    Args:
        logits: (h, w) float32.
        best, codes: (h, w) float32 views of the images that are updated.
    """
    better = torch.gt(logits, best, out=torch.empty_like(logits)).mul_(code)
    torch.maximum(codes, better, out=codes)
    torch.maximum(best, logits, out=best)


def _runs_async(tensor: Tensor) -> bool:
    """Whether work is queued on a device: large steps, and answers that the host never reads."""
    return tensor.device.type != "cpu"


def _grid(box: Tensor, instance: Instance) -> tuple[Tensor, Tensor]:
    """Places of the window's columns and rows in the box, -1..1, rounded as in Detectron2."""
    places = []
    for axis, span in enumerate((instance.columns, instance.rows)):
        low, high = box[axis], box[axis + 2]
        pixels = torch.arange(span.start, span.stop, device=box.device, dtype=torch.float32) + 0.5
        places.append((pixels - low) / (high - low) * 2 - 1)
    return places[0], places[1]


def _grid_sample(mask: Tensor, grid: Tensor, padding: str) -> Tensor:
    return F.grid_sample(mask[None, None], grid, padding_mode=padding, align_corners=False)[0, 0]


def _sample(mask: Tensor, box: Tensor, instance: Instance, padding: str) -> Tensor:
    """(h, w) values of an (m, m) mask in the window."""
    x, y = _grid(box, instance)
    height, width = instance.size
    grid = torch.stack((x.expand(height, width), y[:, None].expand(height, width)), -1)
    return _grid_sample(mask, grid[None], padding)


def _groups(instances: Sequence[Instance]) -> Iterator[list[Instance]]:
    """Runs of instances whose weights are made, and held, together."""
    group: list[Instance] = []
    length = 0
    for instance in instances:
        group.append(instance)
        length += sum(instance.size)
        if length >= _GROUP_LENGTH:
            yield group
            group, length = [], 0
    if group:
        yield group


def _group_weights(
    group: list[Instance], cells: int, *, clamped: bool
) -> list[tuple[Tensor, Tensor]]:
    """For each instance the matrices (h, m) and (w, m) that resize a mask to its window.

    Args:
        clamped: the outermost cells go on beyond their centres; otherwise they fade to 0.
    """
    low = np.array([instance.box[axis] for instance in group for axis in (1, 0)])
    high = np.array([instance.box[axis] for instance in group for axis in (3, 2)])
    spans = [span for instance in group for span in instance.where]
    lengths = [span.stop - span.start for span in spans]
    pixels = np.concatenate([np.arange(span.start, span.stop) for span in spans]) + 0.5
    places = (pixels - low.repeat(lengths)) * (cells / (high - low)).repeat(lengths) - 0.5
    # One column more on both sides, which catches what lies outside and is cut away below.
    places = places.clip(0, cells - 1) if clamped else places.clip(-1, cells)
    first = np.minimum(np.floor(places), cells - 1).astype(np.int64)
    share = places - first
    weights = np.zeros((len(places), cells + 2), np.float32)
    row = np.arange(len(places))
    weights[row, first + 1] = 1 - share
    weights[row, first + 2] = share
    pieces = torch.from_numpy(weights)[:, 1:-1].split(lengths)
    return list(zip(pieces[::2], pieces[1::2], strict=True))
