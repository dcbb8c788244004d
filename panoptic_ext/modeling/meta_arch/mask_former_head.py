"""The head of Mask2Former: a pixel decoder and a transformer decoder on its features."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from detectron2.config import configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import SEM_SEG_HEADS_REGISTRY
from torch import Tensor, nn

from panoptic_ext.config.mask_former import mask_former_task
from panoptic_ext.errors import ConfigError
from panoptic_ext.modeling.meta_arch.classes import DatasetClasses
from panoptic_ext.modeling.pixel_decoder import build_pixel_decoder
from panoptic_ext.modeling.transformer_decoder import (
    DecoderOutputs,
    TransformerDecoder,
    build_transformer_decoder,
)

__all__ = ["PanopticExtMaskFormerHead", "class_ids_of_head"]

IN_FEATURE = "multi_scale_pixel_decoder"


@SEM_SEG_HEADS_REGISTRY.register()
class PanopticExtMaskFormerHead(nn.Module):
    """Backbone features -> class and mask logits of each query."""

    # torch writes this version into every checkpoint. If it is older or missing, the published code
    # renames parameters, also those that have their new names. Our own code goes by the names.
    _version = 2

    @configurable
    def __init__(
        self,
        *,
        pixel_decoder: nn.Module,
        predictor: TransformerDecoder,
        compile_parts: bool = False,
    ) -> None:
        """Args (all by keyword):

        pixel_decoder: features -> (mask_features, multi_scale_features).
        predictor: (multi_scale_features, mask_features) -> `DecoderOutputs`.
        compile_parts: compile both by torch.compile; names in the state dict do not change.
        """
        super().__init__()
        self.pixel_decoder = pixel_decoder
        self.predictor = predictor
        if compile_parts:
            self.pixel_decoder.compile()
            self.predictor.compile()

    @classmethod
    def from_config(cls, cfg: Any, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        keys = cfg.MODEL.MASK_FORMER
        if keys.TRANSFORMER_IN_FEATURE != IN_FEATURE:
            raise ConfigError(
                f"MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE is {keys.TRANSFORMER_IN_FEATURE!r}; "
                f"the masked-attention decoder takes {IN_FEATURE!r} only"
            )
        return {
            "pixel_decoder": build_pixel_decoder(cfg, input_shape),
            "predictor": build_transformer_decoder(cfg, cfg.MODEL.SEM_SEG_HEAD.CONVS_DIM),
            "compile_parts": keys.COMPILE,
        }

    @property
    def leaves_parameters_unused(self) -> bool:
        """See `TransformerDecoder.leaves_parameters_unused`."""
        return self.predictor.leaves_parameters_unused

    def forward(self, features: dict[str, Tensor], *, aux: bool) -> DecoderOutputs:
        """
        Args:
            features: of the backbone, by name.
            aux: also give the predictions before the last layer.

        Returns:
            The predictor's outputs with the pixel decoder's `mask_features`.
        """
        mask_features, multi_scale_features = self.pixel_decoder(features)
        outputs = self.predictor(multi_scale_features, mask_features, aux=aux)
        return replace(DecoderOutputs.of(outputs), mask_features=mask_features)

    @staticmethod
    def adapt_state_dict(state_dict: dict[str, Any], prefix: str) -> None:
        """Give old names in a checkpoint their new ones; see `AdaptsStateDict`.

        Old checkpoints keep the pixel decoder's parameters directly in the head.
        """
        # Old checkpoints are recognised by their names, because their version metadata may be
        # missing or wrong.
        new = (f"{prefix}pixel_decoder.", f"{prefix}predictor.")
        for name in [n for n in state_dict if n.startswith(prefix) and not n.startswith(new)]:
            state_dict[new[0] + name.removeprefix(prefix)] = state_dict.pop(name)

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        self.adapt_state_dict(state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


def class_ids_of_head(cfg: Any, dataset: DatasetClasses) -> list[int]:
    """Contiguous id of each class of the head: all of the data set's, or its things alone.

    Raises:
        ConfigError: the head's number of classes is neither of the two, or an output is on that
            needs classes which the head does not have.
    """
    count, total = cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES, dataset.num_classes
    things = dataset.thing_ids
    if count == total:
        return list(range(total))
    if count != len(things) or mask_former_task(cfg) != "instance":
        raise ConfigError(
            f"MODEL.SEM_SEG_HEAD.NUM_CLASSES is {count}, but data set {dataset.dataset_name} has "
            f"{total} classes, {len(things)} of them things; leave the key out and it is derived"
        )
    if cfg.MODEL.MASK_FORMER.TEST.SEMANTIC_ON or cfg.MODEL.MASK_FORMER.TEST.PANOPTIC_ON:
        raise ConfigError(
            "MODEL.MASK_FORMER.TEST.SEMANTIC_ON and PANOPTIC_ON need all classes of the data set, "
            f"but this model has its {count} thing classes only; switch both off"
        )
    return things
