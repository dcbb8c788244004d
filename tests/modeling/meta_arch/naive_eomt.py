"""EoMT from its definition, token by token and head by head, without a module of timm.

Weights are a state dict under our names. Everything is float64. Shapes: one image, T tokens (Q
queries, P class and register tokens, N patches), D channels, h x w patches.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["NaiveEomt", "Prediction"]

Prediction = tuple[Tensor, Tensor]
"""(Q, K + 1) class logits and (Q, 4h, 4w) mask logits, of one depth."""


@dataclass
class NaiveEomt:
    """An encoder whose last blocks see the queries, too.

    Attributes:
        weights: of the whole model; the position embedding has the size of the input.
        num_heads: of the attention.
        num_blocks: how many of the last blocks see the queries.
        norm_eps: of the encoder's norms.
        patch_size: in pixels.
    """

    weights: Mapping[str, Tensor]
    num_heads: int
    num_blocks: int
    norm_eps: float
    patch_size: int = 16

    def __post_init__(self) -> None:
        self.weights = {name: value.double() for name, value in self.weights.items()}
        net = "backbone.net.blocks."
        self.depth = 1 + max(int(n.split(".")[3]) for n in self.weights if n.startswith(net))
        self.num_queries = len(self.weights["sem_seg_head.q.weight"])
        self.num_prefix_tokens = 1 + self.net("reg_token").shape[1]

    def net(self, name: str) -> Tensor:
        return self.weights[f"backbone.net.{name}"]

    def head(self, name: str) -> Tensor:
        return self.weights[f"sem_seg_head.{name}"]

    def __call__(self, pixels: Tensor, *, masked: bool) -> list[Prediction]:
        """Predict from normalised pixels (3, H, W).

        Args:
            masked: whether each of the last blocks attends only inside the masks before it.

        Returns:
            The predictions before each of the last blocks and after the last one, in this order.
        """
        tokens, grid = self.embed(pixels.double())
        predictions = []
        for number in range(self.depth):
            joined = number >= self.depth - self.num_blocks
            if number == self.depth - self.num_blocks:
                tokens = torch.cat((self.head("q.weight"), tokens))
            allowed = torch.ones(len(tokens), len(tokens), dtype=torch.bool)
            if joined:
                predictions.append(self.predict(tokens, grid))
                if masked:
                    first_patch = self.num_queries + self.num_prefix_tokens
                    inside = at_patches(predictions[-1][1]) > 0
                    allowed[: self.num_queries, first_patch:] = inside.flatten(1)
            tokens = self.block(number, tokens, grid, allowed)
        return [*predictions, self.predict(tokens, grid)]

    def embed(self, pixels: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Class token, register tokens, then the patches row by row, (P + N, D)."""
        side = self.patch_size
        grid = pixels.shape[1] // side, pixels.shape[2] // side
        kernel, bias = self.net("patch_embed.proj.weight"), self.net("patch_embed.proj.bias")
        patches = []
        for row in range(grid[0]):
            for column in range(grid[1]):
                patch = pixels[:, row * side : (row + 1) * side, column * side :][:, :, :side]
                patches.append((kernel * patch).sum((1, 2, 3)) + bias)
        tokens = torch.stack(patches)
        if not self.rotates:
            tokens = tokens + self.net("pos_embed")[0]
        return torch.cat((self.net("cls_token")[0], self.net("reg_token")[0], tokens)), grid

    @property
    def rotates(self) -> bool:
        """Whether positions turn queries and keys (DINOv3) instead of being added (DINOv2)."""
        return "backbone.net.pos_embed" not in self.weights

    def block(self, number: int, tokens: Tensor, grid: tuple[int, int], allowed: Tensor) -> Tensor:
        """One block; token i attends to token j where `allowed[i, j]`."""
        scales = ("gamma_1", "gamma_2") if self.rotates else ("ls1.gamma", "ls2.gamma")
        first, second = (self.net(f"blocks.{number}.{scale}") for scale in scales)
        tokens = tokens + first * self.attention(number, tokens, grid, allowed)
        normed = self.norm(tokens, f"blocks.{number}.norm2")
        hidden = self.linear(normed, f"blocks.{number}.mlp.fc1")
        out = self.net(f"blocks.{number}.mlp.fc2.weight")
        if hidden.shape[1] == 2 * out.shape[1]:  # SwiGLU: the first half is the gate
            gate, value = hidden.chunk(2, dim=1)
            hidden = gate / (1 + torch.exp(-gate)) * value
        else:
            hidden = gelu(hidden)
        return tokens + second * self.linear(hidden, f"blocks.{number}.mlp.fc2")

    def attention(
        self, number: int, tokens: Tensor, grid: tuple[int, int], allowed: Tensor
    ) -> Tensor:
        name = f"blocks.{number}.attn"
        normed = self.norm(tokens, f"blocks.{number}.norm1")
        qkv = normed @ self.net(f"{name}.qkv.weight").T
        if f"backbone.net.{name}.q_bias" in self.weights:  # keys have no bias
            q_bias, v_bias = self.net(f"{name}.q_bias"), self.net(f"{name}.v_bias")
            qkv = qkv + torch.cat((q_bias, torch.zeros_like(q_bias), v_bias))
        else:
            qkv = qkv + self.net(f"{name}.qkv.bias")
        heads = []
        for query, key, value in zip(
            *(x.chunk(self.num_heads, dim=1) for x in qkv.chunk(3, dim=1)), strict=True
        ):
            if self.rotates:
                query, key = rotated(query, grid), rotated(key, grid)
            rows = []
            for token in range(len(tokens)):
                seen = allowed[token]
                scores = key[seen] @ query[token] / math.sqrt(query.shape[1])
                powers = torch.exp(scores - scores.max())
                rows.append((powers / powers.sum()) @ value[seen])
            heads.append(torch.stack(rows))
        return self.linear(torch.cat(heads, dim=1), f"{name}.proj")

    def predict(self, tokens: Tensor, grid: tuple[int, int]) -> Prediction:
        normed = self.norm(tokens, "norm")
        queries = normed[: self.num_queries]
        classes = queries @ self.head("class_head.weight").T + self.head("class_head.bias")
        for layer in (0, 2, 4):
            queries = queries @ self.head(f"mask_head.{layer}.weight").T
            queries = queries + self.head(f"mask_head.{layer}.bias")
            queries = gelu(queries) if layer < 4 else queries
        pixels = normed[self.num_queries + self.num_prefix_tokens :].T.unflatten(1, grid)
        for number in (0, 1):
            pixels = self.doubled(pixels, f"upscale.{number}")
        return classes, (queries @ pixels.flatten(1)).unflatten(1, pixels.shape[1:])

    def doubled(self, pixels: Tensor, name: str) -> Tensor:
        """(D, h, w) -> (D, 2h, 2w)."""
        kernel, bias = self.head(f"{name}.conv1.weight"), self.head(f"{name}.conv1.bias")
        channels, height, width = pixels.shape
        large = torch.zeros(channels, 2 * height, 2 * width, dtype=pixels.dtype)
        for y in range(2):
            for x in range(2):
                cells = (kernel[:, :, y, x].T @ pixels.flatten(1)).view(pixels.shape)
                large[:, y::2, x::2] = cells + bias[:, None, None]
        large = gelu(large)
        framed = torch.zeros(channels, 2 * height + 2, 2 * width + 2, dtype=pixels.dtype)
        framed[:, 1:-1, 1:-1] = large
        kernel = self.head(f"{name}.conv2.weight")
        smooth = sum(
            kernel[:, 0, y, x, None, None] * framed[:, y : y + 2 * height, x : x + 2 * width]
            for y in range(3)
            for x in range(3)
        )
        weight, bias = self.head(f"{name}.norm.weight"), self.head(f"{name}.norm.bias")
        return normalised(smooth, 1e-6) * weight[:, None, None] + bias[:, None, None]

    def norm(self, tokens: Tensor, name: str) -> Tensor:
        normed = normalised(tokens.T, self.norm_eps).T
        return normed * self.net(f"{name}.weight") + self.net(f"{name}.bias")

    def linear(self, rows: Tensor, name: str) -> Tensor:
        return rows @ self.net(f"{name}.weight").T + self.net(f"{name}.bias")


def normalised(x: Tensor, eps: float) -> Tensor:
    """Mean 0 and variance 1 along the first dimension."""
    centred = x - x.mean(0)
    return centred / torch.sqrt((centred**2).mean(0) + eps)


def gelu(x: Tensor) -> Tensor:
    return x * (1 + torch.erf(x / math.sqrt(2))) / 2


def rotated(tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    """Turn the last N tokens of (T, d) by the positions of their patches (RoPE of DINOv3)."""
    height, width = grid
    quarter = tokens.shape[1] // 4
    turned = tokens.clone()
    for row in range(height):
        for column in range(width):
            index = len(tokens) - height * width + row * width + column
            places = 2 * (row + 0.5) / height - 1, 2 * (column + 0.5) / width - 1
            for pair in range(2 * quarter):
                frequency = 100.0 ** (-(pair % quarter) / quarter)
                angle = 2 * math.pi * places[pair // quarter] * frequency
                first, second = tokens[index, pair], tokens[index, pair + 2 * quarter]
                turned[index, pair] = first * math.cos(angle) - second * math.sin(angle)
                turned[index, pair + 2 * quarter] = second * math.cos(angle) + first * math.sin(
                    angle
                )
    return turned


def at_patches(masks: Tensor) -> Tensor:
    """(Q, 4h, 4w) -> (Q, h, w), bilinear: the middle of a patch lies between four cells."""
    return sum(masks[:, y::4, x::4] for y in (1, 2) for x in (1, 2)) / 4
