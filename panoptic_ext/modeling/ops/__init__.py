"""Operators: one function each, with several backends behind it."""

from panoptic_ext.modeling.ops.ms_deform_attn import MS_DEFORM_ATTN_BACKENDS, ms_deform_attn

__all__ = ["MS_DEFORM_ATTN_BACKENDS", "ms_deform_attn"]
