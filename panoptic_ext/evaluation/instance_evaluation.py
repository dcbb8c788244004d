"""AP of boxes and masks of a panoptic data set through Detectron2's COCOEvaluator."""

from __future__ import annotations

import contextlib
import io
import json
import os
import tempfile
import uuid
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
import torch
from detectron2.data import MetadataCatalog
from detectron2.evaluation import COCOEvaluator, coco_evaluation
from detectron2.structures import Instances
from pycocotools.coco import COCO

from panoptic_ext.atomic import write_file
from panoptic_ext.data.coco.panoptic_files import Annotation
from panoptic_ext.data.coco.runs import Runs, runs_from_ids
from panoptic_ext.errors import NOT_JSON, EvaluationError, quoted
from panoptic_ext.evaluation.once_per_image import OncePerImage
from panoptic_ext.evaluation.truth import Truth
from panoptic_ext.regular_files import RESULTS_JSON, file_problem

__all__ = ["PanopticInstanceEvaluator", "has_compiled_cocoeval", "masks_as_arrays"]


def has_compiled_cocoeval() -> bool:
    """Whether this Detectron2 has its compiled operators, which include a COCOeval.

    v0.6 as tools/install_detectron2.py installs it, and main without operators, have pycocotools'
    own under its name.
    """
    return coco_evaluation.COCOeval_opt is not coco_evaluation.COCOeval


def masks_as_arrays(instances: Instances) -> Instances:
    """Copy instances with masks as numpy arrays, for COCOEvaluator.

    Args:
        instances: on the CPU; `pred_masks`, if any, (N, H, W) bool.
    """
    fields = dict(instances.get_fields())
    # COCOEvaluator calls np.array on each mask, which numpy 2 deprecates for a tensor.
    if "pred_masks" in fields:
        fields["pred_masks"] = fields["pred_masks"].numpy()
    return Instances(instances.image_size, **fields)


class PanopticInstanceEvaluator(OncePerImage, COCOEvaluator):
    """COCOEvaluator whose truth, the things, is derived from the panoptic label maps.

    Predicted classes are contiguous ids of things and stuff together. The truth is written once
    into the output folder, as a COCO instances JSON, when first needed. AP is that of Detectron2's
    compiled COCOeval where its operators are there, else of pycocotools' own: the same numbers,
    several times faster.
    """

    def __init__(
        self,
        dataset_name: str,
        output_dir: str,
        *,
        distributed: bool = True,
        num_threads: int = 2,
        truth: Truth | None = None,
    ):
        """
        Args:
            dataset_name: as `Truth`.
            output_dir: gets the truth and the results.
            distributed: gather the predictions of all workers.
            num_threads: that read label maps to make the truth.
            truth: of the data set, where other evaluators share it.

        Raises:
            EvaluationError: the data set has no thing category.
        """
        self._dataset = dataset_name
        self.truth = truth or Truth(dataset_name)
        self._num_threads = num_threads
        meta = self.truth.metadata
        # Sorted by dataset id, because COCOeval sorts categories so. COCOEvaluator names the rows
        # of its table by position.
        things = [(c, d) for d, c in sorted(meta.thing_dataset_id_to_contiguous_id.items())]
        if not things:
            raise EvaluationError(
                f"data set {quoted(dataset_name)} has no thing: nothing to find AP of"
            )
        self._thing_dataset_ids = {dataset_id for _, dataset_id in things}
        self._thing_index = {contiguous: i for i, (contiguous, _) in enumerate(things)}
        self._categories = [
            {"id": dataset_id, "name": meta.thing_classes[contiguous]}
            for contiguous, dataset_id in things
        ]
        ids = self.truth.annotations
        are_numbers = all(isinstance(i, int) for i in ids)
        # COCOeval sorts image ids, and its files require numbers.
        self._number = {i: i if are_numbers else n for n, i in enumerate(ids, start=1)}
        self._init_base(dataset_name, output_dir, distributed)
        self._has_truth = False
        self.reset()

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        """Take predictions.

        Args:
            inputs: dicts with image_id.
            outputs: dicts with "instances": Instances with pred_boxes, scores, pred_classes
                (contiguous ids of things) and, for mask AP, pred_masks. Not changed.

        Raises:
            EvaluationError: an unknown image, a class that is no thing, or another size.
        """
        for _, annotation, output in self.first_time(inputs, outputs):
            image_id = annotation.image_id
            instances = output["instances"].to(self._cpu_device)
            _check_size(instances, annotation, self.truth.files.size_in_json(annotation))
            instances.pred_classes = self._to_things(instances.pred_classes, image_id)
            masks = masks_as_arrays(instances)
            super().process([{"image_id": self._number[image_id]}], [{"instances": masks}])

    def evaluate(self, img_ids: Any = None) -> OrderedDict:
        """As COCOEvaluator: AP, AP50, ... of "bbox" and "segm" in percent; nan if not available."""
        # COCOeval prints its own table.
        with contextlib.redirect_stdout(io.StringIO()):
            return super().evaluate(img_ids)

    def _init_base(self, dataset_name: str, output_dir: str, distributed: bool) -> None:
        """Call COCOEvaluator's __init__, which requires metadata and a JSON of the truth.

        Both are stand-ins: of `_metadata` the rest of the class reads thing classes in an order
        of things alone; `_coco_api` is replaced by the truth when there are results.
        """
        stand_in = f"{dataset_name}_instances_{uuid.uuid4().hex}"
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "empty.json")
            with open(path, "w", encoding="utf-8") as stream:
                json.dump({"images": [], "annotations": [], "categories": []}, stream)
            try:
                MetadataCatalog.get(stand_in).set(
                    json_file=path,
                    thing_classes=[c["name"] for c in self._categories],
                    thing_dataset_id_to_contiguous_id={
                        c["id"]: i for i, c in enumerate(self._categories)
                    },
                )
                super().__init__(
                    stand_in,
                    distributed=distributed,
                    output_dir=output_dir,
                    use_fast_impl=has_compiled_cocoeval(),
                )
            finally:
                MetadataCatalog.pop(stand_in)

    def _to_things(self, classes: torch.Tensor, image_id: Any) -> torch.Tensor:
        """(N,) int64, the position in `_categories` of each contiguous id."""
        contiguous_ids = classes.tolist()
        wrong = sorted({c for c in contiguous_ids if c not in self._thing_index})
        if wrong:
            raise EvaluationError(
                f"image {quoted(image_id)}: predicted instances have the classes {wrong}, which "
                f"are not contiguous ids of things of data set {quoted(self._dataset)}:"
                f" {sorted(self._thing_index)}"
            )
        return torch.tensor([self._thing_index[c] for c in contiguous_ids], dtype=torch.int64)

    def _eval_predictions(self, predictions: list[dict], img_ids: Any = None) -> None:
        if not self._has_truth:
            with contextlib.redirect_stdout(io.StringIO()):
                self._coco_api = COCO(self._write_truth())
            self._has_truth = True
        # A sampler that pads gives an image to two workers. The image counts once.
        once = {p["image_id"]: p for p in predictions}
        super()._eval_predictions(list(once.values()), img_ids=img_ids)

    def _write_truth(self) -> str:
        """Path of the COCO instances JSON in the output folder; written unless it is there."""
        path = os.path.join(self._output_dir, f"{self._dataset}_instances.json")
        source = self._fingerprint()
        if self._is_written(path, source):
            return path
        self._logger.info("Writing the things of %s as COCO instances to %s", self._dataset, path)
        with ThreadPoolExecutor(max(1, self._num_threads)) as pool:
            images = self.truth.annotations.values()
            parts = list(pool.map(self._image_truth, images, self.truth.image_names()))
        annotations = [a for _, things in parts for a in things]
        content = {
            "info": {"source": source},
            "licenses": [],
            "images": [image for image, _ in parts],
            "annotations": [{"id": n, **a} for n, a in enumerate(annotations, start=1)],
            "categories": self._categories,
        }
        write_file(path, json.dumps(content).encode())
        return path

    @staticmethod
    def _is_written(path: str, source: list) -> bool:
        """Whether `path` holds the truth of this data set; any other file there is replaced."""
        if file_problem(path, RESULTS_JSON):
            return False
        with contextlib.suppress(OSError, *NOT_JSON), open(path, encoding="utf-8") as stream:
            return json.load(stream)["info"].get("source") == source
        return False

    def _fingerprint(self) -> list:
        """Values that change when the data set's JSON changes."""
        path = self.truth.metadata.get("panoptic_json", None)
        stat = os.stat(path) if path else None
        return [path, len(self._number)] + ([stat.st_size, stat.st_mtime_ns] if stat else [])

    def _image_truth(self, annotation: Annotation, file_name: str) -> tuple[dict, list[dict]]:
        """One image's entry and the annotations of its things."""
        number = self._number[annotation.image_id]
        runs = self.truth.runs(annotation)
        table = self.truth.table(annotation, runs)
        height, width = runs.shape
        masks = _column_masks(runs)
        rows = zip(
            table.ids.tolist(), table.categories.tolist(), table.iscrowd.tolist(), strict=True
        )
        annotations = [
            {
                "image_id": number,
                "category_id": category,
                "iscrowd": int(crowd),
                "area": int(mask_util.area(masks[segment_id])),
                "bbox": mask_util.toBbox(masks[segment_id]).tolist(),
                "segmentation": {
                    **masks[segment_id],
                    "counts": masks[segment_id]["counts"].decode(),
                },
            }
            for segment_id, category, crowd in rows
            if category in self._thing_dataset_ids and segment_id in masks
        ]
        image = {"id": number, "file_name": file_name, "height": height, "width": width}
        return image, annotations


def _check_size(
    instances: Instances, annotation: Annotation, expected: tuple[int, int] | None
) -> None:
    """Raise EvaluationError if predictions or their masks differ from the image's (H, W)."""
    sizes = {tuple(instances.image_size)}
    if instances.has("pred_masks") and len(instances):
        sizes.add(tuple(instances.pred_masks.shape[-2:]))
    wrong = sizes - {expected}
    if wrong and expected is not None:
        raise EvaluationError(
            f"image {quoted(annotation.image_id)}: predicted instances of size {sorted(wrong)[0]};"
            f" expected {expected} (height, width), the original image's"
        )


def _column_masks(runs: Runs) -> dict[int, dict[str, Any]]:
    """{segment id: COCO's run lengths}; these go down the columns."""
    height, width = runs.shape
    columns = runs_from_ids(np.ascontiguousarray(runs.dense().T))
    lengths = columns.lengths
    order = np.argsort(columns.ids, kind="stable")
    ids, first = np.unique(columns.ids[order], return_index=True)
    masks = {}
    for segment_id, part in zip(ids.tolist(), np.split(order, first[1:]), strict=True):
        starts, ends = columns.starts[part], columns.starts[part] + lengths[part]
        edges = np.stack([starts, ends], 1).reshape(-1)
        counts = np.diff(edges, prepend=0, append=height * width).tolist()
        plain = {"size": [height, width], "counts": counts}
        masks[segment_id] = mask_util.frPyObjects(plain, height, width)
    return masks
