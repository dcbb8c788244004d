"""Weights of Detectron2's Panoptic FPN, which numbers things and stuff apart, on contiguous ids.

Detectron2's published models were trained on COCO: the RoI heads count the 80 things from 0, as
ours do, and the semantic head has 54 channels, of which channel 0 stands for all things and 1 to 53
for the stuff classes. Here the semantic head has K = 133 channels, one for each contiguous id. A
stuff class gets its channel, and all things get a copy of channel 0: the largest logit of a pixel
is then that of the same stuff class, or of a thing.

Shapes: K classes, T of them things, C channels of the other semantic head, H x W pixels.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES
from torch import Tensor, nn

from panoptic_ext.modeling.meta_arch.classes import DatasetClasses

__all__ = [
    "detectron2_channels",
    "keep_classes_of_segments",
    "shares_thing_channel",
    "to_contiguous_channels",
]

logger = logging.getLogger(__name__)


def detectron2_channels(dataset: DatasetClasses) -> list[int] | None:
    """The channel of each contiguous id (K) in Detectron2's published semantic heads.

    None for classes that are not COCO's: the weights do not say which classes their channels are.
    """
    coco = [(category["name"], bool(category["isthing"])) for category in COCO_CATEGORIES]
    if list(zip(dataset.names, dataset.isthing, strict=False)) != coco:
        return None
    stuff = [i for i, isthing in enumerate(dataset.isthing) if not isthing]
    channel_of = {contiguous: channel for channel, contiguous in enumerate(stuff, start=1)}
    return [channel_of.get(contiguous, 0) for contiguous in range(dataset.num_classes)]


def to_contiguous_channels(
    state_dict: dict[str, Any], prefix: str, channels: Sequence[int]
) -> bool:
    """Give the last convolution of a semantic head one channel for each contiguous id, in place.

    Args:
        state_dict: tensors or arrays by name; changed only if the convolution has C channels.
        prefix: of the convolution's names.
        channels: for each contiguous id the channel, 0 to C - 1.

    Returns:
        Whether the weights were changed.
    """
    names = [name for name in (f"{prefix}weight", f"{prefix}bias") if name in state_dict]
    count = max(channels) + 1
    if not names or any(state_dict[name].shape[0] != count for name in names):
        return False
    index = torch.as_tensor(channels)
    for name in names:
        state_dict[name] = torch.as_tensor(state_dict[name])[index]
    logger.info(
        "The weights number things and stuff apart, as Detectron2 does: %d semantic channels "
        "became %d. All things share one, so that only segments tell them apart",
        count,
        len(channels),
    )
    return True


def shares_thing_channel(semantic_head: nn.Module, thing_ids: Tensor) -> bool:
    """Whether all things have one and the same semantic logit, as such weights give.

    Training from them ends it.

    Args:
        semantic_head: its last convolution is `predictor`, (K, D, 1, 1).
        thing_ids: (T,) contiguous ids.
    """
    predictor = getattr(semantic_head, "predictor", None)
    if not isinstance(predictor, nn.Conv2d) or len(thing_ids) < 2:
        return False
    rows = (parameter[thing_ids] for parameter in predictor.parameters())
    return all(bool((row == row[:1]).all()) for row in rows)


def keep_classes_of_segments(
    sem_seg: Tensor,
    panoptic_seg: tuple[Tensor, list[dict[str, Any]]],
    thing_ids: Tensor,
) -> None:
    """Leave each thing's logit on the pixels of its segments alone, in place.

    For logits that all things share: without it, the first thing would be the best class of every
    thing's pixels. Elsewhere the logit becomes -inf, and the best class is one of stuff.

    Args:
        sem_seg: (K, H, W) logits.
        panoptic_seg: (H, W) ids and the list of segments.
        thing_ids: (T,) contiguous ids.
    """
    ids, segments = panoptic_seg
    shared = sem_seg[thing_ids[0]].clone()
    sem_seg[thing_ids] = -torch.inf
    of_class: Mapping[int, list[int]] = _segments_of_things(segments)
    for category, numbers in of_class.items():
        inside = torch.isin(ids, torch.tensor(numbers, device=ids.device, dtype=ids.dtype))
        sem_seg[category] = torch.where(inside, shared, sem_seg[category])


def _segments_of_things(segments: list[dict[str, Any]]) -> dict[int, list[int]]:
    of_class: dict[int, list[int]] = {}
    for segment in segments:
        if segment["isthing"]:
            of_class.setdefault(segment["category_id"], []).append(segment["id"])
    return of_class
