"""Instance masks stored as one id map, which needs the memory of one map instead of N masks.

Shapes: N instances, H x W the image, M the side of a resampled mask, U distinct ids.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from detectron2.layers import ROIAlign
from detectron2.structures import BitMasks, Boxes

from panoptic_ext.data.coco.runs import find_runs, segment_boxes
from panoptic_ext.host_copies import to_device

__all__ = ["IdMapMasks"]


class IdMapMasks:
    """A replacement for Detectron2's BitMasks, for instances that do not overlap.

    Mask i is `id_map == ids[i]`. Indexing copies a vector of ids and never a mask. `ids` may hold
    an id more than once, where several proposals are matched to one ground truth.
    """

    def __init__(self, id_map: torch.Tensor, ids: torch.Tensor, boxes: torch.Tensor | None = None):
        """
        Args:
            id_map: (H, W) integer tensor; 0 is void.
            ids: (N,) integer tensor of ids, each >= 1.
            boxes: (N, 4) tight boxes x0, y0, x1, y1 of these ids, the last two exclusive, zeros
                where an id has no pixel. None: they are computed from the map on demand.
        """
        if id_map.dim() != 2 or ids.dim() != 1:
            raise ValueError(
                f"expected an (H, W) map and (N,) ids, found {tuple(id_map.shape)} and "
                f"{tuple(ids.shape)}"
            )
        self.id_map = id_map.to(torch.int32)
        self.ids = ids.to(device=id_map.device, dtype=torch.int32)
        self.boxes = None if boxes is None else boxes.to(device=id_map.device, dtype=torch.int32)
        if self.boxes is not None and self.boxes.shape != (len(ids), 4):
            raise ValueError(f"expected ({len(ids)}, 4) boxes, found {tuple(self.boxes.shape)}")
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
        ids = self.ids[item].reshape(-1)
        boxes = None if self.boxes is None else self.boxes[item].reshape(-1, 4)
        return IdMapMasks(self.id_map, ids, boxes)

    @property
    def device(self) -> torch.device:
        return self.id_map.device

    @property
    def tensor(self) -> torch.Tensor:
        """(N, H, W) bool masks, computed on each access."""
        return self.id_map[None] == self.ids[:, None, None]

    def to(self, *args: Any, **kwargs: Any) -> IdMapMasks:
        """Move to a device; a dtype among the arguments is ignored."""
        device = torch.empty(0).to(*args, **kwargs).device
        boxes = None if self.boxes is None else to_device(self.boxes, device)
        return IdMapMasks(to_device(self.id_map, device), to_device(self.ids, device), boxes)

    def area(self) -> torch.Tensor:
        """(N,) int64, pixels of each mask."""
        unique, inverse = torch.unique(self.ids, return_inverse=True)
        row, is_known = self._rows(self.id_map.reshape(-1), unique)
        return torch.bincount(row[is_known], minlength=len(unique))[inverse]

    def nonempty(self) -> torch.Tensor:
        """(N,) bool, whether each mask has a pixel."""
        if self.boxes is not None:
            return self.boxes[:, 2] > self.boxes[:, 0]
        return self.area() > 0

    def get_bounding_boxes(self) -> Boxes:
        """Tight boxes (x0, y0, x1, y1), float32 on the CPU as BitMasks'; zeros where empty."""
        return Boxes(self._ids_and_boxes()[:, 1:].to(torch.float32))

    def crop_and_resize(self, boxes: torch.Tensor, mask_size: int) -> torch.Tensor:
        """Resample mask i inside box i, as BitMasks.crop_and_resize does (ROIAlign, >= 0.5).

        Only a window around each object is converted to floats, so the largest object bounds the
        memory. Results equal those of BitMasks, except for rounding where a value is exactly 0.5.

        Args:
            boxes: (N, 4) float x0, y0, x1, y1 in pixels.
            mask_size: M.

        Returns:
            (N, M, M) bool.
        """
        if len(boxes) != len(self):
            raise ValueError(f"{len(boxes)} boxes for {len(self)} masks; expected one each")
        boxes = boxes.to(device=self.device, dtype=torch.float32)
        out = torch.zeros(len(self), mask_size, mask_size, dtype=torch.bool, device=self.device)
        # This copy to the host blocks until the device is done. Nothing below synchronises again:
        # ids, counts and windows are host tensors, and copies to the device are asynchronous.
        table = self._ids_and_boxes()
        order = torch.argsort(table[:, 0], stable=True)
        table = table[order]
        windows = self._windows(table[:, 1:])
        on_device = order.to(self.device, non_blocking=True)
        corner = windows[:, [0, 1, 0, 1]].to(self.device, torch.float32, non_blocking=True)
        rois = torch.nn.functional.pad(boxes[on_device] - corner, (1, 0))
        align = ROIAlign((mask_size, mask_size), 1.0, 0, aligned=True)
        # Masks with one id share a window. Sorting made them consecutive, so that the window is
        # computed once for each id.
        ids, counts = torch.unique_consecutive(table[:, 0], return_counts=True)
        start = 0
        for i, count in zip(ids.tolist(), counts.tolist(), strict=True):
            x0, y0, x1, y1 = windows[start].tolist()
            members = slice(start, start + count)
            start += count
            if x1 > x0:
                window = (self.id_map[y0:y1, x0:x1] == i).to(torch.float32)[None, None]
                out[members] = align.forward(window, rois[members])[:, 0] >= 0.5
        return torch.empty_like(out).index_copy_(0, on_device, out)

    def _windows(self, boxes: torch.Tensor) -> torch.Tensor:
        """Return the boxes with a margin of one pixel, all zeros where a box is empty."""
        height, width = self.image_size
        # ROIAlign repeats the outermost pixels beyond the border of its input. With the margin, the
        # repeated pixels are empty; at the image's own border BitMasks has no margin either.
        grown = boxes + boxes.new_tensor([-1, -1, 1, 1])
        limit = boxes.new_tensor([width, height, width, height])
        grown = torch.minimum(grown.clamp(min=0), limit)
        return grown * (boxes[:, 2:3] > boxes[:, 0:1])

    def _ids_and_boxes(self) -> torch.Tensor:
        """Return the (N, 5) int64 id and tight box of each mask, on the CPU."""
        if self.boxes is not None:
            # Concatenated on the device, ids and boxes need one copy instead of two.
            return torch.cat([self.ids[:, None], self.boxes], dim=1).cpu().long()
        ids = self.ids.cpu()
        unique, inverse = torch.unique(ids, return_inverse=True)
        runs = find_runs(self.id_map.cpu().numpy(), split_rows=True)
        row, is_known = self._rows(torch.from_numpy(runs.ids), unique)
        rows = torch.where(is_known, row, -1).numpy()
        boxes = torch.from_numpy(segment_boxes(runs, rows, len(unique)))
        return torch.cat([ids[:, None].long(), boxes[inverse]], dim=1)

    @staticmethod
    def _rows(values: torch.Tensor, unique: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the position of each value in the sorted `unique`, and whether it occurs there."""
        if len(unique) == 0:
            return torch.zeros_like(values, dtype=torch.int64), torch.zeros_like(values).bool()
        # searchsorted gives len(unique) for values above all others, which would be out of range.
        row = torch.searchsorted(unique, values).clamp(max=len(unique) - 1)
        return row, unique[row] == values

    @staticmethod
    def cat(masks: Sequence[IdMapMasks]) -> IdMapMasks | BitMasks:
        """Concatenate masks. If their id maps differ, the result is a BitMasks."""
        if not masks:
            raise ValueError("nothing to concatenate; expected at least one IdMapMasks")
        # Indexing shares the id map, so equal storage identifies masks of one image.
        first = masks[0].id_map
        if all(m.id_map is first or m.id_map.data_ptr() == first.data_ptr() for m in masks):
            boxes = [m.boxes for m in masks if m.boxes is not None]
            known = torch.cat(boxes) if len(boxes) == len(masks) else None
            return IdMapMasks(first, torch.cat([m.ids for m in masks]), known)
        return BitMasks(torch.cat([m.tensor for m in masks]))
