"""Check a data set of instances alone and report all of its problems at once."""

from __future__ import annotations

import os
from typing import Any

from detectron2.data import MetadataCatalog

from panoptic_ext.data.coco.json_file import read_json
from panoptic_ext.data.coco.problems import Problem, problem_of
from panoptic_ext.data.datasets.check_files import check_each
from panoptic_ext.data.datasets.instances import check_instances
from panoptic_ext.data.datasets.registered import get_records
from panoptic_ext.data.image_files import read_image
from panoptic_ext.errors import DatasetError, quoted
from panoptic_ext.regular_files import INSTANCES_JSON

__all__ = ["check_instance_data", "count_instances"]


def check_instance_data(
    name: str, *, pixels: bool = True, workers: int = 4, progress: bool = False
) -> list[Problem]:
    """Return all problems of a registered data set of instances.

    Args:
        name: a data set of panoptic_ext or of Detectron2, such as coco_2017_train.
        pixels: True also opens every image; False checks only the JSON and whether files exist.
        workers: number of threads that read files.
        progress: show a progress bar.
    """
    metadata = MetadataCatalog.get(name)
    try:
        path = metadata.get("json_file", "")
        if path and metadata.get("evaluator_type", None) == "coco":
            # The JSON is checked before `get_records`, which would raise a single error for all
            # problems. Detectron2's own reader checks less.
            problems = check_instances(
                read_json(path, INSTANCES_JSON), path, metadata.get("image_root", "")
            )
            if problems:
                return problems
        records = get_records(name)
    except DatasetError as error:
        return [Problem("unreadable-json", name, str(error).rstrip("."), "then check again")]
    if not pixels:
        return [p for record in records for p in _check_presence(record)]
    return check_each(
        records,
        _check_image,
        where=lambda record: str(record["file_name"]),
        workers=workers,
        progress=progress,
    )


def count_instances(name: str) -> str:
    """Return one line with the numbers of images, classes and instances of a valid data set."""
    records = get_records(name)
    instances = sum(len(record["annotations"]) for record in records)
    things = len(MetadataCatalog.get(name).thing_classes)
    return f"{len(records)} images, {things} things, {instances} instances"


def _check_presence(record: dict[str, Any]) -> list[Problem]:
    if os.path.isfile(record["file_name"]):
        return []
    where = f"image id {quoted(record['image_id'])}"
    mend = "copy it there or correct the image root"
    return [Problem("missing-image", where, f"no image {record['file_name']}", mend)]


def _check_image(record: dict[str, Any]) -> list[Problem]:
    where = f"image id {quoted(record['image_id'])}"
    try:
        size = read_image(record["file_name"], "RGB").shape[:2]
    except DatasetError as error:
        return [problem_of("damaged-image", where, error)]
    expected = record["height"], record["width"]
    if size == expected:
        return []
    message = f"image {record['file_name']} is {size[0]} x {size[1]} (height x width)"
    return [
        Problem(
            "size-mismatch",
            where,
            f"{message} as it is read, the JSON says {expected[0]} x {expected[1]}",
            "correct the JSON or the image (an EXIF tag turns an image)",
        )
    ]
