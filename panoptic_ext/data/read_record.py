"""Read the image and the label map of a panoptic record, checked against the record.

Shapes: H x W is the image as on disk, N the number of segments.
"""

from __future__ import annotations

import logging
from typing import Any, NamedTuple

import numpy as np
from detectron2.utils.logger import log_first_n

from panoptic_ext.data.coco.id_map import remap_ids
from panoptic_ext.data.coco.label_png import ExpectedSize, read_id_map
from panoptic_ext.data.image_files import read_image
from panoptic_ext.errors import DatasetError, UnreadableFileError, listed, quoted

__all__ = ["Labels", "read_labels", "read_record_image"]

logger = logging.getLogger(__name__)


class Labels(NamedTuple):
    """The segments of an image.

    Attributes:
        ids: (H, W) local ids 0..N, 0 is void.
        segments: the segments_info entries of 1..N.
        present: (N,) bool, which of them occur in the label map.
    """

    ids: np.ndarray
    segments: list[dict[str, Any]]
    present: np.ndarray


def read_record_image(record: dict[str, Any], image_format: str) -> np.ndarray:
    """Return the (H, W, 3) uint8 image, rotated by its EXIF tag, and check its size.

    Args:
        record: its "file_name", and its "height" and "width" where it has them, are read.
        image_format: e.g. "BGR", as `detection_utils.read_image` takes it.

    Raises:
        UnreadableFileError: the file is missing or damaged.
        DatasetError: it has another size than the record.
    """
    path, where = record["file_name"], f"image id {quoted(record.get('image_id'))}"
    try:
        has_size = "height" in record and "width" in record
        size = (record["height"], record["width"]) if has_size else None
        image = read_image(path, image_format, size=size)
    except UnreadableFileError as error:
        raise UnreadableFileError(
            f"{where}: {error}; copy it again, correct the image root, or set "
            "DATALOADER.SKIP_CORRUPT True to train without it"
        ) from error
    except DatasetError as error:
        raise DatasetError(f"{where}: {error}") from error
    # read_image accepts swapped sides, because the file's header does not include the rotation
    # by the EXIF tag. The final size is compared here.
    expected = record.get("height", image.shape[0]), record.get("width", image.shape[1])
    if image.shape[:2] != expected:
        is_turned = image.shape[1::-1] == expected
        hint = (
            "its EXIF tag turns it: save it upright, without the tag"
            if is_turned
            else "correct the JSON or the image"
        )
        raise DatasetError(
            f"{where}: image {path} is {image.shape[0]} x {image.shape[1]} (height x width), "
            f"the JSON says {expected[0]} x {expected[1]}; {hint}"
        )
    return image


def read_labels(record: dict[str, Any], size: tuple[int, int]) -> Labels:
    """Return the label map of a panoptic record with local ids, and the segments of these.

    Args:
        record: "pan_seg_file_name" and "segments_info" are read.
        size: height and width of its image.

    Raises:
        UnreadableFileError: the file is missing or damaged.
        DatasetError: it does not fit the image or the record.
    """
    path = record["pan_seg_file_name"]
    where = f"image id {quoted(record.get('image_id'))}"
    expected = ExpectedSize(
        *size,
        f"the image {record['file_name']} is",
        "make them the same size (an EXIF tag turns an image but not its label map)",
    )
    try:
        ids = read_id_map(path, record.get("pan_seg_encoding", "rgb"), size=expected)
    except DatasetError as error:
        raise type(error)(f"{where}: {error}") from error
    segments = record["segments_info"]
    local, present, unknown = remap_ids(ids, np.array([s["id"] for s in segments], np.int64))
    if len(unknown):
        raise DatasetError(
            f"{where}: label map {path} has the ids {listed(unknown.tolist(), 10)}, which "
            "are not in the JSON's segments_info; add them, or write 0 (void) for them"
        )
    if not present.all():
        missing = [s["id"] for s, occurs in zip(segments, present, strict=True) if not occurs]
        log_first_n(
            logging.WARNING,
            f"{where}: segments {listed(missing, 10)} are not in the label map {path} and are left "
            "out; panoptic-ext data check lists all such segments",
            n=1,
            name=__name__,
        )
    return Labels(local, segments, present)
