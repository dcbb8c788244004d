"""Convert labels of other tools to COCO panoptic, and COCO panoptic to other formats.

A source reads a format as labelled objects and maps, `resolve` gives each pixel to one segment, and
a target writes the result.
"""

from panoptic_ext.data.convert.classes import ClassChoice
from panoptic_ext.data.convert.resolve import ResolveRule
from panoptic_ext.data.convert.run import ConversionOptions, Converted, convert
from panoptic_ext.data.convert.source import Source, SourceInputs
from panoptic_ext.data.convert.sources import SOURCES, open_source
from panoptic_ext.data.convert.targets import TARGETS

__all__ = [
    "SOURCES",
    "TARGETS",
    "ClassChoice",
    "ConversionOptions",
    "Converted",
    "ResolveRule",
    "Source",
    "SourceInputs",
    "convert",
    "open_source",
]
