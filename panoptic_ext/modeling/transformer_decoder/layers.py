"""Layers of the masked-attention decoder, batch first.

Shapes: B images, Q queries, S keys (pixels of a level or queries), C channels, M heads.
Each layer takes `pre_norm`: normalise what enters the layer (True) or what leaves it (False).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from panoptic_ext.modeling.layers.linear import Linear, linear

__all__ = ["MLP", "Attention", "CrossAttentionLayer", "FeedForwardLayer", "SelfAttentionLayer"]


class Attention(nn.Module):
    """Multi-head attention through `scaled_dot_product_attention`.

    Its parameters have the names and shapes of `nn.MultiheadAttention`.
    """

    def __init__(self, dim: int, num_heads: int, dropout: float = 0.0) -> None:
        """
        Args:
            dim: C, a multiple of `num_heads`.
            num_heads: M.
            dropout: share of attention weights dropped in training.
        """
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"{dim} channels cannot be split into {num_heads} equal heads")
        self.num_heads = num_heads
        self.dropout = dropout
        self.in_proj_weight = nn.Parameter(torch.empty(3 * dim, dim))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * dim))
        self.out_proj = Linear(dim, dim)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.xavier_uniform_(self.out_proj.weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, attend: Tensor | None = None
    ) -> Tensor:
        """
        Args:
            query: (B, Q, C).
            key, value: (B, S, C).
            attend: bool, broadcastable to (B, M, Q, S), True where a query may attend to a key;
                each row must hold a True.

        Returns:
            (B, Q, C).
        """
        # Self-attention: query and key are the same tensor, so that one product projects both.
        if query is key:
            weight, bias = self.in_proj_weight, self.in_proj_bias
            dim = query.shape[-1]
            q, k = linear(query, weight[: 2 * dim], bias[: 2 * dim]).chunk(2, dim=-1)
            v = linear(value, weight[2 * dim :], bias[2 * dim :])
        else:
            weights, biases = self.in_proj_weight.chunk(3), self.in_proj_bias.chunk(3)
            q, k, v = map(linear, (query, key, value), weights, biases)
        out = F.scaled_dot_product_attention(
            self._split(q),
            self._split(k),
            self._split(v),
            attn_mask=attend,
            dropout_p=self.dropout if self.training else 0.0,
        )
        return self.out_proj(out.transpose(1, 2).flatten(2))

    def _split(self, x: Tensor) -> Tensor:
        """(B, S, C) -> (B, M, S, C / M)."""
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)


class _ResidualLayer(nn.Module):
    """A layer whose result is added to its input, normalised before (pre-norm) or after."""

    def _add_norm(self, dim: int, dropout: float, pre_norm: bool) -> None:
        # Called last by the constructors: checkpoints list the norm behind the weights.
        self.norm = nn.LayerNorm(dim)
        self.dropout = nn.Dropout(dropout)
        self.pre_norm = pre_norm


class CrossAttentionLayer(_ResidualLayer):
    """Masked attention: queries attend to the pixels in their masks of the previous layer."""

    def __init__(self, dim: int, num_heads: int, dropout: float, pre_norm: bool) -> None:
        super().__init__()
        self.multihead_attn = Attention(dim, num_heads, dropout)
        self._add_norm(dim, dropout, pre_norm)

    def forward(
        self, x: Tensor, query_embed: Tensor, key: Tensor, value: Tensor, attend: Tensor
    ) -> Tensor:
        """
        Args:
            x: (B, Q, C), the queries.
            query_embed: (B, Q, C) or (1, Q, C), added to them for the attention weights only.
            key, value: (B, S, C).
            attend: (B, 1, Q, S) bool, True where a query may attend to a key.

        Returns:
            (B, Q, C).
        """
        queries = self.norm(x) if self.pre_norm else x
        x = x + self.dropout(self.multihead_attn(queries + query_embed, key, value, attend))
        return x if self.pre_norm else self.norm(x)


class SelfAttentionLayer(_ResidualLayer):
    """Queries attend to one another."""

    def __init__(self, dim: int, num_heads: int, dropout: float, pre_norm: bool) -> None:
        super().__init__()
        self.self_attn = Attention(dim, num_heads, dropout)
        self._add_norm(dim, dropout, pre_norm)

    def forward(self, x: Tensor, query_embed: Tensor) -> Tensor:
        """(B, Q, C) queries and their (B or 1, Q, C) embedding -> (B, Q, C)."""
        value = self.norm(x) if self.pre_norm else x
        # As in DETR, the embedding counts in the attention weights only, not in the values.
        query = value + query_embed
        x = x + self.dropout(self.self_attn(query, query, value))
        return x if self.pre_norm else self.norm(x)


class FeedForwardLayer(_ResidualLayer):
    """Two linear layers on each query alone."""

    def __init__(self, dim: int, hidden_dim: int, dropout: float, pre_norm: bool) -> None:
        super().__init__()
        self.linear1 = Linear(dim, hidden_dim)
        self.linear2 = Linear(hidden_dim, dim)
        self._add_norm(dim, dropout, pre_norm)
        nn.init.xavier_uniform_(self.linear1.weight)
        nn.init.xavier_uniform_(self.linear2.weight)

    def forward(self, x: Tensor) -> Tensor:
        """(B, Q, C) -> (B, Q, C)."""
        queries = self.norm(x) if self.pre_norm else x
        hidden = linear(queries, self.linear1.weight, self.linear1.bias, relu=True)
        x = x + self.dropout(self.linear2(self.dropout(hidden)))
        return x if self.pre_norm else self.norm(x)


class MLP(nn.Module):
    """Linear layers with ReLU in between."""

    def __init__(self, in_dim: int, hidden_dim: int, out_dim: int, num_layers: int) -> None:
        super().__init__()
        dims = [in_dim, *[hidden_dim] * (num_layers - 1), out_dim]
        self.layers = nn.ModuleList(map(Linear, dims[:-1], dims[1:]))

    def forward(self, x: Tensor) -> Tensor:
        """(..., in_dim) -> (..., out_dim)."""
        for layer in self.layers[:-1]:
            x = linear(x, layer.weight, layer.bias, relu=True)
        return self.layers[-1](x)
