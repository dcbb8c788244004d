"""Predictions collected into a COCO panoptic JSON and its PNGs, image by image.

Each image is one line of a log, so that a run that was stopped goes on where it was; the JSON is
made of the log at the end.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from panoptic_ext.atomic import write_atomic
from panoptic_ext.data.coco.label_png import write_id_map
from panoptic_ext.data.coco.runs import find_runs, segment_boxes
from panoptic_ext.errors import NOT_JSON, PanopticExtError
from panoptic_ext.regular_files import LOG_FILE, check_regular_file

__all__ = ["PanopticResults", "coco_segments"]

PNG_FOLDER = "panoptic"
JSON_FILE = "panoptic.json"
_LOG_FILE = "panoptic_progress.jsonl"


def coco_segments(
    panoptic_seg: np.ndarray | torch.Tensor,
    segments_info: Sequence[dict[str, Any]] | None,
    dataset_ids: Sequence[int],
    label_divisor: int = 1000,
) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """A model's output in COCO panoptic terms.

    Args:
        panoptic_seg: (H, W) segment ids.
        segments_info: with "id" and unified "category_id". None: ids are category_id *
            label_divisor + instance, void is -1.
        dataset_ids: dataset category id of each unified id.

    Returns:
        (H, W) int32 map with ids from 1, 0 void; and for each segment that has a pixel id,
        category_id (of the data set), area in pixels, bbox [x, y, width, height], iscrowd 0, and
        the score where the model gave one.
    """
    ids = torch.as_tensor(panoptic_seg).cpu().numpy().astype(np.int64)
    runs = find_runs(ids, split_rows=True)
    values, row = np.unique(runs.ids, return_inverse=True)
    if segments_info is None:
        segments_info = [
            {"id": int(v), "category_id": int(v) // label_divisor} for v in values if v >= 0
        ]
    by_id = {int(segment["id"]): segment for segment in segments_info}
    areas = np.bincount(row, runs.lengths, minlength=len(values)).astype(int)
    corners = segment_boxes(runs, row, len(values))
    boxes = np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1)
    numbers: np.ndarray = np.zeros(len(values), np.int32)
    segments: list[dict[str, Any]] = []
    for at, value in enumerate(values.tolist()):
        if value not in by_id:
            continue
        numbers[at] = len(segments) + 1
        segment = {
            "id": int(numbers[at]),
            "category_id": dataset_ids[int(by_id[value]["category_id"])],
            "area": int(areas[at]),
            "bbox": boxes[at].tolist(),
            "iscrowd": 0,
        }
        if by_id[value].get("score") is not None:
            segment["score"] = round(float(by_id[value]["score"]), 4)
        segments.append(segment)
    return np.repeat(numbers[row], runs.lengths).reshape(ids.shape), segments


class PanopticResults:
    """The results of a folder of images: PNGs, a log, and at the end the JSON.

    Args:
        folder: results go to `folder`/panoptic/*.png and `folder`/panoptic.json.
        metadata: of the data set: names, kinds and dataset ids of the classes.
        fresh: forget what an earlier run left.
    """

    def __init__(self, folder: str, metadata: Any, *, fresh: bool = False) -> None:
        self.folder = folder
        self.json_path = os.path.join(folder, JSON_FILE)
        self._log_path = os.path.join(folder, _LOG_FILE)
        self._metadata = metadata
        self._dataset_ids = dataset_ids(metadata)
        os.makedirs(os.path.join(folder, PNG_FOLDER), exist_ok=True)
        if fresh and os.path.exists(self._log_path):
            os.remove(self._log_path)
        self._entries = _read_log(self._log_path)

    def has(self, key: str) -> bool:
        """Whether `key` was added or marked, now or by an earlier run, and its PNG is there."""
        entry = self._entries.get(key)
        if entry is None or "annotation" not in entry:
            return entry is not None
        name = entry["annotation"]["file_name"]
        return os.path.isfile(os.path.join(self.folder, PNG_FOLDER, name))

    def image_ids(self) -> dict[str, int | str]:
        """key -> image id of everything added so far, now or by an earlier run."""
        return {k: e["image"]["id"] for k, e in self._entries.items() if "annotation" in e}

    def add(
        self,
        key: str,
        panoptic_seg: np.ndarray | torch.Tensor,
        segments_info: Sequence[dict[str, Any]] | None,
        *,
        image_id: int | str,
        file_name: str,
    ) -> None:
        """Write one image's PNG, aside and then renamed, and its line of the log.

        Args:
            key: names the image among all; its PNG is `key` + ".png".
            panoptic_seg, segments_info: as `coco_segments`.
            image_id, file_name: of the image, for the JSON.
        """
        divisor = getattr(self._metadata, "label_divisor", 1000)
        ids, segments = coco_segments(panoptic_seg, segments_info, self._dataset_ids, divisor)
        name = f"{key}.png"
        path = os.path.join(self.folder, PNG_FOLDER, *name.split("/"))
        os.makedirs(os.path.dirname(path), exist_ok=True)
        write_atomic(path, lambda stream: write_id_map(stream, ids), durable=False)
        height, width = ids.shape
        image = {"id": image_id, "file_name": file_name, "height": height, "width": width}
        annotation = {"image_id": image_id, "file_name": name, "segments_info": segments}
        self._log(key, {"image": image, "annotation": annotation})

    def mark(self, key: str) -> None:
        """Note that `key`, such as a whole video, is done."""
        self._log(key, {})

    def write_json(self) -> str:
        """Write the COCO panoptic JSON of everything added so far; returns its path."""
        entries = [entry for entry in self._entries.values() if "annotation" in entry]
        content = {
            "images": [entry["image"] for entry in entries],
            "annotations": [entry["annotation"] for entry in entries],
            "categories": self._categories(),
        }
        text = json.dumps(content, ensure_ascii=False)
        write_atomic(self.json_path, lambda stream: stream.write(text.encode()))
        return self.json_path

    def _categories(self) -> list[dict[str, Any]]:
        data = self._metadata
        colors = getattr(data, "stuff_colors", None) or [[0, 0, 0]] * len(self._dataset_ids)
        return [
            {
                "id": dataset_id,
                "name": data.stuff_classes[i],
                "isthing": int(data.isthing[i]),
                "color": list(colors[i]),
            }
            for i, dataset_id in enumerate(self._dataset_ids)
        ]

    def _log(self, key: str, entry: dict[str, Any]) -> None:
        self._entries[key] = entry
        with open(self._log_path, "a", encoding="utf-8") as stream:
            stream.write(json.dumps({"key": key, **entry}, ensure_ascii=False) + "\n")


def dataset_ids(metadata: Any) -> list[int]:
    """Dataset category id of each unified id, in their order."""
    pairs = {
        **metadata.thing_dataset_id_to_contiguous_id,
        **metadata.stuff_dataset_id_to_contiguous_id,
    }
    unified = {contiguous: dataset for dataset, contiguous in pairs.items()}
    return [unified[i] for i in range(len(unified))]


def _read_log(path: str) -> dict[str, dict[str, Any]]:
    """Entries by key; a last line that was cut off by a kill is left out, and cut off."""
    entries: dict[str, dict[str, Any]] = {}
    if not os.path.lexists(path):
        return entries
    check_regular_file(path, LOG_FILE)
    with open(path, "rb+") as stream:
        content = stream.read()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            stream.truncate(whole)
    for number, line in enumerate(content[:whole].splitlines(), start=1):
        try:
            entry = json.loads(line)
            entries[entry.pop("key")] = entry
        except (*NOT_JSON, KeyError, TypeError, AttributeError) as error:
            raise PanopticExtError(
                f"{path}:{number} is not a line that predict wrote: {error}; remove this file to"
                " predict its images again"
            ) from error
    return entries
