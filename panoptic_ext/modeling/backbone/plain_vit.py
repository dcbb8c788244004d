"""A plain Vision Transformer of timm as a backbone, and its parts for models that add tokens.

Shapes: B images, H x W pixels, D channels of a token, P prefix tokens (class and register tokens),
N = h * w patches, T tokens. Tokens come in the order prefix, patches; patches row by row.
"""

from __future__ import annotations

import re
from typing import Any

import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY
from detectron2.modeling.backbone import Backbone
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from panoptic_ext.errors import ConfigError
from panoptic_ext.modeling.backbone.backbone_layers import stages_of_names
from panoptic_ext.modeling.backbone.timm_vit import create_plain_vit
from panoptic_ext.modeling.backbone.vit_weights import fit_vit_weights
from panoptic_ext.modeling.layers.linear import use_fast_linears
from panoptic_ext.modeling.layers.tensor_cache import TensorCache
from panoptic_ext.optional_packages import import_optional

__all__ = ["PlainViT", "build_plain_vit_backbone"]


class PlainViT(Backbone):
    """timm's VisionTransformer or Eva (EVA-02, DINOv3), without its classifier.

    In the state dict timm's own names follow `net.`. The checkpointer resamples weights that are
    for another size of patches or images.
    """

    def __init__(
        self,
        name: str,
        *,
        pretrained: bool = False,
        freeze: bool = False,
        gradient_checkpointing: bool = False,
        compile_blocks: bool = False,
        **changes: Any,
    ) -> None:
        """Args:
        name: of a timm model.
        pretrained: whether to download timm's weights.
        freeze: no parameter is trained, and the ViT stays in evaluation mode. Gradients still flow
            through it to tokens that another module adds.
        gradient_checkpointing: recompute each block in the backward pass to save memory.
        compile_blocks: compile each block by torch.compile.
        changes: arguments of timm's class that differ from the model's own, such as `patch_size`,
            `img_size` (the side of the image for which the position embedding is stored), `depth`
            or `rope_rescale_coords`.

        Raises:
            ConfigError: see `create_plain_vit`.
        """
        super().__init__()
        self.timm_name = name
        self.net = create_plain_vit(name, pretrained=pretrained, **changes)
        use_fast_linears(self.net)
        self.embed_dim: int = self.net.embed_dim
        self.num_prefix_tokens: int = self.net.num_prefix_tokens
        self.patch_size: int = self.net.patch_embed.feat_ratio()  # with a hybrid's stem
        self.depth = len(self.net.blocks)
        self.gradient_checkpointing = gradient_checkpointing
        self.freeze = freeze
        self._rope_varies = "rope_rescale_coords" in changes
        self._positions = TensorCache()
        if freeze:
            self.requires_grad_(False).eval()
        if compile_blocks:
            for block in self.net.blocks:
                block.compile()

    @property
    def size_divisibility(self) -> int:
        """The side of a patch, pixels."""
        return self.patch_size

    @property
    def num_layers(self) -> int:
        """Number of blocks, for learning rates by layer."""
        return self.depth

    def layer_of(self, parameter_name: str) -> int:
        """0 to `depth` - 1 for a block, 0 for what comes before them, `depth` for the last norm."""
        name = parameter_name.removeprefix("net.")
        block = re.match(r"blocks\.(\d+)\.", name)
        if block:
            return int(block[1])
        return self.depth if name.startswith(("norm.", "fc_norm.")) else 0

    def parameter_stages(self) -> dict[str, int]:
        """0 for what comes before the blocks, 1 to `depth` for a block, and the last norm's."""
        names = {name.removeprefix("net."): name for name, _ in self.named_parameters()}
        return {names[name]: stage for name, stage in stages_of_names(list(names)).items()}

    def output_shape(self) -> dict[str, ShapeSpec]:
        """Channels and stride of "last_feat"."""
        return {"last_feat": ShapeSpec(channels=self.embed_dim, stride=self.patch_size)}

    def train(self, mode: bool = True) -> PlainViT:
        """As `nn.Module.train`; a frozen ViT stays in evaluation mode."""
        self._positions.clear()
        return super().train(mode and not self.freeze)

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
            Tokens (B, P + N, D); the grid (h, w); and the rotary position embedding, for `blocks`,
            of a ViT that has one.
        """
        height, width = images.shape[-2:]
        images = F.pad(images, (0, -width % self.patch_size, 0, -height % self.patch_size))
        patches = self.net.patch_embed(images)  # (B, h, w, D)
        grid = (patches.shape[1], patches.shape[2])
        tokens = self.net.pos_drop(self._with_positions(patches.flatten(1, 2), grid))
        return self.net.norm_pre(tokens), grid, self._rope(grid, images.device)

    def _with_positions(self, patches: Tensor, grid: tuple[int, int]) -> Tensor:
        """Patches (B, N, D) -> tokens (B, P + N, D)."""
        net = self.net
        names = ("cls_token", "dist_token", "reg_token")
        found = (getattr(net, name, None) for name in names)
        prefix = [token.expand(len(patches), -1, -1) for token in found if token is not None]
        if net.pos_embed is None:
            return torch.cat((*prefix, patches), dim=1)
        positions = self._positions.get(
            ("absolute", grid), [net.pos_embed], lambda: self._resampled_positions(grid)
        )
        if net.no_embed_class:
            return torch.cat((*prefix, patches + positions), dim=1)
        return torch.cat((*prefix, patches), dim=1) + positions

    def _resampled_positions(self, grid: tuple[int, int]) -> Tensor:
        net, layers = self.net, import_optional("timm.layers", "timm", "a plain ViT")
        return layers.resample_abs_pos_embed(
            net.pos_embed,
            new_size=grid,
            old_size=net.patch_embed.grid_size,
            num_prefix_tokens=0 if net.no_embed_class else self.num_prefix_tokens,
        )

    def _rope(self, grid: tuple[int, int], device: torch.device) -> Tensor | None:
        """(N, 2 d), or (depth, heads, N, 2 d) of a ViT with angles for every block and head."""
        rope = getattr(self.net, "rope", None)
        if rope is None:
            return None
        if self.training and self._rope_varies:
            return rope.get_embed(shape=grid)
        # timm computes it on the CPU, in every pass.
        sources = list(rope.parameters())
        return self._positions.get(
            ("rotary", grid, device), sources, lambda: rope.get_embed(shape=grid)
        )

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
        added = (num_prefix_tokens or self.num_prefix_tokens) - self.num_prefix_tokens
        arguments: dict[str, Any] = {}
        if attention_mask is not None:
            arguments["attn_mask"] = attention_mask
        if rope is not None:
            rope = _with_unrotated(rope, added)
        recompute = self.gradient_checkpointing and self.training and torch.is_grad_enabled()
        for i, block in enumerate(self.net.blocks[first:last], start=first):
            if rope is not None:
                arguments["rope"] = rope[i] if self.net.rope_mixed else rope
            if recompute:
                tokens = checkpoint(block, tokens, use_reentrant=False, **arguments)
            else:
                tokens = block(tokens, **arguments)
        return tokens

    def norm(self, tokens: Tensor) -> Tensor:
        """The final norm: (B, T, D) -> (B, T, D).

        A ViT that was trained with an average of its patches has it behind that average
        (`fc_norm`), and some have none.
        """
        last = self.net.norm
        return self.net.fc_norm(tokens) if isinstance(last, nn.Identity) else last(tokens)

    def adapt_state_dict(self, state_dict: dict[str, Tensor], prefix: str) -> None:
        """Fit names and sizes of weights to this ViT; see `AdaptsStateDict`."""
        fit_vit_weights(state_dict, f"{prefix}net.", self.net)


@BACKBONE_REGISTRY.register()
def build_plain_vit_backbone(cfg: Any, input_shape: ShapeSpec) -> PlainViT:
    """The plain ViT that MODEL.VIT names."""
    keys = cfg.MODEL.VIT
    if not keys.NAME:
        raise ConfigError(
            f"MODEL.BACKBONE.NAME is {cfg.MODEL.BACKBONE.NAME}, but MODEL.VIT.NAME is empty; give "
            "a ViT of timm, such as 'vit_base_patch14_reg4_dinov2'"
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
        freeze=keys.FREEZE,
        gradient_checkpointing=keys.GRADIENT_CHECKPOINTING,
        compile_blocks=keys.COMPILE,
        **{name: value for name, value in changes.items() if value},
    )


def _with_unrotated(rope: Tensor, count: int) -> Tensor:
    """Put `count` rows, sine 0 and cosine 1, in front of (..., N, 2 d): their tokens do not rotate.

    timm's blocks leave the P first tokens alone, and rotate all others by the rows of `rope`.
    """
    if count == 0:
        return rope
    half = rope.shape[-1] // 2
    rows = rope.new_zeros(*rope.shape[:-2], count, 2 * half)
    rows[..., half:] = 1
    return torch.cat((rows, rope), dim=-2)
