"""Which rows of a layer belong to which class, so that weights of other classes can be used.

K is the number of classes, T of them things.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, Protocol, runtime_checkable

__all__ = ["ClassLayer", "HasClassLayers"]


class ClassLayer(NamedTuple):
    """The rows of a linear layer or convolution that predicts classes, or something for each class.

    Attributes:
        others: number of rows behind those of the classes, such as 1 for "no object".
        rows: number of consecutive rows of each class, such as 4 for the box of each.
        orders: which classes have rows, in which order. Of several the one is meant that gives the
            number of rows that the layer has. "all": all K; "things": the T things; "separated":
            row 0 for all things, then stuff (Detectron2's PanopticFPN).
    """

    others: int = 0
    rows: int = 1
    orders: tuple[str, ...] = ("all", "things")


@runtime_checkable
class HasClassLayers(Protocol):
    """A module that names its layers with rows for classes.

    Weights of other classes can then be loaded: classes of the same name keep their rows.
    """

    class_layers: Mapping[str, ClassLayer]
    """By the layer's name inside of the module, such as "class_embed"."""
