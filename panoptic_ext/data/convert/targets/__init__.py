"""The formats that a conversion writes, one module each; TARGETS lists them."""

from __future__ import annotations

from panoptic_ext.data.convert.targets.coco_instances import CocoInstancesTarget
from panoptic_ext.data.convert.targets.coco_panoptic import CocoPanoptic
from panoptic_ext.data.convert.targets.label_pngs import SemanticPngs, TwoChannelPngsTarget
from panoptic_ext.data.convert.targets.target import Target
from panoptic_ext.data.convert.targets.yolo import Yolo

__all__ = ["TARGETS"]

TARGETS: dict[str, type[Target]] = {
    target.name: target
    for target in (CocoPanoptic, CocoInstancesTarget, SemanticPngs, TwoChannelPngsTarget, Yolo)
}
"""{name: class}, in the order of the help."""
