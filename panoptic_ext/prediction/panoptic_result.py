"""The result of one image: what a model found, to look at, count, measure, save and hand on.

Shapes: H x W the image, N segments. Arrays are numpy's; what Detectron2 takes are torch tensors.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from detectron2.structures import Instances
from PIL import Image

from panoptic_ext.data import map_categories, read_id_map, read_png_string
from panoptic_ext.data.datasets.unified_classes import unified_classes, unified_metadata
from panoptic_ext.errors import ConfigError, listed
from panoptic_ext.prediction import result_exports
from panoptic_ext.prediction.image_ids import choose_image_ids
from panoptic_ext.prediction.instance_crops import crops_of_instances, stacked
from panoptic_ext.prediction.outputs import segments_to_draw
from panoptic_ext.prediction.result_exports import CocoPanoptic
from panoptic_ext.prediction.results_folder import ResultsFolder
from panoptic_ext.prediction.segmented_image import SegmentedImage
from panoptic_ext.prediction.segments import Segment
from panoptic_ext.visualization import draw_panoptic, mask_grid, save_picture
from panoptic_ext.visualization.classes import class_color, class_metadata

__all__ = ["PanopticResult", "check_picture_name"]

_PICTURES = (".png", ".jpg", ".jpeg")
_NOTEBOOK_SIDE = 1024  # pixels, at most, of the longer side of a picture in a notebook
_BACKGROUND = 235  # grey of a picture without an image


class PanopticResult(SegmentedImage):
    """Segments of one image, by any model of Detectron2.

    It has a length, and is a sequence of its segments: `for segment in result`, `result[0]`. Two
    results are equal if their ids, segments and classes are; image, outputs and names do not count.

    Attributes:
        panoptic_seg: (H, W) int32 tensor on the CPU, the segment id of each pixel, 0 for void.
        segments: of the map, in the model's order. Those of an instance model come by descending
            score. They may overlap; the map then shows the one with the better score, while
            `masks`, areas and boxes are of whole instances.
        metadata: of the data set, in one numbering for things and stuff.
        outputs: what was given: the model's outputs, or None.
        file_name: of the image, or "".
    """

    @classmethod
    def from_outputs(
        cls,
        outputs: Mapping[str, Any],
        metadata: Any,
        image: np.ndarray | Callable[[], np.ndarray] | None = None,
        *,
        file_name: str = "",
        min_score: float = 0.5,
        keep_outputs: bool = False,
    ) -> PanopticResult:
        """The result of a model's outputs for one image.

        Args:
            outputs: with "panoptic_seg"; else "instances" that have masks; else "sem_seg", whose
                best class of each pixel is taken. Tensors may be on any device.
            metadata, image, file_name: as the constructor's.
            min_score: instances below it are left out; only of a model without panoptic_seg.
            keep_outputs: keep them all in the attribute; semantic scores are large.

        Raises:
            ConfigError: the outputs are none of these.
        """
        kept = outputs if keep_outputs else None
        if "panoptic_seg" in outputs:
            panoptic_seg, segments_info = outputs["panoptic_seg"]
            return cls(panoptic_seg, segments_info, metadata, image, kept, file_name)
        if "instances" in outputs and outputs["instances"].has("pred_masks"):
            height, width = outputs["instances"].image_size
            empty = torch.zeros(height, width, dtype=torch.int32)
            result = cls(empty, [], metadata, image, kept, file_name)
            segments, result._crops = crops_of_instances(
                outputs["instances"], result._classes, min_score
            )
            result.segments = tuple(segments)
            result.panoptic_seg = stacked(segments, result._crops, height, width)
            return result
        ids, segments_info = segments_to_draw(dict(outputs))
        known = unified_classes(metadata).numbered_apart
        # A class's pixels are one region, not one object.
        regions = [
            {**info, "isthing": False}
            for info in segments_info or ()
            if known is None or info["category_id"] in known[False]
        ]
        return cls(ids, regions, metadata, image, kept, file_name)

    @classmethod
    def from_coco(
        cls,
        annotation: Mapping[str, Any],
        png: bytes | str | os.PathLike | np.ndarray,
        metadata: Any,
        image: np.ndarray | Callable[[], np.ndarray] | None = None,
        *,
        file_name: str = "",
    ) -> PanopticResult:
        """Read what `to_coco` gives, or an annotation of a COCO panoptic JSON.

        Args:
            annotation: with "segments_info", whose category ids are those of the data set's JSON.
            png: the PNG's bytes, its path, or (H, W) ids.
            metadata, image, file_name: as the constructor's.

        Raises:
            DatasetError: the PNG cannot be read, or the data set has no such category.
        """
        if isinstance(png, (str, os.PathLike)):
            png = read_id_map(png)
        ids = read_png_string(png) if isinstance(png, bytes) else png
        unified = unified_metadata(metadata)
        segments = map_categories(annotation["segments_info"], (unified, "dataset"), unified)
        for segment, found in zip(segments, annotation["segments_info"], strict=True):
            # The regions of a semantic result are no things, whatever the kind of their class.
            segment["isthing"] = bool(found.get("isthing", segment["isthing"]))
        return cls(ids, segments, unified, image, file_name=file_name)

    def draw(self, *, alpha: float | None = None, **options: Any) -> np.ndarray:
        """A picture of the segments over the image, or over plain grey where there is no image.

        Args:
            alpha: opacity of the segments, 0 to 1. None: 0.5 over an image, 1 over grey.
            **options: labels, legend, boxes, classes, font_size and scale, as `draw_panoptic`.

        Returns:
            (h, w, 3) uint8 RGB; h and w are a multiple of H and W where the image is small.
        """
        image = self.image
        if alpha is None:
            alpha = 1.0 if image is None else 0.5
        if image is None:
            image = np.full((self.height, self.width, 3), _BACKGROUND, np.uint8)
        infos = self.segments_info
        for info in infos:
            info["full_bbox"] = info["bbox"]  # `draw_panoptic` measures the visible part
        return draw_panoptic(image, self.panoptic_seg, infos, self.metadata, alpha=alpha, **options)

    def save(self, path: str | os.PathLike, **options: Any) -> str:
        """Write `draw(**options)` as a picture; folders are made.

        Args:
            path: ending in .png, .jpg or .jpeg.
            **options: as `draw`.

        Returns:
            `path`.

        Raises:
            ConfigError: another suffix.
        """
        path = check_picture_name(path)
        save_picture(path, self.draw(**options))
        return path

    def cut_out(self, segment: Segment | int) -> np.ndarray:
        """The image within the box of one segment, transparent around it.

        Args:
            segment: of this result, or its id.

        Returns:
            (h, w, 4) uint8 RGBA, for `PIL.Image.fromarray`; alpha is 255 in the segment, else 0.

        Raises:
            ConfigError: there is no such segment, or the result has no image.
        """
        mask = self.crop(segment)
        if self.image is None:
            raise ConfigError(
                "the result has no image to cut a segment out of; give one to PanopticResult, or "
                "take `mask`"
            )
        x0, y0, x1, y1 = self._find(segment).box
        return np.dstack([self.image[y0:y1, x0:x1], 255 * mask.astype(np.uint8)])

    def mask_grid(self, **options: Any) -> np.ndarray:
        """A picture of all masks, one beside the other, each below its class and score.

        Args:
            **options: columns (5) and cell_width (240 pixels) of `visualization.mask_grid`.

        Returns:
            (h, w, 3) uint8 RGB.
        """
        scores = ["" if s.score is None else f"{s.score * 100:.0f}%" for s in self.segments]
        captions = [(s.name, score) for s, score in zip(self.segments, scores, strict=True)]
        classes = class_metadata(self.metadata)
        colors = [class_color(info, classes) for info in self.segments_info]
        masks = (self.mask(segment) for segment in self.segments)
        return mask_grid(masks, captions, colors, self.image, **options)

    def save_coco(self, folder: str | os.PathLike, name: str = "") -> str:
        """Write ids and segments as `panoptic-ext predict --save-panoptic` does.

        The folder gets panoptic.json and panoptic/<name>.png. Several results in one folder are in
        one JSON; one of the same name replaces the earlier. Scores are rounded to four digits.

        Args:
            folder: made where it is missing.
            name: of the image. "": the last part of `file_name`.

        Returns:
            The path of the JSON.

        Raises:
            ConfigError: the result has no file_name, and no name was given.
        """
        name = name or os.path.basename(self.file_name)
        if not name:
            raise ConfigError("the result has no file_name; expected save_coco(folder, name=...)")
        results = ResultsFolder(os.fspath(folder), self.metadata)
        image_id = choose_image_ids([name], {}, results.image_ids())[name]
        results.add(name, self.panoptic_seg, self.segments_info, image_id=image_id, file_name=name)
        results.commit(name)
        return results.write_json()

    def to_coco(self, image_id: int | str | None = None) -> CocoPanoptic:
        """COCO's panoptic format: ids, annotation and PNG, with dataset category ids.

        Of instances that overlap, it has what can be seen. Segment ids of 2^24 or more, which a PNG
        cannot hold, are replaced by 1 to N.

        Args:
            image_id: None: `file_name` without folder and suffix; 0 where there is none.
        """
        return result_exports.to_coco(self, image_id)

    def to_dicts(self) -> list[dict[str, Any]]:
        """The segments as plain values, ready for JSON or CSV; see `Segment`."""
        return [segment.to_dict() for segment in self.segments]

    def to_instances(self, *, stuff: bool = False) -> Instances:
        """Detectron2's Instances of the things: pred_boxes, scores, pred_classes, pred_masks.

        Args:
            stuff: whether segments of stuff are instances, too.

        Returns:
            On the CPU; the score of a segment without one is 1.
        """
        return result_exports.to_instances(self, stuff=stuff)

    def to_semantic(self, void: int | None = None) -> np.ndarray:
        """(H, W) int32, the contiguous id of each pixel's class.

        Args:
            void: value of pixels of no segment. None: the ignore_label of the data set, or 255.

        Raises:
            DatasetError: `void` is a class.
        """
        return result_exports.to_semantic(self, void)

    def to_supervision(self) -> Any:
        """The `supervision.Detections` of all segments, things and stuff.

        Its class_id is contiguous; `data` has class_name, isthing, area and segment_id. The
        confidence of a segment without a score is 1; it is None where no segment has a score.

        Raises:
            ConfigError: supervision is not installed.
        """
        return result_exports.to_supervision(self)

    def to_fiftyone(self, kind: str = "detections") -> Any:
        """Labels for a sample of FiftyOne.

        Args:
            kind: "detections": `fiftyone.Detections` of all segments, each with its mask, and
                isthing, area and segment_id as attributes. "segmentation": `fiftyone.Segmentation`
                whose values are 1 + the contiguous id; 0 is void, FiftyOne's background.

        Raises:
            ConfigError: FiftyOne is not installed, or another kind.
        """
        return result_exports.to_fiftyone(self, kind)

    def to_pandas(self) -> Any:
        """A `pandas.DataFrame` with a row for each segment.

        Its columns are the attributes of `Segment`, with x0, y0, x1, y1 in place of the box; the
        score is NaN where there is none.

        Raises:
            ConfigError: pandas is not installed.
        """
        return result_exports.to_pandas(self)

    def _repr_png_(self) -> bytes:
        """The picture that notebooks show, of a large image a smaller one."""
        longer = max(self.height, self.width)
        scale = _NOTEBOOK_SIDE / longer if longer > _NOTEBOOK_SIDE else None
        with io.BytesIO() as stream:
            Image.fromarray(self.draw(scale=scale)).save(stream, format="PNG")
            return stream.getvalue()


def check_picture_name(path: str | os.PathLike) -> str:
    """The path as a string, if `PanopticResult.save` writes such a file.

    Raises:
        ConfigError: another suffix.
    """
    path = os.fspath(path)
    if not path.lower().endswith(_PICTURES):
        raise ConfigError(
            f"cannot save to {path}: expected a picture ending in"
            f" {listed(_PICTURES, show=str)}; save_coco(folder) writes ids and segments"
        )
    return path
