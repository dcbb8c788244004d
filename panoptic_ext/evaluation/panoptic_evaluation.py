"""Panoptic quality of a model while it predicts: no panopticapi, no PNG of the predictions."""

from __future__ import annotations

import itertools
import json
import logging
import math
import os
from collections import OrderedDict, deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from detectron2.evaluation import COCOPanopticEvaluator
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager

from panoptic_ext.atomic import write_file
from panoptic_ext.data.coco.categories import Category
from panoptic_ext.data.coco.divisor import segments_without_info
from panoptic_ext.data.coco.label_png import encode_png
from panoptic_ext.data.coco.panoptic_files import Annotation, PanopticFiles
from panoptic_ext.data.coco.runs import Runs, runs_from_ids
from panoptic_ext.data.coco.segment_table import SegmentTable, integer
from panoptic_ext.data.coco.writer import PanopticWriter, check_png_names, png_name
from panoptic_ext.errors import EvaluationError, listed, nearest, quoted
from panoptic_ext.evaluation.compare_files import compare_with_truth
from panoptic_ext.evaluation.kept_predictions import (
    KeptPrediction,
    PredictionKeeper,
    worst_and_best,
)
from panoptic_ext.evaluation.model_output import map_and_info
from panoptic_ext.evaluation.panoptic_quality import PQStat, predicted_segments
from panoptic_ext.evaluation.report import image_ranking, metric_keys, named_result, quality_table

__all__ = ["PanopticEvaluator"]

logger = logging.getLogger(__name__)

_PENDING_PER_THREAD = 16  # images whose prediction, as runs, waits for a thread


@dataclass(frozen=True)
class _Prediction:
    """One prediction, detached from the model's output; table has dataset ids, info the model's."""

    annotation: Annotation
    image_id: int | str  # as the loader gave it
    image_file: str
    runs: Runs
    table: SegmentTable
    info: list[dict[str, Any]]


@dataclass(frozen=True)
class _ImageResult:
    """The numbers of one image, what workers exchange."""

    image_id: int | str
    image_file: str
    stat: PQStat
    annotation: dict[str, Any] | None  # for the JSON of predictions, when written


class PanopticEvaluator(COCOPanopticEvaluator):
    """COCOPanopticEvaluator with panoptic quality computed natively, image by image.

    The result keys are the same. The truth is read from the metadata's panoptic_json and
    panoptic_root by a pool of threads while the model runs; workers exchange numbers only; the
    model's output stays as it was. An image that several workers saw counts once. The result is
    the same to the last bit for any number of workers and threads.

    After `evaluate`, on the main process:

    Attributes:
        summary: of `PQStat.summary`, by dataset category id; None before.
        per_image: list of dicts with image_id, file_name (of the image), pq (percent), tp, fp, fn,
            loss (points of PQ that the image costs), in the data set's order.
        worst, best: lists of `KeptPrediction`, `keep_predictions` of each at most.
    """

    def __init__(
        self,
        dataset_name: str,
        output_dir: str | None = None,
        *,
        num_threads: int = 2,
        write_predictions: bool = False,
        keep_predictions: int = 0,
        gt_area: str = "check",
    ):
        """
        Args:
            dataset_name: a registered data set, ours or Detectron2's, in COCO panoptic format.
            output_dir: gets panoptic_quality.json; None writes nothing.
            num_threads: that read the truth and compare; 0: in `process` itself.
            write_predictions: write them in COCO panoptic format: panoptic_predictions.json and a
                folder panoptic_predictions in `output_dir`.
            keep_predictions: how many predictions of the worst, and of the best, images to keep.
            gt_area: true areas: "check" takes the JSON's and raises where the pixels differ, "json"
                takes them unchecked as panopticapi does, "pixels" counts them.
        """
        try:
            super().__init__(dataset_name, output_dir)
        except OSError as error:
            raise EvaluationError(f"cannot make {output_dir}: {error.strerror}") from error
        except AttributeError as error:
            raise EvaluationError(
                f"data set {quoted(dataset_name)} is not registered as a panoptic one ({error})"
            ) from error
        if write_predictions and output_dir is None:
            raise EvaluationError("write_predictions needs an output_dir to write to")
        self._dataset_name = dataset_name
        self._num_threads = num_threads
        self._write = write_predictions
        self._writer = PanopticWriter.of_predictions(str(output_dir))
        self._keep = keep_predictions
        self._gt_area = gt_area
        self._truth: PanopticFiles | None = None
        self._order: dict[Any, int] = {}
        self.reset()

    def reset(self) -> None:
        """Forget all predictions."""
        self._pool: ThreadPoolExecutor | None = None
        self._pending: deque[Future] = deque()
        self._seen: set[Any] = set()
        self._error: str | None = None
        self._images: dict[Any, _ImageResult] = {}
        self._keeper = PredictionKeeper(self._keep)
        self.summary: dict[str, dict] | None = None
        self.per_image: list[dict[str, Any]] = []
        self.worst: list[KeptPrediction] = []
        self.best: list[KeptPrediction] = []

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        """Take predictions; they are compared by the threads while the model goes on.

        Args:
            inputs: dicts with image_id and file_name.
            outputs: dicts with "panoptic_seg": ((H, W) integer map, segments_info or None).
                segments_info has id, category_id and isthing: category_id is contiguous, or a
                dataset id where isthing is missing. None: the map is category_id * label_divisor +
                instance, -1 void. Nothing of it is changed or kept.

        Raises:
            EvaluationError: a prediction cannot be used (also one of an earlier call). With
                several workers `evaluate` raises it, on all of them.
        """
        for given, output in zip(inputs, outputs, strict=True):
            if self._error is not None:
                return
            try:
                self._take(given, output)
            except EvaluationError as error:
                if comm.get_world_size() == 1:
                    raise
                # Alone, this worker must not leave the others waiting: `evaluate` raises on all.
                self._error = str(error)

    def wait(self) -> None:
        """Wait until all predictions so far are compared; to be called by all workers.

        Raises:
            EvaluationError: on all workers, if one of them got a prediction that cannot be used.
        """
        _raise_together(self._finish())

    def evaluate(self) -> OrderedDict | None:
        """Compute panoptic quality; to be called by all workers.

        Returns:
            {"panoptic_seg": {"PQ", "SQ", "RQ", and these with _th and _st}} in percent on the main
            process, None on others. nan for things or stuff that have no class to average over.

        Raises:
            EvaluationError: on all workers, if one of them got a prediction that cannot be used, or
                if an image has none.
        """
        truth = self._load_truth()
        self.wait()
        gathered = comm.gather(self._images)
        kept = self._gather_kept()
        error = None
        if comm.is_main_process():
            images: dict[Any, _ImageResult] = {}
            for found in gathered:
                images = {**found, **images}
            error = self._missing(images)
        _raise_together(error)
        if not comm.is_main_process():
            return None
        self.worst, self.best = kept
        return self._report({image_id: images[image_id] for image_id in truth.annotations})

    def _take(self, given: Mapping[str, Any], output: Mapping[str, Any]) -> None:
        """Start the comparison of one prediction, and see to those that are done."""
        truth = self._load_truth()
        annotation = truth.find(given["image_id"])
        if annotation is None:
            raise EvaluationError(
                f"prediction for image {quoted(given['image_id'])} ({given.get('file_name')}), "
                f"which is not in {truth.path}"
                + nearest(str(given["image_id"]), map(str, truth.annotations))
            )
        if annotation.image_id in self._seen:
            return
        self._seen.add(annotation.image_id)
        prediction = self._prediction(annotation, given, output)
        if not self._num_threads:
            self._compare(prediction)
            return
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self._num_threads, "panoptic-evaluation")
        self._pending.append(self._pool.submit(self._compare, prediction))
        while len(self._pending) > _PENDING_PER_THREAD * self._num_threads or (
            self._pending and self._pending[0].done()
        ):
            self._pending.popleft().result()

    def _load_truth(self) -> PanopticFiles:
        if self._truth is None:
            meta = self._metadata
            self._truth = PanopticFiles(
                PathManager.get_local_path(meta.panoptic_json),
                PathManager.get_local_path(meta.panoptic_root),
                encoding=meta.get("panoptic_encoding", "rgb"),
                label_divisor=meta.get("label_divisor", 1000),
                categories=self._registered_categories(),
            )
            self._order = {image_id: i for i, image_id in enumerate(self._truth.annotations)}
            if self._write:
                names = [a.file_name for a in self._truth.annotations.values()]
                check_png_names(names, self._truth.path)
        return self._truth

    def _registered_categories(self) -> Sequence[Category] | None:
        """Categories that were registered in place of the JSON's, or None."""
        return getattr(getattr(self._metadata, "source", None), "classes", None)

    def _prediction(self, annotation: Annotation, given: Mapping, output: Mapping) -> _Prediction:
        where = f"prediction for image {quoted(annotation.image_id)}"
        if output.get("panoptic_seg") is None:
            raise EvaluationError(
                f"{where}: the model's output has no 'panoptic_seg' (found: {sorted(output)})"
            )
        ids, info = map_and_info(output["panoptic_seg"], where)
        ids = ids.detach().cpu().numpy() if isinstance(ids, torch.Tensor) else np.asarray(ids)
        runs = runs_from_ids(ids, where, shift=1 if info is None else 0)
        if info is None:
            info = self._info_of_divisor(runs)
        table = SegmentTable.from_segments_info(
            [{"id": s.get("id"), "category_id": self._dataset_id(s, where)} for s in info],
            self._load_truth().categories,
            where,
        )
        return _Prediction(
            annotation,
            given["image_id"],
            str(given.get("file_name", annotation.file_name)),
            runs,
            predicted_segments(runs, table, where),
            info,
        )

    def _info_of_divisor(self, runs: Runs) -> list[dict[str, Any]]:
        """Segments of a map of category * label_divisor + instance + 1, 0 void."""
        things = self._thing_contiguous_id_to_dataset_id
        return [
            {**s, "id": s["id"] + 1, "isthing": s["category_id"] in things}
            for s in segments_without_info(runs.index[0] - 1, self._metadata.label_divisor)
        ]

    def _dataset_id(self, segment: Mapping[str, Any], where: str) -> int:
        category, isthing = integer(segment, "category_id", where), segment.get("isthing")
        if isthing is None:
            return category
        ids = (
            self._thing_contiguous_id_to_dataset_id
            if bool(isthing)
            else self._stuff_contiguous_id_to_dataset_id
        )
        if category not in ids:
            raise EvaluationError(
                f"{where}: segment {segment.get('id')} has the contiguous category_id {category},"
                f" which is not one of the {'thing' if isthing else 'stuff'} categories"
                f" {sorted(ids)} of data set {quoted(self._dataset_name)}"
            )
        return ids[category]

    def _compare(self, prediction: _Prediction) -> None:
        """Compare one prediction with its truth; runs in a thread."""
        annotation, table = prediction.annotation, prediction.table
        stat = compare_with_truth(
            self._load_truth(), annotation, prediction.runs, table, self._gt_area
        )
        written = None
        if self._write:
            rows = zip(table.ids.tolist(), table.categories.tolist(), strict=True)
            written = self._writer.add(
                annotation.image_id,
                png_name(annotation.file_name),
                prediction.runs,
                [{"id": i, "category_id": category} for i, category in rows],
            )
        pq, order = 100 * stat.pooled_pq(), self._order[annotation.image_id]
        self._keeper.offer(
            pq,
            order,
            lambda: KeptPrediction(
                prediction.image_id,
                prediction.image_file,
                pq,
                order,
                encode_png(prediction.runs),
                prediction.info,
            ),
        )
        self._images[annotation.image_id] = _ImageResult(
            prediction.image_id, prediction.image_file, stat, written
        )

    def _finish(self) -> str | None:
        """Wait for the threads; the first error of theirs."""
        while self._pending:
            try:
                self._pending.popleft().result()
            except EvaluationError as error:
                self._error = self._error or str(error)
        if self._pool is not None:
            self._pool.shutdown()
            self._pool = None
        return self._error

    def _gather_kept(self) -> tuple[list[KeptPrediction], list[KeptPrediction]]:
        """The worst and best of all workers, on the main process; only theirs are sent."""
        own = self._keeper.kept()
        if not self._keep:
            return [], []
        keys = comm.all_gather([(p.pq, order) for order, p in own.items()])
        worst, best = worst_and_best(sorted(set(itertools.chain(*keys))), self._keep)
        chosen = {o: own[o] for o in (*worst, *best) if o in own}
        found = {o: p for part in comm.gather(chosen) for o, p in part.items()}
        if not comm.is_main_process():
            return [], []
        return [found[o] for o in worst], [found[o] for o in best]

    def _missing(self, images: Mapping[Any, _ImageResult]) -> str | None:
        truth = self._load_truth()
        missing = [i for i in truth.annotations if i not in images]
        if not missing:
            return None
        return (
            f"{len(missing)} of {len(truth.annotations)} images of {truth.path} have no prediction:"
            f" image ids {listed(missing)}; evaluate over the whole data set"
            f" {quoted(self._dataset_name)}"
        )

    def _report(self, images: Mapping[Any, _ImageResult]) -> OrderedDict:
        categories = self._load_truth().categories
        total = PQStat.total(image.stat for image in images.values())
        self.summary = total.summary({c: bool(v["isthing"]) for c, v in categories.items()})
        self.per_image = image_ranking(
            {image.image_id: image.stat for image in images.values()},
            total,
            {image.image_id: image.image_file for image in images.values()},
        )
        if self._output_dir is not None:
            result = json.dumps(named_result(self.summary, categories), indent=1)
            write_file(os.path.join(self._output_dir, "panoptic_quality.json"), result.encode())
        if self._write:
            written = [image.annotation for image in images.values() if image.annotation]
            self._writer.close(self._load_truth().content, written)
        if logger.isEnabledFor(logging.INFO):
            logger.info("Panoptic Evaluation Results:\n%s", quality_table(self.summary, categories))
        results = metric_keys(self.summary)
        absent = [key for key, value in results.items() if math.isnan(value)]
        if absent:
            logger.warning("Not available, no category to average over: %s", ", ".join(absent))
        return OrderedDict({"panoptic_seg": results})


def _raise_together(error: str | None) -> None:
    """Raise on all workers if one of them has an error, so that none waits for it in vain."""
    for found in comm.all_gather(error):
        if found:
            raise EvaluationError(found)
