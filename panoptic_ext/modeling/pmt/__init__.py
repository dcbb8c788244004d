"""Parts of PMT, a mask transformer on a frozen encoder: its decoder and published names."""

from panoptic_ext.modeling.pmt.decoder import PlainMaskDecoder, has_dinov3_rope
from panoptic_ext.modeling.pmt.published_weights import from_published, is_published

__all__ = ["PlainMaskDecoder", "from_published", "has_dinov3_rope", "is_published"]
