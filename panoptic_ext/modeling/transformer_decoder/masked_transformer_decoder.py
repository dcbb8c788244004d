"""The masked-attention transformer decoder of Mask2Former (Cheng et al., CVPR 2022, section 3.2).

Shapes: B images, Q queries, K classes, C channels (HIDDEN_DIM), h x w mask resolution (stride 4),
S_l = h_l * w_l pixels of level l; levels run from coarse to fine.

A layer's attention mask needs the mask logits only at the resolution of its level. Resizing is
linear in the channels, so resize(embed . features) = embed . resize(features): the features are
resized once for each level. Full mask logits are computed only by code that needs them, see
`QueryMasks`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import fvcore.nn.weight_init as weight_init
import torch
from detectron2.config import configurable
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from panoptic_ext.errors import ConfigError
from panoptic_ext.modeling.layers.class_layer import ClassLayer
from panoptic_ext.modeling.layers.position_encoding import sine_position_embedding
from panoptic_ext.modeling.transformer_decoder.build import (
    TRANSFORMER_DECODER_REGISTRY,
    TransformerDecoder,
)
from panoptic_ext.modeling.transformer_decoder.layers import (
    MLP,
    CrossAttentionLayer,
    FeedForwardLayer,
    SelfAttentionLayer,
)
from panoptic_ext.modeling.transformer_decoder.outputs import (
    DecoderOutputs,
    Places,
    Predictions,
    QueryMasks,
)

__all__ = ["MultiScaleMaskedTransformerDecoder", "Queries", "attention_mask"]

NUM_LEVELS = 3


def attention_mask(mask_logits: Tensor) -> Tensor:
    """Mark the pixels that each query may attend to: those in its mask, or all if it has none.

    Args:
        mask_logits: (B, Q, h, w) at the resolution of a level.

    Returns:
        (B, 1, Q, h * w) bool, True where a query may attend to a pixel; without gradient.
    """
    # The paper thresholds the mask's probability at 0.5 (equation 3): sigmoid(x) >= 0.5 is x >= 0.
    # A query whose mask is empty may attend to everything, because a softmax over no key is NaN.
    blocked = mask_logits.detach().flatten(2) < 0
    blocked = blocked & ~blocked.all(dim=-1, keepdim=True)
    return ~blocked[:, None]


def _resize(x: Tensor, size: Sequence[int]) -> Tensor:
    if tuple(x.shape[-2:]) == tuple(size):
        return x
    return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=False)


@dataclass
class Queries:
    """Queries before the first layer, and the features that their masks are products with.

    Attributes:
        features: (B, Q, C).
        embed: (B or 1, Q, C), added to `features` in attention.
        mask_features: (B, D, h, w), D channels of a query's mask embedding.
        boxes: (B, Q, 4), the boxes that placed queries begin with; None for learned queries.
        semantic_logits, places: copied to `DecoderOutputs`.
    """

    features: Tensor
    embed: Tensor
    mask_features: Tensor
    boxes: Tensor | None = None
    semantic_logits: Tensor | None = None
    places: Places | None = None


@TRANSFORMER_DECODER_REGISTRY.register()
class MultiScaleMaskedTransformerDecoder(TransformerDecoder):
    """Refine queries by masked attention to three levels in turn, and predict from each."""

    _version = 2  # of the names in a checkpoint, see PanopticExtMaskFormerHead
    class_layers: ClassVar[Mapping[str, ClassLayer]] = {"class_embed": ClassLayer(others=1)}

    @configurable
    def __init__(
        self,
        *,
        in_channels: int,
        num_classes: int,
        hidden_dim: int,
        num_queries: int,
        num_heads: int,
        dim_feedforward: int,
        num_layers: int,
        mask_dim: int,
        pre_norm: bool = False,
        dropout: float = 0.0,
        enforce_input_projection: bool = False,
        gradient_checkpointing: bool = False,
    ) -> None:
        """Args (all by keyword):

        in_channels: channels of each of the multi-scale features.
        num_classes: K.
        hidden_dim: C.
        num_queries: Q.
        num_heads: heads of every attention.
        dim_feedforward: width inside the feed-forward layers.
        num_layers: layers; there are predictions before the first and after each.
        mask_dim: channels of mask_features.
        pre_norm: normalise what enters a layer (True) or what leaves it.
        dropout: in attention weights and on what each layer adds.
        enforce_input_projection: project the features even where `in_channels` is C.
        gradient_checkpointing: recompute each layer in the backward pass to save memory.
        """
        super().__init__()
        self.num_heads = num_heads
        self.num_layers = num_layers
        self.gradient_checkpointing = gradient_checkpointing
        self.transformer_self_attention_layers = nn.ModuleList(
            SelfAttentionLayer(hidden_dim, num_heads, dropout, pre_norm) for _ in range(num_layers)
        )
        self.transformer_cross_attention_layers = nn.ModuleList(
            CrossAttentionLayer(hidden_dim, num_heads, dropout, pre_norm) for _ in range(num_layers)
        )
        self.transformer_ffn_layers = nn.ModuleList(
            FeedForwardLayer(hidden_dim, dim_feedforward, dropout, pre_norm)
            for _ in range(num_layers)
        )
        self.decoder_norm = nn.LayerNorm(hidden_dim)
        self.query_feat = nn.Embedding(num_queries, hidden_dim)
        self.query_embed = nn.Embedding(num_queries, hidden_dim)
        self.level_embed = nn.Embedding(NUM_LEVELS, hidden_dim)
        self.input_proj = nn.ModuleList(
            self._projection(in_channels, hidden_dim, enforce_input_projection)
            for _ in range(NUM_LEVELS)
        )
        self.class_embed = nn.Linear(hidden_dim, num_classes + 1)
        self.mask_embed = MLP(hidden_dim, hidden_dim, mask_dim, 3)

    @classmethod
    def from_config(cls, cfg: Any, in_channels: int) -> dict[str, Any]:
        keys = cfg.MODEL.MASK_FORMER
        if keys.DEC_LAYERS < 1:
            raise ConfigError(
                f"MODEL.MASK_FORMER.DEC_LAYERS is {keys.DEC_LAYERS}; it counts the predictions, "
                "one before the first layer and one after each, so expected at least 1"
            )
        if keys.ENC_LAYERS:
            raise ConfigError(
                f"MODEL.MASK_FORMER.ENC_LAYERS is {keys.ENC_LAYERS}, but this decoder has no "
                "encoder in front of it; set it to 0 (the pixel decoder's encoder is "
                "MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS)"
            )
        return {
            "in_channels": in_channels,
            "num_classes": cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES,
            "hidden_dim": keys.HIDDEN_DIM,
            "num_queries": keys.NUM_OBJECT_QUERIES,
            "num_heads": keys.NHEADS,
            "dim_feedforward": keys.DIM_FEEDFORWARD,
            "num_layers": keys.DEC_LAYERS - 1,
            "mask_dim": cfg.MODEL.SEM_SEG_HEAD.MASK_DIM,
            "pre_norm": keys.PRE_NORM,
            "dropout": keys.DROPOUT,
            "enforce_input_projection": keys.ENFORCE_INPUT_PROJ,
            "gradient_checkpointing": keys.GRADIENT_CHECKPOINTING,
        }

    @property
    def leaves_parameters_unused(self) -> bool:
        """Each layer attends to one level: with fewer layers than levels some level is unused."""
        return self.num_layers < NUM_LEVELS

    def forward(
        self, multi_scale_features: Sequence[Tensor], mask_features: Tensor, *, aux: bool
    ) -> DecoderOutputs:
        """See `TransformerDecoder.forward`; there are predictions before the first layer, too."""
        if len(multi_scale_features) != NUM_LEVELS:
            raise ValueError(
                f"found {len(multi_scale_features)} feature levels, expected {NUM_LEVELS}"
            )
        sizes = [tuple(level.shape[-2:]) for level in multi_scale_features]
        memory = [self._keys_and_values(i, x) for i, x in enumerate(multi_scale_features)]
        queries = self._first_queries(mask_features)
        x, query_embed = queries.features, queries.embed
        mask_features = queries.mask_features
        resized = [_resize(mask_features.detach(), size) for size in sizes]
        aux_outputs: list[Predictions] = []
        for i in range(self.num_layers):
            level = i % NUM_LEVELS
            embed = self.decoder_norm(x)
            if aux:
                aux_outputs.append(self._predict(embed, queries))
            # The attention mask has no gradient: the published code detaches it. The mask embedding
            # is therefore computed a second time, outside of the graph.
            with torch.no_grad():
                logits = QueryMasks(self._mask_embed(embed, queries), resized[level]).dense()
            x = self._run_layer(i, x, query_embed, *memory[level], attention_mask(logits))
        final = self._predict(self.decoder_norm(x), queries)
        return DecoderOutputs(
            final.pred_logits,
            final.pred_masks,
            tuple(aux_outputs),
            semantic_logits=queries.semantic_logits,
            places=queries.places,
        )

    def _first_queries(self, mask_features: Tensor) -> Queries:
        """Learned queries, which enter the first layer. A subclass may place them by the image."""
        features = self.query_feat.weight[None].expand(mask_features.shape[0], -1, -1)
        return Queries(features, self.query_embed.weight[None], mask_features)

    def _mask_embed(self, x: Tensor, queries: Queries) -> Tensor:
        """(B, Q, C) normalised queries -> (B, Q, D) mask embeddings.

        The masks are the product of these with `queries.mask_features` (B, D, h, w).
        """
        return self.mask_embed(x)

    def _keys_and_values(self, level: int, features: Tensor) -> tuple[Tensor, Tensor]:
        """(B, S_l, C) keys (with the position) and values of one level."""
        position = sine_position_embedding(
            features.shape[-2], features.shape[-1], self.level_embed.embedding_dim, features.device
        )
        value = self.input_proj[level](features).flatten(2).transpose(1, 2)
        value = value + self.level_embed.weight[level]
        return value + position.flatten(2).mT, value

    def _predict(self, x: Tensor, queries: Queries) -> Predictions:
        """Classes and masks of (B, Q, C) normalised queries."""
        # The order of the calls has to stay: class_embed, then mask_embed. Autograd adds gradients
        # in the reverse order (`x` has three of them where queries are placed: window_embed), and
        # another order changes the last bit of the sum, and with it every later training step.
        logits = self.class_embed(x)
        return Predictions(logits, QueryMasks(self._mask_embed(x, queries), queries.mask_features))

    def _run_layer(self, i: int, *args: Tensor) -> Tensor:
        if self.gradient_checkpointing and self.training and torch.is_grad_enabled():
            return checkpoint(self._layer, i, *args, use_reentrant=False)
        return self._layer(i, *args)

    def _layer(
        self, i: int, x: Tensor, query_embed: Tensor, key: Tensor, value: Tensor, attend: Tensor
    ) -> Tensor:
        x = self.transformer_cross_attention_layers[i](x, query_embed, key, value, attend)
        x = self.transformer_self_attention_layers[i](x, query_embed)
        return self.transformer_ffn_layers[i](x)

    @staticmethod
    def _projection(in_channels: int, dim: int, enforce: bool) -> nn.Module:
        # As in the published code: without a projection an empty module keeps the level's index.
        if in_channels == dim and not enforce:
            return nn.Sequential()
        projection = nn.Conv2d(in_channels, dim, kernel_size=1)
        weight_init.c2_xavier_fill(projection)
        return projection

    @staticmethod
    def adapt_state_dict(state_dict: dict[str, Any], prefix: str) -> None:
        """Give old names in a checkpoint their new ones; see `AdaptsStateDict`."""
        old, new = f"{prefix}static_query.weight", f"{prefix}query_feat.weight"
        if old in state_dict and new not in state_dict:
            state_dict[new] = state_dict.pop(old)

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        # The checkpointer has adapted the names already; a plain load_state_dict has not.
        self.adapt_state_dict(state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
