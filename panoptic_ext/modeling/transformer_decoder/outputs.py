"""Outputs of a transformer decoder: classes, masks, and the additions of placed queries.

Shapes: B images, Q queries, K classes, D channels of mask_features, h x w mask resolution.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["DecoderOutputs", "Places", "Predictions", "QueryMasks", "mask_logits"]


def mask_logits(mask_embed: Tensor, mask_features: Tensor) -> Tensor:
    """Dot product of (B, Q, D) embeddings with (B, D, h, w) features -> (B, Q, h, w)."""
    if mask_features.device.type == "cpu" and not torch.compiler.is_compiling():
        # A 1x1 convolution whose weights are the embeddings is the same product, and faster on some
        # processors, see `modeling.layers.linear`. `split` keeps the memory layout of the features,
        # so that they are not copied.
        logits = [
            F.conv2d(features, embed[:, :, None, None])
            for features, embed in zip(mask_features.split(1), mask_embed, strict=True)
        ]
        return (logits[0] if len(logits) == 1 else torch.cat(logits)).contiguous()
    return torch.bmm(mask_embed, mask_features.flatten(2)).unflatten(-1, mask_features.shape[-2:])


class QueryMasks:
    """(B, Q, h, w) mask logits that are not computed yet: the embeddings and features behind them.

    A loss that needs a few points of each mask, or a few masks, computes only these.

    Attributes:
        embed: (B, Q, D).
        features: (B, D, h, w). A decoder that does not change them gives the same tensor to all of
            its predictions, which the loss makes use of.
    """

    def __init__(self, embed: Tensor, features: Tensor) -> None:
        self.embed = embed
        self.features = features

    @property
    def device(self) -> torch.device:
        """Where both tensors are."""
        return self.features.device

    def dense(self) -> Tensor:
        """Compute all masks, (B, Q, h, w) of the embeddings' dtype."""
        # Autocast is off, because it would round float32 embeddings, which placed queries need. It
        # has decided the dtype of all other embeddings before.
        with torch.autocast(self.device.type, enabled=False):
            return mask_logits(self.embed, self.features.to(self.embed.dtype))

    def rows(self, image: int, queries: Tensor) -> Tensor:
        """Compute the masks of some queries of one image.

        Args:
            image: number in the batch.
            queries: (n,) int64, on the masks' device.

        Returns:
            (n, h, w) of the embeddings' dtype.
        """
        embed = self.embed[image].index_select(0, queries)[None]
        if not len(queries):  # a convolution cannot have 0 output channels
            return embed.new_empty((0, *self.features.shape[-2:]))
        return QueryMasks(embed, self.features[image : image + 1]).dense()[0]


@dataclass(frozen=True)
class Predictions:
    """Classes and masks of the queries, after one layer of a decoder.

    Attributes:
        pred_logits: (B, Q, K + 1), the last class is "no object".
        pred_masks: (B, Q, h, w) logits, or the `QueryMasks` that compute them.
    """

    pred_logits: Tensor
    pred_masks: Tensor | QueryMasks

    def dense_masks(self) -> Tensor:
        """(B, Q, h, w) mask logits."""
        masks = self.pred_masks
        return masks.dense() if isinstance(masks, QueryMasks) else masks


@dataclass(frozen=True)
class Places:
    """Places of queries that begin at the centres of things, and the maps that they are read from.

    Attributes:
        points: (B, Q, 2) float32, x and y of each query in [0, 1] of the padded image.
        centre_logits: (B, 1, h, w) float32, high at the centre of a thing.
        boxes: (B, 4, h, w) float32, the predicted box of the thing that each cell lies in: middle x
            and y, half width and half height, in shares of the padded image.
    """

    points: Tensor
    centre_logits: Tensor
    boxes: Tensor


@dataclass(frozen=True)
class DecoderOutputs(Predictions):
    """The outputs of a transformer decoder; `pred_logits` and `pred_masks` are the final ones.

    The tensors have the dtype that the decoder computed in: float32, or under autocast the half
    type. The masks of all predictions are tensors, or all of them are `QueryMasks`. They have one
    size.

    Attributes:
        aux_outputs: the predictions before the last layer, first layer first; empty if the caller
            asked for none. The criterion reads them (deep supervision).
        semantic_logits: (B, K, h', w') float32, the class of every pixel; None unless the decoder
            `places_queries`. `PlacedCriterion` reads them, and inference takes stuff from them.
        places: of the queries; None unless the decoder `places_queries`. `PlacedCriterion` reads
            them.
        mask_features: (B, D', h, w) of the pixel decoder. The head fills them in, not the decoder.
            The auxiliary semantic loss of the model reads them.
    """

    aux_outputs: tuple[Predictions, ...] = ()
    semantic_logits: Tensor | None = None
    places: Places | None = None
    mask_features: Tensor | None = None

    @property
    def predictions(self) -> tuple[Predictions, ...]:
        """All predictions: the final ones, then those of `aux_outputs`."""
        return (self, *self.aux_outputs)

    @classmethod
    def of(cls, outputs: DecoderOutputs | Mapping[str, Any]) -> DecoderOutputs:
        """Return `DecoderOutputs` as they are, and convert a dict as in the published code.

        Args:
            outputs: if a dict, of "pred_logits", "pred_masks" and perhaps "aux_outputs", a list of
                dicts of the first two.

        Raises:
            TypeError: `outputs` are neither of the two, or a dict with other keys.
        """
        if isinstance(outputs, cls):
            return outputs
        keys = {"pred_logits", "pred_masks"}
        layers = outputs.get("aux_outputs", ()) if isinstance(outputs, Mapping) else ()
        if not isinstance(outputs, Mapping) or not (
            keys <= set(outputs) <= keys | {"aux_outputs"} and all(set(x) == keys for x in layers)
        ):
            returned = sorted(outputs) if isinstance(outputs, Mapping) else type(outputs).__name__
            raise TypeError(
                f"the transformer decoder returned {returned}; expected DecoderOutputs, or a dict "
                "of pred_logits, pred_masks and aux_outputs, a list of dicts of the first two"
            )
        aux_outputs = tuple(Predictions(**layer) for layer in layers)
        return cls(outputs["pred_logits"], outputs["pred_masks"], aux_outputs)
