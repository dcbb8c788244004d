"""One panoptic prediction of a model, read and checked: "panoptic_seg" with dataset ids."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from panoptic_ext.data.coco.divisor import segments_without_info
from panoptic_ext.data.coco.runs import Runs, runs_from_ids
from panoptic_ext.data.coco.segment_table import SegmentTable, integer
from panoptic_ext.errors import EvaluationError, quoted
from panoptic_ext.evaluation.image_match import predicted_segments
from panoptic_ext.evaluation.truth import Truth

__all__ = ["PanopticPrediction", "PredictionReader"]


@dataclass(frozen=True)
class PanopticPrediction:
    """A prediction, detached from the model's output.

    Attributes:
        runs: its label map.
        table: its segments with dataset ids, areas counted in the pixels.
        segments_info: as the model gave it, with contiguous ids.
    """

    runs: Runs
    table: SegmentTable
    segments_info: list[dict[str, Any]]


class PredictionReader:
    """Reads the predictions of a model for a data set."""

    def __init__(self, truth: Truth):
        """
        Args:
            truth: its metadata has the tables of ids. Things and stuff may have separate contiguous
                ids, as in Detectron2's coco_2017_val_panoptic_separated.
        """
        self._truth = truth
        metadata = truth.metadata
        self._dataset_ids = {
            isthing: {contiguous: dataset_id for dataset_id, contiguous in table.items()}
            for isthing, table in (
                (True, metadata.thing_dataset_id_to_contiguous_id),
                (False, metadata.stuff_dataset_id_to_contiguous_id),
            )
        }

    def read(self, output: Mapping[str, Any], where: str) -> PanopticPrediction:
        """Read a model's output for one image.

        Args:
            output: with "panoptic_seg", see `PanopticEvaluator.process`; nothing of it is kept.
            where: names the image in errors.

        Raises:
            EvaluationError: the prediction cannot be used.
        """
        if output.get("panoptic_seg") is None:
            raise EvaluationError(
                f"{where}: the model's output has no 'panoptic_seg' (found: {sorted(output)})"
            )
        ids, info = split_panoptic_seg(output["panoptic_seg"], where)
        ids = ids.detach().cpu().numpy() if isinstance(ids, torch.Tensor) else np.asarray(ids)
        # Without segments_info void is -1, and 0 is an instance of category 0. The shift by one
        # makes void 0, as everywhere else.
        runs = runs_from_ids(ids, where, shift=1 if info is None else 0)
        if info is None:
            info = self._segments_of_values(runs)
        table = SegmentTable.from_segments_info(
            [{"id": s.get("id"), "category_id": self._dataset_id(s, where)} for s in info],
            self._truth.files.categories,
            where,
        )
        return PanopticPrediction(runs, predicted_segments(runs, table, where), info)

    def _segments_of_values(self, runs: Runs) -> list[dict[str, Any]]:
        """Segments of a map of category * label_divisor + instance + 1, 0 void."""
        divisor = self._truth.metadata.label_divisor
        return [
            {**s, "id": s["id"] + 1, "isthing": s["category_id"] in self._dataset_ids[True]}
            for s in segments_without_info(runs.index[0] - 1, divisor)
        ]

    def _dataset_id(self, segment: Mapping[str, Any], where: str) -> int:
        """The dataset id of a segment's category."""
        category, isthing = integer(segment, "category_id", where), segment.get("isthing")
        # As in COCOPanopticEvaluator: a segment without isthing already has a dataset id.
        if isthing is None:
            return category
        ids = self._dataset_ids[bool(isthing)]
        if category not in ids:
            raise EvaluationError(
                f"{where}: segment {segment.get('id')} has the contiguous category_id {category},"
                f" which is not one of the {'thing' if isthing else 'stuff'} categories"
                f" {sorted(ids)} of data set {quoted(self._truth.dataset_name)}"
            )
        return ids[category]


def split_panoptic_seg(output: Any, where: str) -> tuple[Any, list[dict[str, Any]] | None]:
    """Take apart a model's "panoptic_seg".

    Args:
        output: what the model gave.
        where: names the image in errors.

    Returns:
        the map, unchecked, and a copy of segments_info, or None.

    Raises:
        EvaluationError: not a pair, or segments_info is no list of dicts.
    """
    pair = output if isinstance(output, (tuple, list)) and len(output) == 2 else (output, "")
    ids, info = pair
    if not (info is None or isinstance(info, (tuple, list))):
        raise EvaluationError(
            f"{where}: 'panoptic_seg' is {type(output).__name__} {quoted(output, 100)}; expected a"
            " tuple of a (height, width) map and its segments_info, a list or None"
        )
    for segment in info or ():
        if not isinstance(segment, Mapping):
            raise EvaluationError(
                f"{where}: segments_info has the entry {quoted(segment)}; expected an object "
                "with id and category_id"
            )
    return ids, None if info is None else [dict(segment) for segment in info]
