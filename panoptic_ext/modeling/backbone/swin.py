"""Swin Transformer (Liu et al., ICCV 2021) as a Detectron2 backbone for images of any size.

Shapes: B batch, H x W patches of a stage, C its channels, M heads, N = window ** 2 patches of a
window, G windows of an image. Names in the state dict are those of the published checkpoints.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY
from detectron2.modeling.backbone import Backbone
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from panoptic_ext.errors import check_known
from panoptic_ext.modeling.layers.linear import Linear

__all__ = ["PanopticExtSwinTransformer", "SwinTransformer"]


class WindowAttention(nn.Module):
    """Attention among the patches of a window, with a learnt bias for each relative position."""

    relative_position_index: Tensor

    def __init__(
        self,
        channels: int,
        window: int,
        heads: int,
        *,
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
    ) -> None:
        """Args:
        channels: C, a multiple of `heads`.
        window: side of a window in patches.
        heads: M.
        qkv_bias: whether queries, keys and values have a bias.
        qk_scale: factor of query-key products; None for head dimension ** -0.5.
        attn_drop, proj_drop: dropout of attention weights and of the output.
        """
        super().__init__()
        self.heads, self.window, self.scale = heads, window, qk_scale
        self.attn_drop, self.proj_drop = attn_drop, proj_drop
        table = torch.empty((2 * window - 1) ** 2, heads)
        self.relative_position_bias_table = nn.Parameter(nn.init.trunc_normal_(table, std=0.02))
        self.register_buffer("relative_position_index", _relative_positions(window))
        self.qkv = Linear(channels, 3 * channels, bias=qkv_bias)
        self.proj = Linear(channels, channels)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Windows (B, G, N, C) -> (B, G, N, C).

        `mask` (G, 1, N, N) is added to the query-key products: -100 to hide a patch, else 0.
        """
        batch, windows, patches, channels = x.shape
        qkv = self.qkv(x).view(batch * windows, patches, 3, self.heads, -1)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)  # each (B * G, M, N, C / M)
        attended = F.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=self._bias(mask, batch).to(query.dtype),
            dropout_p=self.attn_drop if self.training else 0.0,
            scale=self.scale,
        )
        x = self.proj(attended.transpose(1, 2).reshape(batch, windows, patches, channels))
        return F.dropout(x, self.proj_drop, self.training)

    def _bias(self, mask: Tensor | None, batch: int) -> Tensor:
        """Bias of the relative positions (1, M, N, N); with a mask added, (B * G, M, N, N)."""
        bias = self.relative_position_bias_table[self.relative_position_index]  # (N, N, M)
        bias = bias.permute(2, 0, 1)[None]
        return bias if mask is None else (bias + mask).repeat(batch, 1, 1, 1)


def _relative_positions(window: int) -> Tensor:
    """(N, N) int64: row of the bias table for each pair of patches of a window."""
    position = torch.cartesian_prod(torch.arange(window), torch.arange(window))
    # Differences from -(window - 1) to window - 1 are shifted to begin at 0.
    difference = position[:, None] - position[None, :] + window - 1
    return difference[..., 0] * (2 * window - 1) + difference[..., 1]


@lru_cache(maxsize=32)
def _shift_mask(height: int, width: int, window: int, shift: int, device: torch.device) -> Tensor:
    """(G, 1, N, N): -100 between patches of a window that are not neighbours in the map, else 0."""
    # Cached for all later steps. A tensor made in inference mode could not be used in training.
    with torch.inference_mode(False), torch.no_grad():
        # Rolling the map puts its first rows below its last ones. Patches belong together only if
        # they are in the same of the three regions along both axes.
        region_y, region_x = (
            (torch.arange(side, device=device) >= side - window).long()
            + (torch.arange(side, device=device) >= side - shift).long()
            for side in (height, width)
        )
        region = (region_y[:, None] * 3 + region_x)[None, :, :, None]
        region = _to_windows(region, window)[0, :, :, 0]
        separate = region[:, None, :, None] != region[:, None, None, :]
        return torch.zeros(separate.shape, device=device).masked_fill_(separate, -100.0)


def _to_windows(x: Tensor, window: int) -> Tensor:
    """(B, H, W, C), sides multiples of `window` -> (B, G, N, C)."""
    batch, height, width, channels = x.shape
    x = x.view(batch, height // window, window, width // window, window, channels)
    return x.transpose(2, 3).reshape(batch, -1, window * window, channels)


def _from_windows(x: Tensor, window: int, height: int, width: int) -> Tensor:
    """Inverse of `_to_windows`."""
    batch, _, _, channels = x.shape
    x = x.view(batch, height // window, width // window, window, window, channels)
    return x.transpose(2, 3).reshape(batch, height, width, channels)


class _MLP(nn.Module):
    def __init__(self, channels: int, width: int, drop: float) -> None:
        super().__init__()
        self.fc1 = Linear(channels, width)
        self.fc2 = Linear(width, channels)
        self.drop = drop

    def forward(self, x: Tensor) -> Tensor:
        x = F.dropout(F.gelu(self.fc1(x)), self.drop, self.training)
        return F.dropout(self.fc2(x), self.drop, self.training)


class SwinBlock(nn.Module):
    """Window attention and an MLP, both with a norm in front and a residual connection."""

    def __init__(
        self,
        channels: int,
        *,
        window: int,
        shift: int,
        heads: int,
        mlp_ratio: float,
        drop_path: float,
        **attention: Any,
    ) -> None:
        """Args:
        channels: C.
        window, shift: side of a window, and the offset of the windows; both in patches.
        heads: M.
        mlp_ratio: width of the MLP relative to C.
        drop_path: probability of skipping a residual branch for an image, in training.
        attention: further arguments of `WindowAttention`.
        """
        super().__init__()
        self.window, self.shift, self.drop_path = window, shift, drop_path
        self.norm1 = nn.LayerNorm(channels)
        self.attn = WindowAttention(channels, window, heads, **attention)
        self.norm2 = nn.LayerNorm(channels)
        drop = attention.get("proj_drop", 0.0)
        self.mlp = _MLP(channels, int(channels * mlp_ratio), drop)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C)."""
        x = x + self._drop_path(self._attend(self.norm1(x)))
        return x + self._drop_path(self.mlp(self.norm2(x)))

    def _attend(self, x: Tensor) -> Tensor:
        _, height, width, _ = x.shape
        # The padding is not masked, as in the published model: it takes part in the attention.
        bottom, right = -height % self.window, -width % self.window
        if bottom or right:
            x = F.pad(x, (0, 0, 0, right, 0, bottom))
        padded, mask = x.shape[1:3], None
        if self.shift:
            x = x.roll((-self.shift, -self.shift), dims=(1, 2))
            mask = _shift_mask(*padded, self.window, self.shift, x.device)
        x = self.attn(_to_windows(x, self.window), mask)
        x = _from_windows(x, self.window, *padded)
        if self.shift:
            x = x.roll((self.shift, self.shift), dims=(1, 2))
        return x[:, :height, :width]

    def _drop_path(self, x: Tensor) -> Tensor:
        if not self.training or self.drop_path == 0:
            return x
        keep = 1 - self.drop_path
        return x * x.new_empty(x.shape[0], 1, 1, 1).bernoulli_(keep).div_(keep)


class PatchMerging(nn.Module):
    """Merge four neighbouring patches into one with twice the channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.reduction = Linear(4 * channels, 2 * channels, bias=False)
        self.norm = nn.LayerNorm(4 * channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, ceil(H / 2), ceil(W / 2), 2 C)."""
        if x.shape[1] % 2 or x.shape[2] % 2:
            x = F.pad(x, (0, 0, 0, x.shape[2] % 2, 0, x.shape[1] % 2))
        # The published order: rows change faster than columns. `reduction` depends on it.
        corners = [x[:, row::2, column::2] for column in (0, 1) for row in (0, 1)]
        return self.reduction(self.norm(torch.cat(corners, dim=-1)))


class PatchEmbed(nn.Module):
    """Embed the patches of the image."""

    def __init__(self, patch: int, channels: int, norm: bool) -> None:
        super().__init__()
        self.patch = patch
        self.proj = nn.Conv2d(3, channels, kernel_size=patch, stride=patch)
        self.norm = nn.LayerNorm(channels) if norm else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, 3, h, w) -> (B, ceil(h / patch), ceil(w / patch), C)."""
        bottom, right = -x.shape[2] % self.patch, -x.shape[3] % self.patch
        if bottom or right:
            x = F.pad(x, (0, right, 0, bottom))
        return self.norm(self.proj(x).permute(0, 2, 3, 1))


class SwinStage(nn.Module):
    """Blocks at one resolution, every second one with shifted windows, then merging."""

    def __init__(
        self, channels: int, *, drop_path: Sequence[float], window: int, merge: bool, **block: Any
    ) -> None:
        """Args:
        channels: C.
        drop_path: of each block.
        window: side of a window in patches.
        merge: whether `downsample` follows.
        block: further arguments of `SwinBlock`.
        """
        super().__init__()
        self.blocks = nn.ModuleList(
            SwinBlock(
                channels,
                window=window,
                shift=(window // 2) * (i % 2),
                drop_path=rate,
                **block,
            )
            for i, rate in enumerate(drop_path)
        )
        self.downsample = PatchMerging(channels) if merge else None


class SwinTransformer(Backbone):
    """Features `res2` to `res5` at strides patch_size * 1, 2, 4, 8."""

    def __init__(
        self,
        *,
        pretrain_img_size: int = 224,
        patch_size: int = 4,
        embed_dim: int = 96,
        depths: Sequence[int] = (2, 2, 6, 2),
        num_heads: Sequence[int] = (3, 6, 12, 24),
        window_size: int = 7,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.3,
        ape: bool = False,
        patch_norm: bool = True,
        out_features: Sequence[str] = ("res2", "res3", "res4", "res5"),
        use_checkpoint: bool = False,
    ) -> None:
        """Args (all by keyword):

        pretrain_img_size: pixels; sets the grid of the absolute position embedding.
        patch_size: pixels.
        embed_dim: channels of the first stage; the number doubles with each stage.
        depths, num_heads: blocks and heads of each stage.
        window_size: patches.
        mlp_ratio, qkv_bias, qk_scale: of each block.
        drop_rate, attn_drop_rate: dropout of features and of attention weights.
        drop_path_rate: of the last block; it grows linearly from 0 in the first block.
        ape: whether to add a learnt embedding of the absolute position, resized to the image.
        patch_norm: whether to normalise the embedded patches.
        out_features: the stages to return, "res2" being the first; each has its own norm.
        use_checkpoint: whether to recompute blocks in the backward pass, to save memory.
        """
        super().__init__()
        names = [f"res{i + 2}" for i in range(len(depths))]
        _check_outputs(out_features, names)
        self.use_checkpoint, self.drop_rate = use_checkpoint, drop_rate
        self.patch_embed = PatchEmbed(patch_size, embed_dim, patch_norm)
        grid = pretrain_img_size // patch_size
        self.absolute_pos_embed = (
            nn.Parameter(nn.init.trunc_normal_(torch.empty(1, embed_dim, grid, grid), std=0.02))
            if ape
            else None
        )
        rates = torch.linspace(0, drop_path_rate, sum(depths)).split(list(depths))
        self.layers = nn.ModuleList(
            SwinStage(
                embed_dim * 2**i,
                drop_path=rates[i].tolist(),
                window=window_size,
                merge=i + 1 < len(depths),
                heads=heads,
                mlp_ratio=mlp_ratio,
                qkv_bias=qkv_bias,
                qk_scale=qk_scale,
                attn_drop=attn_drop_rate,
                proj_drop=drop_rate,
            )
            for i, heads in enumerate(num_heads)
        )
        self._out_features = [name for name in names if name in out_features]
        self._out_feature_channels = {n: embed_dim * 2**i for i, n in enumerate(names)}
        self._out_feature_strides = {n: patch_size * 2**i for i, n in enumerate(names)}
        for i, name in enumerate(names):
            if name in out_features:
                self.add_module(f"norm{i}", nn.LayerNorm(self._out_feature_channels[name]))
        self.apply(_initialise)

    @property
    def size_divisibility(self) -> int:
        """Images of any size work; this is the stride of the last stage of the usual models."""
        return 32

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Images (B, 3, h, w) -> features by name, (B, C, ceil(h / stride), ceil(w / stride))."""
        if x.dim() != 4:
            raise ValueError(f"Swin takes images (B, 3, h, w), got {tuple(x.shape)}")
        x = self.patch_embed(x)
        if self.absolute_pos_embed is not None:
            embed = F.interpolate(
                self.absolute_pos_embed, x.shape[1:3], mode="bicubic", align_corners=False
            )
            x = x + embed.permute(0, 2, 3, 1)
        x = F.dropout(x, self.drop_rate, self.training)
        outputs = {}
        for i, stage in enumerate(self.layers):
            for block in stage.blocks:
                x = self._run(block, x)
            name = f"res{i + 2}"
            if name in self._out_features:
                outputs[name] = self.get_submodule(f"norm{i}")(x).permute(0, 3, 1, 2).contiguous()
            if stage.downsample is not None:
                x = stage.downsample(x)
        return outputs

    def _run(self, block: nn.Module, x: Tensor) -> Tensor:
        if self.use_checkpoint and torch.is_grad_enabled():
            return checkpoint(block, x, use_reentrant=False)
        return block(x)


def _check_outputs(wanted: Sequence[str], names: Sequence[str]) -> None:
    for name in wanted:
        check_known("feature in MODEL.SWIN.OUT_FEATURES", name, names)


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


@BACKBONE_REGISTRY.register()
class PanopticExtSwinTransformer(SwinTransformer):
    """`SwinTransformer` from MODEL.SWIN; the published name is `D2SwinTransformer`."""

    def __init__(self, cfg: Any, input_shape: ShapeSpec) -> None:
        super().__init__(**{name.lower(): value for name, value in cfg.MODEL.SWIN.items()})
