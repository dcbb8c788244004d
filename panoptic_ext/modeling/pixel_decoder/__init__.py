"""Pixel decoders: backbone features -> mask_features and multi_scale_features."""

from panoptic_ext.modeling.pixel_decoder.build import PIXEL_DECODER_REGISTRY, build_pixel_decoder
from panoptic_ext.modeling.pixel_decoder.fpn import BasePixelDecoder
from panoptic_ext.modeling.pixel_decoder.msdeformattn import MSDeformAttnPixelDecoder

__all__ = [
    "PIXEL_DECODER_REGISTRY",
    "BasePixelDecoder",
    "MSDeformAttnPixelDecoder",
    "build_pixel_decoder",
]
