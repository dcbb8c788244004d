"""What becomes of resized masks, tile by tile: panoptic codes, class scores, instances.

`collect` resizes the masks once for all outputs of an image, but on a CPU once for each: there each
output says which masks of a tile it has to see, in tiles that its own masks fill the cache with,
and resizing is a tenth of the time (one pass for all took 5 to 10% longer). Elsewhere an output
sees all of its masks, as the host would have to wait for the device to find out.

Shapes: Q masks, m of them resized, n of them for one output, T tiles of r x c pixels, K classes,
H x W output.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from panoptic_ext.host_copies import to_device
from panoptic_ext.postprocessing.tiled_resize import Size, Tile, TiledResize

__all__ = ["InstancePixels", "PanopticPixels", "Pixels", "SemanticPixels", "collect"]

_NOTHING = np.zeros(0, dtype=np.int64)


class Pixels(Protocol):
    """What takes the tiles of some masks.

    Attributes:
        queries: (n,) int64, rising, which of the Q masks.
        needs_logits: whether `add` reads the logits.
    """

    queries: np.ndarray
    needs_logits: bool

    def choose(
        self, tiles: Sequence[Tile], low: Tensor, high: Tensor
    ) -> Sequence[np.ndarray | None]:
        """For each tile the masks to be shown, as rising places in `queries`; None for all.

        Args:
            tiles: T of them.
            low, high: (T, n) bounds of the logits in each tile, on the CPU.
        """
        ...

    def add(self, tile: Tile, logits: Tensor, inside: Tensor, chosen: np.ndarray | None) -> None:
        """Take a tile of the chosen masks: (len, r c) float32 logits and their sigmoids, both to
        be left as they are."""
        ...


def collect(
    masks: Tensor,
    outputs: Sequence[Pixels],
    *,
    image_size: Size,
    padded_size: Size,
    output_size: Size,
) -> None:
    """Resize masks tile by tile and show every output its own.

    Args:
        masks: (Q, h, w) logits.
        outputs: of the size `output_size`.
    """
    sizes = {"image_size": image_size, "padded_size": padded_size, "output_size": output_size}
    if _may_look(masks.device):
        for output in outputs:
            _one_pass(masks, [output], **sizes)
    else:
        _one_pass(masks, outputs, **sizes)


def _one_pass(masks: Tensor, outputs: Sequence[Pixels], **sizes: Size) -> None:
    needed = _union([output.queries for output in outputs])
    if not len(needed):
        return
    if len(needed) < len(masks):
        masks = masks.index_select(0, to_device(needed, masks.device))
    resize = TiledResize(_finite(masks), **sizes)
    places = [np.searchsorted(needed, output.queries) for output in outputs]
    grid = resize.grid()
    tiles = [tile for row in grid for tile in row]
    chosen: Sequence[Sequence[np.ndarray | None]] = [[None] * len(tiles)] * len(outputs)
    if _may_look(masks.device):
        low, high = resize.bounds(grid)
        chosen = [
            output.choose(tiles, low[:, own], high[:, own])
            for output, own in zip(outputs, places, strict=True)
        ]
    on_device = _Places(masks.device)
    for tile, parts in zip(tiles, zip(*chosen, strict=True), strict=True):
        shown = [
            own if part is None else own[part] for own, part in zip(places, parts, strict=True)
        ]
        _show(resize, tile, outputs, shown, parts, on_device)


def _show(
    resize: TiledResize,
    tile: Tile,
    outputs: Sequence[Pixels],
    shown: Sequence[np.ndarray],
    parts: Sequence[np.ndarray | None],
    on_device: _Places,
) -> None:
    """Resize one tile of the masks that are `shown` to any output, and show it."""
    rows = _union(shown)
    if not len(rows):
        return
    every = len(rows) == len(resize.masks)
    logits = resize.tile(tile, None if every else on_device(rows))
    keep = any(output.needs_logits for output in outputs)
    inside = logits.sigmoid() if keep else logits.sigmoid_()
    for output, own, part in zip(outputs, shown, parts, strict=True):
        if len(own) == len(rows):
            output.add(tile, logits, inside, part)
        elif len(own):
            at = on_device(np.searchsorted(rows, own))
            values = logits.index_select(0, at) if output.needs_logits else logits
            output.add(tile, values, inside.index_select(0, at), part)


class _Places:
    """Places on the device; the same ones, as those of all tiles are on a GPU, are copied once."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._last: tuple[np.ndarray, Tensor] | None = None

    def __call__(self, places: np.ndarray) -> Tensor:
        if self._device.type == "cpu":
            return torch.from_numpy(places)
        if self._last is None or not np.array_equal(self._last[0], places):
            self._last = places, to_device(places, self._device)
        return self._last[1]


def _may_look(device: torch.device) -> bool:
    """Whether values may decide on the host which masks are looked at."""
    return device.type == "cpu"


def _union(parts: Sequence[np.ndarray]) -> np.ndarray:
    """All of some rising integers, rising; the longest part itself where it has all of them."""
    longest = max(parts, key=len)
    if sum(len(part) > 0 for part in parts) <= 1:
        return longest
    every = np.unique(np.concatenate(parts))
    return longest if len(every) == len(longest) else every


_LARGEST = torch.finfo(torch.float16).max


def _finite(masks: Tensor) -> Tensor:
    """(m, h, w) logits as float32, none of them NaN or infinite; `masks` stays as it is.

    Resizing multiplies cells by zeros, and infinity times zero is no number.
    """
    return masks.float().nan_to_num(nan=-_LARGEST, posinf=_LARGEST, neginf=-_LARGEST)


class PanopticPixels:
    """Which query each pixel goes to.

    Attributes:
        codes: (H, W) int32, 2 i for the i-th query, plus 1 where its sigmoid is at least 0.5.
        won: (2 n,) int64, pixels of each code.
        originals: (n,) float64, pixels where a query's sigmoid is at least 0.5.
    """

    needs_logits = False

    def __init__(self, queries: np.ndarray, scores: Tensor, output_size: Size) -> None:
        """Args: (n,) which masks, (n,) float32 class scores on the masks' device, (H, W)."""
        count, device = len(queries), scores.device
        self.queries, self.scores = queries, scores
        self.codes = torch.empty(output_size, dtype=torch.int32, device=device)
        self.originals = torch.zeros(count, dtype=torch.float64, device=device)
        self.won = torch.zeros(2 * count, dtype=torch.int64, device=device)
        self._every = torch.arange(2 * count, dtype=torch.int32, device=device)

    def counts(self) -> Tensor:
        """`won` and `originals`, (3 n,) float64."""
        return torch.cat((self.won.double(), self.originals))

    def choose(self, tiles: Sequence[Tile], low: Tensor, high: Tensor) -> list[np.ndarray | None]:
        active, full = _active_queries(low, high, self.scores)
        areas = torch.tensor([tile.size[0] * tile.size[1] for tile in tiles], dtype=torch.float64)
        self.originals += areas @ (full & ~active).double()
        settled = ((active.sum(1) == 1) & (active & full).any(1)).tolist()
        chosen: list[np.ndarray | None] = []
        for number, tile in enumerate(tiles):
            rows = np.flatnonzero(active[number].numpy())
            if settled[number]:
                (query,), rows = rows.tolist(), _NOTHING
                self.codes[tile.where] = 2 * query + 1
                self.originals[query] += areas[number]
                self.won[2 * query + 1] += int(areas[number])
            chosen.append(rows)
        return chosen

    def add(self, tile: Tile, logits: Tensor, inside: Tensor, chosen: np.ndarray | None) -> None:
        """Comparisons write floats, which is several times faster on a CPU than writing bools."""
        every = self._every
        if chosen is not None and len(chosen) < len(self.queries):
            every = every.view(-1, 2)[torch.from_numpy(chosen)].view(-1)
        rows = (every[::2] // 2).long()
        values = inside * self.scores[rows, None]
        on = torch.ge(inside, 0.5, out=torch.empty_like(inside))
        self.originals.index_add_(0, rows, on.sum(1).double())
        # Rank 2 (m - i) + on for the i-th of m: its maximum among equals is the first query.
        ranks = torch.arange(len(rows), 0, -1, device=inside.device)
        on += 2 * ranks[:, None]
        won = values.eq_(values.amax(0)).mul_(on).amax(0).int()
        codes = every.view(-1, 2).flip(0).view(-1).index_select(0, won - 2)
        self.codes[tile.where] = codes.view(tile.size)
        self._count(codes)

    def _count(self, codes: Tensor) -> None:
        if _may_look(codes.device):
            self.won += torch.bincount(codes, minlength=len(self.won))
        else:  # on a GPU the host waits for bincount
            self.won += (codes == self._every[:, None]).sum(1)


def _active_queries(low: Tensor, high: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
    """Queries that need a look at a tile's pixels.

    Args:
        low, high: (T, n) bounds of the logits.
        scores: (n,).

    Returns:
        (T, n) bool: may win a pixel, or has sigmoids on both sides of 0.5; and (T, n) bool: all
        sigmoids are at least 0.5. The best lower bound of a tile beats everything below it.
    """
    at_least = (scores * low.sigmoid()).amax(1, keepdim=True)
    may_win = scores * high.sigmoid() >= at_least * (1 - 1e-5)
    full = low >= 0
    return may_win | ((high >= 0) & ~full), full


class SemanticPixels:
    """Sum over all masks of p(class) x sigmoid(mask logit).

    On a CPU `scores` is a view of (H, W, K) memory: products write it in one go, and the best class
    of a pixel is found five times faster.

    Attributes:
        scores: (K, H, W) float32.
    """

    needs_logits = False

    def __init__(self, probabilities: Tensor, output_size: Size) -> None:
        """Args: (Q, K) float32 of each query's classes, and (H, W)."""
        self.queries = np.arange(len(probabilities))
        self._last = probabilities.device.type == "cpu"
        count = probabilities.shape[1]
        if self._last:
            self._classes = probabilities.contiguous()
            self.scores = probabilities.new_empty((*output_size, count)).permute(2, 0, 1)
        else:
            self._classes = probabilities.t().contiguous()
            self.scores = probabilities.new_empty((count, *output_size))

    def choose(self, tiles: Sequence[Tile], low: Tensor, high: Tensor) -> list[np.ndarray | None]:
        return [None] * len(tiles)

    def add(self, tile: Tile, logits: Tensor, inside: Tensor, chosen: np.ndarray | None) -> None:
        product = (inside.t() @ self._classes).t() if self._last else self._classes @ inside
        self.scores[:, tile.rows.pixels, tile.columns.pixels] = product.unflatten(1, tile.size)


class InstancePixels:
    """Binary masks of queries.

    Attributes:
        masks: (n, H, W) bool, logit above 0.
    """

    needs_logits = True

    def __init__(self, queries: np.ndarray, output_size: Size, device: torch.device) -> None:
        count = len(queries)
        self.queries = queries
        self.masks = torch.zeros((count, *output_size), dtype=torch.bool, device=device)
        self._areas, self._sums = torch.zeros(2, count, dtype=torch.float64, device=device)
        self._rows, self._columns = (
            torch.zeros(count, length, device=device) for length in output_size
        )

    def choose(self, tiles: Sequence[Tile], low: Tensor, high: Tensor) -> list[np.ndarray | None]:
        # Picking masks out costs as much as looking at twice as many in one go.
        rows = [np.flatnonzero(row) for row in (high > 0).numpy()]
        return [None if 2 * len(row) > len(self.queries) else row for row in rows]

    def add(self, tile: Tile, logits: Tensor, inside: Tensor, chosen: np.ndarray | None) -> None:
        on = logits.gt(0).unflatten(1, tile.size)
        marks = on.float()
        of_rows, of_columns = marks.sum(2), marks.amax(1)
        sums = (marks.flatten(1) * inside).sum(1).double()
        areas = of_rows.sum(1).double()
        rows, columns = tile.where
        if chosen is None or len(chosen) == len(self.queries):
            self.masks[:, rows, columns] = on
            self._rows[:, rows] += of_rows
            self._columns[:, columns] += of_columns
            self._areas += areas
            self._sums += sums
            return
        for place, mask in zip(chosen.tolist(), on, strict=True):
            self.masks[place, rows, columns] = mask
        at = torch.from_numpy(chosen)
        self._rows[:, rows].index_add_(0, at, of_rows)
        self._columns[:, columns].index_add_(0, at, of_columns)
        self._areas.index_add_(0, at, areas)
        self._sums.index_add_(0, at, sums)

    def boxes(self) -> Tensor:
        """(n, 4) float32 x1, y1, x2, y2 around each mask, zeros for an empty one."""
        return torch.stack((*_extent(self._columns), *_extent(self._rows)), 1)[:, [0, 2, 1, 3]]

    def mean_inside(self) -> Tensor:
        """(n,) float32, mean sigmoid of the pixels of each mask."""
        return (self._sums / (self._areas + 1e-6)).float()


def _extent(marked: Tensor) -> tuple[Tensor, Tensor]:
    """First and one past the last positive entry of each row (n, length), both 0 without any."""
    length = marked.shape[1]
    places = torch.arange(length, device=marked.device)
    first = torch.where(marked > 0, places, length).amin(1)
    stop = torch.where(marked > 0, places + 1, 0).amax(1)
    return torch.minimum(first, stop).float(), stop.float()
