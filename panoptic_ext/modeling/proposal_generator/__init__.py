"""Heads of the region proposal network; importing this module registers them."""

from .separable_rpn_head import SeparableRPNHead

__all__ = ["SeparableRPNHead"]
