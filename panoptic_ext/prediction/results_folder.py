"""Predictions collected into a COCO panoptic JSON and its PNGs, image by image.

Each image is one line of a log, so that the next run can continue one that was stopped. The JSON is
written from the log at the end. An input is logged when all its results are there.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from panoptic_ext.data.coco.categories import category_entries
from panoptic_ext.data.coco.divisor import segments_without_info
from panoptic_ext.data.coco.runs import find_runs
from panoptic_ext.data.coco.writer import PanopticWriter
from panoptic_ext.data.datasets.metadata import categories_of, dataset_ids
from panoptic_ext.prediction.progress_log import ProgressLog

__all__ = ["ResultsFolder", "coco_segments"]

PNG_FOLDER = "panoptic"
JSON_FILE = "panoptic.json"
_LOG_FILE = "panoptic_progress.jsonl"


def coco_segments(
    panoptic_seg: np.ndarray | torch.Tensor,
    segments_info: Sequence[dict[str, Any]] | None,
    dataset_ids: Sequence[int],
    label_divisor: int = 1000,
) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """Convert a model's output to ids and segments as in a COCO panoptic file.

    Args:
        panoptic_seg: (H, W) segment ids.
        segments_info: with "id" and a contiguous "category_id". None: as
            `segments_without_info`.
        dataset_ids: dataset id of each contiguous id.
        label_divisor: of a map without segments_info.

    Returns:
        (H, W) int32 map with ids from 1, 0 void; and for each segment that has a pixel: id,
        category_id (dataset id), and the score where the model gave one.
    """
    runs = find_runs(torch.as_tensor(panoptic_seg).cpu().numpy().astype(np.int64))
    values, index = runs.index
    if segments_info is None:
        segments_info = segments_without_info(values, label_divisor)
    by_id = {int(segment["id"]): segment for segment in segments_info}
    new_ids: np.ndarray = np.zeros(len(values), np.int32)
    segments: list[dict[str, Any]] = []
    for position, value in enumerate(values.tolist()):
        if value not in by_id:
            continue
        new_ids[position] = len(segments) + 1
        segment: dict[str, Any] = {
            "id": int(new_ids[position]),
            "category_id": dataset_ids[int(by_id[value]["category_id"])],
        }
        if by_id[value].get("score") is not None:
            segment["score"] = round(float(by_id[value]["score"]), 4)
        segments.append(segment)
    return runs.expand(new_ids[index]), segments


class ResultsFolder:
    """The results of a folder of images: PNGs, a log, and at the end the JSON.

    Args:
        folder: results go to `folder`/panoptic/*.png and `folder`/panoptic.json.
        metadata: of the data set: names, kinds and dataset ids of the classes.
        fresh: discard the log of an earlier run.
    """

    def __init__(self, folder: str, metadata: Any, *, fresh: bool = False) -> None:
        self.folder = folder
        self.json_path = os.path.join(folder, JSON_FILE)
        # error=None: the command explains every OSError, such as that of a full disk, itself.
        # ensure_ascii=False: names of the user's files stay readable in the JSON.
        self._writer = PanopticWriter(
            self.json_path, os.path.join(folder, PNG_FOLDER), error=None, ensure_ascii=False
        )
        self._metadata = metadata
        self._dataset_ids = dataset_ids(metadata)
        os.makedirs(os.path.join(folder, PNG_FOLDER), exist_ok=True)
        self._log = ProgressLog(os.path.join(folder, _LOG_FILE), fresh=fresh)

    def has(self, key: str) -> bool:
        """Whether `key` was committed, now or by an earlier run, and its PNG is there."""
        entry = self._log.entries.get(key)
        if entry is None or "annotation" not in entry:
            return entry is not None
        name = entry["annotation"]["file_name"]
        return os.path.isfile(os.path.join(self.folder, PNG_FOLDER, name))

    def image_ids(self) -> dict[str, int | str]:
        """key -> image id of everything committed so far, now or by an earlier run."""
        return {k: e["image"]["id"] for k, e in self._log.entries.items() if "annotation" in e}

    def add(
        self,
        key: str,
        panoptic_seg: np.ndarray | torch.Tensor,
        segments_info: Sequence[dict[str, Any]] | None,
        *,
        image_id: int | str,
        file_name: str,
    ) -> None:
        """Write one image's PNG; `commit` writes its line of the log.

        Args:
            key: names the image among all; its PNG is `key` + ".png".
            panoptic_seg, segments_info: as `coco_segments`.
            image_id, file_name: of the image, for the JSON.
        """
        divisor = getattr(self._metadata, "label_divisor", 1000)
        ids, segments = coco_segments(panoptic_seg, segments_info, self._dataset_ids, divisor)
        annotation = self._writer.add(image_id, f"{key}.png", ids, segments)
        height, width = ids.shape
        image = {"id": image_id, "file_name": file_name, "height": height, "width": width}
        self._log.add(key, {"image": image, "annotation": annotation})

    def commit(self, key: str) -> None:
        """Log what was added since the last commit; and that `key`, such as a video, is done."""
        self._log.commit(key)

    def discard(self) -> None:
        """Undo what was added since the last commit: its input failed.

        A PNG of the same name that an earlier run has logged is the same result, and stays.
        """
        for entry in self._log.discard():
            name = entry["annotation"]["file_name"]
            with contextlib.suppress(FileNotFoundError):
                os.remove(os.path.join(self.folder, PNG_FOLDER, *name.split("/")))

    def write_json(self) -> str:
        """Write the COCO panoptic JSON of everything committed so far; returns its path."""
        entries = [entry for entry in self._log.entries.values() if "annotation" in entry]
        content = {
            "images": [entry["image"] for entry in entries],
            "annotations": [],  # filled in by the writer, here for its place in the file
            "categories": category_entries(categories_of(self._metadata)),
        }
        self._writer.close(content, [entry["annotation"] for entry in entries])
        return self.json_path
