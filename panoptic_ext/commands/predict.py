"""Panoptic predictions for images, folders, globs and videos: pictures, lists and COCO files.

    panoptic-ext predict --model mask2former_R50_coco street.jpg
    panoptic-ext predict --model output/demo/mask2former photos --output drawn --csv segments.csv

--model takes a model of the zoo (`panoptic-ext zoo list`), the output folder of a training run, a
checkpoint in it, or a config file. Without --output the results go to predictions/MODEL and are
made anew each time; in a folder that --output names, results of an earlier run are kept, so that a
run that was stopped can be continued. Results are never taken as input. A file that fails is named
with the reason, and the others are predicted all the same.

--classes and --min-score choose the segments of pictures and lists; the COCO files have all.

Exit code: 0 all done, 1 some inputs failed, 2 nothing could be started or the disk is full, 130
stopped by Ctrl-C, 143 by SIGTERM.
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
import os
import sys
from collections.abc import Callable, Sequence
from typing import TextIO

from detectron2.config import CfgNode

from panoptic_ext.atomic import write_file
from panoptic_ext.commands.command_line import (
    command_main,
    command_parser,
    fraction,
    split_options,
)
from panoptic_ext.commands.drawing_options import add_drawing_options, take_drawing_options
from panoptic_ext.errors import ConfigError
from panoptic_ext.many_files import failure_line
from panoptic_ext.modeling.meta_arch.base import meta_architecture
from panoptic_ext.prediction.inputs import search_inputs
from panoptic_ext.prediction.job import JobOptions, PredictionJob, check_inputs
from panoptic_ext.prediction.model_source import find_model, source_name
from panoptic_ext.prediction.predictor import Predictor, find_weights, load_run_cfg
from panoptic_ext.prediction.settings import DRAWING_OPTIONS

_STOPPED = "stopped; the same command goes on where it was"
_STOPPED_WITHOUT_OUTPUT = "stopped; with --output FOLDER the same command would go on where it was"
_PREDICTIONS = "predictions"
"""Folder in the current one, with a folder for each model, that results go to by default."""


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = command_parser("predict", __doc__)
    add = parser.add_argument
    # Not argparse.REMAINDER, which would take the options after the first picture.
    add("words", nargs="*", metavar="INPUT or KEY VALUE", help="as --input; then config values")
    model = parser.add_mutually_exclusive_group(required=True)
    model.add_argument("--model", help="name in the zoo, folder of a training run, or YAML file")
    model.add_argument("--config-file", help="YAML file, or the output folder of a training run")
    add("--weights", default="", help="checkpoint; default: the run's last one or MODEL.WEIGHTS")
    add("--input", nargs="+", default=[], help="images, videos, folders, quoted globs")
    add("--output", default="", help=f"folder; default: {_PREDICTIONS}/MODEL, made anew each time")
    add("--json", metavar="FILE", default="", help="write all segments as JSON; - prints them")
    add("--csv", metavar="FILE", default="", help="write a row for each segment; - prints them")
    add("--min-score", type=fraction, default=0.0, help="least score in pictures and lists")
    add("--save-panoptic", action="store_true", help="also write COCO panoptic JSON and PNGs")
    add("--confidence-threshold", type=float, help="least score of a thing, 0 to 1")
    add("--no-pictures", action="store_true", help="draw nothing")
    add("--overwrite", action="store_true", help="make existing results again")
    add("--batch-size", type=int, default=1, help="images of one size at once; for a GPU")
    add_drawing_options(parser)
    args = parser.parse_intermixed_args(argv)
    args.opts = []
    args.drawing = take_drawing_options(args)
    args.input = _take_inputs(args)
    if not args.input:
        parser.error("no input: name images, videos, folders or quoted globs")
    if args.classes == []:
        parser.error("--classes: expected the name of a class")
    args.keep_results = bool(args.output) and not args.overwrite
    name = source_name(args.model or args.config_file)
    args.output = args.output or os.path.join(_PREDICTIONS, name)
    return args


def _take_inputs(args: argparse.Namespace) -> list[str]:
    """The inputs, among words that argparse cannot tell apart from other ones.

    Side effect: config values are moved to `args.opts`, and `args.classes` loses the inputs.
    """
    words, args.opts = split_options(args.words, args.opts)
    named, args.opts = split_options(args.input, args.opts)
    inputs = [*named, *words]
    if not inputs and args.classes:  # as in `--classes car street.jpg`
        is_path = [os.path.exists(word) for word in args.classes]
        first = is_path.index(True) if any(is_path) else len(is_path)
        inputs, args.classes[first:] = args.classes[first:], []
    return inputs


def _stopped(args: argparse.Namespace) -> str:
    return _STOPPED if args.keep_results else _STOPPED_WITHOUT_OUTPUT


@command_main(parse_args, output=lambda args: args.output, stopped=_stopped)
def main(args: argparse.Namespace) -> int:
    """Predict everything; returns 0, or 1 if some inputs failed."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    options = job_options(args)
    search = search_inputs(args.input, exclude=args.output)
    # Only the list that is asked for goes to stdout.
    messages = sys.stderr if "-" in (args.json, args.csv) else sys.stdout
    for line in search.left_out_lines():
        print(line, file=messages)
    check_inputs(search.inputs, args.output)
    job = PredictionJob(load_predictor(args), args.output, options)
    try:
        job.run(search.inputs)
    except OSError:
        print(job.summary(), file=messages)  # of the files before the error
        raise
    return report(job, args, messages)


def job_options(args: argparse.Namespace) -> JobOptions:
    """The options of the job; raises ConfigError if those of the command contradict each other."""
    lists = bool(args.json or args.csv)
    if args.no_pictures and not (args.save_panoptic or lists):
        raise ConfigError(
            "--no-pictures leaves nothing to write; add --save-panoptic, --json FILE or --csv FILE"
        )
    # The classes are those of lists, too.
    unused = [name for name in args.drawing if not (lists and name == "classes")]
    if args.no_pictures and unused:
        names = ", ".join(DRAWING_OPTIONS[name] for name in unused)
        raise ConfigError(f"--no-pictures draws nothing, but {names} was given; leave one out")
    if args.json == args.csv == "-":
        raise ConfigError("--json - and --csv - would mix on stdout; write one into a file")
    if args.batch_size < 1:
        raise ConfigError(f"--batch-size is {args.batch_size}, expected 1 or more")
    options = JobOptions(
        pictures=not args.no_pictures,
        panoptic=args.save_panoptic,
        lists=lists,
        overwrite=not args.keep_results,
        batch_size=args.batch_size,
        min_score=args.min_score,
        drawing=args.drawing,
    )
    # Also for a model without a panoptic result, whose instances are drawn by their scores.
    if args.confidence_threshold is not None:
        return dataclasses.replace(options, least_score=args.confidence_threshold)
    return dataclasses.replace(options, least_score=args.min_score or options.least_score)


def load_predictor(args: argparse.Namespace) -> Predictor:
    """The model of the command line's config and weights."""
    if args.model:
        cfg, weights = find_model(args.model, weights=args.weights or None, opts=args.opts)
    else:
        cfg = load_run_cfg(args.config_file, args.opts)
        weights = args.weights or find_weights(cfg, opts=args.opts, path=args.config_file)
    if args.confidence_threshold is not None:
        _set_threshold(cfg, args.confidence_threshold)
    return Predictor(cfg, weights=weights)


def report(job: PredictionJob, args: argparse.Namespace, messages: TextIO) -> int:
    """Write the lists; print the numbers of files, and where results are. Returns the exit code."""
    print(job.summary(), file=messages)
    for name, reason in job.failed.items():
        print(f"failed: {failure_line(name, reason)}", file=sys.stderr)
    if job.pictures:
        print(f"pictures: {_pictures_place(job)}", file=messages)
        if line := job.pictures.unlabelled_line():
            print(line, file=messages)
    if path := job.write_json():
        print(f"COCO panoptic results: {os.path.abspath(path)}", file=messages)
    if job.lists is not None:
        for path, text in ((args.json, job.lists.json_text), (args.csv, job.lists.csv_text)):
            _write_list(path, text, messages)
    job.files.stop.check(_stopped(args))
    return 1 if job.failed else 0


def _pictures_place(job: PredictionJob) -> str:
    """The picture, where one was drawn, or the folder of the pictures."""
    return os.path.abspath(job.drawn[0] if len(job.drawn) == 1 else job.output)


def _write_list(path: str, text: Callable[[], str], messages: TextIO) -> None:
    if path == "-":
        sys.stdout.write(text())
    elif path:
        write_file(path, text().encode(), error=None)
        print(f"segments: {os.path.abspath(path)}", file=messages)


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
