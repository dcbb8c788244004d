"""Named losses of the networks of transformers, as a trainer logs them.

N targets of h x w pixels in each image.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from panoptic_ext.modeling.transformers_models.inputs import TrainBatch

__all__ = ["network_losses"]


def network_losses(
    network: nn.Module, batch: TrainBatch, inputs: dict[str, Any]
) -> dict[str, Tensor]:
    """Forward pass with targets.

    Args:
        network: a network of transformers in training mode.
        batch: the targets.
        inputs: keyword arguments of its forward pass.

    Returns:
        Weighted scalar losses by name. Their sum is transformers' own loss.
    """
    if network.config.model_type == "detr":
        return _detr_losses(network, batch, inputs)
    with _recorded(network) as calls:
        network(**inputs, mask_labels=batch.masks, class_labels=batch.labels)
    # EoMT computes the losses of each of its last blocks by a call; the last call is the output's.
    *earlier, last = calls
    losses = dict(last)
    for number, call in enumerate(earlier):
        losses.update({f"{name}_{number}": loss for name, loss in call.items()})
    return losses


def _detr_losses(
    network: nn.Module, batch: TrainBatch, inputs: dict[str, Any]
) -> dict[str, Tensor]:
    targets = [
        {"class_labels": labels, "masks": masks, "boxes": _relative_boxes(masks)}
        for labels, masks in zip(batch.labels, batch.masks, strict=True)
    ]
    found = network(**inputs, labels=targets).loss_dict
    config = network.config
    weights = {
        "loss_ce": 1.0,
        "loss_bbox": config.bbox_loss_coefficient,
        "loss_giou": config.giou_loss_coefficient,
        "loss_mask": config.mask_loss_coefficient,
        "loss_dice": config.dice_loss_coefficient,
    }
    # "cardinality_error" is a figure without a gradient. Names of earlier layers end in "_<layer>".
    kinds = {name: "_".join(name.split("_")[:2]) for name in found}
    return {n: found[n] * weights[kind] for n, kind in kinds.items() if kind in weights}


@contextmanager
def _recorded(network: nn.Module) -> Iterator[list[dict[str, Tensor]]]:
    """Keep what `get_loss_dict` returns: the outputs of these networks hold the sum alone."""
    calls: list[dict[str, Tensor]] = []
    compute = network.get_loss_dict

    def compute_and_keep(*args: Any, **kwargs: Any) -> dict[str, Tensor]:
        if kwargs.get("calculate_contrastive_loss") and kwargs.get("text_queries") is None:
            # OneFormer of transformers 4 asks for this loss also where it got no texts.
            kwargs["calculate_contrastive_loss"] = False
        losses = compute(*args, **kwargs)
        calls.append(dict(losses))
        return losses

    network.get_loss_dict = compute_and_keep
    try:
        yield calls
    finally:
        del network.get_loss_dict


def _relative_boxes(masks: Tensor) -> Tensor:
    """(N, 4) float32 centre x, centre y, width and height of (N, h, w) masks, 0 to 1."""
    height, width = masks.shape[-2:]
    edges = []
    for axis, size in ((1, width), (2, height)):
        occupied = masks.amax(axis) > 0
        pixel = torch.arange(size, device=masks.device)
        low = torch.where(occupied, pixel, size).amin(1)
        high = torch.where(occupied, pixel + 1, 0).amax(1)
        edges.append((low / size, high / size))
    (left, right), (top, bottom) = edges
    boxes = torch.stack(((left + right) / 2, (top + bottom) / 2, right - left, bottom - top), dim=1)
    return boxes.float().clamp(0, 1)
