"""Transformer encoder with multi-scale deformable attention (Zhu et al., ICLR 2021).

Shapes: B batch, S positions of all levels together (coarse to fine, row-major), C channels,
M heads, L levels, P points. Sizes of levels are Python integers, so that the host never waits for a
GPU.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from panoptic_ext.modeling.layers import ms_deform_attn
from panoptic_ext.modeling.layers.linear import Linear, linear

__all__ = ["DeformableEncoder", "DeformableEncoderLayer", "MSDeformAttn"]

Shapes = Sequence[tuple[int, int]]

# Rows of a feed-forward layer that are computed at once in evaluation on a CPU. Their hidden
# activations stay in the cache, and no S x width tensor has to be allocated.
_FEED_FORWARD_ROWS = 1024


class MSDeformAttn(nn.Module):
    """Attention of each position to a few sampled points around it in every level."""

    def __init__(
        self, channels: int, levels: int, heads: int, points: int, backend: str = "auto"
    ) -> None:
        """Args:
        channels: C, a multiple of `heads`.
        levels, heads, points: L, M, P.
        backend: see `ms_deform_attn`.
        """
        super().__init__()
        if channels % heads:
            raise ValueError(f"{channels} channels cannot be shared by {heads} heads")
        self.levels, self.heads, self.points, self.backend = levels, heads, points, backend
        samples = heads * levels * points
        self.sampling_offsets = Linear(channels, samples * 2)
        self.attention_weights = Linear(channels, samples)
        self.value_proj = Linear(channels, channels)
        self.output_proj = Linear(channels, channels)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise offsets: heads point in directions of a circle, points move out by a pixel."""
        angle = torch.arange(self.heads, dtype=torch.float32) * (2 * math.pi / self.heads)
        direction = torch.stack((angle.cos(), angle.sin()), dim=-1)
        direction = direction / direction.abs().amax(dim=-1, keepdim=True)
        steps = torch.arange(1, self.points + 1, dtype=torch.float32)
        offsets = direction[:, None, None, :] * steps[None, None, :, None]
        offsets = offsets.expand(-1, self.levels, -1, -1)
        with torch.no_grad():
            self.sampling_offsets.bias.copy_(offsets.reshape(-1))
        nn.init.zeros_(self.sampling_offsets.weight)
        nn.init.zeros_(self.attention_weights.weight)
        nn.init.zeros_(self.attention_weights.bias)
        for projection in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(projection.weight)
            nn.init.zeros_(projection.bias)

    def forward(self, query: Tensor, source: Tensor, shapes: Shapes) -> Tensor:
        """Self-attention over all levels.

        Args:
            query: (B, S, C), `source` with its position embedding.
            source: (B, S, C).
            shapes: (height, width) of each level.

        Returns:
            (B, S, C).
        """
        batch, positions, _ = query.shape
        value = self.value_proj(source).view(batch, positions, self.heads, -1)
        split = (batch, positions, self.heads, self.levels, self.points)
        weights = _softmax(self.attention_weights(query).view(*split[:3], -1)).view(split)
        locations = self._locations(query, tuple(shapes)).view(*split, 2)
        attended = ms_deform_attn(value, shapes, locations, weights, backend=self.backend)
        return self.output_proj(attended)

    def _locations(self, query: Tensor, shapes: tuple[tuple[int, int], ...]) -> Tensor:
        """(B, S, M, L * P * 2) float32 in 0..1: the position's own centre plus offsets."""
        # Offsets in pixels are divided by the levels' sizes in the projection's weights, which are
        # much smaller. In float32 also under autocast, because half types cannot resolve pixels.
        centres, scale = _geometry(shapes, self.points, query.device)
        with torch.autocast(query.device.type, enabled=False):
            scale = scale.repeat(self.heads)
            weight = self.sampling_offsets.weight.float() * scale[:, None]
            bias = self.sampling_offsets.bias.float() * scale
            offsets = linear(query.float(), weight, bias)
            offsets = offsets.view(*query.shape[:2], self.heads, -1)
            if offsets.requires_grad:
                return offsets + centres
            return offsets.add_(centres)


def _softmax(x: Tensor) -> Tensor:
    """Softmax of the last dimension."""
    # On a CPU, rows that do not fill the vector registers take nine times as long, so that they are
    # padded with -inf, whose softmax is 0.
    width = x.shape[-1]
    if x.device.type != "cpu" or torch.compiler.is_compiling() or width % 16 == 0:
        return x.softmax(-1)
    return F.pad(x, (0, -width % 16), value=-torch.inf).softmax(-1)[..., :width]


def _geometry(
    shapes: tuple[tuple[int, int], ...], points: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Centres (S, 1, L * P * 2), the same for every sample, and 1 / size (L * P * 2,) of a head."""
    if torch.compiler.is_compiling():
        return _make_geometry(shapes, points, device)
    return _cached_geometry(shapes, points, device)


@lru_cache(maxsize=32)
def _cached_geometry(
    shapes: tuple[tuple[int, int], ...], points: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    # A tensor made in inference mode could not be used in a later training step.
    with torch.inference_mode(False), torch.no_grad():
        return _make_geometry(shapes, points, device)


def _make_geometry(
    shapes: tuple[tuple[int, int], ...], points: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    centres = []
    for height, width in shapes:
        y = (torch.arange(height, dtype=torch.float32, device=device) + 0.5) / height
        x = (torch.arange(width, dtype=torch.float32, device=device) + 0.5) / width
        centres.append(torch.stack((x.expand(height, -1), y[:, None].expand(-1, width)), dim=-1))
    all_centres = torch.cat([c.flatten(0, 1) for c in centres])
    # Filled on the device: the host would wait for a copy.
    sides = (1 / side for h, w in shapes for side in (w, h) * points)
    scale = torch.cat([torch.full((1,), x, dtype=torch.float32, device=device) for x in sides])
    return all_centres.repeat(1, len(shapes) * points)[:, None], scale


class DeformableEncoderLayer(nn.Module):
    """Deformable self-attention and a feed-forward layer, both residual with the norm behind."""

    def __init__(
        self,
        channels: int,
        width: int,
        dropout: float,
        levels: int,
        heads: int,
        points: int,
        backend: str = "auto",
    ) -> None:
        """Args as `DeformableEncoder`."""
        super().__init__()
        self.self_attn = MSDeformAttn(channels, levels, heads, points, backend)
        self.norm1 = nn.LayerNorm(channels)
        self.linear1 = Linear(channels, width)
        self.linear2 = Linear(width, channels)
        self.norm2 = nn.LayerNorm(channels)
        self.dropout = dropout
        for layer in (self.linear1, self.linear2):
            nn.init.xavier_uniform_(layer.weight)

    def forward(self, x: Tensor, position: Tensor, shapes: Shapes) -> Tensor:
        """(B, S, C) features and their (1, S, C) embedding -> (B, S, C)."""
        x = self.norm1(x + self._drop(self.self_attn(x + position, x, shapes)))
        return self.norm2(x + self._drop(self._feed_forward(x)))

    def _feed_forward(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled() or x.device.type != "cpu" or torch.compiler.is_compiling():
            return self.linear2(self._drop(self._hidden(x)))
        rows = x.flatten(0, 1).split(_FEED_FORWARD_ROWS)
        return torch.cat([self.linear2(self._hidden(part)) for part in rows]).view_as(x)

    def _hidden(self, x: Tensor) -> Tensor:
        return linear(x, self.linear1.weight, self.linear1.bias, relu=True)

    def _drop(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout, self.training) if self.dropout else x


class DeformableEncoder(nn.Module):
    """A stack of layers over flattened levels, with a learnt embedding of each level.

    In the state dict: `level_embed` (L, C) and `encoder.layers.i`.
    """

    def __init__(
        self,
        *,
        channels: int,
        width: int,
        layers: int,
        levels: int,
        heads: int,
        points: int,
        dropout: float = 0.0,
        backend: str = "auto",
    ) -> None:
        """Args (all by keyword):

        channels: C.
        width: of the feed-forward layers.
        layers: their number.
        levels, heads, points: L, M, P of the attention.
        dropout: probability, on residual branches and inside the feed-forward layers.
        backend: see `ms_deform_attn`.
        """
        super().__init__()
        stack = [
            DeformableEncoderLayer(channels, width, dropout, levels, heads, points, backend)
            for _ in range(layers)
        ]
        self.encoder = nn.ModuleDict({"layers": nn.ModuleList(stack)})
        self.level_embed = nn.Parameter(torch.randn(levels, channels))

    def forward(self, maps: Sequence[Tensor], positions: Sequence[Tensor]) -> list[Tensor]:
        """Maps (B, C, h, w) and their embeddings (1, C, h, w), level by level -> maps (B, C, h, w).

        The results are views of one tensor, in channels_last layout.
        """
        shapes = [(m.shape[-2], m.shape[-1]) for m in maps]
        x = torch.cat([m.flatten(2).transpose(1, 2) for m in maps], dim=1)
        position = torch.cat(
            [
                p.flatten(2).transpose(1, 2) + embed
                for p, embed in zip(positions, self.level_embed, strict=True)
            ],
            dim=1,
        )
        for layer in self.encoder["layers"]:
            x = layer(x, position, shapes)
        parts = x.split([h * w for h, w in shapes], dim=1)
        return [
            part.unflatten(1, shape).permute(0, 3, 1, 2)
            for part, shape in zip(parts, shapes, strict=True)
        ]
