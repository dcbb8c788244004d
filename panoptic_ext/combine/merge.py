"""Merge files of semantic and instance predictions of any two models into panoptic results."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from panoptic_ext.atomic import remove_leftovers
from panoptic_ext.combine.images import ImageEntry, ImageList
from panoptic_ext.combine.inputs import VOID, InstanceResults, SemanticPredictions
from panoptic_ext.data.coco.categories import category_entries
from panoptic_ext.data.coco.writer import PanopticWriter
from panoptic_ext.errors import EvaluationError, listed
from panoptic_ext.fusion import FusionRule, heuristic_fusion_on_labels
from panoptic_ext.many_files import ManyFiles, listed_failures

__all__ = ["CombinedFiles", "combine_files"]


STUFF_AREA_THRESHOLD = 4096  # pixels; the published merging of COCO's results


@dataclass(frozen=True)
class CombinedFiles:
    """The result of `combine_files`.

    Attributes:
        json: path of the COCO panoptic JSON.
        png_root: folder of its PNGs.
        images, things, stuff: how many were written.
        without_instances, without_semantic: ids of the images that have no prediction of that kind.
            The result of an image in both is void everywhere.
    """

    json: str
    png_root: str
    images: int
    things: int
    stuff: int
    without_instances: tuple[int | str, ...]
    without_semantic: tuple[int | str, ...]


def combine_files(
    images: ImageList,
    instances: InstanceResults,
    semantic: SemanticPredictions,
    output: str,
    rule: FusionRule | None = None,
    *,
    allow_missing: bool = False,
    num_threads: int = 2,
    progress: bool = False,
) -> CombinedFiles:
    """Merge the predictions of each image by score and write COCO panoptic results.

    Args:
        images: the data set; each of its images gets a result.
        instances, semantic: the predictions. An image may have no instance.
        output: folder for `panoptic_predictions.json` and the folder `panoptic_predictions`.
        rule: thresholds, and the classes of `images`; see `heuristic_fusion_on_labels`. None: the
            published thresholds.
        allow_missing: accept images without semantic prediction; pixels without an instance are
            void there.
        num_threads: number of threads that read, merge and write.
        progress: show a progress bar on stderr.

    Raises:
        EvaluationError: an image without semantic prediction, a prediction that cannot be read or
            is of another size, or a folder that cannot be written to.
    """
    rule = rule or FusionRule(
        images.thing_ids, len(images.categories), stuff_area_threshold=STUFF_AREA_THRESHOLD
    )
    no_semantic = tuple(i.image_id for i in images.images if not semantic.has(i))
    if no_semantic and not allow_missing:
        raise EvaluationError(
            f"{len(no_semantic)} of {len(images.images)} images of {images.where} have no semantic"
            f" prediction: image ids {listed(no_semantic)}; predict them too, or go on without them"
            " (--allow-missing)"
        )
    writer = PanopticWriter.of_predictions(output)
    path, png_root = writer.json_path, writer.png_root
    _check_inputs_stay((images.where, instances.path, semantic.path), path, png_root)
    _remove_earlier_results(path, png_root)

    def combine(image: ImageEntry) -> dict[str, Any]:
        label_map, segments = _combine_image(images, image, instances, semantic, rule)
        return writer.add(image.image_id, image.png_name, label_map, segments)

    total = len(images.images)
    files = ManyFiles[ImageEntry](
        lambda image: f"image {image.image_id!r}", num_threads=max(1, num_threads)
    )
    bar = tqdm(
        files.results(images.images, combine), "combine", total, unit="image", disable=not progress
    )
    annotations = [annotation for _, annotation in bar if annotation is not None]
    files.stop.check(
        f"stopped after {files.done} of {total} images; their PNGs are in {png_root}, without a "
        "JSON, and the same command writes all of them again"
    )
    # No JSON is written: one of the other images alone could be mistaken for a complete result.
    if files.failed:
        raise EvaluationError(listed_failures(files.failed, total, "cannot be combined"))
    writer.close(_content(images), annotations)
    things = {images.categories[i].id for i in images.thing_ids}
    are_things = [s["category_id"] in things for a in annotations for s in a["segments_info"]]
    return CombinedFiles(
        path,
        png_root,
        len(annotations),
        sum(are_things),
        len(are_things) - sum(are_things),
        tuple(i.image_id for i in images.images if not instances.of(i)),
        no_semantic,
    )


def _combine_image(
    images: ImageList,
    image: ImageEntry,
    instances: InstanceResults,
    semantic: SemanticPredictions,
    rule: FusionRule,
) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """The (H, W) map of one image and its segments with dataset ids."""
    rows = instances.of(image)
    labels = semantic.labels(image) if semantic.has(image) else np.full(image.size, VOID)

    # Each mask is decoded when the fusion asks for it, so that they are not all in memory at once.
    def mask_of(index: int) -> tuple[torch.Tensor, int, int]:
        window, top, left = instances.window(image, rows[index])
        return torch.from_numpy(window), top, left

    ids, segments = heuristic_fusion_on_labels(
        torch.from_numpy(labels),
        rule,
        scores=[row["score"] for row in rows],
        classes=[images.contiguous[row["category_id"]] for row in rows],
        mask_of=mask_of,
    )
    return ids.numpy(), [
        {"id": s["id"], "category_id": images.categories[s["category_id"]].id} for s in segments
    ]


def _content(images: ImageList) -> dict[str, Any]:
    """The content of the COCO panoptic JSON, without annotations yet."""
    return {
        "images": [
            {"id": i.image_id, "file_name": i.file_name, "height": i.size[0],
             "width": i.size[1]}
            for i in images.images
        ],
        "annotations": [],  # filled in by the writer, here for its place in the file
        "categories": category_entries(images.categories),
    }  # fmt: skip


def _check_inputs_stay(inputs: Iterable[str], path: str, png_root: str) -> None:
    """Raise EvaluationError if the results would overwrite their inputs."""
    results = [os.path.realpath(result) for result in (path, png_root)]
    for input_path in inputs:
        # Links are resolved: two names may be the same file.
        real = os.path.realpath(input_path)
        is_around = os.path.isdir(real) and results[1].startswith(os.path.join(real, ""))
        if real in results or is_around:
            raise EvaluationError(
                f"the results would be written to {path} and {png_root}, into or over the input"
                f" {input_path}; choose another folder (--output)"
            )


def _remove_earlier_results(path: str, png_root: str) -> None:
    """Remove the JSON and the unfinished files of an earlier run; make the folder of PNGs."""
    try:
        os.makedirs(png_root, exist_ok=True)
        remove_leftovers(os.path.dirname(path) or ".")
        remove_leftovers(png_root)
        # After an interrupted run some PNGs would be new, and the old JSON would not match them.
        if os.path.exists(path):
            os.remove(path)
    except OSError as error:
        raise EvaluationError(
            f"cannot write to {os.path.dirname(path) or '.'}: {error.strerror}; choose a folder"
            " that is writable (--output)"
        ) from error
