"""PMT (Cavagnero et al., CVPR workshops 2026): a plain mask decoder on a frozen plain ViT.

The encoder learns nothing, so that one encoder can serve several decoders, and a backward pass runs
through the decoder alone. Shapes: B images, P prefix tokens, N = h * w patches, D channels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from detectron2.config import configurable
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.utils import comm
from torch import Tensor

from panoptic_ext.config.left_out import complete_config
from panoptic_ext.errors import ConfigError
from panoptic_ext.modeling.backbone.plain_vit import PlainViT
from panoptic_ext.modeling.backbone.vit_names import encoder_to_timm
from panoptic_ext.modeling.eomt import head_arguments
from panoptic_ext.modeling.eomt.published_weights import BACKBONE
from panoptic_ext.modeling.meta_arch.base import BaseWeights
from panoptic_ext.modeling.meta_arch.eomt import PanopticExtEoMT, build_vit
from panoptic_ext.modeling.pmt import (
    PlainMaskDecoder,
    from_published,
    has_dinov3_rope,
    is_published,
)
from panoptic_ext.modeling.transformer_decoder import DecoderOutputs

__all__ = ["PanopticExtPMT"]


@META_ARCH_REGISTRY.register()
class PanopticExtPMT(PanopticExtEoMT):
    """One model for panoptic, instance and semantic segmentation, whose encoder is frozen.

    Queries, masked attention and annealing are EoMT's.
    """

    blocks_key: ClassVar[str] = "MODEL.PMT.NUM_LAYERS"

    sem_seg_head: PlainMaskDecoder

    @configurable
    def __init__(self, *, feature_blocks: Sequence[int], **arguments: Any) -> None:
        """Args (all by keyword):

        feature_blocks: blocks of the backbone, from 0 and ascending, whose outputs the head takes.
        arguments: of `PanopticExtEoMT`; the head is a `PlainMaskDecoder`. Side effect: the
            parameters of the backbone no longer require gradients.
        """
        super().__init__(**arguments)
        self.feature_blocks = tuple(feature_blocks)
        self.backbone.requires_grad_(False)
        self.train(self.training)

    @classmethod
    def from_config(cls, cfg: Any) -> dict[str, Any]:
        cfg = complete_config(cfg, cls)
        keys, vit = cfg.MODEL.PMT, build_vit(cfg)
        if keys.NUM_LAYERS < 1:
            raise ConfigError(f"{cls.blocks_key} is {keys.NUM_LAYERS}, expected at least 1")
        feature_blocks = _feature_blocks(keys.FEATURE_BLOCKS, vit.depth)
        head = PlainMaskDecoder(
            num_features=len(feature_blocks),
            num_heads=vit.net.blocks[0].attn.num_heads,
            num_prefix_tokens=vit.num_prefix_tokens,
            mlp_ratio=keys.MLP_RATIO,
            own_rope=not has_dinov3_rope(vit.net),
            rope_rescale=keys.ROPE_RESCALE,
            synchronized=comm.get_world_size() > 1 and cfg.MODEL.DEVICE.startswith("cuda"),
            gradient_checkpointing=cfg.MODEL.VIT.GRADIENT_CHECKPOINTING,
            compile_blocks=cfg.MODEL.VIT.COMPILE,
            **head_arguments(
                cfg, embed_dim=vit.embed_dim, patch_size=vit.patch_size, num_blocks=keys.NUM_LAYERS
            ),
        )
        return {
            **cls.arguments_on_vit(cfg, vit, keys.NUM_LAYERS),
            "sem_seg_head": head,
            "feature_blocks": feature_blocks,
            "encoder_weights": cfg.MODEL.EOMT.ENCODER_WEIGHTS or f"timm://{cfg.MODEL.VIT.NAME}",
        }

    def train(self, mode: bool = True) -> PanopticExtPMT:
        """As `nn.Module.train`; the backbone stays in evaluation mode."""
        super().train(mode)
        self.backbone.eval()
        return self

    def base_weights(self, state_dict: Mapping[str, Any]) -> BaseWeights | None:
        """See `TakesBaseWeights`: published files have no encoder."""
        if not is_published(state_dict):
            return None
        key = "MODEL.EOMT.ENCODER_WEIGHTS"
        return BaseWeights(self.encoder_weights, "the frozen encoder", key, "lacks")

    def add_base_weights(self, state_dict: dict[str, Tensor], base: Mapping[str, Tensor]) -> None:
        """See `TakesBaseWeights`."""
        self._rename(state_dict)
        encoder = encoder_to_timm(base, BACKBONE)
        state_dict.update({BACKBONE + name: value for name, value in encoder.items()})

    def adapt_state_dict(self, state_dict: dict[str, Tensor], prefix: str) -> None:
        """Also accept a published decoder; see `AdaptsStateDict`."""
        if not prefix and is_published(state_dict):
            self._rename(state_dict)
        super().adapt_state_dict(state_dict, prefix)

    def _rename(self, state_dict: dict[str, Tensor]) -> None:
        """Our names in place of the published ones."""
        renamed = from_published(state_dict)
        state_dict.clear()
        state_dict.update(renamed)
        # The config has the weight of "no object", and weights may be of another number of classes.
        state_dict["criterion.empty_weight"] = self.criterion.empty_weight

    def outputs(self, images: Tensor) -> DecoderOutputs:
        """See `QueryModel.outputs`."""
        features, grid, rope = self.encode(images)
        return self.sem_seg_head.decode(
            features,
            grid,
            rope,
            probabilities=self.mask_probabilities(),
            aux=self.training and self.deep_supervision,
        )

    @torch.no_grad()
    def encode(self, images: Tensor) -> tuple[list[Tensor], tuple[int, int], Tensor | None]:
        """What the decoder takes from the backbone; without gradients.

        Args:
            images: (B, 3, H, W), normalised and padded.

        Returns:
            Normalised tokens (B, P + N, D) behind each of the `feature_blocks`; the grid (h, w);
            and the backbone's rotary position embedding, or None.
        """
        vit: PlainViT = self.backbone
        tokens, grid, rope = vit.embed(images)
        features, first = [], 0
        for block in self.feature_blocks:
            tokens = vit.blocks(tokens, first, block + 1, rope=rope)
            features.append(vit.norm(tokens))
            first = block + 1
        return features, grid, rope


def _feature_blocks(given: Sequence[int], depth: int) -> tuple[int, ...]:
    """MODEL.PMT.FEATURE_BLOCKS, or four blocks at equal distances.

    Raises:
        ConfigError: they do not ascend, or the encoder has no such blocks.
    """
    if not given:
        number = min(4, depth)
        return tuple(depth * (i + 1) // number - 1 for i in range(number))
    if list(given) != sorted(set(given)) or given[0] < 0 or given[-1] >= depth:
        raise ConfigError(
            f"MODEL.PMT.FEATURE_BLOCKS is {list(given)}, expected ascending numbers from 0 to "
            f"{depth - 1}, blocks of the encoder"
        )
    return tuple(given)
