"""EoMT (Kerssies et al., CVPR 2025): a plain ViT whose last blocks carry queries.

There is no pixel decoder and no cross-attention: `modeling.eomt` has the few parts beside the ViT.
Shapes: B images, L blocks that the queries pass.
"""

from __future__ import annotations

import logging
from typing import Any, ClassVar

from detectron2.config import configurable
from detectron2.modeling import META_ARCH_REGISTRY, build_backbone
from detectron2.utils.events import get_event_storage
from torch import Tensor

from panoptic_ext.config.left_out import complete_config
from panoptic_ext.errors import ConfigError
from panoptic_ext.modeling.backbone.plain_vit import PlainViT
from panoptic_ext.modeling.eomt import Annealing, EoMTHead, build_annealing, head_arguments
from panoptic_ext.modeling.mask_classification.build_criterion import (
    build_criterion,
    build_semantic_classifier,
)
from panoptic_ext.modeling.meta_arch.eomt_weights import PublishedWeights
from panoptic_ext.modeling.meta_arch.segmentation import MaskSegmentation, wanted_outputs
from panoptic_ext.modeling.transformer_decoder import DecoderOutputs

__all__ = ["PanopticExtEoMT", "build_vit"]

logger = logging.getLogger(__name__)


@META_ARCH_REGISTRY.register()
class PanopticExtEoMT(PublishedWeights):
    """One model for panoptic, instance and semantic segmentation."""

    blocks_key: ClassVar[str] = "MODEL.EOMT.NUM_BLOCKS"

    backbone: PlainViT
    sem_seg_head: EoMTHead

    @configurable
    def __init__(
        self,
        *,
        masked_attention: bool = True,
        annealing: Annealing | None = None,
        encoder_weights: str = "",
        **arguments: Any,
    ) -> None:
        """Args (all by keyword):

        masked_attention: whether queries attend to the patches in their masks alone, in training.
        annealing: how often, by the iteration; None: always, and in evaluation, too.
        encoder_weights: see `PublishedWeights`.
        arguments: of `QueryModel`; the backbone is a `PlainViT`, the head an `EoMTHead`.
        """
        super().__init__(**arguments)
        self.masked_attention = masked_attention
        self.annealing = annealing
        self.encoder_weights = encoder_weights
        self._missing_iteration_reported = False

    @classmethod
    def from_config(cls, cfg: Any) -> dict[str, Any]:
        cfg = complete_config(cfg, cls)
        num_blocks, vit = cfg.MODEL.EOMT.NUM_BLOCKS, build_vit(cfg)
        if not 1 <= num_blocks <= vit.depth:
            raise ConfigError(
                f"{cls.blocks_key} is {num_blocks}, but {cfg.MODEL.VIT.NAME!r} has {vit.depth} "
                f"blocks; expected 1 to {vit.depth}"
            )
        arguments = head_arguments(
            cfg, embed_dim=vit.embed_dim, patch_size=vit.patch_size, num_blocks=num_blocks
        )
        return {
            **cls.arguments_on_vit(cfg, vit, num_blocks),
            "sem_seg_head": EoMTHead(**arguments),
        }

    @classmethod
    def arguments_on_vit(cls, cfg: Any, vit: PlainViT, num_blocks: int) -> dict[str, Any]:
        """Arguments of the constructor, the head excepted.

        Args:
            cfg: a complete config.
            vit: the backbone.
            num_blocks: L.
        """
        arguments, things = cls.common_arguments(cfg)
        keys = cfg.MODEL.EOMT
        return {
            **arguments,
            "backbone": vit,
            "criterion": build_criterion(
                cfg, num_auxiliary=num_blocks, queries_key="MODEL.EOMT.NUM_QUERIES"
            ),
            "segmentation": MaskSegmentation(wanted_outputs(cfg, things)),
            "size_divisibility": vit.size_divisibility,
            "masked_attention": keys.MASKED_ATTENTION,
            "annealing": build_annealing(cfg, num_blocks, blocks_key=cls.blocks_key),
            "encoder_weights": keys.ENCODER_WEIGHTS,
            "semantic_classifier": build_semantic_classifier(
                cfg, has_stuff=False, channels=vit.embed_dim
            ),
        }

    def outputs(self, images: Tensor) -> DecoderOutputs:
        """See `QueryModel.outputs`."""
        vit, head = self.backbone, self.sem_seg_head
        first = vit.depth - head.num_blocks
        tokens, grid, rope = vit.embed(images)
        tokens = vit.blocks(tokens, 0, first, rope=rope)
        num_prefix_tokens = head.q.num_embeddings + vit.num_prefix_tokens

        def run_block(block: int, tokens: Tensor, attention_mask: Tensor | None) -> Tensor:
            return vit.blocks(
                tokens,
                first + block,
                first + block + 1,
                rope=rope,
                num_prefix_tokens=num_prefix_tokens,
                attention_mask=attention_mask,
            )

        return head(
            tokens,
            grid,
            run_block=run_block,
            norm=vit.norm,
            probabilities=self.mask_probabilities(),
            aux=self.training and self.deep_supervision,
        )

    def mask_probabilities(self) -> tuple[float, ...]:
        """Of each of the L blocks, that a query is masked now; empty: never."""
        if not self.masked_attention or not (self.training or self.annealing is None):
            return ()
        if self.annealing is None:
            return (1.0,) * self.sem_seg_head.num_blocks
        iteration = _iteration()
        if iteration is None and not self._missing_iteration_reported:
            self._missing_iteration_reported = True
            logger.warning(
                "EoMT trains outside of Detectron2's EventStorage, which counts the iterations: "
                "its masks stay as at iteration 0. Put `with EventStorage():` around the loop and "
                "call its step() after each iteration, or set MODEL.EOMT.ANNEALING off"
            )
        return self.annealing.probabilities(iteration or 0)


def build_vit(cfg: Any) -> PlainViT:
    """The backbone of a config.

    Raises:
        ConfigError: it is no plain ViT.
    """
    backbone = build_backbone(cfg)
    if not isinstance(backbone, PlainViT):
        raise ConfigError(
            f"MODEL.BACKBONE.NAME is {cfg.MODEL.BACKBONE.NAME!r}, but "
            f"{cfg.MODEL.META_ARCHITECTURE} needs a plain ViT; set it to build_plain_vit_backbone, "
            "and MODEL.VIT.NAME to a ViT of timm"
        )
    return backbone


def _iteration() -> float | None:
    """Where the training is in its schedule, in iterations; None outside of a training loop.

    This is the iteration of Detectron2's loop, or what a training to a time budget writes into the
    loop's storage as "schedule_iteration".
    """
    try:
        storage = get_event_storage()
    except AssertionError:
        return None
    iteration, _ = storage.latest().get("schedule_iteration", (storage.iter, 0))
    return iteration
