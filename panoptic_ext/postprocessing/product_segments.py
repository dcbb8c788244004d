"""The panoptic rule of transformers' image processors for DETR, MaskFormer and its successors.

It differs from the published Mask2Former's (`mask_inference`) in three ways: mask probabilities are
resized, not logits; a mask is where class score x probability reaches the threshold; and a segment
gets all pixels that its query wins, also those outside of its mask.

Shapes: Q queries, n kept ones, K classes (class K is "no object"), h x w masks, H x W output.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

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

    Returns:
        (H, W) int32 map of segment ids, 0 for void, and for each segment a dict of `id`, `isthing`,
        `category_id`, `score` (class probability; the largest one of a shared segment) and `area`.
    """
    scores, classes = mask_cls.float().softmax(-1).max(-1)
    kept = (classes != mask_cls.shape[-1] - 1) & (scores > threshold)
    if not kept.any():
        empty = torch.zeros(output_size, dtype=torch.int32, device=mask_pred.device)
        return empty, []
    scores, classes = scores[kept], classes[kept]
    probabilities = mask_pred[kept].float().sigmoid()[None]
    products = F.interpolate(probabilities, output_size, mode="bilinear", align_corners=False)[0]
    products *= scores[:, None, None]
    # One pass over the masks for all queries, and one copy to the host.
    owner = products.argmax(0)
    won = torch.bincount(owner.flatten(), minlength=len(scores))
    masks = (products >= mask_threshold).flatten(1).sum(1)
    host = torch.stack((won.double(), masks.double(), classes.double(), scores.double())).cpu()
    table, segments = _segments(host.tolist(), set(thing_ids), overlap_threshold)
    ids = torch.tensor(table, dtype=torch.int32, device=owner.device)
    return ids[owner], segments


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
        if not won or not mask or not won / mask > overlap_threshold:
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
