"""Heads of the region proposal network; importing this module registers them."""

from panoptic_ext.modeling.proposal_generator.separable_rpn_head import SeparableRPNHead

__all__ = ["SeparableRPNHead"]
