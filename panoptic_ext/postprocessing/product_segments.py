"""The panoptic rule of transformers' image processors for DETR, MaskFormer and its successors.

It differs from the published Mask2Former's (`mask_inference`) in three ways: mask probabilities are
resized, not logits; a mask is where class score x probability reaches the threshold; and a segment
gets all pixels that its query wins, also those outside of its mask.

It agrees with theirs but for rounding: a pixel at which two queries tie may go to the other.

Shapes: Q queries, n kept ones, K classes (class K is "no object"), h x w masks, H x W output.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from panoptic_ext.host_copies import to_device
from panoptic_ext.postprocessing.counts import count_values
from panoptic_ext.postprocessing.tiled_resize import TiledResize

__all__ = ["product_segments"]


@torch.no_grad()
def product_segments(
    mask_cls: Tensor,
    mask_pred: Tensor,
    *,
    thing_ids: Collection[int],
    threshold: float,
    mask_threshold: float,
    overlap_threshold: float,
    output_size: tuple[int, int],
    mask_size: tuple[int, int] | None = None,
) -> tuple[Tensor, list[dict[str, Any]]]:
    """Segments by the rule of transformers' `post_process_panoptic_segmentation`.

    Ids count from 1 without gaps. transformers' own repeat an id after a stuff segment that several
    queries share: two segments of different classes then have one id, and cannot be told apart.

    Args:
        mask_cls: (Q, K + 1) logits.
        mask_pred: (Q, h, w) logits.
        thing_ids: the thing classes; queries of another class share one segment.
        threshold: queries whose class score is not above it are ignored.
        mask_threshold: of score x mask probability, 0 to 1.
        overlap_threshold: a query that wins no more than this share of its mask is discarded.
        output_size: H, W.
        mask_size: size that mask logits are resized to first; None for their own.

    Returns:
        (H, W) int32 map of segment ids, 0 for void, and for each segment a dict of `id`, `isthing`,
        `category_id`, `score` (class probability; the largest one of a shared segment) and `area`.
    """
    scores, classes = mask_cls.float().softmax(-1).max(-1)
    kept = (classes != mask_cls.shape[-1] - 1) & (scores > threshold)
    rows = kept.nonzero()[:, 0]
    if not len(rows):
        empty = torch.zeros(output_size, dtype=torch.int32, device=mask_pred.device)
        return empty, []
    scores, classes = scores[rows], classes[rows]
    # Resizing is linear: the products may be resized in place of the probabilities.
    masks_kept = mask_pred[rows].float()
    if mask_size is not None:
        masks_kept = F.interpolate(
            masks_kept[None], mask_size, mode="bilinear", align_corners=False
        )[0]
    products = masks_kept.sigmoid() * scores[:, None, None]
    owner, won, masks = _compete(products, mask_threshold, output_size)
    host = torch.stack((won.double(), masks.double(), classes.double(), scores.double())).cpu()
    table, segments = _segments(host.tolist(), set(thing_ids), overlap_threshold)
    ids = to_device(np.array(table, dtype=np.int32), owner.device)
    return ids[owner.long()], segments


def _compete(
    products: Tensor, mask_threshold: float, output_size: tuple[int, int]
) -> tuple[Tensor, Tensor, Tensor]:
    """Resize the products tile by tile, and find the query with the largest one in each pixel.

    Args:
        products: (n, h, w).
        mask_threshold: see `product_segments`.
        output_size: H, W.

    Returns:
        (H, W) int32 index of the query that wins; (n,) int64 pixels that each wins; (n,) int64
        pixels where its product is at least the threshold.
    """
    size = (products.shape[1], products.shape[2])
    resize = TiledResize(products, image_size=size, padded_size=size, output_size=output_size)
    grid = resize.grid()
    tiles = [tile for row in grid for tile in row]
    owner = torch.empty(output_size, dtype=torch.int32, device=products.device)
    won, masks = torch.zeros(2, len(products), dtype=torch.int64, device=products.device)
    active = None
    if products.device.type == "cpu":  # elsewhere the host would wait for the bounds
        low, high = resize.bounds(grid)
        full = low >= mask_threshold
        active = (high >= low.amax(1, keepdim=True)) | ((high >= mask_threshold) & ~full)
        areas = torch.tensor([tile.size[0] * tile.size[1] for tile in tiles])
        # A mask that fills a tile without winning a pixel of it is only counted.
        masks += areas @ (full & ~active).long()
    everyone = torch.arange(len(products), device=products.device)
    for number, tile in enumerate(tiles):
        rows = everyone if active is None else active[number].nonzero()[:, 0]
        values = resize.tile(tile, rows if len(rows) < len(products) else None)
        # On a CPU, floats in place of bools and a maximum in place of `argmax` are several times
        # faster. Of equal products the first query's has the largest rank.
        inside = torch.ge(values, mask_threshold, out=torch.empty_like(values))
        masks[rows] += inside.sum(1).long()
        ranks = torch.arange(len(rows), 0, -1, dtype=values.dtype, device=values.device)
        best = values.eq_(values.amax(0)).mul_(ranks[:, None]).amax(0)
        winner = rows[len(rows) - best.long()]
        owner[tile.where] = winner.view(tile.size).int()
        won += count_values(winner, len(products))
    return owner, won, masks


def _segments(
    queries: list[list[float]], things: set[int], overlap_threshold: float
) -> tuple[list[int], list[dict[str, Any]]]:
    """The segment id of each kept query, 0 for none, and segments_info.

    Args:
        queries: pixels won, pixels of the mask, class and score of each query.
    """
    table: list[int] = []
    segments: list[dict[str, Any]] = []
    stuff: dict[int, dict[str, Any]] = {}
    for won, mask, label, score in zip(*queries, strict=True):
        # The share is rounded to float32, as theirs: 4 of 5 pixels are then more than 0.8 of them.
        if not won or not mask or float(np.float32(won) / np.float32(mask)) <= overlap_threshold:
            table.append(0)
            continue
        category = int(label)
        segment = stuff.get(category)
        if segment is None:
            segment = {
                "id": len(segments) + 1,
                "isthing": category in things,
                "category_id": category,
                "score": score,
                "area": 0,
            }
            segments.append(segment)
            if not segment["isthing"]:
                stuff[category] = segment
        segment["score"] = max(segment["score"], score)
        segment["area"] += int(won)
        table.append(segment["id"])
    return table, segments
