"""Transformer decoders: features -> class and mask of each query."""

from panoptic_ext.modeling.transformer_decoder.build import (
    TRANSFORMER_DECODER_REGISTRY,
    TransformerDecoder,
    build_transformer_decoder,
    transformer_decoder_class,
)
from panoptic_ext.modeling.transformer_decoder.masked_transformer_decoder import (
    MultiScaleMaskedTransformerDecoder,
)
from panoptic_ext.modeling.transformer_decoder.outputs import (
    DecoderOutputs,
    Places,
    Predictions,
    QueryMasks,
)
from panoptic_ext.modeling.transformer_decoder.placed_query_decoder import (
    PlacedQueryTransformerDecoder,
)

__all__ = [
    "TRANSFORMER_DECODER_REGISTRY",
    "DecoderOutputs",
    "MultiScaleMaskedTransformerDecoder",
    "PlacedQueryTransformerDecoder",
    "Places",
    "Predictions",
    "QueryMasks",
    "TransformerDecoder",
    "build_transformer_decoder",
    "transformer_decoder_class",
]
