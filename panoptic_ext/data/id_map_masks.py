"""Instance masks as one id map: the memory of one mask instead of N.

Shapes: N instances, H x W the image, M the side of a resampled mask, U distinct ids.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from detectron2.layers import ROIAlign
from detectron2.structures import BitMasks, Boxes

from panoptic_ext.data.id_map import find_runs, segment_boxes

__all__ = ["IdMapMasks"]


class IdMapMasks:
    """A stand-in for Detectron2's BitMasks where no two instances overlap in the id map.

    Mask i is `id_map == ids[i]`. `ids` may repeat (proposals that share one ground truth), so
    indexing copies a vector of ids and never a mask.
    """

    def __init__(self, id_map: torch.Tensor, ids: torch.Tensor):
        """
        Args:
            id_map: (H, W) integer tensor; 0 is void.
            ids: (N,) integer tensor of ids, each >= 1.
        """
        if id_map.dim() != 2 or ids.dim() != 1:
            raise ValueError(
                f"expected an (H, W) map and (N,) ids, found {tuple(id_map.shape)} and "
                f"{tuple(ids.shape)}"
            )
        self.id_map = id_map.to(torch.int32)
        self.ids = ids.to(device=id_map.device, dtype=torch.int32)
        self.image_size = id_map.shape

    def __len__(self) -> int:
        return len(self.ids)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(num_instances={len(self)}, image_size={self.image_size})"

    def __iter__(self) -> Iterator[torch.Tensor]:
        for i in self.ids:
            yield self.id_map == i

    def __getitem__(self, item: int | slice | torch.Tensor) -> IdMapMasks:
        """Instances chosen by int, slice, LongTensor or BoolTensor; shares the id map."""
        ids = self.ids[item]
        return IdMapMasks(self.id_map, ids[None] if ids.dim() == 0 else ids)

    @property
    def device(self) -> torch.device:
        return self.id_map.device

    @property
    def tensor(self) -> torch.Tensor:
        """(N, H, W) bool masks, made anew on each call."""
        return self.id_map[None] == self.ids[:, None, None]

    def to(self, *args: Any, **kwargs: Any) -> IdMapMasks:
        """Move to a device; a dtype among the arguments is ignored."""
        moved = self.id_map.to(*args, **kwargs)
        return IdMapMasks(moved, self.ids.to(moved.device))

    def area(self) -> torch.Tensor:
        """(N,) int64, pixels of each mask."""
        unique, inverse = torch.unique(self.ids, return_inverse=True)
        row, found = self._rows(self.id_map.reshape(-1), unique)
        return torch.bincount(row[found], minlength=len(unique))[inverse]

    def nonempty(self) -> torch.Tensor:
        """(N,) bool, whether each mask has a pixel."""
        return self.area() > 0

    def get_bounding_boxes(self) -> Boxes:
        """Tight boxes (x0, y0, x1, y1), float32 on the CPU as BitMasks'; zeros where empty."""
        unique, inverse = torch.unique(self.ids, return_inverse=True)
        return Boxes(self._boxes_of(unique).to(torch.float32)[inverse.cpu()])

    def crop_and_resize(self, boxes: torch.Tensor, mask_size: int) -> torch.Tensor:
        """Resample mask i inside box i, as BitMasks.crop_and_resize does (ROIAlign, >= 0.5).

        Only a window around each object is expanded to floats, so memory is bounded by the
        largest object. Results equal BitMasks' but for rounding where a value is 0.5 exactly.

        Args:
            boxes: (N, 4) float x0, y0, x1, y1 in pixels.
            mask_size: M.

        Returns:
            (N, M, M) bool.
        """
        if len(boxes) != len(self):
            raise ValueError(f"{len(boxes)} boxes for {len(self)} masks; expected one each")
        boxes = boxes.to(device=self.device, dtype=torch.float32)
        align = ROIAlign((mask_size, mask_size), 1.0, 0, aligned=True)
        out = torch.zeros(len(self), mask_size, mask_size, dtype=torch.bool, device=self.device)
        unique, inverse = torch.unique(self.ids, return_inverse=True)
        order = torch.argsort(inverse, stable=True)
        counts = torch.bincount(inverse, minlength=len(unique)).tolist()
        windows = self._windows(self._boxes_of(unique)).tolist()
        members = torch.split(order, counts)
        for i, (x0, y0, x1, y1), rows in zip(unique, windows, members, strict=True):
            if x1 <= x0:
                continue
            window = (self.id_map[y0:y1, x0:x1] == i).to(torch.float32)[None, None]
            rois = torch.nn.functional.pad(boxes[rows], (1, 0))
            rois[:, 1:] -= boxes.new_tensor([x0, y0, x0, y0])
            out[rows] = align.forward(window, rois)[:, 0] >= 0.5
        return out

    def _windows(self, boxes: torch.Tensor) -> torch.Tensor:
        """Boxes with a margin of one empty pixel, which ROIAlign repeats beyond the border."""
        height, width = self.image_size
        grown = boxes + boxes.new_tensor([-1, -1, 1, 1])
        limit = boxes.new_tensor([width, height, width, height])
        grown = torch.minimum(grown.clamp(min=0), limit)
        return grown * (boxes[:, 2:3] > boxes[:, 0:1])

    def _boxes_of(self, unique: torch.Tensor) -> torch.Tensor:
        """(U, 4) int64 tight boxes, on the CPU, of sorted, distinct ids."""
        runs = find_runs(self.id_map.cpu().numpy(), split_rows=True)
        row, found = self._rows(torch.from_numpy(runs.values), unique.cpu())
        rows = torch.where(found, row, -1).numpy()
        return torch.from_numpy(segment_boxes(runs, self.image_size[1], rows, len(unique)))

    @staticmethod
    def _rows(values: torch.Tensor, unique: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Position of each value in the sorted `unique`, and whether it is there at all."""
        if len(unique) == 0:
            return torch.zeros_like(values, dtype=torch.int64), torch.zeros_like(values).bool()
        row = torch.searchsorted(unique, values).clamp(max=len(unique) - 1)
        return row, unique[row] == values

    @staticmethod
    def cat(masks: Sequence[IdMapMasks]) -> IdMapMasks | BitMasks:
        """Concatenate; over different id maps the result is a BitMasks."""
        if not masks:
            raise ValueError("nothing to concatenate; expected at least one IdMapMasks")
        first = masks[0].id_map
        if all(m.id_map is first or m.id_map.data_ptr() == first.data_ptr() for m in masks):
            return IdMapMasks(first, torch.cat([m.ids for m in masks]))
        return BitMasks(torch.cat([m.tensor for m in masks]))
