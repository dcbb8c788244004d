"""Selection of instances, and their masks in windows of the output.

A fusion visits the instances one by one, by descending score, and touches only the pixels of their
boxes, so that its memory does not grow with their number.

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
# Resizing weights are computed for groups of instances. A group is complete as soon as its windows
# have this many rows and columns together.
_GROUP_LENGTH = 2**14
# Pasted probabilities that are closer to the threshold than this are sampled a second time, because
# rounding could decide there (see `paste_marks`).
_ROUNDING_MARGIN = 1e-4


@dataclass(frozen=True)
class Instance:
    """An instance that was selected for a fusion, and its window of the output.

    Attributes:
        index: its row in the detections.
        score: 0..1.
        category: contiguous class id.
        box: x1, y1, x2, y2 in pixels.
        rows, columns: the window, inside the output and not empty.
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
    """Select the instances that reach the score threshold and have a pixel in the output.

    Instances whose box is empty, not finite or outside the output are left out.

    Args:
        detections: N of them.
        rule: gives the score threshold and the thing ids.
        size: of the output.
        margin: 0 for a window of the pixels whose centre is in the box; otherwise the number of
            pixels to add around all pixels that the box touches.

    Returns:
        The instances by descending score; equal scores keep their order.

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
        # With a margin of 1 this is the window that Detectron2's `_do_paste_mask` computes.
        start, stop = math.floor(low) - margin, math.ceil(high) + margin
    else:
        # The centre of pixel i is at i + 0.5. Pixels with low <= i + 0.5 < high are in the box.
        start, stop = math.ceil(low - 0.5), math.ceil(high - 0.5)
    return slice(max(start, 0), min(stop, length))


def paste_logits(
    detections: Detections, instances: Sequence[Instance]
) -> Iterator[tuple[Instance, Tensor]]:
    """Resize mask logits to their boxes, bilinearly.

    Between the centres of the outermost cells and the box's edge the logits are constant.

    Args:
        detections: those that `instances` were selected from.
        instances: those to paste.

    Yields:
        Each instance and the logits of its window, (h, w) float32, new memory.
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
    """Paste masks exactly as Detectron2's `paste_masks_in_image` does at its threshold of 0.5.

    Args:
        detections: those that `instances` were selected from, with a margin of 1.
        instances: those to paste.

    Yields:
        Each instance and the mask of its window, (h, w) float32 of 0 and 1, new memory.
    """
    # Detectron2 resizes probabilities, with zeros around the mask, by grid_sample. On a CPU a
    # product of small matrices is faster, but rounds differently. The few pixels close to the
    # threshold are therefore sampled by grid_sample as well, so that both give the same mask.
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
            x, y = _grid(boxes[instance.index], instance)
            for strip in window_strips(values):
                _mark_strip(values[strip], mask, x, y[strip])
            yield instance, values


def _resized(mask: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """(h, w) from an (m, m) mask and weights (h, m) and (w, m)."""
    tall, wide = rows @ mask, columns.t()
    values = mask.new_empty(len(rows), len(columns))
    for strip in window_strips(values):
        torch.mm(tall[strip], wide, out=values[strip])
    return values


def _mark_strip(values: Tensor, mask: Tensor, x: Tensor, y: Tensor) -> None:
    """Replace resized probabilities (r, w) by 1 where they are at least 0.5, else 0; in place.

    Args:
        mask: (m, m) probabilities.
        x, y: (w,) and (r,) positions of the strip's columns and rows, see `_grid`.
    """
    distance = values.sub_(0.5).abs()
    torch.ge(values, 0, out=values)
    if distance.amin() < _ROUNDING_MARGIN:
        row, column = (distance < _ROUNDING_MARGIN).nonzero(as_tuple=True)
        grid = torch.stack((x[column], y[row]), -1)[None, None]
        values[row, column] = _grid_sample(mask, grid, "zeros")[0].ge(0.5).float()


def window_strips(window: Tensor) -> list[slice]:
    """Cut a window (h, w) into strips of rows of about 128 KiB; on an accelerator, one strip."""
    height, width = window.shape
    step = height if _runs_async(window) else max(1, _STRIP_VALUES // width)
    return [slice(start, min(start + step, height)) for start in range(0, height, step)]


def overlaps_little(counts: list[tuple[Tensor, Tensor]], overlap_threshold: float) -> bool | Tensor:
    """Whether a mask is not empty and at most a share of it is common with other masks.

    Args:
        counts: `count_marked` of the mask and of the common part, for each strip of a window.
        overlap_threshold: the share.
    """
    area, common = (torch.stack(values).sum() for values in zip(*counts, strict=True))
    kept = (area > 0) & ~(common / area > overlap_threshold)
    return kept if _runs_async(kept) else bool(kept)


def count_marked(marks: Tensor) -> Tensor:
    """The number of ones in (h, w) float32 marks, exact, as a float64 scalar."""
    # Float32 counts the ones of a row exactly, but not those of an image of more than 2**24 pixels.
    return marks.sum(1).double().sum()


def update_covered(logits: Tensor, covered: Tensor, overlap_threshold: float) -> bool | Tensor:
    """Decide whether an instance is kept, and if it is, add its mask to `covered`.

    An instance is kept if its mask is not empty and at most the threshold's share is covered.

    Args:
        logits: (h, w) mask logits; the mask is where they are above 0.
        covered: (h, w) float32 of 0 and 1, the union of the masks kept so far; updated.
        overlap_threshold: the share.

    Returns:
        Whether it is kept; on an accelerator a scalar bool tensor, so that the host does not wait.
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
    """Write `code` to `codes`, and `logits` to `best`, where `logits` are above `best`.

    Args:
        logits: (h, w) float32.
        code: larger than all codes before it.
        best, codes: (h, w) float32 views of the images that are updated.
    """
    # Codes rise from call to call, so that the larger of the old and the new code is the new one.
    better = torch.gt(logits, best, out=torch.empty_like(logits)).mul_(code)
    torch.maximum(codes, better, out=codes)
    torch.maximum(best, logits, out=best)


def _runs_async(tensor: Tensor) -> bool:
    """Whether the tensor is on an accelerator, whose work is queued."""
    # There, few large operations are fastest, and the host must read no value, or it would wait.
    return tensor.device.type != "cpu"


def _grid(box: Tensor, instance: Instance) -> tuple[Tensor, Tensor]:
    """Positions of the window's columns (w,) and rows (h,) in the box, -1..1 from edge to edge."""
    # In float32 and in this order of operations, so that rounding is that of Detectron2.
    positions = []
    for axis, span in enumerate((instance.columns, instance.rows)):
        low, high = box[axis], box[axis + 2]
        pixels = torch.arange(span.start, span.stop, device=box.device, dtype=torch.float32) + 0.5
        positions.append((pixels - low) / (high - low) * 2 - 1)
    return positions[0], positions[1]


def _grid_sample(mask: Tensor, grid: Tensor, padding: str) -> Tensor:
    return F.grid_sample(mask[None, None], grid, padding_mode=padding, align_corners=False)[0, 0]


def _sample(mask: Tensor, box: Tensor, instance: Instance, padding: str) -> Tensor:
    """(h, w) values of an (m, m) mask in the window."""
    x, y = _grid(box, instance)
    height, width = instance.size
    grid = torch.stack((x.expand(height, width), y[:, None].expand(height, width)), -1)
    return _grid_sample(mask, grid[None], padding)


def _groups(instances: Sequence[Instance]) -> Iterator[list[Instance]]:
    """Split the instances into groups whose resizing weights are computed together."""
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
        clamped: whether values beyond the outermost cells' centres are constant; otherwise they
            fade to 0.
    """
    low = np.array([instance.box[axis] for instance in group for axis in (1, 0)])
    high = np.array([instance.box[axis] for instance in group for axis in (3, 2)])
    spans = [span for instance in group for span in instance.where]
    lengths = [span.stop - span.start for span in spans]
    pixels = np.concatenate([np.arange(span.start, span.stop) for span in spans]) + 0.5
    positions = (pixels - low.repeat(lengths)) * (cells / (high - low)).repeat(lengths) - 0.5
    # One extra column on each side takes the weights of cells outside; both are cut off below.
    positions = positions.clip(0, cells - 1) if clamped else positions.clip(-1, cells)
    first = np.minimum(np.floor(positions), cells - 1).astype(np.int64)
    share = positions - first
    weights = np.zeros((len(positions), cells + 2), np.float32)
    row = np.arange(len(positions))
    weights[row, first + 1] = 1 - share
    weights[row, first + 2] = share
    pieces = torch.from_numpy(weights)[:, 1:-1].split(lengths)
    return list(zip(pieces[::2], pieces[1::2], strict=True))
