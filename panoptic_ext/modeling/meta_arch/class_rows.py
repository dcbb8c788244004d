"""Put rows of weights of other classes where the classes of a model have theirs.

Shapes: K classes of the model, K' of the weights, R rows of a layer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from detectron2.modeling.meta_arch.semantic_seg import SemSegFPNHead
from detectron2.modeling.roi_heads.fast_rcnn import FastRCNNOutputLayers
from detectron2.modeling.roi_heads.mask_head import BaseMaskRCNNHead
from torch import Tensor, nn

from panoptic_ext.modeling.layers.class_layer import ClassLayer, HasClassLayers

__all__ = ["Moved", "class_layers_of", "move_rows"]

# Layers of Detectron2's heads. They learn one box or mask for all classes where so configured,
# which is no number of rows that these orders give.
_FOREIGN_LAYERS: tuple[tuple[type[nn.Module], dict[str, ClassLayer]], ...] = (
    (
        FastRCNNOutputLayers,
        {
            "cls_score": ClassLayer(others=1, orders=("things",)),
            "bbox_pred": ClassLayer(rows=4, orders=("things",)),
        },
    ),
    (BaseMaskRCNNHead, {"predictor": ClassLayer(orders=("things",))}),
    (SemSegFPNHead, {"predictor": ClassLayer(orders=("all", "separated"))}),
)
# Weight of each class in the loss of queries, here and in transformers: of the model's config.
_LOSS_WEIGHT = "criterion.empty_weight"


@dataclass(frozen=True)
class Moved:
    """What `move_rows` did with one layer.

    Attributes:
        layer: its name.
        kept: contiguous ids of the model's classes that have rows of the weights.
        fresh: those whose rows stay at the model's values.
    """

    layer: str
    kept: tuple[int, ...]
    fresh: tuple[int, ...]


def class_layers_of(model: nn.Module) -> Iterator[tuple[str, ClassLayer]]:
    """The layers of a model that have rows for classes, by their names in its state dict."""
    for prefix, module in model.named_modules():
        layers: Mapping[str, ClassLayer] = {}
        if isinstance(module, HasClassLayers):
            layers = module.class_layers
        else:
            for kind, of_kind in _FOREIGN_LAYERS:
                if isinstance(module, kind):
                    layers = of_kind
        for name, layer in layers.items():
            yield f"{prefix}.{name}" if prefix else name, layer


def move_rows(
    weights: dict[str, Any],
    model: nn.Module,
    *,
    isthing: Sequence[bool],
    isthing_of_weights: Sequence[bool],
    source: Sequence[int | None],
) -> list[Moved]:
    """Give every layer with rows for classes the model's number of rows, in place.

    A class of the model gets the rows that its source has in the weights, and the rows behind the
    classes ("no object") are kept, too. All other rows are the model's own. A layer that is not in
    the weights, or has rows that do not fit the classes, is left as it is.

    Args:
        weights: tensors or arrays by the model's names; those of such layers are replaced.
        model: not changed.
        isthing: (K,) whether a class of the model is a thing.
        isthing_of_weights: (K',) the same of the weights' classes.
        source: (K,) index of each class among the weights' classes; None: there is none.

    Returns:
        One item for each layer that was changed.
    """
    own = model.state_dict()
    moved = []
    for name, layer in class_layers_of(model):
        tensors = [n for n in (f"{name}.weight", f"{name}.bias") if n in own and n in weights]
        if not tensors:
            continue
        before = _rows(layer, isthing_of_weights, weights[tensors[0]].shape[0])
        after = _rows(layer, isthing, own[tensors[0]].shape[0])
        if before is None or after is None:
            continue
        if any(weights[n].shape[1:] != own[n].shape[1:] for n in tensors):
            continue
        # Class of the model -> first row in the weights.
        rows = {k: before[j] for k, j in enumerate(source) if j in before and k in after}
        pairs = [(after[k], row) for k, row in rows.items()]
        for tensor in tensors:
            weights[tensor] = _moved(torch.as_tensor(weights[tensor]), own[tensor], pairs, layer)
        moved.append(Moved(name, tuple(rows), tuple(k for k in sorted(after) if k not in rows)))
    if moved:
        for name, tensor in own.items():
            if name.endswith(_LOSS_WEIGHT) and name in weights:
                weights[name] = tensor
    return moved


def _moved(old: Tensor, own: Tensor, pairs: Sequence[tuple[int, int]], layer: ClassLayer) -> Tensor:
    """(R, ...): the model's own tensor with rows of `old`; pairs of first rows after and before."""
    new = own.detach().clone().to(dtype=old.dtype, device=old.device)
    for after, before in pairs:
        new[after : after + layer.rows] = old[before : before + layer.rows]
    if layer.others:
        new[-layer.others :] = old[-layer.others :]
    return new


def _rows(layer: ClassLayer, isthing: Sequence[bool], count: int) -> dict[int, int] | None:
    """Class -> its first row, in the first order of the layer that has `count` rows."""
    for order in layer.orders:
        places = _ORDERS[order](isthing)
        number = max(places.values(), default=-1) + 1
        if number * layer.rows + layer.others == count:
            return {k: place * layer.rows for k, place in places.items()}
    return None


def _all(isthing: Sequence[bool]) -> dict[int, int]:
    return {k: k for k in range(len(isthing))}


def _things(isthing: Sequence[bool]) -> dict[int, int]:
    return {k: place for place, k in enumerate(k for k, thing in enumerate(isthing) if thing)}


def _separated(isthing: Sequence[bool]) -> dict[int, int]:
    stuff = (k for k, thing in enumerate(isthing) if not thing)
    places = {k: place for place, k in enumerate(stuff, start=1)}
    return {k: places.get(k, 0) for k in range(len(isthing))}


_ORDERS = {"all": _all, "things": _things, "separated": _separated}
