"""Mask logits of queries, computed where the loss looks at them instead of everywhere.

A mask is the product of a query's embedding with the mask features. The matcher needs it at random
points, and sampling is linear: sample(embed . features) = embed . sample(features), one sampling
for all queries and decoder outputs. The mask loss needs whole masks of the matched queries only,
and only these carry a gradient.

Shapes: B images, Q queries, D channels, P points, h x w mask resolution.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .linear import linear
from .point_sampling import sample_at_common_points

__all__ = ["MaskPredictions", "QueryMasks", "mask_logits", "masks_at_points", "matched_masks"]


def mask_logits(mask_embed: Tensor, mask_features: Tensor) -> Tensor:
    """Dot product of (B, Q, D) embeddings with (B, D, h, w) features -> (B, Q, h, w)."""
    if mask_features.device.type == "cpu" and not torch.compiler.is_compiling():
        # A 1x1 convolution of each image by its embeddings; see `modeling.linear`. Split keeps the
        # layout of the features, so that they are not copied.
        each = [
            F.conv2d(features, embed[:, :, None, None])
            for features, embed in zip(mask_features.split(1), mask_embed, strict=True)
        ]
        return (each[0] if len(each) == 1 else torch.cat(each)).contiguous()
    return torch.bmm(mask_embed, mask_features.flatten(2)).unflatten(-1, mask_features.shape[-2:])


class QueryMasks:
    """(B, Q, h, w) mask logits that are not computed yet.

    Attributes:
        embed: (B, Q, D).
        features: (B, D, h, w), the same tensor for all outputs of a decoder.
    """

    def __init__(self, embed: Tensor, features: Tensor) -> None:
        self.embed = embed
        self.features = features

    @property
    def device(self) -> torch.device:
        return self.features.device

    def dense(self) -> Tensor:
        """All of them, (B, Q, h, w)."""
        return mask_logits(self.embed, self.features)


MaskPredictions = Tensor | QueryMasks
"""Mask logits of one decoder output: (B, Q, h, w), or what computes them."""


def masks_at_points(
    outputs: Sequence[dict[str, Any]], image: int, points: Sequence[Tensor]
) -> list[Tensor]:
    """Mask logits of one image at points common to its queries, without gradient.

    Args:
        outputs: of a decoder, each with "pred_masks": all tensors, or all `QueryMasks`.
        image: which one of the batch.
        points: (P, 2) of each output, or one for all of them; see `point_sampling`.

    Returns:
        (Q, P) float32 for each output.
    """
    every = [output["pred_masks"] for output in outputs]
    turns = len(every) // len(points)
    if not isinstance(every[0], QueryMasks):
        return [
            sample_at_common_points(masks[image].float(), own)
            for masks, own in zip(every, [*points] * turns, strict=True)
        ]
    # One sampling for all points: on a CPU it begins with a copy of the features.
    features = sample_at_common_points(every[0].features[image].float(), torch.cat([*points]))
    rows = features.t().contiguous().split([len(own) for own in points])
    return [
        linear(own, masks.embed[image].detach().float()).t()
        for masks, own in zip(every, [*rows] * turns, strict=True)
    ]


def matched_masks(
    outputs: Sequence[dict[str, Any]], queries: Sequence[Sequence[Tensor]]
) -> list[Tensor]:
    """Masks of the matched queries, with gradient.

    Args:
        outputs: as in `masks_at_points`.
        queries: of each output, of each image, (M,) int64 rows on the masks' device.

    Returns:
        For each output the (sum of M, h, w) float32 logits of its matches, image after image.
    """
    every = [output["pred_masks"] for output in outputs]
    if not isinstance(every[0], QueryMasks):
        return [_rows(masks, rows).float() for masks, rows in zip(every, queries, strict=True)]
    pieces: list[list[Tensor]] = [[] for _ in every]
    for image, features in enumerate(every[0].features.split(1)):
        # One product for all outputs: their gradients meet in it, not in maps of D channels.
        rows = [rows[image] for rows in queries]
        chosen = [masks.embed[image][own] for masks, own in zip(every, rows, strict=True)]
        logits = _product(torch.cat(chosen), features).float()
        for piece, part in zip(pieces, logits.split([len(own) for own in rows]), strict=True):
            piece.append(part)
    return [piece[0] if len(piece) == 1 else torch.cat(piece) for piece in pieces]


def _rows(masks: Tensor, queries: Sequence[Tensor]) -> Tensor:
    images = torch.cat([torch.full_like(own, image) for image, own in enumerate(queries)])
    return masks[images, torch.cat(list(queries))]


def _product(embed: Tensor, features: Tensor) -> Tensor:
    """(M, D) with (1, D, h, w) -> (M, h, w); a convolution cannot have no output channel."""
    features = features.to(embed.dtype)  # autocast, which would do so, is off in the loss
    if len(embed) == 0:
        return (embed @ features[0].flatten(1)).view(0, *features.shape[-2:])
    return mask_logits(embed[None], features)[0]
