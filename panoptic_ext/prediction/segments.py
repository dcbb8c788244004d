"""Segments of a result as typed records. H x W is the image, N the number of segments."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from panoptic_ext.data.coco.divisor import segments_without_info
from panoptic_ext.data.coco.runs import find_runs
from panoptic_ext.data.datasets.unified_classes import UnifiedClasses
from panoptic_ext.errors import DatasetError, listed
from panoptic_ext.postprocessing import with_extents

__all__ = ["Segment", "id_map_and_segments", "only_segments", "typed_segment"]


@dataclass(frozen=True)
class Segment:
    """One segment of a `PanopticResult`.

    Attributes:
        id: its value in the id map, from 1 on.
        class_id: contiguous id of its class, 0 to K - 1, things and stuff in one numbering.
        category_id: dataset id of its class, as in the data set's JSON.
        name: of its class.
        isthing: whether it is one object. False for stuff, and for all pixels of a class together
            in the result of a semantic model.
        score: 0 to 1; None where the model gives none.
        area: pixels.
        share: of the image's pixels, 0 to 1.
        box: (x0, y0, x1, y1), pixels of the image from its upper left corner. x1 and y1 are
            exclusive: the last column is x1 - 1, and x1 - x0 is the width.
    """

    id: int
    class_id: int
    category_id: int
    name: str
    isthing: bool
    score: float | None
    area: int
    share: float
    box: tuple[int, int, int, int]

    def to_dict(self) -> dict[str, Any]:
        """The attributes as plain values, ready for JSON."""
        return {**asdict(self), "box": list(self.box)}

    def to_segments_info(self) -> dict[str, Any]:
        """The entry of Detectron2's segments_info: its category_id is the contiguous id."""
        x0, y0, x1, y1 = self.box
        info: dict[str, Any] = {
            "id": self.id,
            "category_id": self.class_id,
            "isthing": self.isthing,
            "area": self.area,
            "bbox": [x0, y0, x1 - x0, y1 - y0],
        }
        return info if self.score is None else {**info, "score": self.score}


def id_map_and_segments(
    panoptic_seg: np.ndarray | torch.Tensor,
    segments_info: Sequence[Mapping[str, Any]] | None,
    classes: UnifiedClasses,
    label_divisor: int,
) -> tuple[torch.Tensor, list[Segment]]:
    """Check a model's result and convert it.

    Args:
        panoptic_seg: (H, W) integers, on any device; not changed.
        segments_info: with "id" and "category_id" in the numbering of the data set's metadata.
            None: the map holds category * label_divisor + instance, -1 is void.
        classes: of the data set.
        label_divisor: of a map without segments_info.

    Returns:
        (H, W) int32 ids on the CPU, 0 for void and for ids without a segment; and the segments that
        have a pixel. Ids are those of the model, or from 1 on where there was no segments_info.

    Raises:
        DatasetError: no map of integers, an id twice or out of range, or an unknown class.
    """
    ids = _as_id_map(panoptic_seg)
    if segments_info is None:
        values, places = torch.unique(ids, return_inverse=True)
        found = segments_without_info(values.tolist(), label_divisor)
        first = len(values) - len(found)  # values below 0 are void, and sorted first
        ids = (places + 1 - first).clamp(min=0)
        segments_info = [{**segment, "id": i + 1} for i, segment in enumerate(found)]
    infos = [dict(segment) for segment in segments_info]
    _check_ids([int(info["id"]) for info in infos])
    _, infos = with_extents(ids, infos)
    kept = [info for info in infos if info["area"]]
    segments = [typed_segment(info, classes, ids.numel()) for info in kept]
    return only_segments(ids, segments), segments


def only_segments(ids: torch.Tensor, segments: Sequence[Segment]) -> torch.Tensor:
    """A copy of an (H, W) id map, int32, in which all pixels of no segment are 0."""
    # Of the runs of equal ids, because there are hundreds of times more pixels.
    runs = find_runs(ids.numpy())
    is_known = np.isin(runs.ids, [segment.id for segment in segments])
    return torch.from_numpy(runs.expand(np.where(is_known, runs.ids, 0).astype(np.int32)))


def _as_id_map(panoptic_seg: np.ndarray | torch.Tensor) -> torch.Tensor:
    if isinstance(panoptic_seg, np.ndarray) and panoptic_seg.dtype.kind == "u":
        panoptic_seg = panoptic_seg.astype(np.int64)  # torch has no unsigned ones but uint8
    ids = torch.as_tensor(panoptic_seg).detach().cpu()
    is_integer = not (ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool)
    if ids.dim() != 2 or not is_integer:
        raise DatasetError(
            f"the id map is of shape {tuple(ids.shape)} and type {ids.dtype}; expected (H, W)"
            " integers, the segment id of each pixel"
        )
    return ids


def _check_ids(ids: Sequence[int]) -> None:
    wrong = sorted(i for i, times in Counter(ids).items() if not 0 < i < 2**31 or times > 1)
    if wrong:
        raise DatasetError(
            f"segments_info has the ids {listed(wrong)} twice or out of range; expected each id"
            " once, from 1 on (0 is void)"
        )


def typed_segment(info: Mapping[str, Any], classes: UnifiedClasses, num_pixels: int) -> Segment:
    """Convert an entry of segments_info that has "area" and "bbox", in an image of `num_pixels`."""
    isthing = info.get("isthing")
    class_id = classes.contiguous_id(int(info["category_id"]), isthing)
    category = classes.categories[class_id]
    score = info.get("score")
    x, y, width, height = (int(value) for value in info["bbox"])
    return Segment(
        id=int(info["id"]),
        class_id=class_id,
        category_id=category.id,
        name=category.name,
        isthing=category.isthing if isthing is None else bool(isthing),
        score=None if score is None else float(score),
        area=int(info["area"]),
        share=int(info["area"]) / num_pixels,
        box=(x, y, x + width, y + height),
    )
