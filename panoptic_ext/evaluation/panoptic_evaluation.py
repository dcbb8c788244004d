"""Panoptic quality of a model while it predicts: no panopticapi, no PNG of the predictions."""

from __future__ import annotations

import json
import logging
import math
import os
from collections import OrderedDict, deque
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from detectron2.evaluation import COCOPanopticEvaluator
from detectron2.utils import comm

from panoptic_ext.atomic import write_file
from panoptic_ext.data.coco.json_file import ImageId
from panoptic_ext.data.coco.label_png import encode_png
from panoptic_ext.data.coco.panoptic_files import Annotation
from panoptic_ext.data.coco.writer import PanopticWriter, check_png_names, png_name
from panoptic_ext.errors import EvaluationError, listed, quoted
from panoptic_ext.evaluation.image_measures import ImageMeasures, compare_with_truth
from panoptic_ext.evaluation.kept_predictions import (
    KeptPrediction,
    PredictionKeeper,
    gather_worst_and_best,
)
from panoptic_ext.evaluation.measures import Measures
from panoptic_ext.evaluation.panoptic_prediction import PanopticPrediction, PredictionReader
from panoptic_ext.evaluation.report import image_ranking, metric_keys, named_result
from panoptic_ext.evaluation.run_evaluator import RunEvaluator
from panoptic_ext.evaluation.tables import result_text
from panoptic_ext.evaluation.truth import Truth

__all__ = ["PanopticEvaluator"]

logger = logging.getLogger(__name__)

_PENDING_PER_THREAD = 16  # predictions, as runs, that wait for a thread at most


@dataclass(frozen=True)
class _Image:
    """An image whose prediction is compared."""

    annotation: Annotation
    image_id: ImageId  # as the loader gave it
    file_name: str


@dataclass(frozen=True)
class _ImageResult:
    """The numbers of one image, which workers exchange."""

    image_id: ImageId  # as the loader gave it
    file_name: str
    measures: ImageMeasures
    annotation: dict[str, Any] | None  # for the JSON of predictions, when written


class PanopticEvaluator(RunEvaluator, COCOPanopticEvaluator):
    """COCOPanopticEvaluator with panoptic quality computed natively, image by image.

    The result keys are the same. A pool of threads reads the label PNGs of the truth and compares
    while the model runs. Workers exchange counts and the few kept predictions, no other label map.
    The model's output is not changed. An image that several workers processed counts once. The
    result is the same to the last bit for any number of workers and threads.

    Attributes:
        truth: of the data set.
        keep_predictions: how many of the worst, and of the best, images are kept.

    After `evaluate`, the main process also has:
        summary: of `PQStat.summary`, by dataset category id; None before.
        measures: all measures, such as what each cause of error costs; None before.
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
        boundary: bool = False,
        truth: Truth | None = None,
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
            boundary: also compute boundary PQ, which takes several times as long as PQ.
            truth: of the data set, where other evaluators share it.

        Raises:
            EvaluationError: the data set is not panoptic, or the folder cannot be made.
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
        self._num_threads = num_threads
        self._write = write_predictions
        self._writer = PanopticWriter.of_predictions(str(output_dir))
        self._gt_area, self._boundary = gt_area, boundary
        self.keep_predictions = keep_predictions
        self.truth = truth or Truth(dataset_name)
        self._reader = PredictionReader(self.truth)
        self._names_checked = False
        self.reset()

    def reset(self) -> None:
        """Forget all predictions."""
        self._pool: ThreadPoolExecutor | None = None
        self._pending: deque[Future] = deque()
        self._seen: set[Any] = set()
        self._error: str | None = None
        self._images: dict[Any, _ImageResult] = {}
        self._keeper = PredictionKeeper(self.keep_predictions)
        self.summary: dict[str, dict] | None = None
        self.measures: Measures | None = None
        self.per_image: list[dict[str, Any]] = []
        self.worst: list[KeptPrediction] = []
        self.best: list[KeptPrediction] = []

    @property
    def panoptic(self) -> PanopticEvaluator:
        """This evaluator, see `RunEvaluator.panoptic`."""
        return self

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        """Take predictions; the threads compare them while the model runs on.

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
                # If this worker raised alone, the others would wait for it without end. `wait` and
                # `evaluate` raise the error on all workers.
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
        annotations = self.truth.annotations
        self.wait()
        gathered = comm.gather(self._images)
        kept = gather_worst_and_best(self._keeper)
        error = None
        if comm.is_main_process():
            images: dict[Any, _ImageResult] = {}
            # Of an image that several workers processed, the first worker's result counts.
            for part in gathered:
                images = {**part, **images}
            error = self._missing(images)
        _raise_together(error)
        if not comm.is_main_process():
            return None
        self.worst, self.best = kept
        return self._report({image_id: images[image_id] for image_id in annotations})

    def _take(self, given: Mapping[str, Any], output: Mapping[str, Any]) -> None:
        """Start the comparison of one prediction, and collect those that are done."""
        annotation = self.truth.find(given["image_id"], given.get("file_name"))
        if self._write and not self._names_checked:
            names = [a.file_name for a in self.truth.annotations.values()]
            check_png_names(names, self.truth.files.path)
            self._names_checked = True
        if annotation.image_id in self._seen:
            return
        self._seen.add(annotation.image_id)
        where = f"prediction for image {quoted(annotation.image_id)}"
        prediction = self._reader.read(output, where)
        file_name = str(given.get("file_name", annotation.file_name))
        image = _Image(annotation, given["image_id"], file_name)
        if not self._num_threads:
            self._compare(image, prediction)
            return
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self._num_threads, "panoptic-evaluation")
        self._pending.append(self._pool.submit(self._compare, image, prediction))
        # The limit bounds the memory of waiting predictions. Results are taken as soon as they are
        # there, so that an error of a thread is raised soon.
        while len(self._pending) > _PENDING_PER_THREAD * self._num_threads or (
            self._pending and self._pending[0].done()
        ):
            self._pending.popleft().result()

    def _compare(self, image: _Image, prediction: PanopticPrediction) -> None:
        """Compare one prediction with its truth; runs in a thread."""
        annotation, table = image.annotation, prediction.table
        measures = compare_with_truth(
            self.truth.files,
            annotation,
            prediction.runs,
            table,
            self._gt_area,
            boundary=self._boundary,
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
        pq, order = 100 * measures.outcomes.pooled_pq(), self.truth.order[annotation.image_id]
        self._keeper.offer(pq, order, lambda: _kept(image, prediction, pq, order))
        self._images[annotation.image_id] = _ImageResult(
            image.image_id, image.file_name, measures, written
        )

    def _finish(self) -> str | None:
        """Wait for the threads; return their first error."""
        while self._pending:
            try:
                self._pending.popleft().result()
            except EvaluationError as error:
                self._error = self._error or str(error)
        if self._pool is not None:
            self._pool.shutdown()
            self._pool = None
        return self._error

    def _missing(self, images: Mapping[Any, _ImageResult]) -> str | None:
        """Return the error for images without prediction, or None."""
        truth = self.truth.files
        missing = [i for i in truth.annotations if i not in images]
        if not missing:
            return None
        return (
            f"{len(missing)} of {len(truth.annotations)} images of {truth.path} have no prediction:"
            f" image ids {listed(missing)}; evaluate over the whole data set"
            f" {quoted(self.truth.dataset_name)}"
        )

    def _report(self, images: Mapping[Any, _ImageResult]) -> OrderedDict:
        by_id = {image.image_id: image for image in images.values()}
        measures = Measures(
            {image_id: image.measures for image_id, image in by_id.items()},
            self.truth.files.categories,
        )
        self.measures, self.summary = measures, measures.summary
        self.per_image = image_ranking(measures, {i: x.file_name for i, x in by_id.items()})
        if self._output_dir is not None:
            result = json.dumps(named_result(measures), indent=1)
            write_file(os.path.join(self._output_dir, "panoptic_quality.json"), result.encode())
        if self._write:
            written = [image.annotation for image in images.values() if image.annotation]
            self._writer.close(self.truth.files.content, written)
        if logger.isEnabledFor(logging.INFO):
            logger.info("Panoptic Evaluation Results:\n%s", result_text(measures))
        results = metric_keys(self.summary)
        absent = [key for key, value in results.items() if math.isnan(value)]
        if absent:
            logger.warning("Not available, no category to average over: %s", ", ".join(absent))
        return OrderedDict({"panoptic_seg": results})


def _kept(image: _Image, prediction: PanopticPrediction, pq: float, order: int) -> KeptPrediction:
    return KeptPrediction(
        image.image_id,
        image.file_name,
        pq,
        order,
        encode_png(prediction.runs),
        prediction.segments_info,
    )


def _raise_together(error: str | None) -> None:
    """Raise on all workers if one of them has an error; else the others would wait for it."""
    for of_worker in comm.all_gather(error):
        if of_worker:
            raise EvaluationError(of_worker)
