"""Panoptic and semantic segmentation from queries for things and a semantic map for stuff.

Shapes: Q queries, K classes, S stuff classes, h x w logits, H x W output. Sizes are those of
`mask_inference`. Logits are resized by `TiledResize`, one tile at a time, so that
`panoptic_with_stuff` never holds K x H x W values.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from panoptic_ext.host_copies import to_device
from panoptic_ext.postprocessing.best_class import best_class, select_channels, stuff_ids_of
from panoptic_ext.postprocessing.counts import count_values
from panoptic_ext.postprocessing.mask_inference import Sizes, panoptic_inference
from panoptic_ext.postprocessing.tiled_resize import Size, TiledResize

if TYPE_CHECKING:
    from typing_extensions import Unpack  # of typing from Python 3.11 on

__all__ = ["fill_with_stuff", "panoptic_with_stuff", "semantic_scores", "stuff_as_queries"]

# A class logit whose softmax is 1 if all others are 0, however many classes there are.
CERTAIN_LOGIT = 30.0


@torch.no_grad()
def semantic_scores(
    semantic_logits: Tensor, *, image_size: Size, padded_size: Size, output_size: Size
) -> Tensor:
    """Compute the class probabilities of each pixel.

    Args:
        semantic_logits: (K, h, w).

    Returns:
        (K, H, W) float32.
    """
    resize = TiledResize(
        semantic_logits.float(),
        image_size=image_size,
        padded_size=padded_size,
        output_size=output_size,
    )
    scores = resize.masks.new_empty((len(semantic_logits), *output_size))
    for tile in resize:
        inside = resize.tile(tile).softmax(0)
        scores[:, tile.rows.pixels, tile.columns.pixels] = inside.view(-1, *tile.size)
    return scores


@torch.no_grad()
def panoptic_with_stuff(
    mask_cls: Tensor,
    mask_pred: Tensor,
    semantic_logits: Tensor,
    *,
    thing_ids: Collection[int],
    object_mask_threshold: float,
    overlap_threshold: float,
    stuff_area_threshold: float,
    **sizes: Unpack[Sizes],
) -> tuple[Tensor, list[dict[str, Any]]]:
    """Find things as `panoptic_inference` does, and fill the remaining pixels with stuff.

    Things compete with each other and with stuff, which takes part as queries of its own.

    Args:
        mask_cls: (Q, K + 1) logits.
        mask_pred: (Q, h, w) logits.
        semantic_logits: (K, h, w).
        thing_ids, object_mask_threshold, overlap_threshold: see `panoptic_inference`.
        stuff_area_threshold: see `fill_with_stuff`.
        **sizes: see `Sizes`.

    Returns:
        See `fill_with_stuff`.
    """
    stuff_ids = stuff_ids_of(len(semantic_logits), thing_ids)
    stuff_cls, stuff_pred = stuff_as_queries(semantic_logits.float(), stuff_ids)
    panoptic, segments = panoptic_inference(
        torch.cat((mask_cls.float(), stuff_cls)),
        torch.cat((mask_pred.float(), stuff_pred)),
        **sizes,
        thing_ids=thing_ids,
        object_mask_threshold=object_mask_threshold,
        overlap_threshold=overlap_threshold,
    )
    # The stuff segments have done their work, to keep things off stuff, and are deleted again:
    # `fill_with_stuff` decides about stuff at all pixels without a thing.
    things = [segment for segment in segments if segment["isthing"]]
    table = np.zeros(len(segments) + 1, dtype=np.int32)
    for number, segment in enumerate(things, start=1):
        table[segment["id"]] = number
        segment["id"] = number
    by_id = to_device(table, panoptic.device)
    panoptic = by_id.index_select(0, panoptic.view(-1)).view(panoptic.shape)
    return fill_with_stuff(
        panoptic,
        things,
        semantic_logits,
        **sizes,
        thing_ids=thing_ids,
        stuff_area_threshold=stuff_area_threshold,
    )


def stuff_as_queries(semantic_logits: Tensor, stuff_ids: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Turn the stuff of a semantic map into queries whose class is certain.

    Args:
        semantic_logits: (K, h, w).
        stuff_ids: S of the classes.

    Returns:
        (S, K + 1) class logits, and (S, h, w) mask logits: the difference between the class's logit
        and the best logit of all other classes.
    """
    num_classes = len(semantic_logits)
    logits = np.zeros((len(stuff_ids), num_classes + 1), dtype=np.float32)
    logits[range(len(stuff_ids)), list(stuff_ids)] = CERTAIN_LOGIT
    certain = to_device(logits, semantic_logits.device).to(semantic_logits.dtype)
    if num_classes == 1:  # there is no other class to compare with
        return certain, torch.full_like(semantic_logits[: len(stuff_ids)], CERTAIN_LOGIT)
    # At a cell only the likeliest class exceeds all others, so that stuff masks do not overlap.
    first, second = semantic_logits.topk(2, dim=0).values
    stuff = select_channels(semantic_logits, stuff_ids)
    return certain, stuff - torch.where(stuff == first, second, first)


@torch.no_grad()
def fill_with_stuff(
    panoptic: Tensor,
    segments: list[dict[str, Any]],
    semantic_logits: Tensor,
    *,
    image_size: Size,
    padded_size: Size,
    output_size: Size,
    thing_ids: Collection[int],
    stuff_area_threshold: float,
) -> tuple[Tensor, list[dict[str, Any]]]:
    """Give pixels without a thing to their likeliest class if that is stuff; the others are void.

    This is the merging of Panoptic FPN (Kirillov et al., CVPR 2019): things first, then stuff.

    Args:
        panoptic: (H, W) int32 ids of things, 0 where there is none; not changed.
        segments: of the things, with ids from 1 on; not changed.
        semantic_logits: (K, h, w).
        thing_ids: the thing classes.
        stuff_area_threshold: stuff with fewer pixels becomes void.

    Returns:
        (H, W) int32 and all segments: the things, then stuff by class. A stuff segment has `id`,
        `isthing`, `category_id`, `score` (mean probability of its class on its pixels) and `area`
        (pixels).
    """
    num_classes = len(semantic_logits)
    resize = TiledResize(
        semantic_logits.float(),
        image_size=image_size,
        padded_size=padded_size,
        output_size=output_size,
    )
    codes = torch.empty_like(panoptic)
    sums = torch.zeros(2, num_classes + 1, dtype=torch.float64, device=panoptic.device)
    for tile in resize:
        logits = resize.tile(tile).view(num_classes, *tile.size)
        best, labels = best_class(logits, range(num_classes))
        tile_codes = labels.int().mul_(panoptic[tile.where] == 0)
        codes[tile.where] = tile_codes
        # The softmax of the best class: 1 / sum over classes of exp(logit - best logit).
        probability = logits.sub_(best).exp_().sum(0).reciprocal_().double()
        flat = tile_codes.view(-1)
        sums[0] += count_values(flat, num_classes + 1)
        sums[1] += count_values(flat, num_classes + 1, probability.view(-1))
    table = [0] * (num_classes + 1)
    segments = list(segments)
    for code, (area, total) in enumerate(sums.t().tolist()):
        if code == 0 or code - 1 in thing_ids or area < max(1, stuff_area_threshold):
            continue
        table[code] = len(segments) + 1
        segments.append(
            {
                "id": table[code],
                "isthing": False,
                "category_id": code - 1,
                "score": total / area,
                "area": int(area),
            }
        )
    by_code = to_device(np.array(table, dtype=np.int32), codes.device)
    return panoptic + by_code.index_select(0, codes.view(-1)).view(codes.shape), segments
