"""Panoptic predictions for images, folders, globs and videos: pictures and COCO panoptic files.

    panoptic-ext predict --config-file output/shapes/panoptic_fpn --input photos --output out

A file that fails is named with its reason and the rest goes on. What an earlier run left in the
output folder is kept, so a stopped run goes on where it was; it is never taken as input.

Exit code: 0 all done, 1 some inputs failed, 2 nothing could be started or the disk is full, 130
stopped by Ctrl-C, 143 by SIGTERM.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from detectron2.data import DatasetCatalog
from tqdm import tqdm

from panoptic_ext.commands.command_line import command_parser, ends_with_a_message, split_options
from panoptic_ext.commands.drawing_options import add_drawing_options, take_drawing_options
from panoptic_ext.data.image_files import READ_ERRORS
from panoptic_ext.engine.memory_errors import explained_memory_errors
from panoptic_ext.errors import ConfigError, PanopticExtError
from panoptic_ext.interruption import stoppable
from panoptic_ext.many_files import ManyFiles, failure_line
from panoptic_ext.modeling.meta_arch.base import meta_architecture
from panoptic_ext.prediction.ahead import PredictAhead
from panoptic_ext.prediction.image_ids import choose_image_ids, ids_of_files
from panoptic_ext.prediction.inputs import (
    PredictionInput,
    search_inputs,
)
from panoptic_ext.prediction.outputs import panoptic_result, segments_to_draw
from panoptic_ext.prediction.predictor import Predictor, find_weights, load_run_cfg
from panoptic_ext.prediction.results import PanopticResults
from panoptic_ext.prediction.settings import (
    DRAWING_OPTIONS,
    check_prediction_settings,
    prediction_settings,
)
from panoptic_ext.prediction.video import VideoReader, VideoWriter
from panoptic_ext.visualization import Pictures, readable_scale, save_picture

_STOPPED = "stopped; the same command goes on where it was"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    args = parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    return run(args)


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = command_parser("predict", __doc__)
    add = parser.add_argument
    add("--config-file", required=True, help="YAML file, or the output folder of a training run")
    add("--weights", default="", help="checkpoint; default: the run's last one or MODEL.WEIGHTS")
    add("--input", nargs="+", required=True, help="images, videos, folders, quoted globs")
    add("--output", required=True, help="folder for the results; sub-folders are kept")
    add("--save-panoptic", action="store_true", help="also write COCO panoptic JSON and PNGs")
    add("--confidence-threshold", type=float, help="least score of a thing, 0 to 1")
    add("--no-pictures", action="store_true", help="draw nothing; needs --save-panoptic")
    add("--overwrite", action="store_true", help="make existing results again")
    add("--batch-size", type=int, default=1, help="images of one size at once; for a GPU")
    add_drawing_options(parser)
    add("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="config values")
    args = parser.parse_args(argv)
    args.input, args.opts = split_options(args.input, args.opts)
    args.drawing = take_drawing_options(args)
    return args


@ends_with_a_message(output=lambda args: args.output, stopped=lambda args: _STOPPED)
def run(args: argparse.Namespace) -> int:
    """Predict everything; returns 0, or 1 if some inputs failed."""
    if args.no_pictures and not args.save_panoptic:
        raise ConfigError("--no-pictures leaves nothing to write; add --save-panoptic")
    if args.no_pictures and args.drawing:
        options = ", ".join(DRAWING_OPTIONS[name] for name in args.drawing)
        raise ConfigError(f"--no-pictures draws nothing, but {options} was given; leave one out")
    if args.batch_size < 1:
        raise ConfigError(f"--batch-size is {args.batch_size}, expected 1 or more")
    search = search_inputs(args.input, exclude=args.output)
    inputs = search.inputs
    for line in search.left_out_lines():
        print(line)
    if all(item.problem for item in inputs):
        problems = "; ".join(f"{item.path}: {item.problem}" for item in inputs)
        raise ConfigError(f"nothing to predict. {problems}")
    _check_targets(inputs, args.output)
    cfg, weights = load(args)
    predictor = Predictor(cfg, weights=weights)
    pictures = Pictures(predictor.metadata, args.drawing)
    settings = prediction_settings(cfg, predictor.weights, args.drawing)
    check_prediction_settings(args.output, settings, overwrite=args.overwrite)
    results = None
    if args.save_panoptic:
        results = PanopticResults(args.output, predictor.metadata, fresh=args.overwrite)
    job = Job(
        predictor,
        args.output,
        results,
        pictures=None if args.no_pictures else pictures,
        least_score=args.confidence_threshold,
        batch_size=args.batch_size,
    )
    try:
        job.run(inputs, overwrite=args.overwrite)
    except OSError:
        print(job.summary())  # what there is before the error
        raise
    return report(args, job)


def load(args: argparse.Namespace) -> tuple[Any, str]:
    """The config and the weights that the command line means."""
    cfg = load_run_cfg(args.config_file, args.opts)
    if args.confidence_threshold is not None:
        _set_threshold(cfg, args.confidence_threshold)
    folder = args.config_file
    if not os.path.isdir(folder):
        folder = os.path.dirname(os.path.abspath(folder))
    given = "MODEL.WEIGHTS" in args.opts[::2]
    weights = args.weights or (cfg.MODEL.WEIGHTS if given else find_weights(cfg, folder=folder))
    return cfg, weights


def report(args: argparse.Namespace, job: Job) -> int:
    """Say what was done and where it lies; returns the exit code."""
    print(job.summary())
    for name, reason in job.failed.items():
        print(f"failed: {failure_line(name, reason)}", file=sys.stderr)
    if job.pictures:
        print(f"pictures: {os.path.abspath(args.output)}")
        if line := job.pictures.unlabelled_line():
            print(line)
    if job.results is not None:
        print(f"COCO panoptic results: {os.path.abspath(job.results.write_json())}")
    job.files.stop.check(_STOPPED)
    return 1 if job.failed else 0


class Job:
    """What is made of each input, and where it goes."""

    def __init__(
        self,
        predictor: Predictor,
        output: str,
        results: PanopticResults | None,
        *,
        pictures: Pictures | None,
        least_score: float | None = None,
        batch_size: int = 1,
    ) -> None:
        self.predictor = predictor
        self.output = output
        self.results = results
        self.pictures = pictures
        self.least_score = 0.5 if least_score is None else least_score
        self.batch_size = batch_size
        self.ahead = PredictAhead(predictor, [], self._segments)
        self.image_ids: dict[str, int | str] = {}
        self.files = ManyFiles[PredictionInput](lambda item: item.path)
        self.failed: dict[str, str] = {}
        self.skipped = 0

    def summary(self) -> str:
        """How many inputs were predicted, there already, failed and, if it was stopped, left."""
        made, failed, left = self.files.done, len(self.failed), self.files.left
        text = f"{made} predicted, {self.skipped} were there already, {failed} failed"
        return f"{text}, {left} left" if left else text

    def run(self, inputs: Sequence[PredictionInput], *, overwrite: bool) -> None:
        """Predict all inputs; those that fail are in `failed`, path -> reason."""
        self.failed = {item.path: item.problem for item in inputs if item.problem}
        usable = [item for item in inputs if not item.problem]
        if self.results is not None:
            names = {item.name: item.path for item in usable if not item.is_video}
            of_files = _known_image_ids(self.predictor.cfg)
            known = ids_of_files(names, of_files)
            self.image_ids = choose_image_ids(list(names), known, self.results.image_ids())
        todo = [item for item in usable if overwrite or not self.is_done(item)]
        self.skipped = len(usable) - len(todo)
        images = [item.path for item in todo if not item.is_video]
        self.ahead = PredictAhead(
            self.predictor, images, self._segments, batch_size=self.batch_size
        )
        with tqdm(total=len(todo), unit="file", desc="predict", disable=not todo) as progress:
            for item, _ in self.files.results(todo, self.predict):
                progress.update()
                if item.path in self.files.failed:
                    self.failed[item.path] = self.files.failed[item.path]
                    progress.set_postfix(failed=len(self.failed))  # they are listed at the end

    def predict(self, item: PredictionInput) -> None:
        """Predict, draw and store one image or video."""
        self.predict_video(item) if item.is_video else self.predict_image(item)

    def is_done(self, item: PredictionInput) -> bool:
        """Whether an earlier run left all results of `item`."""
        if self.results is not None and not self.results.has(item.name):
            return False
        return not self.pictures or os.path.isfile(self.picture_path(item))

    def picture_path(self, item: PredictionInput) -> str:
        """Where the picture or the video of `item` goes."""
        return os.path.join(self.output, *item.picture_name.split("/"))

    def predict_image(self, item: PredictionInput) -> None:
        """Predict, draw and store one image."""
        image, segments = self.ahead(item.path)
        with explained_memory_errors(*image.shape[:2]):  # pictures and results need some too
            self._write_image(item, image, *segments)

    def _write_image(
        self, item: PredictionInput, image: np.ndarray, panoptic_seg: Any, segments_info: Any
    ) -> None:
        if self.pictures:
            picture = self.pictures.draw(image, panoptic_seg, segments_info)
            save_picture(self.picture_path(item), picture)
        if self.results is not None:
            image_id = self.image_ids[item.name]
            self.results.add(
                item.name, panoptic_seg, segments_info, image_id=image_id, file_name=item.name
            )

    def _segments(self, outputs: dict[str, Any]) -> Any:
        if self.results is not None:
            return panoptic_result(outputs)
        return segments_to_draw(outputs, least_score=self.least_score)

    def predict_video(self, item: PredictionInput) -> None:
        """Predict, draw and store a video frame by frame."""
        reader = VideoReader(item.path)
        frames = tqdm(
            reader, total=reader.num_frames or None, unit="frame", desc=item.name, leave=False
        )
        with VideoWriter(self.picture_path(item), reader.fps) as writer, stoppable() as stop:
            for number, (frame, segments) in enumerate(self._predicted(frames)):
                stop.check("")  # the next run predicts the whole video: it may have hours
                self._write_frame(item, number, frame, segments, writer)
            if self.pictures:
                writer.commit()
        if self.results is not None:
            self.results.mark(item.name)

    def _predicted(self, frames: Iterable[np.ndarray]) -> Iterator[tuple[np.ndarray, Any]]:
        """Each frame with its segments."""
        waiting: deque[np.ndarray] = deque()

        def noted() -> Iterator[np.ndarray]:
            for frame in frames:
                waiting.append(frame)
                yield frame

        for outputs in self.predictor.predict_each(noted(), batch_size=self.batch_size):
            yield waiting.popleft(), self._segments(outputs)

    def _write_frame(
        self,
        item: PredictionInput,
        number: int,
        frame: np.ndarray,
        segments: Any,
        writer: VideoWriter,
    ) -> None:
        panoptic_seg, segments_info = segments
        if self.pictures:
            # No legend, which would be higher in some frames than in others.
            picture = self.pictures.draw(
                frame[:, :, ::-1],
                panoptic_seg,
                segments_info,
                scale=readable_scale(*frame.shape[:2]),
                legend=False,
            )
            writer.write(picture[:, :, ::-1])
        if self.results is not None:
            key = f"{item.name}/{number:06d}"
            self.results.add(key, panoptic_seg, segments_info, image_id=key, file_name=key)


def _set_threshold(cfg: Any, threshold: float) -> None:
    if not 0 <= threshold <= 1:
        raise ConfigError(f"--confidence-threshold is {threshold}, expected 0 to 1")
    key = meta_architecture(cfg).score_threshold_key_for(cfg)
    if not key:
        raise ConfigError(
            f"MODEL.META_ARCHITECTURE {cfg.MODEL.META_ARCHITECTURE} names no score_threshold_key, "
            "which --confidence-threshold sets; give the model's own key as KEY VALUE instead"
        )
    cfg.defrost()
    cfg.merge_from_list([key, threshold])
    cfg.freeze()


def _check_targets(inputs: Sequence[PredictionInput], output: str) -> None:
    """Refuse to write a picture over an input."""
    sources = {os.path.realpath(item.path) for item in inputs}
    for item in inputs:
        target = os.path.realpath(os.path.join(output, *item.picture_name.split("/")))
        if not item.problem and target in sources:
            raise ConfigError(
                f"the picture of {item.path} would replace the input {target}; choose another"
                " --output"
            )


def _known_image_ids(cfg: Any) -> dict[str, int | str]:
    """Image ids of the data sets of `cfg`, by file, so that results fit their ground truth."""
    ids: dict[str, int | str] = {}
    for name in (*cfg.DATASETS.TEST, *cfg.DATASETS.TRAIN):
        try:
            records = DatasetCatalog.get(name)
        except (KeyError, PanopticExtError, *READ_ERRORS):
            continue  # the data need not be on this machine
        for record in records:
            ids.setdefault(os.path.realpath(record["file_name"]), record["image_id"])
    return ids
