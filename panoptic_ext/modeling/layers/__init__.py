"""Layers that models share, among them operators with several backends behind one function."""

from panoptic_ext.modeling.layers.ms_deform_attn import MS_DEFORM_ATTN_BACKENDS, ms_deform_attn

__all__ = ["MS_DEFORM_ATTN_BACKENDS", "ms_deform_attn"]
