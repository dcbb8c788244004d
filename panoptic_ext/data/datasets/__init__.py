"""Registered data sets: one generic loader, small registrations."""

from panoptic_ext.data.datasets.shapes import register_shapes

register_shapes()
