"""The segments of many images as lists, for programs and spreadsheets: JSON and CSV."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterator
from typing import Any

from panoptic_ext.prediction.panoptic_result import PanopticResult
from panoptic_ext.prediction.progress_log import ProgressLog

__all__ = ["CSV_COLUMNS", "SegmentLists"]

CSV_COLUMNS = (
    "file_name", "id", "class_id", "category_id", "name", "isthing", "score", "area", "share",
    "x0", "y0", "x1", "y1",
)  # fmt: skip
"""Columns of the CSV: the file, and the attributes of `Segment`; one row for each segment."""

_LOG_FILE = "segments_progress.jsonl"


class SegmentLists:
    """Collects the segments of the images of a folder; the next run continues.

    Args:
        folder: results go there; it is made.
        fresh: discard the log of an earlier run.
    """

    def __init__(self, folder: str, *, fresh: bool = False) -> None:
        os.makedirs(folder, exist_ok=True)
        self._log = ProgressLog(os.path.join(folder, _LOG_FILE), fresh=fresh)

    def has(self, key: str) -> bool:
        """Whether `key` was committed, now or by an earlier run."""
        return key in self._log.entries

    def add(self, key: str, result: PanopticResult) -> None:
        """Add an image, of which `commit` makes a part of the lists; `key` names it there."""
        image = {"file_name": key, "height": result.height, "width": result.width}
        self._log.add(key, {**image, "segments": result.to_dicts()})

    def commit(self, key: str) -> None:
        """Log what was added since the last commit; and that `key`, such as a video, is done."""
        self._log.commit(key)

    def discard(self) -> None:
        """Undo what was added since the last commit: its input failed."""
        self._log.discard()

    def json_text(self) -> str:
        """A list with an object for each image: file_name, height, width and segments.

        A segment has the attributes of `Segment`; its score is null where the model gives none.
        """
        rows = (json.dumps(image, ensure_ascii=False) for image in self._images())
        return "[" + ",\n ".join(rows) + "]\n"

    def csv_text(self) -> str:
        """A line of `CSV_COLUMNS`, and a line for each segment; texts are quoted.

        No score is an empty field.
        """
        stream = io.StringIO()
        # All texts, because before Python 3.13 a file's name with a CR would not be quoted.
        writer = csv.writer(stream, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC)
        writer.writerow(CSV_COLUMNS)
        for image in self._images():
            for segment in image["segments"]:
                values = {**segment, **dict(zip(CSV_COLUMNS[-4:], segment["box"], strict=True))}
                values["file_name"] = image["file_name"]
                writer.writerow([values[column] for column in CSV_COLUMNS])
        return stream.getvalue()

    def _images(self) -> Iterator[dict[str, Any]]:
        return (entry for entry in self._log.entries.values() if "segments" in entry)
