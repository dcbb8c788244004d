"""Mask logits of queries, computed where the loss looks at them instead of everywhere.

A mask is the product of a query's embedding with the mask features. The matcher needs it at random
points, and sampling is linear: sample(embed . features) = embed . sample(features), one sampling
for all queries and decoder outputs. The mask loss needs whole masks of the matched queries only,
and only these carry a gradient.

Outputs of a decoder share operations, as many as `outputs_at_once` says: for a GPU, which waits for
the host to launch small operations, all of them; on a CPU as many as stay in its cache.

Shapes: O outputs of a decoder, B images, Q queries, D channels, P points, h x w mask resolution.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from panoptic_ext.modeling.layers.linear import linear
from panoptic_ext.modeling.mask_classification.bilinear import sample_at_common_points
from panoptic_ext.modeling.transformer_decoder.outputs import Predictions, QueryMasks, mask_logits

__all__ = ["masks_at_points", "matched_masks", "outputs_at_once"]

# Values of a tensor that several outputs share: on a CPU larger ones cost more by touching new
# memory than they save, elsewhere they would cost memory.
_CPU_VALUES = 2**20
_OTHER_VALUES = 2**25


def outputs_at_once(count: int, values: int, device: torch.device) -> list[slice]:
    """Consecutive outputs of a decoder whose losses or costs are computed together.

    Args:
        count: O.
        values: of the largest tensor that one of them needs.
        device: where.
    """
    most = _CPU_VALUES if device.type == "cpu" else _OTHER_VALUES
    length = min(max(most // max(values, 1), 1), count)
    return [slice(i, min(i + length, count)) for i in range(0, count, length)]


def masks_at_points(outputs: Sequence[Predictions], image: int, points: Tensor) -> list[Tensor]:
    """Mask logits of one image at points common to its queries, without gradient.

    Args:
        outputs: of a decoder; their masks are all tensors, or all `QueryMasks`.
        image: which one of the batch.
        points: (1, P, 2) for all outputs, or (O, P, 2), for each its own; see `points`.

    Returns:
        (o, Q, P) float32, the outputs in order, o of them as `outputs_at_once` joins them.
    """
    draws, count = points.shape[:2]
    products, dense = _masks_of(outputs)
    if dense:
        pairs = zip(dense, points.expand(len(dense), -1, -1), strict=True)
        return [sample_at_common_points(masks[image].float(), at)[None] for masks, at in pairs]
    features = products[0].features[image].float()
    shared = _sampled_rows(features, points) if draws == 1 else None
    blocks = []
    for block in outputs_at_once(len(products), products[0].embed.shape[1] * count, points.device):
        embed = torch.stack([masks.embed.detach()[image] for masks in products[block]]).float()
        rows = _sampled_rows(features, points[block]) if shared is None else shared
        blocks.append(_at_rows(embed, rows))
    return blocks


def _masks_of(outputs: Sequence[Predictions]) -> tuple[list[QueryMasks], list[Tensor]]:
    """Masks of each output: all in the first list, or all in the second one."""
    masks = [output.pred_masks for output in outputs]
    products = [each for each in masks if isinstance(each, QueryMasks)]
    dense = [each for each in masks if isinstance(each, Tensor)]
    if products and dense:
        raise TypeError("some masks of a decoder are tensors and some QueryMasks; give one kind")
    return products, dense


def _sampled_rows(features: Tensor, points: Tensor) -> Tensor:
    """(D, h, w) features at (S, P, 2) points -> (S, P, D)."""
    sampled = sample_at_common_points(features, points.flatten(0, 1))
    return sampled.t().unflatten(0, points.shape[:2])


def _at_rows(embed: Tensor, rows: Tensor) -> Tensor:
    """(o, Q, D) embeddings with (1 or o, P, D) sampled features -> (o, Q, P)."""
    if len(rows) == 1:
        every = linear(rows[0].contiguous(), embed.flatten(0, 1)).t()
        return every.unflatten(0, embed.shape[:2])
    return embed @ rows.mT


def matched_masks(outputs: Sequence[Predictions], rows: Sequence[Tensor]) -> list[Tensor]:
    """Masks of the matched queries, with gradient.

    Args:
        outputs: as in `masks_at_points`.
        rows: of each image (O * M,) int64 on the masks' device, output after output: places of its
            matched queries in (O, B, Q).

    Returns:
        For each image (O * M, h, w) float32 logits in the order of `rows`.
    """
    products, dense = _masks_of(outputs)
    if dense:
        return _rows_of_dense(dense, rows)
    embeds = torch.stack([masks.embed for masks in products]).flatten(0, 2)
    # One product for all outputs: the gradient of the features is then one map of D channels, not
    # a sum of as many as there are outputs.
    return [
        _product(embeds.index_select(0, chosen), features).float()
        for chosen, features in zip(rows, products[0].features.split(1), strict=True)
    ]


def _rows_of_dense(every: Sequence[Tensor], rows: Sequence[Tensor]) -> list[Tensor]:
    """As `matched_masks`, of (B, Q, h, w) masks, whose gradients are as large: one an output."""
    size = every[0].shape[0] * every[0].shape[1]
    by_output = [own.view(len(every), -1) for own in rows]
    picked = [
        masks.flatten(0, 1)
        .index_select(0, torch.cat([own[number] for own in by_output]) - number * size)
        .split([own.shape[1] for own in by_output])
        for number, masks in enumerate(every)
    ]
    return [torch.cat(of_image).float() for of_image in zip(*picked, strict=True)]


def _product(embed: Tensor, features: Tensor) -> Tensor:
    """(M, D) with (1, D, h, w) -> (M, h, w); a convolution cannot have no output channel."""
    features = features.to(embed.dtype)  # autocast, which would do so, is off in the loss
    if len(embed) == 0:
        return (embed @ features[0].flatten(1)).view(0, *features.shape[-2:])
    return mask_logits(embed[None], features)[0]
