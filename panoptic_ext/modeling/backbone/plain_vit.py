"""A plain Vision Transformer of timm as a backbone, and its parts for models that add tokens.

Shapes: B images, H x W pixels, D channels of a token, P prefix tokens (class and register tokens),
N = h * w patches. Tokens come in the order prefix, patches; patches row by row.
"""

from __future__ import annotations

from typing import Any

import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY
from detectron2.modeling.backbone import Backbone
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from panoptic_ext.errors import ConfigError
from panoptic_ext.modeling.backbone.timm_backbone import import_timm
from panoptic_ext.modeling.backbone.vit_weights import fit_vit_weights
from panoptic_ext.modeling.layers.linear import use_fast_linears

__all__ = ["PlainViT", "build_plain_vit_backbone"]

_TIMM_ERRORS = (RuntimeError, AttributeError, AssertionError, TypeError, ValueError, OSError)


class PlainViT(Backbone):
    """timm's VisionTransformer or Eva (EVA-02, DINOv3), without its classifier.

    In the state dict timm's own names follow `net.`.
    """

    def __init__(
        self,
        name: str,
        *,
        pretrained: bool = False,
        gradient_checkpointing: bool = False,
        compile_blocks: bool = False,
        **changes: Any,
    ) -> None:
        """Args:
        name: of a timm model.
        pretrained: whether to download timm's weights.
        gradient_checkpointing: recompute each block in the backward pass to save memory.
        compile_blocks: compile each block by torch.compile.
        changes: arguments of timm's model that differ from its own, such as `patch_size`,
            `img_size` or `depth`.

        Raises:
            ConfigError: timm is missing, has no such model, or cannot make it a plain ViT.
        """
        super().__init__()
        timm = import_timm(name)
        arguments = {"num_classes": 0, "global_pool": "", "dynamic_img_size": True, **changes}
        try:
            self.net = timm.create_model(name, pretrained=pretrained, **arguments)
        except _TIMM_ERRORS as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise ConfigError(
                f"timm cannot make {name!r} a plain ViT: {reason}; take a ViT such as "
                "'vit_base_patch14_reg4_dinov2' or 'vit_base_patch16_dinov3_qkvb'"
            ) from error
        use_fast_linears(self.net)
        self.embed_dim: int = self.net.embed_dim
        self.num_prefix_tokens: int = self.net.num_prefix_tokens
        self.patch_size: int = self.net.patch_embed.patch_size[0]
        self.depth = len(self.net.blocks)
        self.gradient_checkpointing = gradient_checkpointing
        if compile_blocks:
            for block in self.net.blocks:
                block.compile()

    @property
    def size_divisibility(self) -> int:
        """The side of a patch, pixels."""
        return self.patch_size

    def output_shape(self) -> dict[str, ShapeSpec]:
        """Channels and stride of "last_feat"."""
        return {"last_feat": ShapeSpec(channels=self.embed_dim, stride=self.patch_size)}

    def adapt_state_dict(self, state_dict: dict[str, Tensor], prefix: str) -> None:
        """Accept weights of other sizes and names; see `AdaptsStateDict` and `fit_vit_weights`."""
        fit_vit_weights(state_dict, f"{prefix}net.", self.net)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Images (B, 3, H, W) -> {"last_feat": (B, D, h, w)}, normalised."""
        tokens, grid, rope = self.embed(x)
        tokens = self.norm(self.blocks(tokens, 0, self.depth, rope=rope))
        patches = tokens[:, self.num_prefix_tokens :]
        return {"last_feat": patches.unflatten(1, grid).permute(0, 3, 1, 2)}

    def embed(self, images: Tensor) -> tuple[Tensor, tuple[int, int], Tensor | None]:
        """Make tokens of images; those that the patch does not divide are padded with 0.

        Args:
            images: (B, 3, H, W).

        Returns:
            Tokens (B, P + N, D), the grid (h, w), and the rotary position embedding (N, 2 * D /
            heads), or None.
        """
        height, width = images.shape[-2:]
        images = F.pad(images, (0, -width % self.patch_size, 0, -height % self.patch_size))
        grid = (images.shape[-2] // self.patch_size, images.shape[-1] // self.patch_size)
        net = self.net
        tokens = net._pos_embed(net.patch_embed(images))
        tokens, rope = tokens if isinstance(tokens, tuple) else (tokens, None)
        return net.norm_pre(tokens), grid, rope

    def blocks(
        self,
        tokens: Tensor,
        first: int,
        last: int,
        *,
        rope: Tensor | None = None,
        num_prefix_tokens: int | None = None,
        attention_mask: Tensor | None = None,
    ) -> Tensor:
        """Run the blocks `first` to `last` - 1.

        Args:
            tokens: (B, T, D).
            first, last: from 0 to `depth`.
            rope: of `embed`.
            num_prefix_tokens: tokens in front of the patches, which are not rotated; None: P.
            attention_mask: (B, 1, T, T) bool, True where a row's token may attend to a column's.

        Returns:
            (B, T, D).
        """
        arguments: dict[str, Any] = {}
        if rope is not None:
            added = (num_prefix_tokens or self.num_prefix_tokens) - self.num_prefix_tokens
            arguments["rope"] = _with_unrotated(rope, added)
        if attention_mask is not None:
            arguments["attn_mask"] = attention_mask
        recompute = self.gradient_checkpointing and self.training and torch.is_grad_enabled()
        for block in self.net.blocks[first:last]:
            if recompute:
                tokens = checkpoint(block, tokens, use_reentrant=False, **arguments)
            else:
                tokens = block(tokens, **arguments)
        return tokens

    def norm(self, tokens: Tensor) -> Tensor:
        """The final norm: (B, T, D) -> (B, T, D)."""
        return self.net.norm(tokens)


@BACKBONE_REGISTRY.register()
def build_plain_vit_backbone(cfg: Any, input_shape: ShapeSpec) -> PlainViT:
    """The plain ViT that MODEL.VIT names."""
    keys = cfg.MODEL.VIT
    if not keys.NAME:
        raise ConfigError(
            "MODEL.BACKBONE.NAME is build_plain_vit_backbone, but MODEL.VIT.NAME is empty; give a "
            "ViT of timm, such as 'vit_base_patch14_reg4_dinov2'"
        )
    changes = {
        "patch_size": keys.PATCH_SIZE,
        "img_size": keys.IMAGE_SIZE,
        "embed_dim": keys.EMBED_DIM,
        "depth": keys.DEPTH,
        "num_heads": keys.NUM_HEADS,
        "drop_path_rate": keys.DROP_PATH_RATE,
        "rope_rescale_coords": keys.ROPE_RESCALE,
    }
    return PlainViT(
        keys.NAME,
        pretrained=keys.PRETRAINED,
        gradient_checkpointing=keys.GRADIENT_CHECKPOINTING,
        compile_blocks=keys.COMPILE,
        **{name: value for name, value in changes.items() if value},
    )


def _with_unrotated(rope: Tensor, count: int) -> Tensor:
    """Put `count` rows of sine 0 and cosine 1 in front of (N, 2 * d): their tokens do not rotate.

    timm's blocks leave the P first tokens alone, and rotate all others by the rows of `rope`.
    """
    if count == 0:
        return rope
    sine, cosine = rope.chunk(2, dim=-1)
    rows = sine.new_zeros(count, sine.shape[-1])
    return torch.cat((torch.cat((rows, sine)), torch.cat((rows + 1, cosine))), dim=-1)
