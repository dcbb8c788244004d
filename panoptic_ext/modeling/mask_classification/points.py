"""Targets of mask classification, and masks sampled at points.

Shapes: N targets or masks, P points, H x W target size, h x w size of predicted masks. Points are
(x, y) in [0, 1] of the padded input, so that they fit maps of every size. Sampling is bilinear with
pixel centres at half integers and zeros outside, which is `grid_sample` with
`align_corners=False, padding_mode="zeros"`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = [
    "MaskTargets",
    "sample_at_common_points",
    "sample_masks",
]


def _corners(points: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """The four pixels around each point and their bilinear weights.

    Args:
        points: (..., 2) float.
        height, width: size of the map, pixels.

    Returns:
        Flat pixel indices (4, ...) int64, always inside the map, and weights (4, ...) of the
        points' dtype, 0 for a pixel outside the map.
    """
    x = points[..., 0] * width - 0.5
    y = points[..., 1] * height - 0.5
    left, top = x.floor(), y.floor()
    right_share, bottom_share = x - left, y - top
    columns = torch.stack((left, left + 1, left, left + 1))
    rows = torch.stack((top, top, top + 1, top + 1))
    column_shares = torch.stack((1 - right_share, right_share, 1 - right_share, right_share))
    row_shares = torch.stack((1 - bottom_share, 1 - bottom_share, bottom_share, bottom_share))
    inside = (columns >= 0) & (columns < width) & (rows >= 0) & (rows < height)
    weights = column_shares * row_shares * inside
    indices = rows.clamp(0, height - 1) * width + columns.clamp(0, width - 1)
    if height * width >= 2**24:  # beyond the integers that float32 holds exactly
        indices = rows.clamp(0, height - 1).long() * width + columns.clamp(0, width - 1).long()
    return indices.long(), weights


@dataclass
class MaskTargets:
    """The objects of one image: disjoint ones as an id map, overlapping ones as masks.

    Attributes:
        labels: (N,) int64, unified classes.
        id_map: (H, W) int32 at the padded input size, 0 for void and i for target i - 1; None if
            the masks overlap.
        masks: (N, H, W) bool, only if they overlap; None otherwise.
        image: what errors call the image, such as its file name.
    """

    labels: Tensor
    id_map: Tensor | None = None
    masks: Tensor | None = None
    image: str = ""
    _with_border: Tensor | None = field(default=None, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if (self.id_map is None) == (self.masks is None):
            raise ValueError("MaskTargets needs either an id_map or masks; give exactly one")
        if self.masks is not None and len(self.masks) != len(self.labels):
            raise ValueError(
                f"{len(self.masks)} masks for {len(self.labels)} labels"
                f"{' in ' + self.image if self.image else ''}; give one label for each mask"
            )

    @classmethod
    def from_masks(cls, masks: Tensor, labels: Tensor, image: str = "") -> MaskTargets:
        """Targets that may overlap.

        Args:
            masks: (N, H, W), true or non-zero inside.
            labels: (N,) int64.
        """
        return cls(labels=labels, masks=masks.bool(), image=image)

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def _device(self) -> torch.device:
        planes = self.id_map if self.masks is None else self.masks
        assert planes is not None
        return planes.device

    def label_map(self, size: tuple[int, int]) -> Tensor:
        """Class of the pixel nearest to each cell's centre; of overlapping masks the first's.

        Args:
            size: h, w of the map.

        Returns:
            (h, w) int64, -1 for void.
        """
        table = F.pad(self.labels.to(self._device), (1, 0), value=-1)
        return table[self.owner_map(size)]

    def owner_map(self, size: tuple[int, int]) -> Tensor:
        """Target of the pixel nearest to each cell's centre; of overlapping masks the first.

        Args:
            size: h, w of the map.

        Returns:
            (h, w) int64, i for target i - 1 and 0 for void.
        """
        planes = self.id_map if self.masks is None else self.masks
        assert planes is not None
        rows, columns = (
            ((torch.arange(count, device=planes.device) + 0.5) * full / count).long()
            for count, full in zip(size, planes.shape[-2:], strict=True)
        )
        cells = planes[..., rows[:, None], columns]
        if self.masks is not None:
            first = torch.arange(len(self), 0, -1, device=planes.device)[:, None, None] * cells
            best = first.amax(0) if len(self) else first.sum(0)
            cells = torch.where(best > 0, len(self) + 1 - best, 0)
        return cells.long()

    def centre_map(self, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """How near each cell is to the middle of the object it lies in, and that object's box.

        Nearness is exp(-2 |d|^2) with d in half sides of the object's box, over its greatest value
        in the object: 1 at the best cell of each object that has a cell, also where the middle of
        the box lies outside of it. Of overlapping masks the smallest has a cell. Void has no
        object, like padding: what is not labelled there is learnt to be none.

        Args:
            size: h, w of the map.

        Returns:
            (h, w) float32, 0 outside of objects; (4, h, w) float32 in [0, 1], middle x and y and
            half width and height, anything outside of objects.
        """
        if self.masks is not None:  # what lies on a larger object has cells, too
            order = self.masks.flatten(1).sum(1).argsort()
            smallest_first = MaskTargets(self.labels[order], masks=self.masks[order])
            return smallest_first._centre_map(size)
        return self._centre_map(size)

    def _centre_map(self, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        owner = self.owner_map(size)
        height, width = size
        boxes = self.boxes()
        middle, half = (boxes[:, 2:] + boxes[:, :2]) / 2, (boxes[:, 2:] - boxes[:, :2]) / 2
        table = F.pad(torch.cat((middle, half), 1), (0, 0, 1, 0), value=1.0)[owner]
        y = (torch.arange(height, device=owner.device) + 0.5)[:, None] / height
        x = (torch.arange(width, device=owner.device) + 0.5)[None] / width
        distance = ((x - table[..., 0]) / table[..., 2]) ** 2 + (
            (y - table[..., 1]) / table[..., 3]
        ) ** 2
        near = torch.exp(-2 * distance) * (owner > 0)
        best = near.new_zeros(len(self) + 1)
        best.scatter_reduce_(0, owner.reshape(-1), near.reshape(-1), "amax")
        near = near / best.clamp(min=torch.finfo(near.dtype).tiny)[owner]
        return near, table.permute(2, 0, 1)

    def sample(self, points: Tensor) -> Tensor:
        """Every target at points common to all.

        Args:
            points: (P, 2) float.

        Returns:
            (N, P) of the points' dtype, 0 to 1.
        """
        count, num_points = len(self), len(points)
        if self.masks is not None:
            indices, weights = _corners(points, *self.masks.shape[-2:])
            flat = self.masks.flatten(1)
            return sum(
                (flat[:, i] * w for i, w in zip(indices, weights, strict=True)),
                start=points.new_zeros(count, num_points),
            )
        assert self.id_map is not None
        indices, weights = _corners(points, *self.id_map.shape)
        ids = self.id_map.reshape(-1)[indices].long()
        # A point adds at most one value a corner to its own column: row 0 collects the void.
        sampled = points.new_zeros((count + 1) * num_points)
        columns = torch.arange(num_points, device=points.device)
        for corner_ids, corner_weights in zip(ids, weights, strict=True):
            sampled.scatter_add_(0, corner_ids * num_points + columns, corner_weights)
        return sampled.view(count + 1, num_points)[1:]

    def covers(self, points: Tensor) -> Tensor:
        """Which targets the pixel of each point belongs to.

        Args:
            points: (P, 2) float, x and y in [0, 1).

        Returns:
            (N, P) bool.
        """
        planes = self.id_map if self.masks is None else self.masks
        assert planes is not None
        size = points.new_tensor([planes.shape[-1], planes.shape[-2]])
        columns, rows = (points * size).long().unbind(-1)
        if self.masks is not None:
            return self.masks[:, rows, columns]
        return (
            planes[rows, columns] == torch.arange(1, len(self) + 1, device=planes.device)[:, None]
        )

    def sample_each(self, rows: Tensor, points: Tensor) -> Tensor:
        """Chosen targets, each at points of its own.

        Args:
            rows: (M,) int64, which targets.
            points: (M, P, 2) float.

        Returns:
            (M, P) of the points' dtype, 0 to 1.
        """
        padded = self._padded()
        height, width = padded.shape[-2:]
        x = points[..., 0] * (width - 2) + 0.5
        y = points[..., 1] * (height - 2) + 0.5
        left, top = x.floor(), y.floor()
        first = top.int() * width + left.int()
        flat = padded.reshape(-1)
        wanted = 1 if self.masks is not None else (rows + 1).to(padded.dtype)[:, None]
        if self.masks is not None:
            first = first.long() + (rows * (height * width))[:, None]

        def corner(offset: int) -> Tensor:
            found = flat.index_select(0, (first + offset).view(-1)).view(first.shape)
            return torch.eq(found, wanted).to(points.dtype)

        right_share, bottom_share = x - left, y - top
        upper = corner(0).lerp(corner(1), right_share)
        lower = corner(width).lerp(corner(width + 1), right_share)
        return upper.lerp(lower, bottom_share)

    def boxes(self) -> Tensor:
        """(N, 4) float32 x0, y0, x1, y1 in [0, 1] around each target; all of the image for one
        without pixels."""
        planes = self.id_map if self.masks is None else self.masks
        assert planes is not None
        height, width = planes.shape[-2:]
        columns = self._extent(width, planes, along=-1) / width
        rows = self._extent(height, planes, along=-2) / height
        boxes = torch.stack((columns[0], rows[0], columns[1], rows[1]), dim=1)
        everywhere = boxes.new_tensor([0.0, 0.0, 1.0, 1.0])
        return torch.where((boxes[:, 2] > boxes[:, 0])[:, None], boxes, everywhere)

    def _extent(self, size: int, planes: Tensor, along: int) -> Tensor:
        """First position and one past the last of each target (2, N) along an axis, pixels."""
        place = torch.arange(size, dtype=torch.float32, device=planes.device)
        if self.masks is not None:
            hit = self.masks.any(-2 if along == -1 else -1)
            first = torch.where(hit, place, size).amin(1)
            return torch.stack((first, torch.where(hit, place + 1, 0).amax(1)))
        place = place if along == -1 else place[:, None]
        ids, place = planes.reshape(-1).long(), place.expand(planes.shape).reshape(-1)
        first = place.new_full((len(self) + 1,), size).scatter_reduce(0, ids, place, "amin")
        last = place.new_zeros(len(self) + 1).scatter_reduce(0, ids, place + 1, "amax")
        return torch.stack((first[1:], last[1:]))

    def _padded(self) -> Tensor:
        """The id map or the masks with a border of void, so that no point needs a check."""
        if self._with_border is None:
            source = self.id_map if self.masks is None else self.masks
            self._with_border = F.pad(source, (1, 1, 1, 1))
        return self._with_border


def sample_masks(masks: Tensor, points: Tensor) -> Tensor:
    """Masks, each at points of its own; differentiable in the masks.

    Args:
        masks: (M, h, w) float.
        points: (M, P, 2).

    Returns:
        (M, P) of the masks' dtype.
    """
    if len(masks) == 0:
        return masks.flatten(1).sum(1, keepdim=True).expand(0, points.shape[1])
    grid = (2 * points - 1).to(masks.dtype)[:, :, None]
    return F.grid_sample(masks[:, None], grid, align_corners=False)[:, 0, :, 0]


def sample_at_common_points(masks: Tensor, points: Tensor) -> Tensor:
    """All masks at the same points, without gradient.

    Args:
        masks: (Q, h, w) float32.
        points: (P, 2) float32.

    Returns:
        (Q, P) float32.
    """
    masks = masks.detach()
    if masks.is_cuda:
        return F.grid_sample(masks[None], 2 * points[None, :, None] - 1, align_corners=False)[
            0, :, :, 0
        ]
    indices, weights = _corners(points, *masks.shape[-2:])
    table = masks.flatten(1).t().contiguous()
    bags = F.embedding_bag(
        indices.t().contiguous(), table, per_sample_weights=weights.t().contiguous(), mode="sum"
    )
    return bags.t()
