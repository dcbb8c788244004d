"""Give a network of transformers the classes of another data set.

C labels before, K classes after.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import nn

from panoptic_ext.modeling.transformers_models.families import FAMILIES
from panoptic_ext.modeling.transformers_models.source import without_backbone_weights

__all__ = ["with_new_classes"]


@torch.no_grad()
def with_new_classes(
    network: nn.Module, names: Sequence[str], label_of_class: Sequence[int]
) -> nn.Module:
    """A network with the same weights but for its class head.

    Args:
        network: any of the families; its tensors are taken over.
        names: of the K classes, the new id2label.
        label_of_class: for each class the old label whose weights it takes over; -1 for random
            ones. "No object" keeps its weights.

    Returns:
        A new network.
    """
    config = copy.deepcopy(network.config)
    config.id2label = dict(enumerate(names))
    config.label2id = {name: i for i, name in enumerate(names)}
    changed = type(network)(without_backbone_weights(config))
    old, new = network.state_dict(), changed.state_dict()
    head = FAMILIES[config.model_type].class_head
    rows = [*label_of_class, len(old[_weight_name(old, head)]) - 1]
    kept = [row for row, label in enumerate(rows) if label >= 0]
    for name, tensor in new.items():
        if f"{head}." in name:
            tensor[kept] = old[name][[rows[row] for row in kept]]
        elif tensor.shape == old[name].shape:
            tensor.copy_(old[name])
        # What is left is the criterion's weight of each class, which the new config has set.
    return changed


def _weight_name(names: dict[str, torch.Tensor], head: str) -> str:
    return next(name for name in names if name.endswith(f"{head}.weight"))
