"""Panoptic quality as an object, for maps in memory: no files, no registered data set."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from detectron2.utils import comm

from panoptic_ext.data.coco.json_file import is_int
from panoptic_ext.data.coco.runs import Runs, runs_from_ids
from panoptic_ext.data.coco.segment_table import SegmentTable
from panoptic_ext.errors import EvaluationError, quoted
from panoptic_ext.evaluation.boundary import boundary_match
from panoptic_ext.evaluation.image_match import match_segments, predicted_segments
from panoptic_ext.evaluation.image_measures import ImageMeasures
from panoptic_ext.evaluation.measures import Measures
from panoptic_ext.evaluation.report import metric_keys

__all__ = ["PanopticQuality"]

Map: TypeAlias = np.ndarray | torch.Tensor
"""(H, W) segment ids of any integer type, 0 is void."""

Segments: TypeAlias = Sequence[Mapping[str, Any]]
"""Dicts with id and category_id; of the truth also iscrowd, if any. Areas are counted."""


class PanopticQuality:
    """PQ of maps in memory: `update` with each image, then `compute`.

    The rules, and the numbers to the last bit, are those of `PanopticEvaluator` and of
    `evaluate_files`. It keeps a few KB of counts of each image, and no map.

    Example:
        metric = PanopticQuality([{"id": 1, "name": "car", "isthing": 1}, ...])
        metric.update(pred_map, pred_segments, gt_map, gt_segments)
        metric.compute()["PQ"]

    Attributes:
        categories: {id: {"id", "name", "isthing"}}.
    """

    def __init__(
        self,
        categories: Iterable[Mapping[str, Any]] | Mapping[int, bool],
        *,
        boundary: bool = False,
    ):
        """
        Args:
            categories: those of a COCO JSON, dicts with id, isthing and, if any, name; or
                {id: isthing}.
            boundary: also compute boundary PQ, which takes several times as long.

        Raises:
            EvaluationError: a category without an id or isthing, or an id twice.
        """
        self.categories = _categories(categories)
        self._boundary = boundary
        self.reset()

    def reset(self) -> None:
        """Forget all images."""
        self._named: dict[Hashable, ImageMeasures] = {}
        self._unnamed: list[ImageMeasures] = []

    def __len__(self) -> int:
        """Number of images of this worker."""
        return len(self._named) + len(self._unnamed)

    def update(
        self,
        pred: Map,
        pred_segments: Segments,
        gt: Map,
        gt_segments: Segments,
        *,
        image_id: Hashable = None,
    ) -> None:
        """Compare one image.

        Args:
            pred: the predicted map, numpy or torch, on any device.
            pred_segments: its segments; every id of the map but 0 needs an entry.
            gt: the true map, of the same size.
            gt_segments: its segments.
            image_id: an image of an id counts once, whichever workers have it; None: it is another
                image than all others.

        Raises:
            EvaluationError: maps or segments that cannot be used.
        """
        if image_id is not None and image_id in self._named:
            return
        name = f"number {len(self) + 1}" if image_id is None else quoted(image_id)
        measures = self._compare(
            self._read(pred, pred_segments, f"prediction for image {name}"),
            self._read(gt, gt_segments, f"truth of image {name}"),
            f"image {name}",
        )
        if image_id is None:
            self._unnamed.append(measures)
        else:
            self._named[image_id] = measures

    def merge(self, other: PanopticQuality) -> None:
        """Add the images of `other`, which stays as it is.

        Raises:
            EvaluationError: it has other categories.
        """
        if self.categories != other.categories:
            raise EvaluationError("two PanopticQuality of different categories cannot be merged")
        self._named = {**other._named, **self._named}
        self._unnamed = [*self._unnamed, *other._unnamed]

    def compute(self) -> dict[str, float]:
        """PQ, SQ, RQ, and these with _th and _st, in percent; nan where not available.

        With several workers (torch.distributed) all of them call it and get the result of all
        images. They exchange counts.

        Raises:
            EvaluationError: no worker has an image.
        """
        return metric_keys(self.measures().summary)

    def measures(self) -> Measures:
        """All measures: of classes, costs of causes, sizes, confusion, intervals; as `compute`."""
        named: dict[Hashable, ImageMeasures] = {}
        unnamed: dict[Hashable, ImageMeasures] = {}
        for rank, (of_worker, others) in enumerate(comm.all_gather((self._named, self._unnamed))):
            named = {**of_worker, **named}
            unnamed.update({("unnamed", rank, i): image for i, image in enumerate(others)})
        if not named and not unnamed:
            raise EvaluationError("no image to compute panoptic quality of; call update first")
        return Measures({**named, **unnamed}, self.categories)

    def _read(self, ids: Map, segments: Segments, where: str) -> tuple[Runs, SegmentTable]:
        array = ids.detach().cpu().numpy() if isinstance(ids, torch.Tensor) else np.asarray(ids)
        runs = runs_from_ids(array, where)
        table = SegmentTable.from_segments_info(segments, self.categories, where)
        return runs, table.with_pixel_areas(*runs.areas())

    def _compare(
        self, pred: tuple[Runs, SegmentTable], gt: tuple[Runs, SegmentTable], where: str
    ) -> ImageMeasures:
        runs, table = pred
        table = predicted_segments(runs, table, f"prediction for {where}")
        match = match_segments(*gt, runs, table, where)
        return ImageMeasures.of(
            match, boundary_match(match, gt[0], runs) if self._boundary else None
        )


def _categories(
    categories: Iterable[Mapping[str, Any]] | Mapping[int, bool],
) -> dict[int, dict[str, Any]]:
    """{id: {"id", "name", "isthing"}}; the name is the id where there is none."""
    if isinstance(categories, Mapping):
        categories = [{"id": c, "isthing": thing} for c, thing in categories.items()]
    found: dict[int, dict[str, Any]] = {}
    for entry in categories:
        number, isthing = entry.get("id"), entry.get("isthing")
        if not is_int(number) or number < 0 or isthing not in (0, 1) or number in found:
            raise EvaluationError(
                f"category {quoted(dict(entry))}; expected an id from 0 on that no other category"
                " has, and isthing 0 or 1"
            )
        name = str(entry.get("name", number))
        found[number] = {"id": number, "name": name, "isthing": int(isthing)}
    return found
