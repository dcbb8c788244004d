"""The attention mask of EoMT's training: queries attend to the patches in their masks.

Shapes: B images, Q queries, P prefix tokens, N = h * w patches, T = Q + P + N tokens in this order.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["attention_mask"]


def attention_mask(mask_logits: Tensor, num_prefix_tokens: int, probability: float) -> Tensor:
    """Which token may attend to which one.

    Queries always attend to queries and prefix tokens, so that no row is empty. Prefix tokens and
    patches attend to everything.

    Args:
        mask_logits: (B, Q, h, w) of the queries, at the resolution of the patches.
        num_prefix_tokens: P.
        probability: with which a query of an image is masked, above 0 to 1; the others attend to
            everything. They are drawn on the logits' device.

    Returns:
        (B, 1, T, T) bool, rows attend to columns where it is True; without gradient.
    """
    allowed = mask_logits.detach().flatten(2) > 0
    batch, num_queries, num_patches = allowed.shape
    if probability < 1:
        rows = torch.rand((batch, num_queries, 1), device=allowed.device) > probability
        allowed = allowed | rows
    tokens = num_queries + num_prefix_tokens + num_patches
    mask = torch.ones((batch, 1, tokens, tokens), dtype=torch.bool, device=allowed.device)
    mask[:, 0, :num_queries, num_queries + num_prefix_tokens :] = allowed
    return mask
