"""COCO panoptic results: a label PNG for each image and one JSON about all of them."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from panoptic_ext.atomic import write_file
from panoptic_ext.data.coco.json_file import ImageId
from panoptic_ext.data.coco.label_png import encode_png
from panoptic_ext.data.coco.runs import Runs, find_runs
from panoptic_ext.errors import EvaluationError, PanopticExtError

__all__ = ["PREDICTIONS", "PanopticWriter", "check_png_names", "measured_segments", "png_name"]

PREDICTIONS = "panoptic_predictions"
"""Folder of the PNGs of predictions, and stem of their JSON."""


class PanopticWriter:
    """Write a result in COCO panoptic format. Each file is written whole or not at all.

    The writer stores no images, so several threads and processes may add images at the same time.
    The caller collects what `add` returns and passes it to `close`, in the order for the JSON.

    Attributes:
        json_path: of the JSON.
        png_root: folder of the PNGs.
    """

    def __init__(
        self,
        json_path: str,
        png_root: str,
        *,
        error: type[PanopticExtError] | None = EvaluationError,
        ensure_ascii: bool = True,
    ):
        """
        Args:
            json_path: of the JSON; its folder is created by the first write.
            png_root: folder of the PNGs; created likewise.
            error: raised where a file cannot be written; None raises the OSError itself.
            ensure_ascii: escape all other characters in the JSON, as \\u00e9; False writes UTF-8.
        """
        self.json_path, self.png_root = json_path, png_root
        self._error, self._ensure_ascii = error, ensure_ascii

    @classmethod
    def of_predictions(cls, folder: str) -> PanopticWriter:
        """Return a writer of panoptic_predictions.json and panoptic_predictions/ in `folder`."""
        stem = os.path.join(folder, PREDICTIONS)
        return cls(stem + ".json", stem)

    def add(
        self,
        image_id: ImageId,
        file_name: str,
        label_map: Runs | np.ndarray,
        segments: Sequence[Mapping[str, Any]],
    ) -> dict[str, Any]:
        """Write the PNG of one image.

        Args:
            image_id: as in the data set's JSON.
            file_name: of the PNG, relative to the folder of PNGs, with "/" between its parts.
            label_map: (H, W) segment ids, 0 void, or their runs.
            segments: dicts with id and category_id (dataset id), and with any other keys.

        Returns:
            the image's annotation, for `close`.
        """
        path = os.path.join(self.png_root, *file_name.split("/"))
        # Waiting for the disk after each of thousands of PNGs would take minutes. After a power
        # failure they are predicted again, since the JSON is written last.
        write_file(path, encode_png(label_map), durable=False, error=self._error)
        runs = label_map if isinstance(label_map, Runs) else find_runs(label_map)
        return {
            "image_id": image_id,
            "file_name": file_name,
            "segments_info": measured_segments(runs, segments),
        }

    def close(self, content: Mapping[str, Any], annotations: Iterable[Mapping[str, Any]]) -> None:
        """Write the JSON.

        Args:
            content: images, categories and any other keys of the JSON.
            annotations: of all images, from `add`.
        """
        whole = {**content, "annotations": list(annotations)}
        text = json.dumps(whole, ensure_ascii=self._ensure_ascii)
        write_file(self.json_path, text.encode(), error=self._error)


def measured_segments(runs: Runs, segments: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """segments_info in COCO's format: iscrowd (0 where missing), area and bbox are filled in.

    Args:
        runs: of the label map.
        segments: as `PanopticWriter.add`.
    """
    areas = dict(zip(*(a.tolist() for a in runs.areas()), strict=True))
    boxes = runs.boxes(np.array([s["id"] for s in segments], np.int64)).tolist()
    measured = []
    for segment, box in zip(segments, boxes, strict=True):
        size = {"area": areas.get(segment["id"], 0), "bbox": box}
        # The order of the keys is that of COCO's files, or the segment's own if it has iscrowd.
        # A given area and bbox are replaced by the measured ones.
        first = {"id": segment["id"], "category_id": segment["category_id"]}
        crowd = {} if "iscrowd" in segment else {**first, **size, "iscrowd": 0}
        measured.append({**crowd, **segment, **size})
    return measured


def png_name(file_name: str) -> str:
    """The name of an image's result PNG, from that of the image or of its true label PNG."""
    return os.path.splitext(file_name)[0] + ".png"


def check_png_names(file_names: Collection[str], where: str) -> None:
    """Raise EvaluationError where two images would be written to one file.

    Args:
        file_names: one for each image, see `png_name`.
        where: names the data set in the error.
    """
    if len({png_name(name) for name in file_names}) < len(file_names):
        raise EvaluationError(
            f"{where}: two images have one PNG file_name, so predictions cannot be written"
            " under these names; give each image its own"
        )
