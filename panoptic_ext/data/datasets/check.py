"""Check a whole data set and report all of its problems at once."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from PIL import Image

from panoptic_ext.data.coco.json_checks import check_structure, safe_name
from panoptic_ext.data.coco.json_file import read_json
from panoptic_ext.data.coco.label_png import read_id_map, read_png_size
from panoptic_ext.data.coco.problems import Problem, problem_of
from panoptic_ext.data.coco.runs import find_runs
from panoptic_ext.data.datasets.check_files import check_each
from panoptic_ext.data.datasets.check_instances import check_instance_data, count_instances
from panoptic_ext.data.datasets.file_search import FolderIndex
from panoptic_ext.data.datasets.instances import has_instances_alone
from panoptic_ext.data.datasets.metadata import PanopticMetadata, PanopticSource
from panoptic_ext.data.datasets.panoptic import load_source, missing_file_problems
from panoptic_ext.data.datasets.registered import get_metadata
from panoptic_ext.data.image_files import EXIF_ORIENTATION, READ_ERRORS, deep_pixels, turned_size
from panoptic_ext.errors import DatasetError, listed, quoted
from panoptic_ext.regular_files import IMAGE, file_problem

__all__ = ["check_panoptic", "count_segments"]


@dataclass(frozen=True)
class _Sample:
    """One annotated image with its entries in the JSON; `size` is the JSON's (height, width)."""

    where: str
    image: str
    png: str
    size: tuple[Any, Any]
    segments: list[dict[str, Any]] | None


def check_panoptic(
    data: str | PanopticSource,
    *,
    pixels: bool = True,
    workers: int = 4,
    progress: bool = False,
) -> list[Problem]:
    """Return all problems of a data set.

    Args:
        data: a registered name, or a source that need not be registered.
        pixels: True also opens every image and label map; False checks only the JSON and whether
            files exist.
        workers: number of threads that read files.
        progress: show a progress bar.

    Returns:
        problems in the order JSON, files, pixels. Those with `warning` do not prevent training.

    Raises:
        CheckInterrupted: after Ctrl-C or SIGTERM.
    """
    if isinstance(data, str) and has_instances_alone(data):
        return check_instance_data(data, pixels=pixels, workers=workers, progress=progress)
    source = data if isinstance(data, PanopticSource) else _source_of(data)
    try:
        path, image_root, png_root = source.locate()
        info = read_json(path)
    except DatasetError as error:
        return [Problem("unreadable-json", source.json, str(error).rstrip("."), "then check again")]
    problems = check_structure(info, path, encoding=source.encoding, categories=source.classes)
    # A faulty JSON does not end the check: the user gets all problems in one run. Everything below
    # therefore skips entries that `check_structure` has reported.
    if not isinstance(info.get("images"), list) or not isinstance(info.get("annotations"), list):
        return problems
    file_problems, samples = _check_files(source, info, image_root, png_root)
    problems += file_problems
    problems += _check_same_names(samples)
    problems += [problem for sample in samples for problem in _check_content(sample)]
    if pixels:
        return check_each(
            samples,
            partial(_check_pixels, encoding=source.encoding),
            where=lambda sample: f"{sample.where}, {sample.image}",
            before=problems,
            workers=workers,
            progress=progress,
        )
    return problems


def count_segments(data: str | PanopticSource) -> str:
    """Return one line with the numbers of images, classes and segments of a valid data set."""
    if isinstance(data, str) and has_instances_alone(data):
        return count_instances(data)
    source = data if isinstance(data, PanopticSource) else _source_of(data)
    records, categories = load_source(source)
    segments = sum(len(record["segments_info"]) for record in records)
    things = sum(category.isthing for category in categories)
    return (
        f"{len(records)} images, {things} things + {len(categories) - things} stuff, "
        f"{segments} segments"
    )


def _source_of(name: str) -> PanopticSource:
    metadata = get_metadata(name)
    if not isinstance(metadata, PanopticMetadata):
        raise DatasetError(
            f"data set {quoted(name)} was not registered by panoptic_ext; give its JSON, image "
            "root and PNG root instead"
        )
    return metadata.source


def _check_files(
    source: PanopticSource, info: dict[str, Any], image_root: str, png_root: str
) -> tuple[list[Problem], list[_Sample]]:
    """Return the problems of missing files, and the samples whose files exist."""
    kinds = (int, str)
    images = {
        str(e["id"]): e
        for e in info["images"]
        if isinstance(e, dict) and isinstance(e.get("id"), kinds)
    }
    image_files, png_files = FolderIndex(image_root), FolderIndex(png_root)
    problems: list[Problem] = []
    samples = []
    for annotation in info["annotations"]:
        if not isinstance(annotation, dict) or not safe_name(annotation.get("file_name")):
            continue
        image_id = annotation.get("image_id")
        entry = images.get(str(image_id)) if isinstance(image_id, kinds) else None
        if entry is None:
            continue
        name = source.image_name(entry) if entry.get("file_name") else None
        if not safe_name(name):
            continue
        png = os.path.join(png_root, annotation["file_name"])
        image_file = image_files.find_image(str(name), exclude=png)
        missing = missing_file_problems(
            entry.get("id"), str(name), image_file, annotation["file_name"], png_files, image_root
        )
        problems += missing
        if image_file is not None and not missing:
            segments = annotation.get("segments_info")
            samples.append(
                _Sample(
                    where=f"image id {quoted(entry['id'])}",
                    image=os.path.join(image_root, image_file),
                    png=png,
                    size=(entry.get("height"), entry.get("width")),
                    segments=_usable(segments) if isinstance(segments, list) else None,
                )
            )
    return problems, samples


def _usable(segments: list[Any]) -> list[dict[str, Any]]:
    """The segments whose ids can be compared with pixels. `check_structure` reports the others."""
    return [s for s in segments if isinstance(s, dict) and isinstance(s.get("id"), int)]


def _check_same_names(samples: list[_Sample]) -> list[Problem]:
    folders: dict[str, list[str]] = defaultdict(list)
    for sample in samples:
        folders[os.path.splitext(os.path.basename(sample.image))[0]].append(sample.image)
    return [
        Problem(
            "same-base-name",
            listed(paths, 3, show=str),
            f"{len(paths)} images in different folders have the name {quoted(name)}",
            "fine here, but tools that write one file per name will mix them up",
            warning=True,
        )
        for name, paths in folders.items()
        if len(paths) > 1
    ]


def _check_content(sample: _Sample) -> Iterator[Problem]:
    if sample.segments is None:
        return
    if not sample.segments:
        message = "no segment at all: every pixel is void"
    elif all(s.get("iscrowd") == 1 for s in sample.segments):
        message = "nothing but crowd"
    else:
        return
    yield Problem(
        "nothing-to-learn",
        sample.where,
        message,
        "training leaves it out unless DATALOADER.FILTER_EMPTY_ANNOTATIONS is False; annotate it "
        "or remove it",
        warning=True,
    )


def _check_pixels(sample: _Sample, encoding: str) -> list[Problem]:
    """Open one image and its label map and return their problems."""
    stored, turn, problems = _check_image(sample)
    labels, ids, label_problems = _check_label_map(sample, encoding)
    problems += label_problems
    if stored is not None:
        problems += _check_sizes(sample, stored, turn, labels)
    if ids is not None and sample.segments is not None:
        problems += _check_ids(sample, ids)
    return problems


def _check_image(sample: _Sample) -> tuple[tuple[int, int] | None, int, list[Problem]]:
    """(height, width) of the image in its file, its EXIF orientation, and what is wrong with it."""
    where = f"{sample.where}, {sample.image}"
    problem = file_problem(sample.image, IMAGE)
    if problem:
        return None, 1, [problem_of("damaged-image", where, problem)]
    try:
        with Image.open(sample.image) as image:
            if _is_larger((image.height, image.width), sample.size):
                return (image.height, image.width), 1, []  # `_check_sizes` reports it
            image.load()
            size = (image.height, image.width)
            turn = image.getexif().get(EXIF_ORIENTATION, 1)
            deep = deep_pixels(image)
    except READ_ERRORS as error:
        mend = "copy it again or remove it from the JSON"
        return None, 1, [Problem("damaged-image", where, f"cannot be read: {error}", mend)]
    return size, turn, [problem_of("deep-image", where, deep)] if deep else []


def _check_label_map(
    sample: _Sample, encoding: str
) -> tuple[tuple[int, int] | None, np.ndarray | None, list[Problem]]:
    """Height and width of the label map, its (H, W) ids, and why it cannot be read."""
    try:
        size = read_png_size(sample.png)
        if size is not None and _is_larger(size, sample.size):
            return size, None, []  # `_check_sizes` reports it
        ids = read_id_map(sample.png, encoding)
    except DatasetError as error:
        return None, None, [problem_of("bad-label-map", sample.where, error)]
    return (ids.shape[0], ids.shape[1]), ids, []


def _is_larger(size: tuple[int, int], expected: tuple[Any, Any]) -> bool:
    """Whether a file has more pixels than the JSON's size; such a file is not decoded."""
    known = all(type(length) is int and length > 0 for length in expected)
    return known and size[0] * size[1] > expected[0] * expected[1]


def _check_sizes(
    sample: _Sample, stored: tuple[int, int], turn: int, labels: tuple[int, ...] | None
) -> Iterator[Problem]:
    """Compare the image size after EXIF rotation, as the loader reads it, with JSON and label map.

    Args:
        sample: its `size` is the JSON's.
        stored: height, width of the image in its file.
        turn: EXIF orientation, 1 to 8.
        labels: height, width of the label map; None where it cannot be read.
    """
    where = f"{sample.where}, {sample.image}"
    size = turned_size(stored, turn)
    sizes = {sample.size, labels or sample.size}
    if sizes == {size}:
        # Square images, mirrored ones and those turned by 180 degrees keep their size, so sizes
        # cannot show whether the label map was rotated as well.
        if turn in range(2, 9) and stored == size:
            yield Problem(
                "exif-rotation",
                where,
                f"the EXIF tag (orientation {turn}) turns or mirrors it when it is read, and its "
                "size does not show whether its label map was turned with it",
                "save it upright, without the tag, and look at it with panoptic-ext data visualize",
                warning=True,
            )
        return
    # JSON and label map describe the stored pixels: one cause, so one problem in place of two.
    if sizes == {stored}:
        yield Problem(
            "exif-rotation",
            where,
            f"the EXIF tag (orientation {turn}) turns it to {_by(size)} (height x width) when it "
            f"is read, but JSON and label map are {_by(stored)}",
            "save it upright, without the tag",
        )
        return
    after = f" after its EXIF tag (orientation {turn}) turned it" if size != stored else ""
    if sample.size != size:
        yield Problem(
            "size-mismatch",
            where,
            f"the image is {_by(size)} (height x width){after}, the JSON says {_by(sample.size)}",
            "correct the JSON or the image",
        )
    if labels is not None and labels != size:
        yield Problem(
            "size-mismatch",
            sample.where,
            f"label map {sample.png} is {_by(labels)}, the image {sample.image} {_by(size)}{after}",
            "make them the same size",
        )


def _check_ids(sample: _Sample, ids: np.ndarray) -> Iterator[Problem]:
    """Compare the ids and areas of a label map with those of the JSON."""
    areas = dict(zip(*(a.tolist() for a in find_runs(ids).areas()), strict=True))
    areas.pop(0, None)
    known = {s["id"] for s in sample.segments or ()}
    for i in sorted(set(areas) - known):
        yield Problem(
            "id-not-in-json",
            f"{sample.where}, {sample.png}, segment id {i}",
            f"{areas[i]} pixels have this id, which is not in segments_info",
            "add the segment or write 0 (void)",
        )
    for segment in sample.segments or ():
        i, area = segment["id"], segment.get("area")
        where = f"{sample.where}, {sample.png}, segment id {i}"
        if i not in areas:
            yield Problem(
                "id-not-in-png",
                where,
                "no pixel has this id",
                "remove the segment from segments_info; the mapper leaves it out",
            )
        elif isinstance(area, (int, float)) and area != areas[i]:
            yield Problem(
                "wrong-area",
                where,
                f"area is {area}, expected the number of pixels, {areas[i]}",
                "correct the area",
            )


def _by(size: tuple[Any, ...]) -> str:
    return f"{size[0]} x {size[1]}"
