"""The base class and the registry of transformer decoders, and how a config names one of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from detectron2.utils.registry import Registry
from torch import Tensor, nn

from panoptic_ext.errors import ConfigError, look_up
from panoptic_ext.modeling.layers.class_layer import ClassLayer
from panoptic_ext.modeling.transformer_decoder.outputs import DecoderOutputs

__all__ = [
    "TRANSFORMER_DECODER_REGISTRY",
    "TransformerDecoder",
    "build_transformer_decoder",
    "transformer_decoder_class",
]

TRANSFORMER_DECODER_REGISTRY = Registry("PANOPTIC_EXT_TRANSFORMER_DECODER")
TRANSFORMER_DECODER_REGISTRY.__doc__ = """
Transformer decoders by the name in MODEL.MASK_FORMER.TRANSFORMER_DECODER_NAME. A registered class
derives from `TransformerDecoder`, which documents how it is called, and returns `DecoderOutputs`.
"""


class TransformerDecoder(nn.Module):
    """Base class of transformer decoders: multi-scale features -> class and mask of each query.

    A subclass in TRANSFORMER_DECODER_REGISTRY is built as `Decoder(cfg, in_channels)`, where
    `in_channels` are the channels of each of the multi-scale features; Detectron2's `configurable`
    with `from_config(cls, cfg, in_channels)` keeps the config out of its constructor.

    A subclass overrides `forward`, and those attributes below whose defaults do not hold for it.
    """

    places_queries: ClassVar[bool] = False
    """Whether queries predict things alone and begin at places in the image.

    The outputs then have `semantic_logits` and `places`. `PlacedCriterion` trains the decoder.
    Stuff and semantic segmentation come from the semantic map."""
    class_layers: ClassVar[Mapping[str, ClassLayer]] = {}
    """Layers with rows for classes, by name, so that weights of other classes can be used."""

    @property
    def leaves_parameters_unused(self) -> bool:
        """Whether a training step may leave some parameter without a gradient.

        Several workers then have to search for such parameters (`find_unused_parameters` of
        DistributedDataParallel)."""
        return False

    def forward(
        self, multi_scale_features: Sequence[Tensor], mask_features: Tensor, *, aux: bool
    ) -> DecoderOutputs:
        """
        Args:
            multi_scale_features: of the pixel decoder, three (B, in_channels, h_l, w_l), from
                coarse to fine.
            mask_features: (B, mask_dim, h, w) at the mask resolution.
            aux: also return the predictions before the last layer.

        Returns:
            The outputs. Masks that are a product with features should be `QueryMasks`: the loss
            then computes only the part that it needs. A dict as in the published code is accepted,
            too, see `DecoderOutputs.of`.
        """
        raise NotImplementedError(f"{type(self).__name__} has no forward; see TransformerDecoder")


def transformer_decoder_class(cfg: Any) -> type[TransformerDecoder]:
    """The class that MODEL.MASK_FORMER.TRANSFORMER_DECODER_NAME names.

    Raises:
        ConfigError: the name is unknown, or it is registered for no `TransformerDecoder`.
    """
    name = cfg.MODEL.MASK_FORMER.TRANSFORMER_DECODER_NAME
    key = "MODEL.MASK_FORMER.TRANSFORMER_DECODER_NAME"
    decoder = look_up(TRANSFORMER_DECODER_REGISTRY, key, name)
    if not (isinstance(decoder, type) and issubclass(decoder, TransformerDecoder)):
        raise ConfigError(
            f"{key} is {name!r}, which is registered but no "
            "subclass of panoptic_ext.modeling.transformer_decoder.TransformerDecoder; derive it"
        )
    return decoder


def build_transformer_decoder(cfg: Any, in_channels: int) -> TransformerDecoder:
    """Build the decoder that MODEL.MASK_FORMER.TRANSFORMER_DECODER_NAME names.

    Args:
        cfg: a config with the keys of `add_panoptic_ext_config`.
        in_channels: channels of each of the multi-scale features.

    Raises:
        ConfigError: see `transformer_decoder_class`, and keys that the decoder refuses.
    """
    decoder: Any = transformer_decoder_class(cfg)
    return decoder(cfg, in_channels)
