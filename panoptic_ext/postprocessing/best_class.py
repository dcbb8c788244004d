"""The best class of each pixel from semantic logits, one strip of rows at a time.

The strips stay in cache. Float16 and bfloat16 logits are compared as float32.

Shapes: K classes, H x W pixels, a strip of r rows.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from panoptic_ext.host_copies import to_device

__all__ = [
    "best_class",
    "best_logit",
    "best_stuff",
    "select_channels",
    "strips",
    "stuff_ids_of",
]

# Values of a strip: about what the caches of a core hold, or a fraction of a GPU. Not less, because
# a few large operations synchronise the threads less often than many small ones.
_CPU_STRIP_VALUES = 2**20
_CUDA_STRIP_VALUES = 2**25


def strips(image: Tensor) -> Iterator[slice]:
    """Cut an image (H, W) or (K, H, W) into strips of rows of some megabytes."""
    *channels, height, width = image.shape
    values = _CUDA_STRIP_VALUES if image.is_cuda else _CPU_STRIP_VALUES
    step = max(1, values // max(1, math.prod(channels) * width))
    return (slice(start, min(start + step, height)) for start in range(0, height, step))


def best_class(sem_seg: Tensor, ids: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Find the best of some classes for each pixel; in a tie the first.

    Args:
        sem_seg: (K, H, W) logits.
        ids: the channels to choose from.

    Returns:
        (H, W) float32 logit, -inf if `ids` is empty; and (H, W) float32 code: 1 + the index of the
        class in `ids`, 0 if `ids` is empty.
    """
    best, codes = (sem_seg.new_empty(sem_seg.shape[1:], dtype=torch.float32) for _ in range(2))
    for rows in strips(sem_seg):
        _strip_argmax(sem_seg[:, rows], ids, best[rows], codes[rows])
    return best, codes


def best_logit(sem_seg: Tensor, ids: Sequence[int]) -> Tensor:
    """The largest logit of some classes of (K, H, W): (H, W) float32, -inf if `ids` is empty."""
    best = sem_seg.new_empty(sem_seg.shape[1:], dtype=torch.float32)
    for rows in strips(sem_seg):
        _strip_max(sem_seg[:, rows], ids, best[rows])
    return best


def best_stuff(
    sem_seg: Tensor, *, thing_ids: Sequence[int], stuff_ids: Sequence[int], void_policy: str
) -> tuple[Tensor, Tensor]:
    """Find the best stuff class of each pixel, and decide where a pixel without instance is void.

    Args:
        sem_seg: (K, H, W) logits.
        thing_ids, stuff_ids: the channels of things and of stuff.
        void_policy: "void": void where a thing's logit is above that of all stuff; "stuff": never.

    Returns:
        (H, W) float32 logit of the best stuff class, -inf if there is none; and (H, W) float32
        code: 0 for void, otherwise 1 + the index of the class in `stuff_ids`.
    """
    best, codes = (sem_seg.new_empty(sem_seg.shape[1:], dtype=torch.float32) for _ in range(2))
    for rows in strips(sem_seg):
        strip = sem_seg[:, rows]
        _strip_argmax(strip, stuff_ids, best[rows], codes[rows])
        if void_policy == "void" and thing_ids and stuff_ids:
            things = torch.empty_like(best[rows])
            _strip_max(strip, thing_ids, things)
            codes[rows] *= torch.ge(best[rows], things, out=things)
    return best, codes


def select_channels(image: Tensor, ids: Sequence[int]) -> Tensor:
    """Channels `ids` of (K, H, W), a copy; the host does not wait for the device."""
    return image.index_select(0, to_device(np.array(ids, dtype=np.int64), image.device))


def _channels(strip: Tensor, ids: Sequence[int]) -> Tensor:
    """Channels `ids` of (K, r, W) as float32; float32 channels that are consecutive as a view."""
    first, stop = ids[0], ids[-1] + 1
    consecutive = list(ids) == list(range(first, stop))
    return (strip[first:stop] if consecutive else select_channels(strip, ids)).float()


def _strip_max(strip: Tensor, ids: Sequence[int], best: Tensor) -> None:
    """Write the maximum over the channels `ids` of (K, r, W) to `best` (r, W)."""
    if ids:
        torch.amax(_channels(strip, ids), 0, out=best)
    else:
        best.fill_(-torch.inf)


def _strip_argmax(strip: Tensor, ids: Sequence[int], best: Tensor, codes: Tensor) -> None:
    """As `_strip_max`, and write the codes of `best_class` to `codes` (r, W)."""
    if not ids:
        best.fill_(-torch.inf)
        codes.zero_()
        return
    logits = _channels(strip, ids)
    torch.amax(logits, 0, out=best)
    # On a CPU, comparing the channels with their maximum and multiplying by ranks is several times
    # faster than `max(dim=0)`, which reads values one by one, and than `argmax(dim=0)`, which is
    # slower still. Comparisons write floats, because writing bools is slower.
    # The first channel has the highest rank, so that it wins a tie. If the maximum is NaN, no
    # channel equals it, and the last class is taken.
    ranks = torch.arange(len(ids), 0, -1, device=strip.device, dtype=torch.float32)
    equal = torch.eq(logits, best, out=torch.empty_like(logits)).mul_(ranks[:, None, None])
    torch.amax(equal, 0, out=codes)
    codes.clamp_(min=1).neg_().add_(len(ids) + 1)


def stuff_ids_of(num_classes: int, thing_ids: Collection[int]) -> list[int]:
    """Contiguous ids of the classes that are not things, ascending."""
    return [label for label in range(num_classes) if label not in thing_ids]
