#!/usr/bin/env python
"""Panoptic predictions for images, folders, globs and videos: pictures and COCO panoptic files.

    python tools/predict.py --config-file output/shapes/panoptic_fpn --input photos --output out

A file that cannot be read is named with its reason and the rest goes on. What an earlier run left
in the output folder is kept, so a stopped run goes on where it was.

Exit code: 0 all done, 1 some inputs failed, 2 nothing could be started.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import os
import sys
import warnings
from collections.abc import Sequence
from typing import Any

# fvcore and Detectron2 script functions, and torch says so at every start.
warnings.filterwarnings("ignore", message="`torch.jit.script` is deprecated")

import numpy as np
from detectron2.data import DatasetCatalog
from tqdm import tqdm

from panoptic_ext.atomic import write_atomic
from panoptic_ext.command_line import explain_os_error, split_options
from panoptic_ext.data.id_map import READ_ERRORS
from panoptic_ext.data.image_files import read_image
from panoptic_ext.engine.memory_errors import explained_memory_errors
from panoptic_ext.engine.predictor import Predictor, find_weights, load_run_cfg
from panoptic_ext.errors import NOT_JSON, ConfigError, PanopticExtError
from panoptic_ext.regular_files import SMALL_FILE, check_regular_file
from panoptic_ext.visualization import draw_panoptic, readable_scale, save_picture
from panoptic_ext.visualization.prediction_image_ids import choose_image_ids
from panoptic_ext.visualization.prediction_inputs import PredictionInput, find_inputs
from panoptic_ext.visualization.prediction_results import PanopticResults
from panoptic_ext.visualization.prediction_segments import panoptic_result, segments_to_draw
from panoptic_ext.visualization.video import VideoReader, VideoWriter

SETTINGS_FILE = "predict_settings.json"
_FPN_THRESHOLD = "MODEL.PANOPTIC_FPN.COMBINE.INSTANCES_CONFIDENCE_THRESH"
_MASK_FORMER_THRESHOLD = "MODEL.MASK_FORMER.TEST.OBJECT_MASK_THRESHOLD"
THRESHOLD_KEYS = {
    "PanopticFPN": _FPN_THRESHOLD,
    "UnifiedPanopticFPN": _FPN_THRESHOLD,
    "MaskFormer": _MASK_FORMER_THRESHOLD,
    "PanopticExtMaskFormer": _MASK_FORMER_THRESHOLD,
    "GeneralizedRCNN": "MODEL.ROI_HEADS.SCORE_THRESH_TEST",
}
"""The config key that --confidence-threshold sets, by MODEL.META_ARCHITECTURE."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    args = parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    try:
        return run(args)
    except PanopticExtError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; the same command goes on where it was", file=sys.stderr)
        return 130
    except OSError as error:
        print(f"error: {explain_os_error(error, args.output)}", file=sys.stderr)
        return 2


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--config-file", required=True, help="YAML file, or the output folder of a training run")
    add("--weights", default="", help="checkpoint; default: the run's last one or MODEL.WEIGHTS")
    add("--input", nargs="+", required=True, help="images, videos, folders, quoted globs")
    add("--output", required=True, help="folder for the results; sub-folders are kept")
    add("--save-panoptic", action="store_true", help="also write COCO panoptic JSON and PNGs")
    add("--confidence-threshold", type=float, help="least score of a thing, 0 to 1")
    add("--no-pictures", action="store_true", help="draw nothing; needs --save-panoptic")
    add("--overwrite", action="store_true", help="make existing results again")
    add("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="config values")
    args = parser.parse_args(argv)
    args.input, args.opts = split_options(args.input, args.opts)
    return args


def run(args: argparse.Namespace) -> int:
    """Predict everything; returns 0, or 1 if some inputs failed."""
    if args.no_pictures and not args.save_panoptic:
        raise ConfigError("--no-pictures leaves nothing to write; add --save-panoptic")
    inputs = find_inputs(args.input, exclude=args.output)
    if all(item.problem for item in inputs):
        problems = "; ".join(f"{item.path}: {item.problem}" for item in inputs)
        raise ConfigError(f"nothing to predict. {problems}")
    _check_targets(inputs, args.output)
    cfg, weights = load(args)
    predictor = Predictor(cfg, weights=weights)
    _check_settings(args.output, cfg, predictor.weights, overwrite=args.overwrite)
    results = None
    if args.save_panoptic:
        results = PanopticResults(args.output, predictor.metadata, fresh=args.overwrite)
    job = Job(
        predictor,
        args.output,
        results,
        pictures=not args.no_pictures,
        least_score=args.confidence_threshold,
    )
    skipped, failed = job.run(inputs, overwrite=args.overwrite)
    return report(args, results, len(inputs), skipped, failed)


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


def report(
    args: argparse.Namespace,
    results: PanopticResults | None,
    total: int,
    skipped: int,
    failed: dict[str, str],
) -> int:
    """Say what was done and where it lies; returns the exit code."""
    made = total - skipped - len(failed)
    print(f"{made} predicted, {skipped} were there already, {len(failed)} failed")
    for name, reason in failed.items():
        print(f"failed: {name}: {reason}", file=sys.stderr)
    if not args.no_pictures:
        print(f"pictures: {os.path.abspath(args.output)}")
    if results is not None:
        print(f"COCO panoptic results: {os.path.abspath(results.write_json())}")
    return 1 if failed else 0


class Job:
    """What is made of each input, and where it goes."""

    def __init__(
        self,
        predictor: Predictor,
        output: str,
        results: PanopticResults | None,
        *,
        pictures: bool,
        least_score: float | None = None,
    ) -> None:
        self.predictor = predictor
        self.metadata = predictor.metadata
        self.output = output
        self.results = results
        self.pictures = pictures
        self.least_score = 0.5 if least_score is None else least_score
        self.image_ids: dict[str, int | str] = {}

    def run(
        self, inputs: Sequence[PredictionInput], *, overwrite: bool
    ) -> tuple[int, dict[str, str]]:
        """Predict all inputs.

        Returns:
            How many were there already; path -> reason of those that failed.
        """
        failed = {item.path: item.problem for item in inputs if item.problem}
        usable = [item for item in inputs if not item.problem]
        if self.results is not None:
            names = {item.name: item.path for item in usable if not item.is_video}
            of_files = _known_image_ids(self.predictor.cfg)
            files = {name: os.path.realpath(path) for name, path in names.items()}
            known = {name: of_files[file] for name, file in files.items() if file in of_files}
            self.image_ids = choose_image_ids(list(names), known, self.results.image_ids())
        todo = [item for item in usable if overwrite or not self.is_done(item)]
        with tqdm(todo, unit="file", desc="predict", disable=not todo) as progress:
            for item in progress:
                try:
                    self.predict_video(item) if item.is_video else self.predict_image(item)
                except ConfigError:
                    raise  # holds for every input
                except (RuntimeError, ValueError, MemoryError) as error:  # and PanopticExtError
                    failed[item.path] = str(error) or type(error).__name__
                    progress.write(f"skipped {item.path}: {failed[item.path]}", file=sys.stderr)
        return len(usable) - len(todo), failed

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
        image = read_image(item.path, "RGB")
        with explained_memory_errors(*image.shape[:2]):  # pictures and results need some too
            self._predict_image(item, image)

    def _predict_image(self, item: PredictionInput, image: np.ndarray) -> None:
        panoptic_seg, segments_info = self._segments(image[:, :, ::-1])
        if self.pictures:
            picture = draw_panoptic(image, panoptic_seg, segments_info, self.metadata)
            save_picture(self.picture_path(item), picture)
        if self.results is not None:
            image_id = self.image_ids[item.name]
            self.results.add(
                item.name, panoptic_seg, segments_info, image_id=image_id, file_name=item.name
            )

    def _segments(self, image_bgr: np.ndarray) -> Any:
        outputs = self.predictor(image_bgr)
        if self.results is not None:
            return panoptic_result(outputs)
        return segments_to_draw(outputs, least_score=self.least_score)

    def predict_video(self, item: PredictionInput) -> None:
        """Predict, draw and store a video frame by frame."""
        reader = VideoReader(item.path)
        frames = tqdm(
            reader, total=reader.num_frames or None, unit="frame", desc=item.name, leave=False
        )
        with VideoWriter(self.picture_path(item), reader.fps) as writer:
            for number, frame in enumerate(frames):
                self._predict_frame(item, number, frame, writer)
            if self.pictures:
                writer.commit()
        if self.results is not None:
            self.results.mark(item.name)

    def _predict_frame(
        self, item: PredictionInput, number: int, frame: np.ndarray, writer: VideoWriter
    ) -> None:
        panoptic_seg, segments_info = self._segments(frame)
        if self.pictures:
            scale = readable_scale(*frame.shape[:2])
            picture = draw_panoptic(
                frame[:, :, ::-1], panoptic_seg, segments_info, self.metadata, scale=scale
            )
            writer.write(picture[:, :, ::-1])
        if self.results is not None:
            key = f"{item.name}/{number:06d}"
            self.results.add(key, panoptic_seg, segments_info, image_id=key, file_name=key)


def _set_threshold(cfg: Any, threshold: float) -> None:
    if not 0 <= threshold <= 1:
        raise ConfigError(f"--confidence-threshold is {threshold}, expected 0 to 1")
    architecture = cfg.MODEL.META_ARCHITECTURE
    if architecture not in THRESHOLD_KEYS:
        raise ConfigError(
            f"--confidence-threshold does not know MODEL.META_ARCHITECTURE {architecture}; give "
            f"that model's own key as KEY VALUE instead (known: {', '.join(THRESHOLD_KEYS)})"
        )
    cfg.defrost()
    cfg.merge_from_list([THRESHOLD_KEYS[architecture], threshold])
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


def _check_settings(output: str, cfg: Any, weights: str, *, overwrite: bool) -> None:
    """Refuse to mix results of two models in one folder, and note which model these are of."""
    settings = {"weights": _file_hash(weights), "config": _config_hash(cfg)}
    path = os.path.join(output, SETTINGS_FILE)
    if os.path.exists(path) and not overwrite:
        check_regular_file(path, SMALL_FILE, error=ConfigError)
        try:
            with open(path, encoding="utf-8") as stream:
                before = json.load(stream)
        except NOT_JSON:
            before = None
        if before != settings:
            raise ConfigError(
                f"{output} holds results of other weights or another config; choose another"
                " --output, or --overwrite them"
            )
        return
    os.makedirs(output, exist_ok=True)
    write_atomic(path, lambda stream: stream.write(json.dumps(settings).encode()))


def _config_hash(cfg: Any) -> str:
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.WEIGHTS, cfg.MODEL.DEVICE = "", ""
    text = "\n".join((cfg.MODEL.dump(), cfg.INPUT.dump(), cfg.TEST.dump()))
    return hashlib.sha256(text.encode()).hexdigest()


def _file_hash(path: str) -> str:
    """sha256 of a file; of the address itself where `path` is one."""
    if not os.path.isfile(path):
        return path
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        for block in iter(lambda: stream.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


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


if __name__ == "__main__":
    sys.exit(main())
