"""Mask logits of queries, computed only where matcher and loss read them.

A mask is the product of a query's embedding with the mask features. The matcher needs it at random
points, and sampling is linear: sample(embed . features) = embed . sample(features). One sampling
thus serves all queries, and all decoder outputs with the same features. The mask loss needs whole
masks, but of the matched queries only, and only these carry a gradient.

Several outputs of a decoder share operations; `outputs_at_once` decides how many. On a GPU these
are as many as memory allows, because the GPU would wait for the host to launch small operations. On
a CPU these are as many as stay in its cache.

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

# Greatest number of values in a tensor that several outputs share. On a CPU, touching the memory of
# a larger tensor takes more time than sharing saves. On a GPU the limit bounds the memory.
_MAX_SHARED_VALUES_CPU = 2**20
_MAX_SHARED_VALUES_GPU = 2**25


def outputs_at_once(count: int, values: int, device: torch.device) -> list[slice]:
    """Split the outputs of a decoder into runs whose losses or costs are computed together.

    Args:
        count: O.
        values: number of values in the largest tensor that one output needs.
        device: where the tensors are.

    Returns:
        Consecutive slices of range(O).
    """
    limit = _MAX_SHARED_VALUES_CPU if device.type == "cpu" else _MAX_SHARED_VALUES_GPU
    length = min(max(limit // max(values, 1), 1), count)
    return [slice(i, min(i + length, count)) for i in range(0, count, length)]


def masks_at_points(outputs: Sequence[Predictions], image: int, points: Tensor) -> list[Tensor]:
    """Compute mask logits of one image at points common to its queries, without gradient.

    Args:
        outputs: of a decoder; their masks are all tensors, or all `QueryMasks`.
        image: which one of the batch.
        points: (1, P, 2), common to all outputs, or (O, P, 2), of each output; see `points`.

    Returns:
        Tensors (o, Q, P) float32, each of o consecutive outputs; `outputs_at_once` decides o.
    """
    draws = len(points)
    products, dense = _masks_of(outputs)
    if dense:
        pairs = zip(dense, points.expand(len(dense), -1, -1), strict=True)
        return [sample_at_common_points(masks[image].float(), at)[None] for masks, at in pairs]
    blocks = []
    for run in _runs_with_same_features(products):
        blocks += _products_at_points(products[run], image, points if draws == 1 else points[run])
    return blocks


def _products_at_points(products: Sequence[QueryMasks], image: int, points: Tensor) -> list[Tensor]:
    """As `masks_at_points`, for products with the same features."""
    draws, count = points.shape[:2]
    features = products[0].features[image].float()
    shared = _sampled_rows(features, points) if draws == 1 else None
    blocks = []
    for block in outputs_at_once(len(products), products[0].embed.shape[1] * count, points.device):
        embed = torch.stack([masks.embed.detach()[image] for masks in products[block]]).float()
        rows = _sampled_rows(features, points[block]) if shared is None else shared
        blocks.append(_at_rows(embed, rows))
    return blocks


def _runs_with_same_features(products: Sequence[QueryMasks]) -> list[slice]:
    """Split products into consecutive ones whose features are the same tensor.

    Mask2Former has one run, because its queries look at one map. EoMT has a run for each output,
    because every block changes the queries and the patches.
    """
    starts = [
        number
        for number, masks in enumerate(products)
        if number == 0 or masks.features is not products[number - 1].features
    ]
    return [slice(*ends) for ends in zip(starts, [*starts[1:], len(products)], strict=True)]


def _masks_of(outputs: Sequence[Predictions]) -> tuple[list[QueryMasks], list[Tensor]]:
    """Masks of each output: all in the first list, or all in the second one."""
    all_masks = [output.pred_masks for output in outputs]
    products = [masks for masks in all_masks if isinstance(masks, QueryMasks)]
    dense = [masks for masks in all_masks if isinstance(masks, Tensor)]
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
        logits = linear(rows[0].contiguous(), embed.flatten(0, 1)).t()
        return logits.unflatten(0, embed.shape[:2])
    return embed @ rows.mT


def matched_masks(outputs: Sequence[Predictions], rows: Sequence[Tensor]) -> list[Tensor]:
    """Compute the masks of the matched queries, with gradient.

    Args:
        outputs: as in `masks_at_points`.
        rows: of each image (O * M,) int64 on the masks' device, output after output: flat indices
            of its matched queries in (O, B, Q).

    Returns:
        For each image (O * M, h, w) float32 logits in the order of `rows`.
    """
    products, dense = _masks_of(outputs)
    if dense:
        return _rows_of_dense(dense, rows)
    runs = _runs_with_same_features(products)
    if len(runs) == 1:
        return _rows_of_products(products, rows)
    queries_per_output = products[0].embed.shape[0] * products[0].embed.shape[1]
    by_run = []
    for run in runs:
        rows_of_run = [
            of_image.view(len(products), -1)[run].flatten() - run.start * queries_per_output
            for of_image in rows
        ]
        by_run.append(_rows_of_products(products[run], rows_of_run))
    return [torch.cat(of_image) for of_image in zip(*by_run, strict=True)]


def _rows_of_products(products: Sequence[QueryMasks], rows: Sequence[Tensor]) -> list[Tensor]:
    """As `matched_masks`, for products with the same features."""
    embeds = torch.stack([masks.embed for masks in products]).flatten(0, 2)
    # One image needs no split, whose gradient would be a copy of a large map.
    maps = products[0].features
    maps_of_images = (maps,) if len(rows) == 1 else maps.split(1)
    # One product for all outputs: the gradient of the features is then one map of D channels, not
    # a sum of O such maps.
    return [
        _product(embeds.index_select(0, chosen), features).float()
        for chosen, features in zip(rows, maps_of_images, strict=True)
    ]


def _rows_of_dense(dense: Sequence[Tensor], rows: Sequence[Tensor]) -> list[Tensor]:
    """As `matched_masks`, for the (B, Q, h, w) masks of each output."""
    queries_per_output = dense[0].shape[0] * dense[0].shape[1]
    rows_by_output = [of_image.view(len(dense), -1) for of_image in rows]
    # One selection for each output, not one for each image: the gradient of a selection is as large
    # as all masks of the output.
    selected = [
        masks.flatten(0, 1)
        .index_select(
            0,
            torch.cat([of_image[number] for of_image in rows_by_output])
            - number * queries_per_output,
        )
        .split([of_image.shape[1] for of_image in rows_by_output])
        for number, masks in enumerate(dense)
    ]
    return [torch.cat(of_image).float() for of_image in zip(*selected, strict=True)]


def _product(embed: Tensor, features: Tensor) -> Tensor:
    """(M, D) embeddings with (1, D, h, w) features -> (M, h, w)."""
    # Autocast would convert the features, but it is off in the loss.
    features = features.to(embed.dtype)
    # A convolution cannot have 0 output channels.
    if len(embed) == 0:
        return (embed @ features[0].flatten(1)).view(0, *features.shape[-2:])
    return mask_logits(embed[None], features)[0]
