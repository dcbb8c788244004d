"""Transformer decoders: features -> class and mask of each query."""

from .build import TRANSFORMER_DECODER_REGISTRY, build_transformer_decoder
from .masked_transformer_decoder import MultiScaleMaskedTransformerDecoder
from .placed_query_decoder import PlacedQueryTransformerDecoder

__all__ = [
    "TRANSFORMER_DECODER_REGISTRY",
    "MultiScaleMaskedTransformerDecoder",
    "PlacedQueryTransformerDecoder",
    "build_transformer_decoder",
]
