"""The head of EoMT (Kerssies et al., CVPR 2025): queries in a ViT's last blocks, and predictions.

Shapes: B images, D channels of a token, Q queries, P prefix tokens (class and register tokens),
N = h * w patches, L blocks that the queries pass, K classes. Tokens come in the order queries,
prefix, patches.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from panoptic_ext.modeling.eomt.attention_mask import attention_mask
from panoptic_ext.modeling.layers.class_layer import ClassLayer
from panoptic_ext.modeling.layers.doubling import DoublingConv2d
from panoptic_ext.modeling.layers.layer_norm import LayerNorm2d
from panoptic_ext.modeling.transformer_decoder.outputs import (
    DecoderOutputs,
    Predictions,
    QueryMasks,
)

__all__ = ["EoMTHead"]

RunBlock = Callable[[int, Tensor, Tensor | None], Tensor]
"""Number of the block (0 to L - 1), tokens (B, T, D), attention mask or None -> tokens."""


class ScaleBlock(nn.Module):
    """Doubles the resolution of a map."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = DoublingConv2d(channels, channels)
        self.conv2 = nn.Conv2d(
            channels, channels, kernel_size=3, padding=1, groups=channels, bias=False
        )
        self.norm = LayerNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, D, h, w) -> (B, D, 2 h, 2 w), on a CPU in channels_last layout."""
        return self.norm(self.conv2(F.gelu(self.conv1(x))))


class EoMTHead(nn.Module):
    """Query embeddings, and what predicts a class and a mask from a query and the patches."""

    class_layers: ClassVar[Mapping[str, ClassLayer]] = {"class_head": ClassLayer(others=1)}

    def __init__(
        self,
        *,
        embed_dim: int,
        num_queries: int,
        num_blocks: int,
        num_classes: int,
        patch_size: int,
    ) -> None:
        """Args (all by keyword):

        embed_dim: D.
        num_queries: Q.
        num_blocks: L.
        num_classes: K, without "no object".
        patch_size: side of a patch, pixels. Masks have about a quarter of the image's resolution.
        """
        super().__init__()
        self.num_blocks = num_blocks
        self.q = nn.Embedding(num_queries, embed_dim)
        self.class_head = nn.Linear(embed_dim, num_classes + 1)
        self.mask_head = nn.Sequential(
            nn.Linear(embed_dim, embed_dim),
            nn.GELU(),
            nn.Linear(embed_dim, embed_dim),
            nn.GELU(),
            nn.Linear(embed_dim, embed_dim),
        )
        num_upscale = max(1, int(math.log2(patch_size)) - 2)
        self.upscale = nn.Sequential(*(ScaleBlock(embed_dim) for _ in range(num_upscale)))

    def forward(
        self,
        tokens: Tensor,
        grid: tuple[int, int],
        *,
        run_block: RunBlock,
        norm: Callable[[Tensor], Tensor],
        probabilities: Sequence[float] = (),
        aux: bool = False,
    ) -> DecoderOutputs:
        """
        Args:
            tokens: (B, P + N, D), of the last block without queries.
            grid: (h, w).
            run_block: runs one of the L blocks.
            norm: the encoder's final norm, applied before each prediction.
            probabilities: of each block, that a query attends to the patches in its mask alone;
                empty: never.
            aux: also give the L predictions before the last block's.

        Returns:
            Masks have the resolution of the upscaled patches.
        """
        num_prefix_tokens = tokens.shape[1] - grid[0] * grid[1]
        queries = self.q.weight.expand(len(tokens), -1, -1).to(tokens.dtype)
        tokens = torch.cat((queries, tokens), dim=1)
        aux_outputs = []
        for block in range(self.num_blocks):
            mask, probability = None, probabilities[block] if probabilities else 0.0
            if aux or probability > 0:
                outputs = self.predict(norm(tokens), grid)
                aux_outputs.append(Predictions(outputs.pred_logits, outputs.pred_masks))
                if probability > 0:
                    at_patches = masks_at_patches(outputs.pred_masks, grid)
                    mask = attention_mask(at_patches, num_prefix_tokens, probability)
            tokens = run_block(block, tokens, mask)
        final = self.predict(norm(tokens), grid)
        return replace(final, aux_outputs=tuple(aux_outputs) if aux else ())

    def predict(self, tokens: Tensor, grid: tuple[int, int]) -> DecoderOutputs:
        """Classes and masks of the queries, and the upscaled patches as `mask_features`.

        Args:
            tokens: (B, T, D), normalised.
            grid: (h, w).
        """
        num_queries = self.q.num_embeddings
        queries, patches = tokens[:, :num_queries], tokens[:, -grid[0] * grid[1] :]
        features = self.upscale(patches.unflatten(1, grid).permute(0, 3, 1, 2))
        masks = QueryMasks(self.mask_head(queries), features)
        return DecoderOutputs(self.class_head(queries), masks, mask_features=features)


@torch.no_grad()
def masks_at_patches(masks: Tensor | QueryMasks, grid: tuple[int, int]) -> Tensor:
    """Mask logits (B, Q, h, w) at the resolution of the patches, bilinear, without gradient.

    Resizing is linear: the product with resized features is the resized product, and much smaller.
    """
    if isinstance(masks, Tensor):
        return F.interpolate(masks, size=grid, mode="bilinear")
    features = F.interpolate(masks.features, size=grid, mode="bilinear")
    return QueryMasks(masks.embed, features).dense()
