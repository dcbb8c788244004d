"""The outputs of mask classification: which are wanted, and their pixels, computed tile by tile.

Shapes: Q masks, m of them resized, n of them for one output, T tiles of r x c pixels, K classes,
H x W output.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from panoptic_ext.host_copies import to_device
from panoptic_ext.postprocessing.query_indices import DeviceIndices, union
from panoptic_ext.postprocessing.tiled_resize import Size, Tile, TiledResize

__all__ = ["InstancePixels", "MaskOutputs", "PanopticPixels", "Pixels", "SemanticPixels", "collect"]


@dataclass(frozen=True, kw_only=True)
class MaskOutputs:
    """The outputs that `mask_inference` computes, and their settings.

    Attributes:
        panoptic, semantic, instances: whether to compute this output.
        thing_ids: the thing classes, or a bool table (K,); None if all classes are things.
        object_mask_threshold, overlap_threshold: see `panoptic_inference`.
        resize_first: see `semantic_inference`.
        top_k: see `instance_inference`.
    """

    panoptic: bool = False
    semantic: bool = False
    instances: bool = False
    thing_ids: Collection[int] | Tensor | None = None
    object_mask_threshold: float = 0.8
    overlap_threshold: float = 0.8
    resize_first: bool = True
    top_k: int = 100


_NO_QUERIES = np.zeros(0, dtype=np.int64)


class Pixels(Protocol):
    """The pixels of one output of an image, computed from tiles of some of its masks.

    Attributes:
        queries: (n,) int64, ascending: the masks that the output needs, out of the Q.
        needs_logits: whether `add` reads the logits.
    """

    queries: np.ndarray
    needs_logits: bool

    def choose(
        self, tiles: Sequence[Tile], low: Tensor, high: Tensor
    ) -> Sequence[np.ndarray | None]:
        """Choose for each tile the masks to resize: ascending indices in `queries`; None for all.

        Args:
            tiles: T of them.
            low, high: (T, n) bounds of the logits in each tile, on the CPU.
        """
        ...

    def add(self, tile: Tile, logits: Tensor, inside: Tensor, chosen: np.ndarray | None) -> None:
        """Add a tile of the chosen masks to the output.

        Args:
            tile: where.
            logits: (m, r c) float32; valid only if `needs_logits`. Must not be changed.
            inside: (m, r c) float32 sigmoids of the logits. Must not be changed.
            chosen: the m masks, as `choose` returned them.
        """
        ...


def collect(
    masks: Tensor,
    outputs: Sequence[Pixels],
    *,
    queries: np.ndarray | None = None,
    image_size: Size,
    padded_size: Size,
    output_size: Size,
) -> None:
    """Resize masks tile by tile, and add each tile to the outputs that need it.

    Args:
        masks: (Q, h, w) logits, or (n, h, w) of some queries.
        outputs: of the size `output_size`.
        queries: (n,) int64, ascending: which masks are given, among them all that the outputs need;
            None: all Q.
    """
    if queries is None:
        queries = np.arange(len(masks))
    sizes = {"image_size": image_size, "padded_size": padded_size, "output_size": output_size}
    # On a CPU every output has a pass of its own. It chooses the masks that a tile needs, and the
    # tiles are small enough for its own masks to stay in the cache. Resizing is a tenth of the
    # time; one pass for all outputs took 5 to 10% longer. On an accelerator the host would have to
    # wait before it could choose, so that every output gets all of its masks in one common pass.
    if _host_may_read(masks.device):
        for output in outputs:
            _one_pass(masks, queries, [output], **sizes)
    else:
        _one_pass(masks, queries, outputs, **sizes)


def _one_pass(masks: Tensor, queries: np.ndarray, outputs: Sequence[Pixels], **sizes: Size) -> None:
    needed = union([output.queries for output in outputs])
    if not len(needed):
        return
    if len(needed) < len(masks):
        rows = np.searchsorted(queries, needed)
        masks = masks.index_select(0, to_device(rows, masks.device))
    resize = TiledResize(_finite(masks), **sizes)
    # The row of each query in `resize.masks`.
    rows_of_outputs = [np.searchsorted(needed, output.queries) for output in outputs]
    grid = resize.grid()
    tiles = [tile for row in grid for tile in row]
    chosen: Sequence[Sequence[np.ndarray | None]] = [[None] * len(tiles)] * len(outputs)
    if _host_may_read(masks.device):
        low, high = resize.bounds(grid)
        chosen = [
            output.choose(tiles, low[:, rows], high[:, rows])
            for output, rows in zip(outputs, rows_of_outputs, strict=True)
        ]
    on_device = DeviceIndices(masks.device)
    for tile, chosen_here in zip(tiles, zip(*chosen, strict=True), strict=True):
        tile_rows = [
            rows if chosen_queries is None else rows[chosen_queries]
            for rows, chosen_queries in zip(rows_of_outputs, chosen_here, strict=True)
        ]
        _add_tile(resize, tile, outputs, tile_rows, chosen_here, on_device)


def _add_tile(
    resize: TiledResize,
    tile: Tile,
    outputs: Sequence[Pixels],
    rows_of_outputs: Sequence[np.ndarray],
    chosen: Sequence[np.ndarray | None],
    on_device: DeviceIndices,
) -> None:
    """Resize the masks of one tile that any output needs, and add them to the outputs.

    Args:
        rows_of_outputs: for each output the rows of `resize.masks` that it needs in this tile.
        chosen: the same as indices in its `queries`.
    """
    needed_rows = union(rows_of_outputs)
    if not len(needed_rows):
        return
    all_masks = len(needed_rows) == len(resize.masks)
    logits = resize.tile(tile, None if all_masks else on_device(needed_rows))
    keep_logits = any(output.needs_logits for output in outputs)
    inside = logits.sigmoid() if keep_logits else logits.sigmoid_()
    for output, rows, chosen_queries in zip(outputs, rows_of_outputs, chosen, strict=True):
        if len(rows) == len(needed_rows):
            output.add(tile, logits, inside, chosen_queries)
        elif len(rows):
            index = on_device(np.searchsorted(needed_rows, rows))
            values = logits.index_select(0, index) if output.needs_logits else logits
            output.add(tile, values, inside.index_select(0, index), chosen_queries)


def _host_may_read(device: torch.device) -> bool:
    """Whether the host can read values on the device without waiting."""
    return device.type == "cpu"


_LARGEST_LOGIT = torch.finfo(torch.float16).max


def _finite(masks: Tensor) -> Tensor:
    """(m, h, w) logits as float32, none of them NaN or infinite; `masks` is not changed."""
    # Resizing multiplies cells by zeros, and infinity times zero is NaN.
    return masks.float().nan_to_num(
        nan=-_LARGEST_LOGIT, posinf=_LARGEST_LOGIT, neginf=-_LARGEST_LOGIT
    )


class PanopticPixels:
    """The query that wins each pixel.

    Attributes:
        codes: (H, W) int32, 2 i for the i-th query, plus 1 where its sigmoid is at least 0.5.
        won: (2 n,) int64, number of pixels of each code.
        mask_areas: (n,) float64, number of pixels where a query's sigmoid is at least 0.5.
    """

    needs_logits = False

    def __init__(self, queries: np.ndarray, scores: Tensor, output_size: Size) -> None:
        """Args: (n,) which masks, (n,) float32 class scores on the masks' device, (H, W)."""
        count, device = len(queries), scores.device
        self.queries, self.scores = queries, scores
        self.codes = torch.empty(output_size, dtype=torch.int32, device=device)
        self.mask_areas = torch.zeros(count, dtype=torch.float64, device=device)
        self.won = torch.zeros(2 * count, dtype=torch.int64, device=device)
        self._all_codes = torch.arange(2 * count, dtype=torch.int32, device=device)

    def counts(self) -> Tensor:
        """`won` and `mask_areas`, (3 n,) float64."""
        return torch.cat((self.won.double(), self.mask_areas))

    def choose(self, tiles: Sequence[Tile], low: Tensor, high: Tensor) -> list[np.ndarray | None]:
        """See `Pixels`. Tiles that the bounds alone decide are filled here."""
        active, full = _active_queries(low, high, self.scores)
        areas = torch.tensor([tile.size[0] * tile.size[1] for tile in tiles], dtype=torch.float64)
        # Masks that fill a tile without winning a pixel of it are only counted.
        self.mask_areas += areas @ (full & ~active).double()
        # If the only active query fills the tile, it wins all pixels: there is nothing to resize.
        settled = ((active.sum(1) == 1) & (active & full).any(1)).tolist()
        chosen: list[np.ndarray | None] = []
        for number, tile in enumerate(tiles):
            active_here = np.flatnonzero(active[number].numpy())
            if settled[number]:
                (query,), active_here = active_here.tolist(), _NO_QUERIES
                self.codes[tile.where] = 2 * query + 1
                self.mask_areas[query] += areas[number]
                self.won[2 * query + 1] += int(areas[number])
            chosen.append(active_here)
        return chosen

    def add(self, tile: Tile, logits: Tensor, inside: Tensor, chosen: np.ndarray | None) -> None:
        """See `Pixels`."""
        codes_of_queries = self._all_codes
        if chosen is not None and len(chosen) < len(self.queries):
            codes_of_queries = codes_of_queries.view(-1, 2)[torch.from_numpy(chosen)].view(-1)
        rows = (codes_of_queries[::2] // 2).long()
        values = inside * self.scores[rows, None]
        # On a CPU, writing the comparison's result as floats is several times faster than as bools.
        on = torch.ge(inside, 0.5, out=torch.empty_like(inside))
        self.mask_areas.index_add_(0, rows, on.sum(1).double())
        # Rank 2 (m - i) + on for the i-th of m: its maximum among equals is the first query.
        ranks = torch.arange(len(rows), 0, -1, device=inside.device)
        on += 2 * ranks[:, None]
        won = values.eq_(values.amax(0)).mul_(on).amax(0).int()
        # Ranks begin at 2 and fall with i, so that the pairs of codes are looked up in reverse.
        codes = codes_of_queries.view(-1, 2).flip(0).view(-1).index_select(0, won - 2)
        self.codes[tile.where] = codes.view(tile.size)
        self._count(codes)

    def _count(self, codes: Tensor) -> None:
        if _host_may_read(codes.device):
            self.won += torch.bincount(codes, minlength=len(self.won))
        else:  # on a GPU the host waits for bincount
            self.won += (codes == self._all_codes[:, None]).sum(1)


def _active_queries(low: Tensor, high: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
    """Find the queries whose pixels in a tile the bounds of the logits do not decide.

    Args:
        low, high: (T, n) bounds of the logits.
        scores: (n,).

    Returns:
        (T, n) bool: the query may win a pixel, or has sigmoids on both sides of 0.5; and (T, n)
        bool: all of its sigmoids are at least 0.5.
    """
    # A query cannot win where its upper bound is below the best lower bound of the tile. The factor
    # leaves room for rounding.
    best_low = (scores * low.sigmoid()).amax(1, keepdim=True)
    may_win = scores * high.sigmoid() >= best_low * (1 - 1e-5)
    full = low >= 0
    return may_win | ((high >= 0) & ~full), full


class SemanticPixels:
    """The class scores of each pixel: sum over all masks of p(class) x sigmoid(mask logit).

    Attributes:
        scores: (K, H, W) float32; on a CPU a view of (H, W, K) memory.
    """

    needs_logits = False

    def __init__(self, probabilities: Tensor, output_size: Size) -> None:
        """Args: (Q, K) float32 class probabilities of each query, and (H, W)."""
        self.queries = np.arange(len(probabilities))
        # On a CPU, with the channels last, products are written in contiguous rows, and an argmax
        # over the classes of a pixel is five times faster.
        self._channels_last = probabilities.device.type == "cpu"
        count = probabilities.shape[1]
        if self._channels_last:
            self._classes = probabilities.contiguous()
            self.scores = probabilities.new_empty((*output_size, count)).permute(2, 0, 1)
        else:
            self._classes = probabilities.t().contiguous()
            self.scores = probabilities.new_empty((count, *output_size))

    def choose(self, tiles: Sequence[Tile], low: Tensor, high: Tensor) -> list[np.ndarray | None]:
        """See `Pixels`. A sum needs all masks."""
        return [None] * len(tiles)

    def add(self, tile: Tile, logits: Tensor, inside: Tensor, chosen: np.ndarray | None) -> None:
        """See `Pixels`."""
        if self._channels_last:
            product = (inside.t() @ self._classes).t()
        else:
            product = self._classes @ inside
        self.scores[:, tile.rows.pixels, tile.columns.pixels] = product.unflatten(1, tile.size)


class InstancePixels:
    """The binary masks of queries, with what their boxes and scores are computed from.

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
        """See `Pixels`. Only masks with a logit above 0 matter."""
        # Selecting masks by index costs as much as processing twice as many without a selection.
        rows = [np.flatnonzero(row) for row in (high > 0).numpy()]
        return [None if 2 * len(row) > len(self.queries) else row for row in rows]

    def add(self, tile: Tile, logits: Tensor, inside: Tensor, chosen: np.ndarray | None) -> None:
        """See `Pixels`."""
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
        for row, mask in zip(chosen.tolist(), on, strict=True):
            self.masks[row, rows, columns] = mask
        index = torch.from_numpy(chosen)
        self._rows[:, rows].index_add_(0, index, of_rows)
        self._columns[:, columns].index_add_(0, index, of_columns)
        self._areas.index_add_(0, index, areas)
        self._sums.index_add_(0, index, sums)

    def boxes(self) -> Tensor:
        """(n, 4) float32 x1, y1, x2, y2 around each mask; zeros for an empty mask."""
        (left, right), (top, bottom) = _extent(self._columns), _extent(self._rows)
        return torch.stack((left, top, right, bottom), 1)

    def mean_inside(self) -> Tensor:
        """(n,) float32, mean sigmoid over the pixels of each mask; 0 for an empty mask."""
        # 1e-6 as in the published code.
        return (self._sums / (self._areas + 1e-6)).float()


def _extent(marked: Tensor) -> tuple[Tensor, Tensor]:
    """First and one past the last positive entry of each row of (n, length); both 0 if none is."""
    length = marked.shape[1]
    index = torch.arange(length, device=marked.device)
    first = torch.where(marked > 0, index, length).amin(1)
    stop = torch.where(marked > 0, index + 1, 0).amax(1)
    return torch.minimum(first, stop).float(), stop.float()
