"""Results in the forms of other tools: COCO, Detectron2, supervision, FiftyOne, pandas.

The methods of `PanopticResult` that begin with `to_` are these functions. H x W is the image, N the
number of segments. Other packages are imported when they are needed.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from detectron2.structures import Boxes, Instances

from panoptic_ext.data.coco.categories import category_entries
from panoptic_ext.data.coco.id_map import MAX_RGB_ID, remap_ids
from panoptic_ext.data.coco.json_file import ImageId
from panoptic_ext.data.coco.label_png import encode_png
from panoptic_ext.data.coco.runs import find_runs
from panoptic_ext.data.coco.writer import measured_segments, png_name
from panoptic_ext.data.datasets.metadata import categories_of
from panoptic_ext.errors import DatasetError, check_known
from panoptic_ext.optional_packages import import_optional

if TYPE_CHECKING:
    from panoptic_ext.prediction.panoptic_result import PanopticResult

__all__ = [
    "CocoPanoptic",
    "to_coco",
    "to_fiftyone",
    "to_instances",
    "to_pandas",
    "to_semantic",
    "to_supervision",
]

# Of a segment without a score, in the tools that ask for one: what the model gives no doubt about.
_CERTAIN = 1.0


@dataclass(frozen=True)
class CocoPanoptic:
    """One image's result in COCO's panoptic format.

    Attributes:
        ids: (H, W) int32 segment ids, 0 for void.
        annotation: entry of the JSON's "annotations": image_id, file_name of the PNG, and
            segments_info with dataset category ids, area, bbox, isthing and score.
        image: entry of "images".
        categories: the JSON's "categories".
    """

    ids: np.ndarray
    annotation: dict[str, Any]
    image: dict[str, Any]
    categories: list[dict[str, Any]]

    @property
    def png_string(self) -> bytes:
        """The PNG of the ids, R + 256 G + 65536 B, under DETR's name for it."""
        return encode_png(self.ids)

    def to_json(self) -> dict[str, Any]:
        """The content of a COCO panoptic JSON of this image alone."""
        return {
            "images": [self.image],
            "annotations": [self.annotation],
            "categories": self.categories,
        }


def to_coco(result: PanopticResult, image_id: ImageId | None = None) -> CocoPanoptic:
    """See `PanopticResult.to_coco`."""
    name = os.path.basename(result.file_name)
    if image_id is None:
        image_id = os.path.splitext(name)[0] or 0
    ids, numbers = result.panoptic_seg.numpy(), [segment.id for segment in result]
    if max(numbers, default=0) > MAX_RGB_ID:
        ids = remap_ids(ids, np.array(numbers))[0].astype(np.int32)
        numbers = list(range(1, len(numbers) + 1))
    runs = find_runs(ids)
    visible = set(runs.ids.tolist())
    segments = []
    for number, segment in zip(numbers, result, strict=True):
        if number not in visible:  # an instance that others cover
            continue
        info = {"id": number, "category_id": segment.category_id, "isthing": segment.isthing}
        segments.append(info if segment.score is None else {**info, "score": segment.score})
    return CocoPanoptic(
        ids=ids.copy(),
        annotation={
            "image_id": image_id,
            "file_name": png_name(name or str(image_id)),
            "segments_info": measured_segments(runs, segments),
        },
        image={
            "id": image_id,
            "file_name": name,
            "height": result.height,
            "width": result.width,
        },
        categories=category_entries(categories_of(result.metadata)),
    )


def to_instances(result: PanopticResult, *, stuff: bool = False) -> Instances:
    """See `PanopticResult.to_instances`."""
    kept = result if stuff else result.filter(isthing=True)
    scores = [_CERTAIN if s.score is None else s.score for s in kept]
    return Instances(
        (result.height, result.width),
        pred_boxes=Boxes(torch.as_tensor(kept.boxes, dtype=torch.float32)),
        scores=torch.tensor(scores, dtype=torch.float32),
        pred_classes=torch.tensor([s.class_id for s in kept], dtype=torch.int64),
        pred_masks=torch.from_numpy(kept.masks()),
    )


def to_semantic(result: PanopticResult, void: int | None = None) -> np.ndarray:
    """See `PanopticResult.to_semantic`."""
    if void is None:
        void = int(getattr(result.metadata, "ignore_label", 255))
    count = len(result.class_names)
    if 0 <= void < count:
        raise DatasetError(
            f"void is {void}, which is the class {result.class_names[void]!r}; expected a number"
            f" outside 0 to {count - 1}, such as {max(255, count)}"
        )
    places = remap_ids(result.panoptic_seg.numpy(), np.array([s.id for s in result], np.int64))[0]
    return np.array([void, *(s.class_id for s in result)], np.int32)[places]


def to_supervision(result: PanopticResult) -> Any:
    """See `PanopticResult.to_supervision`."""
    supervision = import_optional("supervision", "results", "to_supervision")
    return supervision.Detections(
        xyxy=result.boxes.astype(np.float32),
        mask=result.masks(),
        confidence=_scores(result, np.float32),
        class_id=np.array([s.class_id for s in result], np.int64),
        data={
            "class_name": np.array([s.name for s in result], np.str_),
            "isthing": np.array([s.isthing for s in result], bool),
            "area": np.array([s.area for s in result], np.int64),
            "segment_id": np.array([s.id for s in result], np.int64),
        },
    )


def to_fiftyone(result: PanopticResult, kind: str = "detections") -> Any:
    """See `PanopticResult.to_fiftyone`."""
    check_known("kind of FiftyOne labels", kind, ("detections", "segmentation"))
    fiftyone = import_optional("fiftyone", "fiftyone", "to_fiftyone")
    if kind == "segmentation":
        # 0 is FiftyOne's background, so that classes begin with 1.
        classes = to_semantic(result, void=-1) + 1
        small = len(result.class_names) < 2**8
        return fiftyone.Segmentation(mask=classes.astype(np.uint8 if small else np.uint16))
    return fiftyone.Detections(
        detections=[
            fiftyone.Detection(
                label=segment.name,
                bounding_box=_relative_box(segment.box, result.height, result.width),
                mask=result.crop(segment),
                confidence=segment.score,
                isthing=segment.isthing,
                area=segment.area,
                segment_id=segment.id,
            )
            for segment in result
        ]
    )


def to_pandas(result: PanopticResult) -> Any:
    """See `PanopticResult.to_pandas`."""
    pandas = import_optional("pandas", "results", "to_pandas")
    columns: dict[str, Any] = {
        name: [getattr(segment, name) for segment in result]
        for name in ("id", "class_id", "category_id", "name", "isthing")
    }
    # Not None where there is no score: a column of None alone would be one of objects.
    columns["score"] = np.array(
        [np.nan if s.score is None else s.score for s in result], np.float64
    )
    columns["area"] = [segment.area for segment in result]
    columns["share"] = [segment.share for segment in result]
    columns.update(zip(("x0", "y0", "x1", "y1"), result.boxes.T, strict=True))
    types = {"id": "int64", "class_id": "int64", "category_id": "int64", "isthing": "bool"}
    types |= {"area": "int64", "share": "float64"}
    return pandas.DataFrame(columns).astype(types)


def _scores(result: PanopticResult, dtype: Any) -> np.ndarray | None:
    """(N,), 1 for segments without a score; None if none has one."""
    if all(segment.score is None for segment in result):
        return None
    return np.array([_CERTAIN if s.score is None else s.score for s in result], dtype)


def _relative_box(box: Sequence[int], height: int, width: int) -> list[float]:
    """x, y, width and height relative to the image, 0 to 1."""
    x0, y0, x1, y1 = box
    return [x0 / width, y0 / height, (x1 - x0) / width, (y1 - y0) / height]
