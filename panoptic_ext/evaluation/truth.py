"""Records of a registered panoptic data set, found by image id."""

from __future__ import annotations

from typing import Any

from detectron2.data import Metadata

from panoptic_ext.data import get_metadata, get_records
from panoptic_ext.data.coco.label_png import ExpectedSize, read_runs
from panoptic_ext.data.coco.runs import Runs
from panoptic_ext.errors import EvaluationError, quoted

__all__ = ["TruthRecords"]


class TruthRecords:
    """The records of a data set; read once.

    Attributes:
        records: {image_id: record}, in the data set's order.
        metadata: of the data set.
    """

    def __init__(self, dataset_name: str):
        """
        Args:
            dataset_name: registered; records have image_id, pan_seg_file_name and segments_info
                with contiguous category ids.

        Raises:
            EvaluationError: records of another kind.
        """
        self._name = dataset_name
        self.metadata: Metadata = get_metadata(dataset_name)
        self.records: dict[Any, dict[str, Any]] = {}
        for record in get_records(dataset_name):
            missing = [k for k in ("pan_seg_file_name", "segments_info") if k not in record]
            if missing:
                raise EvaluationError(
                    f"the records of data set {quoted(dataset_name)} have no "
                    f"{quoted(missing[0])}; register it with panoptic_ext.data.register_panoptic"
                )
            self.records[record["image_id"]] = record

    @staticmethod
    def runs(record: dict[str, Any]) -> Runs:
        """The label map of a record.

        Raises:
            EvaluationError: it cannot be read, or has another size than the record says.
        """
        known = "height" in record and "width" in record
        expected = ExpectedSize(record["height"], record["width"]) if known else None
        path, encoding = record["pan_seg_file_name"], record.get("pan_seg_encoding", "rgb")
        return read_runs(path, encoding, expected)

    def find(self, image_id: Any) -> dict[str, Any]:
        """The record of an image.

        Raises:
            EvaluationError: the data set has no such image.
        """
        if image_id not in self.records:
            raise EvaluationError(
                f"prediction for image {quoted(image_id)}, which data set {quoted(self._name)} "
                "does not have"
            )
        return self.records[image_id]
