"""AP of boxes and masks of a data set of instances alone, by its own evaluator."""

from __future__ import annotations

import contextlib
import io
from collections import OrderedDict
from typing import Any

from detectron2.data import MetadataCatalog
from detectron2.evaluation import (
    CityscapesInstanceEvaluator,
    COCOEvaluator,
    DatasetEvaluator,
    LVISEvaluator,
)

from panoptic_ext.errors import EvaluationError, quoted
from panoptic_ext.evaluation.instance_evaluation import has_compiled_cocoeval, masks_as_arrays

__all__ = ["InstancesJsonEvaluator", "build_instances_json_evaluator"]


class InstancesJsonEvaluator(COCOEvaluator):
    """COCOEvaluator on the instances JSON itself: for COCO this is the published AP.

    Predicted classes are contiguous ids. An image that two workers processed counts once.
    """

    def process(self, inputs: Any, outputs: Any) -> None:
        """As `COCOEvaluator.process`."""
        for given, output in zip(inputs, outputs, strict=True):
            if "instances" in output:
                instances = output["instances"].to(self._cpu_device)
                super().process([given], [{"instances": masks_as_arrays(instances)}])

    def evaluate(self, img_ids: Any = None) -> OrderedDict:
        """AP, AP50, ... of "bbox" and "segm" in percent; nan if not available."""
        # COCOeval prints its own table.
        with contextlib.redirect_stdout(io.StringIO()):
            return super().evaluate(img_ids)

    def _eval_predictions(self, predictions: list[dict], img_ids: Any = None) -> None:
        once = {p["image_id"]: p for p in predictions}
        super()._eval_predictions(list(once.values()), img_ids=img_ids)


def build_instances_json_evaluator(dataset_name: str, output_dir: str) -> DatasetEvaluator:
    """The evaluator that a data set of instances is published with.

    Args:
        dataset_name: registered with Detectron2's `evaluator_type` "coco", "lvis" (needs the
            package lvis) or "cityscapes_instance" (needs cityscapesScripts).
        output_dir: gets the results.

    Raises:
        EvaluationError: the data set has an evaluator of another kind.
    """
    kind = MetadataCatalog.get(dataset_name).get("evaluator_type", None)
    if kind == "cityscapes_instance":
        return CityscapesInstanceEvaluator(dataset_name)
    if kind == "lvis":
        return LVISEvaluator(dataset_name, output_dir=output_dir)
    if kind == "coco":
        return InstancesJsonEvaluator(
            dataset_name, output_dir=output_dir, use_fast_impl=has_compiled_cocoeval()
        )
    raise EvaluationError(
        f"data set {quoted(dataset_name)} has the evaluator_type {quoted(kind)}, expected 'coco', "
        f"'lvis' or 'cityscapes_instance'; evaluate it with Detectron2's own evaluator of that type"
    )
