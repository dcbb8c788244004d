"""Mean IoU of a panoptic data set through Detectron2's SemSegEvaluator, without semantic PNGs."""

from __future__ import annotations

import io
import itertools
import json
import logging
import math
import os
from collections import OrderedDict
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from detectron2.evaluation import SemSegEvaluator
from detectron2.utils import comm
from tabulate import tabulate

from panoptic_ext.atomic import write_file
from panoptic_ext.data.coco.panoptic_files import Annotation
from panoptic_ext.data.datasets.metadata import dataset_ids
from panoptic_ext.errors import EvaluationError, quoted
from panoptic_ext.evaluation.once_per_image import OncePerImage
from panoptic_ext.evaluation.truth import Truth

__all__ = ["PanopticSemSegEvaluator", "semantic_scores", "semantic_table"]


def semantic_scores(confusion: np.ndarray, class_names: Sequence[str]) -> dict[str, float]:
    """Scores of a confusion matrix, in percent.

    mIoU is the mean IoU of the classes that the truth or the prediction has outside of void. A
    class that is predicted and that the truth lacks counts as 0, as in the Cityscapes evaluation,
    in Detectron2 v0.6 and as PQ counts it; Detectron2 main leaves it out of the mean. A class that
    neither has is nan and in no mean.

    Args:
        confusion: (K+1, K+1) pixels by predicted (row) and true (column) class; K is void.
        class_names: the K names.

    Returns:
        mIoU; fwIoU, weighted by the pixels of the truth; IoU-<name> of each class; mACC, the mean
        accuracy of the classes that the truth has; pACC, of all pixels; ACC-<name>. nan where there
        is nothing to divide by.
    """
    counted = confusion[:, :-1].astype(float)  # void of the truth is left out
    # A pixel that a map predicts as void is missed; semantic scores have no void.
    hits, truth, predicted = counted.diagonal(), counted.sum(axis=0), counted[:-1].sum(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        iou = hits / (truth + predicted - hits)
        accuracy = hits / truth
        weighted = np.nansum(iou * truth) / truth.sum()
        pixels = hits.sum() / truth.sum()
    scores = {"mIoU": _mean(iou), "fwIoU": weighted}
    scores |= {f"IoU-{name}": value for name, value in zip(class_names, iou, strict=True)}
    scores |= {"mACC": _mean(accuracy), "pACC": pixels}
    scores |= {f"ACC-{name}": value for name, value in zip(class_names, accuracy, strict=True)}
    return {name: 100 * float(value) for name, value in scores.items()}


def _mean(values: np.ndarray) -> float:
    """The mean of the values that are not nan; nan if all are."""
    numbers = values[~np.isnan(values)]
    return float(numbers.mean()) if numbers.size else math.nan


class PanopticSemSegEvaluator(OncePerImage, SemSegEvaluator):
    """SemSegEvaluator whose truth is derived from the panoptic label maps.

    Classes are the contiguous ids of things and stuff together. Void, and ids that segments_info
    lacks, are ignored; a crowd counts as its category, as in COCO's and Cityscapes' semantic maps.
    """

    def __init__(
        self,
        dataset_name: str,
        output_dir: str | None = None,
        *,
        distributed: bool = True,
        write_predictions: bool = False,
        truth: Truth | None = None,
    ):
        """
        Args:
            dataset_name: as `Truth`.
            output_dir: as SemSegEvaluator.
            distributed: gather the results of all workers.
            write_predictions: also write sem_seg_predictions.json (run lengths of each class).
            truth: of the data set, where other evaluators share it.
        """
        # SemSegEvaluator's __init__ is not called: it requires a semantic PNG of each record.
        # The attributes that its other methods read are set here.
        self._logger = logging.getLogger(__name__)
        self._dataset_name = dataset_name
        self._distributed = distributed
        self._output_dir = output_dir
        self._cpu_device = torch.device("cpu")
        self.truth = truth or Truth(dataset_name)
        meta = self.truth.metadata
        self._class_names = list(meta.stuff_classes)
        self._num_classes = len(self._class_names)
        self._ignore_label = meta.get("ignore_label", 255)
        self._contiguous_id_to_dataset_id = dict(enumerate(dataset_ids(meta)))
        self._compute_boundary_iou = False
        self._write = write_predictions
        self.reset()

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        """Count the pixels of each pair of classes.

        Args:
            inputs: dicts with image_id and file_name.
            outputs: dicts with "sem_seg": (K, H, W) scores of the contiguous ids.

        Raises:
            EvaluationError: an unknown image, another number of classes, or another size.
        """
        size = self._num_classes + 1
        for given, annotation, output in self.first_time(inputs, outputs):
            scores = output["sem_seg"]
            truth = self._semantic_truth(annotation)
            if tuple(scores.shape) != (self._num_classes, *truth.shape):
                raise EvaluationError(
                    f"image {quoted(annotation.image_id)}: sem_seg has the shape "
                    f"{tuple(scores.shape)};"
                    f" expected {(self._num_classes, *truth.shape)}: the classes of data set"
                    f" {quoted(self._dataset_name)} and the size of its label map"
                )
            # max is many times faster than argmax on CPU and breaks ties alike.
            best = scores.max(dim=0).indices
            if best.is_cuda:
                best = best.short()  # a quarter of the bytes to copy
            pred = best.to(self._cpu_device).numpy().astype(np.int64, copy=False)
            self._conf_matrix += np.bincount(
                (size * pred + truth).reshape(-1), minlength=size * size
            ).reshape(size, size)
            if self._write:
                self._predictions.extend(self.encode_json_sem_seg(pred, given["file_name"]))

    def evaluate(self) -> OrderedDict | None:
        """mIoU, fwIoU, mACC, pACC and each class's IoU and accuracy, in percent.

        Written into the output folder as SemSegEvaluator does; the rule is `semantic_scores`', the
        same on every version of Detectron2.

        Returns:
            {"sem_seg": {"mIoU": ..., "IoU-<class>": ..., ...}} on the main worker, else None.
        """
        matrices, predictions = [self._conf_matrix], [self._predictions]
        if self._distributed:
            comm.synchronize()
            matrices = comm.all_gather(matrices[0])
            predictions = comm.all_gather(predictions[0])
            if not comm.is_main_process():
                return None
        scores = semantic_scores(np.sum(matrices, axis=0), self._class_names)
        if self._output_dir:
            rows = list(itertools.chain(*predictions)) if self._write else None
            _write_results(self._output_dir, scores, rows)
        table = semantic_table(scores, self._class_names)
        self._logger.info("Semantic Evaluation Results:\n%s", table)
        return OrderedDict({"sem_seg": scores})

    def _semantic_truth(self, annotation: Annotation) -> np.ndarray:
        """(H, W) int64 of contiguous ids; `num_classes` is void."""
        runs = self.truth.runs(annotation)
        table = self.truth.table(annotation, runs)
        ids, index = runs.index
        # Ids that segments_info lacks have the row -1, which is the last entry: void.
        classes = np.append(self.truth.contiguous_classes(table), self._num_classes)
        return runs.expand(classes[table.rows(ids)][index])


def semantic_table(scores: Mapping[str, float], class_names: Sequence[str]) -> str:
    """A Markdown table of `semantic_scores`: all classes, then each, in percent."""
    rows: list[tuple[str, float, float]] = [("**All**", scores["mIoU"], scores["mACC"])]
    rows += [(name, scores[f"IoU-{name}"], scores[f"ACC-{name}"]) for name in class_names]
    cells = [[name, *("n/a" if math.isnan(v) else f"{v:.3f}" for v in row)] for name, *row in rows]
    table = tabulate(
        cells,
        ["", "IoU", "accuracy"],
        tablefmt="pipe",
        disable_numparse=True,
        colalign=("left", "right", "right"),
    )
    return f"{table}\nfwIoU {scores['fwIoU']:.3f}, pACC {scores['pACC']:.3f}"


def _write_results(folder: str, scores: dict[str, float], predictions: list[dict] | None) -> None:
    """Write the files of SemSegEvaluator; without predictions, remove those of an earlier run."""
    path = os.path.join(folder, "sem_seg_predictions.json")
    if predictions is not None:
        write_file(path, json.dumps(predictions).encode())
    elif os.path.lexists(path):
        os.remove(path)
    stream = io.BytesIO()
    torch.save(scores, stream)
    write_file(os.path.join(folder, "sem_seg_evaluation.pth"), stream.getvalue())
