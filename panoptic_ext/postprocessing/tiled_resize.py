"""Resize mask logits to the output, one tile at a time, so that memory stays small.

The steps are those of the published model: resize to the padded input, crop the padding, resize to
the output, each bilinear with `align_corners=False`. They are linear and treat rows and columns
separately, so that a tile of the result is `R M C^T` with two small, banded matrices. Neither the
padded image nor the whole output is ever held for all masks.

Shapes: n masks of h x w, output H x W, a tile of r x c pixels, T tiles.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from panoptic_ext.host_copies import to_device

__all__ = ["Size", "Tile", "TiledResize"]

Size = tuple[int, int]
"""Height and width, pixels."""

# Values of a tile's masks together: about what the caches of a core hold, or a fraction of a GPU.
_CPU_TILE_VALUES = 2**19
_CUDA_TILE_VALUES = 2**25


@dataclass(frozen=True)
class Span:
    """Output pixels `start` to `stop` of an axis, and the mask cells `low` to `high` they need."""

    start: int
    stop: int
    low: int
    high: int

    @property
    def pixels(self) -> slice:
        return slice(self.start, self.stop)

    @property
    def cells(self) -> slice:
        return slice(self.low, self.high)


@dataclass(frozen=True)
class Tile:
    """A rectangle of the output."""

    rows: Span
    columns: Span

    @property
    def where(self) -> tuple[slice, slice]:
        return self.rows.pixels, self.columns.pixels

    @property
    def size(self) -> Size:
        return self.rows.stop - self.rows.start, self.columns.stop - self.columns.start


@lru_cache(maxsize=32)
def _axis_weights(cells: int, padded: int, image: int, output: int) -> Tensor:
    """The steps along one axis as a matrix (output, cells) of weights."""
    # The steps are linear: applied to the identity they give their matrix.
    weights = torch.eye(cells)[None, None]
    if padded != cells:
        weights = F.interpolate(weights, (padded, cells), mode="bilinear", align_corners=False)
    weights = weights[:, :, :image]
    if output != image:
        weights = F.interpolate(weights, (output, cells), mode="bilinear", align_corners=False)
    return weights[0, 0].contiguous()


@lru_cache(maxsize=32)
def _weights_on(device: torch.device, cells: int, padded: int, image: int, output: int) -> Tensor:
    return to_device(_axis_weights(cells, padded, image, output), device)


@lru_cache(maxsize=64)
def _spans(cells: int, padded: int, image: int, output: int, length: int) -> tuple[Span, ...]:
    """Cut an axis into nearly equal pieces of at most `length` pixels."""
    # The matrix is banded: a piece needs the cells from its first to its last weight that is not 0.
    used = _axis_weights(cells, padded, image, output).numpy() != 0
    first, last = used.argmax(1), cells - used[:, ::-1].argmax(1)
    cuts = np.linspace(0, output, math.ceil(output / length) + 1).round().astype(int).tolist()
    return tuple(
        Span(start, stop, int(first[start:stop].min()), int(last[start:stop].max()))
        for start, stop in itertools.pairwise(cuts)
    )


class TiledResize:
    """Resizes masks of one size to one output size.

    Args:
        masks: (n, h, w) float32 logits.
        image_size: size of the input without padding; at most `padded_size`.
        padded_size: size of the input with padding, which the masks cover.
        output_size: size of the result.
    """

    def __init__(
        self, masks: Tensor, *, image_size: Size, padded_size: Size, output_size: Size
    ) -> None:
        self.masks = masks
        self.output_size = output_size
        self._axes = [
            (masks.shape[1 + axis], padded_size[axis], image_size[axis], output_size[axis])
            for axis in (0, 1)
        ]
        self._row_weights, column_weights = (
            _weights_on(masks.device, *axis) for axis in self._axes
        )
        self._column_weights = column_weights.t()

    def grid(self) -> list[list[Tile]]:
        """Cut the output into rows of tiles, small enough for all masks of one to stay in cache."""
        values = _CUDA_TILE_VALUES if self.masks.is_cuda else _CPU_TILE_VALUES
        length = min(512, max(32, math.isqrt(values // max(1, len(self.masks)))))
        rows, columns = (_spans(*axis, length) for axis in self._axes)
        return [[Tile(row, column) for column in columns] for row in rows]

    def __iter__(self) -> Iterator[Tile]:
        return (tile for row in self.grid() for tile in row)

    def tile(self, tile: Tile, chosen: Tensor | None = None) -> Tensor:
        """Resize one tile of the masks.

        Args:
            tile: the tile.
            chosen: (m,) int64 indices of the masks to resize; None for all.

        Returns:
            (m, r c) float32, new memory.
        """
        cells = self.masks[:, tile.rows.cells, tile.columns.cells]
        if chosen is not None:
            cells = cells.index_select(0, chosen)
        rows = self._row_weights[tile.rows.pixels, tile.rows.cells]
        columns = self._column_weights[tile.columns.cells, tile.columns.pixels]
        tall = rows @ cells
        return (tall.reshape(-1, tall.shape[-1]) @ columns).view(
            len(cells), tile.size[0] * tile.size[1]
        )

    def bounds(self, grid: list[list[Tile]]) -> tuple[Tensor, Tensor]:
        """Bound the resized masks in every tile.

        Args:
            grid: T tiles, as `grid` returns them.

        Returns:
            Lower and upper bound, (T, n) float32 each.
        """
        # Bilinear resizing never leaves the range of the cells it reads, except by rounding.
        lows, highs = [], []
        for row in grid:
            band = self.masks[:, row[0].rows.cells]
            low, high = band.amin(1), band.amax(1)
            lows += [low[:, tile.columns.cells].amin(1) for tile in row]
            highs += [high[:, tile.columns.cells].amax(1) for tile in row]
        low, high = torch.stack(lows), torch.stack(highs)
        margin = 1e-5 * (1 + torch.maximum(low.abs(), high.abs()))
        return low - margin, high + margin
