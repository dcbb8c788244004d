"""The ground truth of an evaluation, read once for all evaluators."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
from detectron2.data import DatasetCatalog, Metadata, MetadataCatalog
from detectron2.utils.file_io import PathManager

from panoptic_ext.data import PanopticMetadata, get_metadata, get_records
from panoptic_ext.data.coco.json_file import ImageId
from panoptic_ext.data.coco.panoptic_files import Annotation, PanopticFiles
from panoptic_ext.data.coco.runs import Runs
from panoptic_ext.data.coco.segment_table import SegmentTable
from panoptic_ext.data.datasets.file_search import FolderIndex
from panoptic_ext.data.datasets.metadata import categories_of, dataset_ids
from panoptic_ext.data.datasets.parsed import parsed_source
from panoptic_ext.errors import DatasetError, EvaluationError, nearest, quoted

__all__ = ["Truth"]


class Truth:
    """The true label maps and segments of a registered data set, by image id.

    The JSON is read on first use; within `parsed_once`, only if it has not been read before.
    Segments have dataset ids, as in the JSON. The metadata's tables give their contiguous ids.

    Attributes:
        dataset_name: of the data set.
        metadata: of the data set.
    """

    def __init__(self, dataset_name: str):
        """
        Args:
            dataset_name: of `panoptic_ext.data.register_panoptic`, or of another registration,
                whose metadata has panoptic_json and panoptic_root in COCO panoptic format, or
                whose records have pan_seg_file_name and segments_info with contiguous ids.

        Raises:
            DatasetError: it is not registered.
        """
        self.dataset_name = dataset_name
        # Metadata alone, without records, is enough: an evaluation reads the JSON itself.
        has_metadata = dataset_name in MetadataCatalog
        self.metadata: Metadata = (MetadataCatalog.get if has_metadata else get_metadata)(
            dataset_name
        )

    @cached_property
    def files(self) -> PanopticFiles:
        """The JSON's images, segments and categories.

        Raises:
            EvaluationError: the data set is not panoptic, or its JSON is not valid.
        """
        if isinstance(self.metadata, PanopticMetadata):
            return self._registered_files(self.metadata)
        if self.metadata.get("panoptic_json") is None:
            return self._files_of_records()
        return PanopticFiles(
            PathManager.get_local_path(self.metadata.panoptic_json),
            PathManager.get_local_path(self.metadata.panoptic_root),
            encoding=self.metadata.get("panoptic_encoding", "rgb"),
            label_divisor=self.metadata.get("label_divisor", 1000),
        )

    @property
    def annotations(self) -> dict[ImageId, Annotation]:
        """{image_id: annotation}, in the data set's order."""
        return self.files.annotations

    @cached_property
    def order(self) -> dict[ImageId, int]:
        """Position of each image in the data set."""
        return {image_id: position for position, image_id in enumerate(self.annotations)}

    @cached_property
    def contiguous_ids(self) -> dict[int, int]:
        """{dataset id: contiguous id} of all categories."""
        return {
            **self.metadata.stuff_dataset_id_to_contiguous_id,
            **self.metadata.thing_dataset_id_to_contiguous_id,
        }

    def find(self, image_id: ImageId, file_name: str | None = None) -> Annotation:
        """The annotation of an image.

        Args:
            image_id: of the image; 7 and "7" are one id where only one of them exists.
            file_name: of the image, for the error.

        Raises:
            EvaluationError: the data set has no such image.
        """
        annotation = self.files.find(image_id)
        if annotation is None:
            raise EvaluationError(
                f"prediction for image {quoted(image_id)}{f' ({file_name})' if file_name else ''},"
                f" which is not in {self.files.path}"
                + nearest(str(image_id), map(str, self.annotations))
            )
        return annotation

    def runs(self, annotation: Annotation) -> Runs:
        """The label map of an image.

        Raises:
            EvaluationError: it cannot be read, or has another size than the JSON says.
        """
        return self.files.runs(annotation)

    def table(self, annotation: Annotation, runs: Runs) -> SegmentTable:
        """The segments of an image with dataset ids; `runs` are its label map's."""
        return self.files.table(annotation, runs)

    def contiguous_classes(self, table: SegmentTable) -> np.ndarray:
        """(S,) int64, the contiguous id of each segment's category."""
        return np.array([self.contiguous_ids[c] for c in table.categories.tolist()], np.int64)

    def contiguous_segments(
        self, annotation: Annotation
    ) -> tuple[np.ndarray, list[dict[str, Any]]]:
        """An image's truth in the form of a model's prediction, for drawing.

        Returns:
            (H, W) int32 ids, and dicts with id, contiguous category_id, isthing and iscrowd.
        """
        runs = self.runs(annotation)
        table = self.table(annotation, runs)
        rows = zip(
            table.ids.tolist(),
            table.categories.tolist(),
            self.contiguous_classes(table).tolist(),
            table.iscrowd.tolist(),
            strict=True,
        )
        things = self.metadata.thing_dataset_id_to_contiguous_id
        segments = [
            {"id": i, "category_id": contiguous, "isthing": c in things, "iscrowd": int(crowd)}
            for i, c, contiguous, crowd in rows
        ]
        return runs.dense(), segments

    def image_names(self) -> list[str]:
        """The names of the images' files without their folders, in the data set's order.

        For a data set of `register_panoptic` they are the files on the disk, whose extension may
        differ from the JSON's. For others they are those of the records.
        """
        if isinstance(self.metadata, PanopticMetadata):
            return self._names_on_disk(self.metadata)
        paths = {}
        if self.dataset_name in DatasetCatalog:
            paths = {r["image_id"]: r["file_name"] for r in get_records(self.dataset_name)}
        return [
            os.path.basename(
                paths.get(annotation.image_id)
                or self.files.image_entry(annotation).get("file_name")
                or annotation.file_name
            )
            for annotation in self.annotations.values()
        ]

    def _names_on_disk(self, metadata: PanopticMetadata) -> list[str]:
        index = FolderIndex(metadata.image_root)
        names = []
        for annotation in self.annotations.values():
            name = metadata.source.image_name(self.files.image_entry(annotation))
            label_png = os.path.join(self.files.root, annotation.file_name)
            names.append(os.path.basename(index.find_image(name, exclude=label_png) or name))
        return names

    def _files_of_records(self) -> PanopticFiles:
        """The records of a data set without a JSON, converted to the JSON's form."""
        if self.dataset_name not in DatasetCatalog:
            raise EvaluationError(
                f"the metadata of data set {quoted(self.dataset_name)} has no 'panoptic_json', and "
                "it has no records; register it with panoptic_ext.data.register_panoptic"
            )
        records = get_records(self.dataset_name)
        for key in ("pan_seg_file_name", "segments_info"):
            if any(key not in record for record in records):
                raise EvaluationError(
                    f"the metadata of data set {quoted(self.dataset_name)} has no 'panoptic_json', "
                    f"and its records have no {quoted(key)}; register it with "
                    "panoptic_ext.data.register_panoptic"
                )
        return PanopticFiles(
            f"data set {quoted(self.dataset_name)}",
            # The records name label maps in any folder, so that their common root is the disk's.
            os.path.abspath(os.sep),
            encoding=records[0].get("pan_seg_encoding", "rgb") if records else "rgb",
            categories=categories_of(self.metadata),
            content=_content_of_records(records, dataset_ids(self.metadata)),
        )

    @staticmethod
    def _registered_files(metadata: PanopticMetadata) -> PanopticFiles:
        source = metadata.source
        try:
            parsed = parsed_source(source)
        except DatasetError as error:
            raise EvaluationError(str(error)) from error
        return PanopticFiles(
            parsed.path,
            parsed.png_root,
            encoding=source.encoding,
            label_divisor=source.label_divisor,
            categories=parsed.categories,
            content=parsed.content,
        )


def _content_of_records(
    records: Sequence[dict[str, Any]], dataset_ids: Sequence[int]
) -> dict[str, Any]:
    """A COCO panoptic JSON without categories; `dataset_ids` are those of the contiguous ids."""
    return {
        "images": [{**record, "id": record["image_id"]} for record in records],
        "annotations": [
            {
                "image_id": record["image_id"],
                "file_name": os.path.abspath(record["pan_seg_file_name"]),
                "segments_info": [
                    {**segment, "category_id": dataset_ids[segment["category_id"]]}
                    for segment in record["segments_info"]
                ],
            }
            for record in records
        ],
    }
