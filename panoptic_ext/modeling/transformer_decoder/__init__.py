"""Transformer decoders: features -> class and mask of each query."""

from panoptic_ext.modeling.transformer_decoder.build import (
    TRANSFORMER_DECODER_REGISTRY,
    build_transformer_decoder,
)
from panoptic_ext.modeling.transformer_decoder.masked_transformer_decoder import (
    MultiScaleMaskedTransformerDecoder,
)
from panoptic_ext.modeling.transformer_decoder.placed_query_decoder import (
    PlacedQueryTransformerDecoder,
)

__all__ = [
    "TRANSFORMER_DECODER_REGISTRY",
    "MultiScaleMaskedTransformerDecoder",
    "PlacedQueryTransformerDecoder",
    "build_transformer_decoder",
]
