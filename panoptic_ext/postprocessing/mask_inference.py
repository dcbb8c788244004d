"""From class and mask logits of queries to panoptic, semantic and instance segmentation.

Shapes: Q queries, K classes (class K is "no object"), n kept queries, h x w mask logits, H x W
output. Sizes are (height, width) in pixels: `padded_size` is the input that the masks cover,
`image_size` its part without padding, `output_size` that of the result. Every function resizes as
`tiled_resize` says and never holds Q x H x W values. A mask logit that is no number counts as
outside the mask, an infinite one as the largest of float16. Source: Cheng et al., "Masked-attention
Mask Transformer", and the published model's steps.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.structures import Boxes, Instances
from torch import Tensor

from .tiled_resize import Size, Tile, TiledResize

__all__ = ["instance_inference", "panoptic_inference", "semantic_inference"]


@torch.no_grad()
def panoptic_inference(
    mask_cls: Tensor,
    mask_pred: Tensor,
    *,
    image_size: Size,
    padded_size: Size,
    output_size: Size,
    thing_ids: Collection[int] | Tensor,
    object_mask_threshold: float,
    overlap_threshold: float,
) -> tuple[Tensor, list[dict[str, Any]]]:
    """Gives each pixel to the kept query of largest class score x sigmoid(mask logit).

    Args:
        mask_cls: (Q, K + 1) logits.
        mask_pred: (Q, h, w) logits.
        thing_ids: classes that are things, or a bool table (K,).
        object_mask_threshold: queries whose class score is not above it are ignored.
        overlap_threshold: a query that wins less than this share of its own mask is dropped.

    Returns:
        (H, W) int32 map of segment ids, 0 for void, and for each segment a dict of `id` (from 1),
        `isthing`, `category_id`, `score` (class probability; of stuff in several queries the
        largest) and `area` (pixels).
    """
    with torch.autocast(mask_pred.device.type, enabled=False):
        scores, classes = mask_cls.float().softmax(-1).max(-1)
        num_classes = mask_cls.shape[-1] - 1
        found = torch.stack((scores.double(), classes.double())).tolist()
        kept = [
            query
            for query, (score, label) in enumerate(zip(*found, strict=True))
            if label != num_classes and score > object_mask_threshold
        ]
        if not kept:
            return torch.zeros(output_size, dtype=torch.int32, device=mask_pred.device), []
        chosen = torch.tensor(kept, device=mask_pred.device)
        resize = TiledResize(
            _finite(mask_pred.index_select(0, chosen)),
            image_size=image_size,
            padded_size=padded_size,
            output_size=output_size,
        )
        codes, originals = _winners(resize, scores[chosen])
        won = torch.bincount(codes.view(-1), minlength=2 * len(kept)).view(-1, 2)
        counts = torch.cat((won, originals.long()[:, None]), 1).tolist()
    queries = [
        _Kept(found[0][query], int(found[1][query]), outside + inside, original, inside)
        for query, (outside, inside, original) in zip(kept, counts, strict=True)
    ]
    table, segments = _accept(queries, _thing_table(thing_ids, num_classes), overlap_threshold)
    by_code = torch.tensor(table, dtype=torch.int32, device=codes.device)
    return by_code.index_select(0, codes.view(-1)).view(output_size), segments


@torch.no_grad()
def semantic_inference(
    mask_cls: Tensor,
    mask_pred: Tensor,
    *,
    image_size: Size,
    padded_size: Size,
    output_size: Size,
    resize_first: bool = True,
) -> Tensor:
    """Scores of the classes: sum over queries of p(class) x sigmoid(mask logit).

    Args:
        mask_cls: (Q, K + 1) logits.
        mask_pred: (Q, h, w) logits.
        resize_first: resize masks to the output, then score; otherwise score at the input's size,
            then resize the scores.

    Returns:
        (K, H, W) float32.
    """
    size = output_size if resize_first else image_size
    with torch.autocast(mask_pred.device.type, enabled=False):
        classes = mask_cls.float().softmax(-1)[:, :-1].t().contiguous()
        resize = TiledResize(
            _finite(mask_pred), image_size=image_size, padded_size=padded_size, output_size=size
        )
        scores = mask_pred.new_empty((len(classes), *size), dtype=torch.float32)
        for tile in resize:
            inside = resize.tile(tile).sigmoid_()
            scores[:, tile.rows.pixels, tile.columns.pixels] = (classes @ inside).view(
                -1, *tile.size
            )
        if size != output_size:
            scores = F.interpolate(scores[None], output_size, mode="bilinear", align_corners=False)[
                0
            ]
    return scores


@torch.no_grad()
def instance_inference(
    mask_cls: Tensor,
    mask_pred: Tensor,
    *,
    image_size: Size,
    padded_size: Size,
    output_size: Size,
    top_k: int,
    thing_ids: Collection[int] | Tensor | None = None,
) -> Instances:
    """The best pairs of query and class as instances.

    Args:
        mask_cls: (Q, K + 1) logits.
        mask_pred: (Q, h, w) logits.
        top_k: pairs looked at, best class score first.
        thing_ids: if given, pairs of other classes are then left out.

    Returns:
        Instances of the output size, best class score first: `pred_masks` (N, H, W) bool (logit
        above 0), `pred_boxes` around them (zeros for an empty mask), `scores` (class score x mean
        mask probability inside the mask), `pred_classes`.
    """
    num_classes = mask_cls.shape[-1] - 1
    with torch.autocast(mask_pred.device.type, enabled=False):
        pairs = mask_cls.float().softmax(-1)[:, :-1].flatten()
        scores, best = pairs.topk(min(top_k, len(pairs)))
        classes = best % num_classes
        queries = best.div(num_classes, rounding_mode="floor")
        if thing_ids is not None:
            table = torch.tensor(_thing_table(thing_ids, num_classes), device=classes.device)
            things = table[classes]
            scores, classes, queries = scores[things], classes[things], queries[things]
        unique, where = queries.unique(return_inverse=True)
        resize = TiledResize(
            _finite(mask_pred.index_select(0, unique)),
            image_size=image_size,
            padded_size=padded_size,
            output_size=output_size,
        )
        masks, mask_scores, boxes = _binary_masks(resize)
    result = Instances(output_size)
    result.pred_masks = masks[where]
    result.pred_boxes = Boxes(boxes[where])
    result.scores = scores * mask_scores[where]
    result.pred_classes = classes
    return result


@dataclass(frozen=True)
class _Kept:
    """A kept query: class score and class, pixels won, pixels of its own mask, pixels of both."""

    score: float
    category: int
    area: int
    original: int
    final: int


_LARGEST = torch.finfo(torch.float16).max


def _finite(masks: Tensor) -> Tensor:
    """(n, h, w) logits as float32, none of them NaN or infinite; `masks` stays as it is.

    Resizing multiplies cells by zeros, and infinity times zero is no number.
    """
    return masks.float().nan_to_num(nan=-_LARGEST, posinf=_LARGEST, neginf=-_LARGEST)


def _thing_table(thing_ids: Collection[int] | Tensor, num_classes: int) -> list[bool]:
    if isinstance(thing_ids, Tensor) and thing_ids.dtype == torch.bool:
        return thing_ids.tolist()
    things = {int(thing) for thing in thing_ids}
    return [label in things for label in range(num_classes)]


def _accept(
    queries: list[_Kept], is_thing: list[bool], overlap_threshold: float
) -> tuple[list[int], list[dict[str, Any]]]:
    """Which queries become segments, in query order.

    Returns:
        Segment id for each code of `_winners`, and segments_info.
    """
    table = [0] * (2 * len(queries))
    segments: list[dict[str, Any]] = []
    stuff: dict[int, dict[str, Any]] = {}
    for number, query in enumerate(queries):
        if not (query.area and query.original and query.final):
            continue
        if query.area / query.original < overlap_threshold:
            continue
        segment = stuff.get(query.category)
        if segment is None:
            segment = {
                "id": len(segments) + 1,
                "isthing": is_thing[query.category],
                "category_id": query.category,
                "score": query.score,
                "area": 0,
            }
            segments.append(segment)
            if not segment["isthing"]:
                stuff[query.category] = segment
        segment["score"] = max(segment["score"], query.score)
        segment["area"] += query.final
        table[2 * number + 1] = segment["id"]
    return table, segments


def _winners(resize: TiledResize, scores: Tensor) -> tuple[Tensor, Tensor]:
    """Which query each pixel goes to.

    Args:
        resize: of the kept queries' masks.
        scores: (n,) class scores.

    Returns:
        (H, W) int32 codes, 2 i for query i, plus 1 where its sigmoid is at least 0.5; and (n,)
        float64, pixels where that is so.
    """
    grid = resize.grid()
    tiles = [tile for row in grid for tile in row]
    codes = torch.empty(resize.output_size, dtype=torch.int32, device=scores.device)
    originals = torch.zeros(len(scores), dtype=torch.float64, device=scores.device)
    if scores.is_cuda:  # few large tiles; looking at each on the host would cost more
        for tile in tiles:
            codes[tile.where] = _tile_winners(resize, tile, scores, None, originals)
        return codes, originals
    active, full = _active_queries(*resize.bounds(grid), scores)
    areas = torch.tensor([tile.size[0] * tile.size[1] for tile in tiles], dtype=torch.float64)
    originals += areas @ (full & ~active).double()
    settled = ((active.sum(1) == 1) & (active & full).any(1)).tolist()
    for number, tile in enumerate(tiles):
        chosen = active[number].nonzero()[:, 0]
        if settled[number]:
            codes[tile.where] = 2 * chosen.item() + 1
            originals[chosen] += areas[number]
        else:
            codes[tile.where] = _tile_winners(resize, tile, scores, chosen, originals)
    return codes, originals


def _active_queries(low: Tensor, high: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
    """Queries that need a look at a tile's pixels.

    Args:
        low, high: (T, n) bounds of the logits.
        scores: (n,).

    Returns:
        (T, n) bool: may win a pixel, or has sigmoids on both sides of 0.5; and (T, n) bool: all
        sigmoids are at least 0.5. The best lower bound of a tile beats everything below it.
    """
    at_least = (scores * low.sigmoid()).amax(1, keepdim=True)
    may_win = scores * high.sigmoid() >= at_least * (1 - 1e-5)
    full = low >= 0
    return may_win | ((high >= 0) & ~full), full


def _tile_winners(
    resize: TiledResize, tile: Tile, scores: Tensor, chosen: Tensor | None, originals: Tensor
) -> Tensor:
    """Codes of one tile, (r, c) int32; adds to `originals`. See `_winners`.

    Comparisons write floats, which is several times faster on a CPU than writing bools.
    """
    if chosen is None:
        chosen = torch.arange(len(scores), device=scores.device)
    every = len(chosen) == len(scores)
    inside = resize.tile(tile, None if every else chosen).sigmoid_()
    values = inside * scores[chosen, None]
    inside.ge_(0.5)
    originals.index_add_(0, chosen, inside.sum(1).double())
    # Rank 2 (m - i) + inside for the i-th of m: its maximum among equals is the first query.
    ranks = torch.arange(len(chosen), 0, -1, device=scores.device)
    inside += 2 * ranks[:, None]
    won = values.eq_(values.amax(0)).mul_(inside).amax(0).int()
    codes = torch.stack((2 * chosen, 2 * chosen + 1), 1).int().flip(0).reshape(-1)
    return codes.index_select(0, won - 2).view(tile.size)


def _binary_masks(resize: TiledResize) -> tuple[Tensor, Tensor, Tensor]:
    """Masks, mean probability inside, and boxes.

    Returns:
        (n, H, W) bool, (n,) float32, (n, 4) float32 x1, y1, x2, y2.
    """
    count, device = len(resize.masks), resize.masks.device
    masks = torch.empty((count, *resize.output_size), dtype=torch.bool, device=device)
    sums = torch.zeros(2, count, dtype=torch.float64, device=device)
    rows, columns = (torch.zeros(count, n, device=device) for n in resize.output_size)
    for tile in resize:
        logits = resize.tile(tile)
        inside = logits.gt(0)
        masks[:, tile.rows.pixels, tile.columns.pixels] = inside.view(-1, *tile.size)
        marks = inside.float()
        sums[1] += marks.sum(1)
        sums[0] += logits.sigmoid_().mul_(marks).sum(1)
        marks = marks.view(-1, *tile.size)
        rows[:, tile.rows.pixels] += marks.amax(2)
        columns[:, tile.columns.pixels] += marks.amax(1)
    boxes = torch.stack((*_extent(columns), *_extent(rows)), 1)[:, [0, 2, 1, 3]]
    return masks, (sums[0] / (sums[1] + 1e-6)).float(), boxes


def _extent(marked: Tensor) -> tuple[Tensor, Tensor]:
    """First and one past the last positive entry of each row (n, length), both 0 without any."""
    length = marked.shape[1]
    places = torch.arange(length, device=marked.device)
    first = torch.where(marked > 0, places, length).amin(1)
    stop = torch.where(marked > 0, places + 1, 0).amax(1)
    return torch.minimum(first, stop).float(), stop.float()
