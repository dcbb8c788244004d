"""Predict many files into one folder: pictures and COCO panoptic results.

This does from Python what the command predict does:

    predictor = Predictor(load_run_cfg("output/street"))
    job = PredictionJob(predictor, "drawn", JobOptions(panoptic=True))
    job.run(search_inputs(["photos"], exclude="drawn").inputs)
    job.write_json()

Then `job.failed` has a reason for each file that failed.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from tqdm import tqdm

from panoptic_ext.data.datasets.unified_classes import unified_metadata
from panoptic_ext.data.image_files import READ_ERRORS
from panoptic_ext.engine.memory_errors import explained_memory_errors
from panoptic_ext.errors import ConfigError, PanopticExtError
from panoptic_ext.interruption import stoppable
from panoptic_ext.many_files import ManyFiles
from panoptic_ext.prediction.ahead import PredictAhead
from panoptic_ext.prediction.image_ids import choose_image_ids, ids_of_files
from panoptic_ext.prediction.inputs import PredictionInput
from panoptic_ext.prediction.outputs import panoptic_result
from panoptic_ext.prediction.panoptic_result import PanopticResult
from panoptic_ext.prediction.predictor import Predictor
from panoptic_ext.prediction.results_folder import ResultsFolder
from panoptic_ext.prediction.segment_lists import SegmentLists
from panoptic_ext.prediction.settings import check_prediction_settings, prediction_settings
from panoptic_ext.prediction.video import VideoReader, VideoWriter
from panoptic_ext.visualization import Pictures, readable_scale, save_picture

__all__ = ["JobOptions", "PredictionJob", "check_inputs"]


@dataclass(frozen=True)
class JobOptions:
    """What a `PredictionJob` makes.

    Attributes:
        pictures: draw every input.
        panoptic: write COCO panoptic JSON and PNGs; the model must have panoptic results.
        lists: collect the segments for a JSON or a CSV.
        overwrite: replace the results that an earlier job left in the folder.
        batch_size: images of one size that are predicted at once; for a GPU.
        least_score: of the instances of a model without panoptic results.
        min_score: of the segments in pictures and lists; those without a score stay.
        drawing: keywords of `draw_panoptic`; its classes are also those of the lists.
    """

    pictures: bool = True
    panoptic: bool = False
    lists: bool = False
    overwrite: bool = False
    batch_size: int = 1
    least_score: float = 0.5
    min_score: float = 0.0
    drawing: dict[str, Any] = field(default_factory=dict)


def check_inputs(inputs: Sequence[PredictionInput], output: str) -> None:
    """Raise ConfigError if no input can be used, or a picture would replace an input.

    Args:
        inputs: of `search_inputs`.
        output: the folder that results go to.
    """
    if all(item.problem for item in inputs):
        problems = "; ".join(f"{item.path}: {item.problem}" for item in inputs)
        raise ConfigError(f"nothing to predict. {problems}")
    sources = {os.path.realpath(item.path) for item in inputs}
    for item in inputs:
        target = os.path.realpath(_picture_path(output, item))
        if not item.problem and target in sources:
            raise ConfigError(
                f"the picture of {item.path} would replace the input {target}; choose another"
                " --output"
            )


class PredictionJob:
    """Predicts images and videos into one folder; the next job continues one that was stopped.

    Attributes:
        pictures: draws them; None where nothing is drawn.
        results: the COCO panoptic results; None where none are written.
        lists: the segments of all inputs; None where they are not collected.
        files: the loop over the inputs: how many are done, and whether a signal stopped it.
        failed: path -> reason of each input that failed, or could not be used.
        skipped: how many inputs had all their results from an earlier job.
        drawn: paths of the pictures and videos that were drawn.
    """

    def __init__(
        self, predictor: Predictor, output: str, options: JobOptions | None = None
    ) -> None:
        """
        Args:
            predictor: makes the predictions.
            output: folder for the results; it is made.
            options: None takes the defaults.

        Raises:
            ConfigError: the folder holds results of another model, config or drawing, and is not
                to be overwritten.
        """
        self.predictor, self.output = predictor, output
        self.options = options = options or JobOptions()
        # Made in any case, because it checks the drawing options.
        metadata = unified_metadata(predictor.metadata)
        pictures = Pictures(metadata, options.drawing)
        self.pictures = pictures if options.pictures else None
        shown = dict(options.drawing)
        if options.min_score:
            shown["min_score"] = options.min_score
        settings = prediction_settings(predictor.cfg, predictor.weights, shown)
        check_prediction_settings(output, settings, overwrite=options.overwrite)
        self.results: ResultsFolder | None = None
        if options.panoptic:
            self.results = ResultsFolder(output, metadata, fresh=options.overwrite)
        self.lists = SegmentLists(output, fresh=options.overwrite) if options.lists else None
        self.files = ManyFiles[PredictionInput](lambda item: item.path)
        self.failed: dict[str, str] = {}
        self.skipped = 0
        self.drawn: list[str] = []
        self._image_ids: dict[str, int | str] = {}
        self._ahead = self._predict_ahead([])

    def run(self, inputs: Sequence[PredictionInput]) -> None:
        """Predict all inputs; those that fail are in `failed`.

        Raises:
            ConfigError, OSError: an error that all other inputs would have too, as a full disk.
        """
        self.failed = {item.path: item.problem for item in inputs if item.problem}
        usable = [item for item in inputs if not item.problem]
        self._image_ids = self._choose_image_ids(usable)
        todo = [item for item in usable if self.options.overwrite or not self.is_done(item)]
        self.skipped = len(usable) - len(todo)
        self._ahead = self._predict_ahead([item.path for item in todo if not item.is_video])
        with tqdm(total=len(todo), unit="file", desc="predict", disable=not todo) as progress:
            for item, _ in self.files.results(todo, self._predict):
                progress.update()
                if item.path in self.files.failed:
                    self.failed[item.path] = self.files.failed[item.path]
                    progress.set_postfix(failed=len(self.failed))

    def is_done(self, item: PredictionInput) -> bool:
        """Whether all results of `item` are there from an earlier job."""
        if not all(collection.has(item.name) for collection in self._collections):
            return False
        return not self.pictures or os.path.isfile(_picture_path(self.output, item))

    def write_json(self) -> str:
        """Write the COCO panoptic JSON of all results in the folder.

        Returns:
            Its path; "" where no panoptic results were asked for.
        """
        return "" if self.results is None else self.results.write_json()

    def summary(self) -> str:
        """How many inputs were predicted, were done before, failed and, after a stop, are left."""
        made, failed, left = self.files.done, len(self.failed), self.files.left
        text = f"{made} predicted, {self.skipped} were there already, {failed} failed"
        return f"{text}, {left} left" if left else text

    @property
    def _collections(self) -> list[ResultsFolder | SegmentLists]:
        return [kept for kept in (self.results, self.lists) if kept is not None]

    def _choose_image_ids(self, items: Sequence[PredictionInput]) -> dict[str, int | str]:
        """Name -> image id of the images, for the JSON."""
        if self.results is None:
            return {}
        paths = {item.name: item.path for item in items if not item.is_video}
        known = ids_of_files(paths, _known_image_ids(self.predictor.cfg))
        return choose_image_ids(list(paths), known, self.results.image_ids())

    def _predict_ahead(self, paths: Sequence[str]) -> PredictAhead[PanopticResult]:
        return PredictAhead(self.predictor, paths, self._result, batch_size=self.options.batch_size)

    def _result(self, outputs: dict[str, Any]) -> PanopticResult:
        if self.results is not None:
            panoptic_result(outputs)  # raises an error if there is none
        least, metadata = self.options.least_score, self.predictor.metadata
        return PanopticResult.from_outputs(outputs, metadata, min_score=least)

    def _predict(self, item: PredictionInput) -> None:
        """Predict, draw and store one input; one that fails or is stopped leaves nothing."""
        try:
            self._predict_video(item) if item.is_video else self._predict_image(item)
        except BaseException:
            for collection in self._collections:
                collection.discard()
            raise
        if self.pictures:
            self.drawn.append(_picture_path(self.output, item))
        # Last: a job that was killed before predicts the input again.
        for collection in self._collections:
            collection.commit(item.name)

    def _predict_image(self, item: PredictionInput) -> None:
        image, result = self._ahead(item.path)
        # Pictures and results need memory too, not only the model.
        with explained_memory_errors(*image.shape[:2]):
            self._collect(item.name, result, self._image_ids.get(item.name, item.name))
            # After all else that may fail, so that no picture of a failed image is left.
            if self.pictures:
                save_picture(_picture_path(self.output, item), self._drawn(image, result))

    def _collect(self, name: str, result: PanopticResult, image_id: int | str) -> None:
        if self.results is not None:
            ids, infos = result.panoptic_seg, result.segments_info
            self.results.add(name, ids, infos, image_id=image_id, file_name=name)
        if self.lists is not None:
            classes, min_score = self.options.drawing.get("classes"), self.options.min_score
            self.lists.add(name, result.filter(classes, min_score=min_score))

    def _drawn(self, image: np.ndarray, result: PanopticResult, **options: Any) -> np.ndarray:
        """An image, (H, W, 3) uint8 RGB, with its segments drawn over it."""
        assert self.pictures is not None
        shown = result.filter(min_score=self.options.min_score)
        # Boxes of whole instances, although others may lie over a part of them.
        infos = [{**info, "full_bbox": info["bbox"]} for info in shown.segments_info]
        return self.pictures.draw(image, shown.panoptic_seg, infos, **options)

    def _predict_video(self, item: PredictionInput) -> None:
        reader = VideoReader(item.path)
        frames = tqdm(
            reader, total=reader.num_frames or None, unit="frame", desc=item.name, leave=False
        )
        path = _picture_path(self.output, item)
        with VideoWriter(path, reader.fps) as writer, stoppable() as stop:
            for number, (frame, result) in enumerate(self._predicted(frames)):
                # Without a message, because the command prints one. A video may be hours long, so a
                # signal does not wait for its end; the next job starts this video again.
                stop.check("")
                if self.pictures:
                    writer.write(self._drawn_frame(frame, result))
                key = f"{item.name}/{number:06d}"
                self._collect(key, result, key)
            if self.pictures:
                writer.commit()

    def _predicted(
        self, frames: Iterable[np.ndarray]
    ) -> Iterator[tuple[np.ndarray, PanopticResult]]:
        """Each frame with its result."""
        waiting: deque[np.ndarray] = deque()

        def read_frames() -> Iterator[np.ndarray]:
            for frame in frames:
                waiting.append(frame)
                yield frame

        # The predictor reads frames one batch before it yields their outputs.
        for outputs in self.predictor.predict_each(
            read_frames(), batch_size=self.options.batch_size
        ):
            yield waiting.popleft(), self._result(outputs)

    def _drawn_frame(self, frame: np.ndarray, result: PanopticResult) -> np.ndarray:
        """A frame, (H, W, 3) BGR, with its segments drawn over it."""
        scale = readable_scale(*frame.shape[:2])
        # No legend: its height would change from frame to frame.
        return self._drawn(frame[:, :, ::-1], result, scale=scale, legend=False)[:, :, ::-1]


def _picture_path(output: str, item: PredictionInput) -> str:
    return os.path.join(output, *item.picture_name.split("/"))


def _known_image_ids(cfg: CfgNode) -> dict[str, int | str]:
    """Real path -> image id in the data sets of `cfg`, so that results match their ground truth."""
    ids: dict[str, int | str] = {}
    for name in (*cfg.DATASETS.TEST, *cfg.DATASETS.TRAIN):
        try:
            records = DatasetCatalog.get(name)
        except (KeyError, PanopticExtError, *READ_ERRORS):
            continue  # the data need not be on this machine
        for record in records:
            ids.setdefault(os.path.realpath(record["file_name"]), record["image_id"])
    return ids
