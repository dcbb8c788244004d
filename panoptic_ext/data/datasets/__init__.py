"""Registered data sets: one generic loader, small registrations.

Importing this package registers the known data sets and the shapes data set. No file is read.
"""

from panoptic_ext.data.datasets.builtin import register_builtin
from panoptic_ext.data.datasets.shapes import register_shapes

register_builtin()
register_shapes()
