"""Scores of an image from those of overlapping windows.

Shapes: K classes, h x w the image that windows are cut from, a window of r x c pixels of it, H x W
output.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from panoptic_ext.postprocessing.tiled_resize import Size

__all__ = ["WindowMean", "window_starts"]


def window_starts(length: int, side: int) -> list[int]:
    """Where the fewest windows that cover an axis begin, evenly spread (EoMT's rule).

    n = ceil(length / side) windows overlap by (n side - length) / (n - 1) pixels, so that window j
    begins at floor(j (length - side) / (n - 1)) and the last one ends with the axis.

    Args:
        length: of the axis, pixels, 1 or more.
        side: of a window along it, pixels, 1 or more; windows of a shorter axis are as long as it.
    """
    gaps = -(-length // side) - 1
    return [j * (length - side) // gaps for j in range(gaps)] + [max(length - side, 0)]


class WindowMean:
    """The mean of the scores of all windows that cover a pixel."""

    def __init__(self, size: Size) -> None:
        """
        Args:
            size: h, w.
        """
        self.size = size
        self._total: Tensor | None = None
        self._count = torch.zeros(size)

    def add(self, scores: Tensor, top: int, left: int) -> None:
        """Add the scores (K, r, c) of the window whose first row is `top`, first column `left`."""
        if self._total is None:
            self._total = scores.new_zeros((len(scores), *self.size), dtype=torch.float32)
        where = slice(top, top + scores.shape[1]), slice(left, left + scores.shape[2])
        self._total[:, where[0], where[1]] += scores
        self._count[where] += 1

    def mean(self, output_size: Size) -> Tensor:
        """Resize the means, bilinear with `align_corners=False`.

        A pixel that no window covers counts as 0. The sums are no longer there afterwards.

        Args:
            output_size: H, W.

        Returns:
            (K, H, W) float32.
        """
        assert self._total is not None, "no window has been added"
        means, self._total = self._total, None
        means /= self._count.clamp_(min=1).to(means.device)
        if tuple(output_size) == tuple(self.size):
            return means
        return F.interpolate(means[None], output_size, mode="bilinear", align_corners=False)[0]
