"""PMT's plain mask decoder (Cavagnero et al., CVPR workshops 2026): ViT blocks on frozen features.

Shapes: B images, D channels, P prefix tokens, N = h * w patches, Q queries.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from panoptic_ext.errors import ConfigError
from panoptic_ext.modeling.eomt import EoMTHead
from panoptic_ext.modeling.layers.tensor_cache import TensorCache
from panoptic_ext.modeling.pmt.lateral import LateralConnection
from panoptic_ext.modeling.transformer_decoder import DecoderOutputs
from panoptic_ext.optional_packages import import_optional

__all__ = ["PlainMaskDecoder", "has_dinov3_rope"]

_ROPE_TEMPERATURE = 100.0  # DINOv3's


class PlainMaskDecoder(EoMTHead):
    """EoMT's queries and predictions, on blocks of its own instead of the encoder's last ones.

    The blocks are those of DINOv3: pre-norm, no bias on keys, LayerScale, rotary positions of the
    patches. They take the queries, and behind them the sum of the encoder's features: its prefix
    tokens and patches.
    """

    def __init__(
        self,
        *,
        num_features: int,
        num_heads: int,
        num_prefix_tokens: int,
        mlp_ratio: float = 1.0,
        own_rope: bool = False,
        rope_rescale: float = 0.0,
        synchronized: bool = False,
        gradient_checkpointing: bool = False,
        compile_blocks: bool = False,
        **head: Any,
    ) -> None:
        """Args (all by keyword):

        num_features: number of the encoder's features, each of another depth.
        num_heads: attention heads of a block.
        num_prefix_tokens: P, of the encoder.
        mlp_ratio: width inside the MLP of a block, relative to D.
        own_rope: the encoder has no rotary position embedding; the decoder has DINOv3's instead.
        rope_rescale: of the decoder's own embedding; coordinates are multiplied in training by a
            factor that is log-uniform in [1 / rope_rescale, rope_rescale]. 0: they are not.
        synchronized: see `LateralConnection`.
        gradient_checkpointing: recompute each block in the backward pass to save memory.
        compile_blocks: compile each block by torch.compile.
        head: arguments of `EoMTHead`; `num_blocks` is the number of blocks.
        """
        super().__init__(**head)
        timm = _import_timm()
        dim = head["embed_dim"]
        self.lateral = nn.ModuleList(
            LateralConnection(dim, synchronized=synchronized) for _ in range(num_features)
        )
        self.blocks = nn.ModuleList(
            timm.models.eva.EvaBlock(
                dim,
                num_heads,
                mlp_ratio=mlp_ratio,
                num_prefix_tokens=num_prefix_tokens + head["num_queries"],
                rotate_half=True,
                init_values=1.0,
            )
            for _ in range(self.num_blocks)
        )
        self.gradient_checkpointing = gradient_checkpointing
        for block in self.blocks:
            # As a Linear's; timm begins with 0.
            for bias in (block.attn.q_bias, block.attn.v_bias):
                nn.init.uniform_(bias, -(dim**-0.5), dim**-0.5)
            if compile_blocks:
                block.compile()
        self.norm = nn.LayerNorm(dim)
        self.rope = None
        self._rope_varies = bool(rope_rescale)
        self._positions = TensorCache()
        if own_rope:
            self.rope = timm.layers.RotaryEmbeddingDinoV3(
                dim // num_heads,
                temperature=_ROPE_TEMPERATURE,
                rescale_coords=rope_rescale or None,
            )

    def _own_positions(self, rope: Any, grid: tuple[int, int]) -> Tensor:
        """(N, 2 * D / heads) of the decoder's own rotary embedding."""
        if self.training and self._rope_varies:
            return rope.get_embed(list(grid))
        # timm computes it on the CPU, in every pass.
        return self._positions.get(grid, [*rope.buffers()], lambda: rope.get_embed(list(grid)))

    def decode(
        self,
        features: Sequence[Tensor],
        grid: tuple[int, int],
        rope: Tensor | None,
        *,
        probabilities: Sequence[float] = (),
        aux: bool = False,
    ) -> DecoderOutputs:
        """Predict from the encoder's features.

        Args:
            features: (B, P + N, D) of each depth, after the encoder's final norm.
            grid: (h, w).
            rope: of the encoder, (N, 2 * D / heads); None where it has none.
            probabilities, aux: see `EoMTHead.forward`.

        Returns:
            See `EoMTHead.forward`.
        """
        if self.rope is not None:
            rope = self._own_positions(self.rope, grid)

        def run_block(index: int, tokens: Tensor, mask: Tensor | None) -> Tensor:
            block, arguments = self.blocks[index], {"rope": rope, "attn_mask": mask}
            if self.gradient_checkpointing and self.training:
                return checkpoint(block, tokens, use_reentrant=False, **arguments)
            return block(tokens, **arguments)

        laterals = (lateral(x) for lateral, x in zip(self.lateral, features, strict=True))
        return self(
            reduce(torch.add, laterals),
            grid,
            run_block=run_block,
            norm=self.norm,
            probabilities=probabilities,
            aux=aux,
        )


def has_dinov3_rope(vit: nn.Module) -> bool:
    """Whether a ViT of timm has the rotary position embedding of DINOv3.

    EVA-02's pairs other channels, and some models have other angles in every block.
    """
    return isinstance(getattr(vit, "rope", None), _import_timm().layers.RotaryEmbeddingDinoV3)


def _import_timm() -> ModuleType:
    timm = import_optional("timm", "timm", "PMT's decoder")
    if not hasattr(timm.layers, "RotaryEmbeddingDinoV3"):
        raise ConfigError(
            f"PMT's decoder needs the blocks of DINOv3 of timm 1.0.20 or later, found timm "
            f"{timm.__version__}; pip install --upgrade timm"
        )
    return timm
