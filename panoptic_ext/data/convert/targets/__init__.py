"""The formats that a conversion writes, one module each; TARGETS lists them."""

from __future__ import annotations

from panoptic_ext.data.convert.targets.coco_panoptic import CocoPanoptic
from panoptic_ext.data.convert.targets.target import Target

__all__ = ["TARGETS"]

TARGETS: dict[str, type[Target]] = {target.name: target for target in (CocoPanoptic,)}
"""{name: class}, in the order of the help."""
