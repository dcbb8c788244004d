"""The formats that a conversion reads, one module each; SOURCES lists them.

To add one: write a subclass of `panoptic_ext.data.convert.source.Source` in a module of its own and
put it into the tuple below.
"""

from __future__ import annotations

import os

from panoptic_ext.data.convert.source import Source, SourceInputs
from panoptic_ext.data.convert.sources.coco_instances import CocoInstances
from panoptic_ext.data.convert.sources.coco_panoptic import CocoPanopticSource
from panoptic_ext.data.convert.sources.id_pngs import ClassInstancePngs, InstanceClassPngs
from panoptic_ext.data.convert.sources.labelme import Labelme
from panoptic_ext.data.convert.sources.two_channel import TwoChannelPngs
from panoptic_ext.errors import DatasetError, check_known, quoted

__all__ = ["AUTO", "SOURCES", "open_source", "recognised"]

AUTO = "auto"

SOURCES: dict[str, type[Source]] = {
    source.name: source
    for source in (
        CocoPanopticSource,
        CocoInstances,
        Labelme,
        InstanceClassPngs,
        ClassInstancePngs,
        TwoChannelPngs,
    )
}
"""{name: class}, in the order of the help."""


def recognised(path: str) -> list[str]:
    """The names of the formats that a file or folder looks like."""
    return [name for name, source in SOURCES.items() if source.recognises(path)]


def open_source(name: str, inputs: SourceInputs) -> Source:
    """Open labels for a conversion.

    Args:
        name: of the format, or "auto".
        inputs: where the labels are.

    Raises:
        DatasetError: there is no such file or format, or "auto" recognises none or several.
    """
    if not os.path.exists(inputs.path):
        raise DatasetError(f"there is no file or folder {quoted(inputs.path)}; check the path")
    if name == AUTO:
        name = _only(recognised(inputs.path), inputs.path)
    check_known("format (--from)", name, SOURCES, error=DatasetError)
    source = SOURCES[name]
    given = {
        "--png-root": inputs.png_root is not None and "png_root" not in source.options,
        "--semantic": inputs.semantic is not None and "semantic" not in source.options,
    }
    for option, is_given in given.items():
        if is_given:
            raise DatasetError(f"the format {name} does not take {option}; leave it out")
    return source(inputs)


def _only(names: list[str], path: str) -> str:
    if len(names) == 1:
        return names[0]
    if names:
        raise DatasetError(
            f"{path} could be in the formats {', '.join(names)}; name the right one with --from"
        )
    known = "\n".join(f"  {name}: {source.description}" for name, source in SOURCES.items())
    raise DatasetError(
        f"{path} is in no format that is recognised; name it with --from. Formats:\n{known}"
    )
