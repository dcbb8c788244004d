"""Panoptic predictions for images, folders, globs and videos: pictures and COCO panoptic files.

    panoptic-ext predict --config-file output/shapes/panoptic_fpn --input photos --output out

A file that fails is named with the reason, and the others are predicted all the same. Results of an
earlier run in the output folder are kept, so that a run that was stopped can be continued. They are
never taken as input.

Exit code: 0 all done, 1 some inputs failed, 2 nothing could be started or the disk is full, 130
stopped by Ctrl-C, 143 by SIGTERM.
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
import os
import sys
from collections.abc import Sequence

from detectron2.config import CfgNode

from panoptic_ext.commands.command_line import command_main, command_parser, split_options
from panoptic_ext.commands.drawing_options import add_drawing_options, take_drawing_options
from panoptic_ext.errors import ConfigError
from panoptic_ext.many_files import failure_line
from panoptic_ext.modeling.meta_arch.base import meta_architecture
from panoptic_ext.prediction.inputs import search_inputs
from panoptic_ext.prediction.job import JobOptions, PredictionJob, check_inputs
from panoptic_ext.prediction.predictor import Predictor, find_weights, load_run_cfg
from panoptic_ext.prediction.settings import DRAWING_OPTIONS

_STOPPED = "stopped; the same command goes on where it was"


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = command_parser("predict", __doc__, config_values=True)
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
    args = parser.parse_args(argv)
    args.input, args.opts = split_options(args.input, args.opts)
    args.drawing = take_drawing_options(args)
    return args


@command_main(parse_args, output=lambda args: args.output, stopped=lambda args: _STOPPED)
def main(args: argparse.Namespace) -> int:
    """Predict everything; returns 0, or 1 if some inputs failed."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    options = job_options(args)
    search = search_inputs(args.input, exclude=args.output)
    for line in search.left_out_lines():
        print(line)
    check_inputs(search.inputs, args.output)
    job = PredictionJob(load_predictor(args), args.output, options)
    try:
        job.run(search.inputs)
    except OSError:
        print(job.summary())  # of the files before the error
        raise
    return report(job)


def job_options(args: argparse.Namespace) -> JobOptions:
    """The options of the job; raises ConfigError if those of the command contradict each other."""
    if args.no_pictures and not args.save_panoptic:
        raise ConfigError("--no-pictures leaves nothing to write; add --save-panoptic")
    if args.no_pictures and args.drawing:
        names = ", ".join(DRAWING_OPTIONS[name] for name in args.drawing)
        raise ConfigError(f"--no-pictures draws nothing, but {names} was given; leave one out")
    if args.batch_size < 1:
        raise ConfigError(f"--batch-size is {args.batch_size}, expected 1 or more")
    options = JobOptions(
        pictures=not args.no_pictures,
        panoptic=args.save_panoptic,
        overwrite=args.overwrite,
        batch_size=args.batch_size,
        drawing=args.drawing,
    )
    if args.confidence_threshold is None:
        return options
    # Also for a model without a panoptic result, whose instances are drawn by their scores.
    return dataclasses.replace(options, least_score=args.confidence_threshold)


def load_predictor(args: argparse.Namespace) -> Predictor:
    """The model of the command line's config and weights."""
    cfg = load_run_cfg(args.config_file, args.opts)
    if args.confidence_threshold is not None:
        _set_threshold(cfg, args.confidence_threshold)
    weights = args.weights or find_weights(cfg, opts=args.opts, path=args.config_file)
    return Predictor(cfg, weights=weights)


def report(job: PredictionJob) -> int:
    """Print the numbers of files, and the paths of the results; returns the exit code."""
    print(job.summary())
    for name, reason in job.failed.items():
        print(f"failed: {failure_line(name, reason)}", file=sys.stderr)
    if job.pictures:
        print(f"pictures: {os.path.abspath(job.output)}")
        if line := job.pictures.unlabelled_line():
            print(line)
    if path := job.write_json():
        print(f"COCO panoptic results: {os.path.abspath(path)}")
    job.files.stop.check(_STOPPED)
    return 1 if job.failed else 0


def _set_threshold(cfg: CfgNode, threshold: float) -> None:
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
