"""Panoptic quality of COCO panoptic results, of models or of people, against each other.

Examples:
    panoptic-ext evaluate --gt panoptic_val.json --gt-root panoptic_val \\
        --pred panoptic_predictions.json --pred-root panoptic_predictions
    panoptic-ext evaluate --gt panoptic_val.json --compare a/panoptic.json b/panoptic.json
    panoptic-ext evaluate --annotators anna.json ben.json --pred a/panoptic.json
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence

from panoptic_ext.atomic import write_file
from panoptic_ext.commands.command_line import command_main, command_parser
from panoptic_ext.errors import ConfigError
from panoptic_ext.evaluation.compare_files import FileResult, evaluate_files
from panoptic_ext.evaluation.comparison import compare_results
from panoptic_ext.evaluation.comparison_text import comparison_text, named_comparison
from panoptic_ext.evaluation.formats import or_none
from panoptic_ext.evaluation.human_consistency import (
    Files,
    HumanConsistency,
    consistency_text,
    human_consistency,
    named_consistency,
)
from panoptic_ext.evaluation.image_measures import GT_AREAS
from panoptic_ext.evaluation.report import named_result
from panoptic_ext.evaluation.segment_list import segment_csv
from panoptic_ext.evaluation.tables import costliest_text, result_text


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = command_parser("evaluate", __doc__)
    truths = parser.add_mutually_exclusive_group(required=True)
    truths.add_argument("--gt", help="COCO panoptic JSON of the ground truth")
    truths.add_argument(
        "--annotators",
        nargs=2,
        metavar=("A", "B"),
        help="COCO panoptic JSONs of two people who drew the same images: how well they agree, and"
        " how well a model (--pred, if given) agrees with them",
    )
    parser.add_argument(
        "--gt-root",
        nargs="+",
        metavar="FOLDER",
        help="folder of their PNGs, one of each JSON (default: the JSON without .json)",
    )
    results = parser.add_mutually_exclusive_group()
    results.add_argument("--pred", help="COCO panoptic JSON of the predictions")
    results.add_argument(
        "--compare",
        nargs=2,
        metavar=("A", "B"),
        help="COCO panoptic JSONs of two results: is B better than A, by more than noise?",
    )
    parser.add_argument(
        "--pred-root",
        nargs="+",
        metavar="FOLDER",
        help="the same of predictions",
    )
    parser.add_argument("--output", help="JSON file for the result, also per class and image")
    parser.add_argument(
        "--segments", help="CSV file for every segment: TP, FN or FP, its cause and what it costs"
    )
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, metavar="N")
    parser.add_argument(
        "--gt-area",
        choices=GT_AREAS,
        default="check",
        help="true areas: the JSON's and an error where the pixels differ (check), the JSON's"
        " unchecked as panopticapi (json), or counted (pixels); default: check",
    )
    parser.add_argument(
        "--boundary",
        action="store_true",
        help="also compute boundary PQ, by the IoU of outlines; takes several times as long",
    )
    parser.add_argument(
        "--only-common",
        action="store_true",
        help="compare the images that all have, such as a subset; default: the same in all",
    )
    args = parser.parse_args(argv)
    if args.gt and not (args.pred or args.compare):
        parser.error("one of the arguments --pred --compare is required")
    if args.annotators and args.compare:
        parser.error("argument --compare: not allowed with argument --annotators")
    return args


@command_main(parse_args, output=lambda args: args.output)
def main(args: argparse.Namespace) -> int:
    """Compare and print; returns 0."""
    truths = _files("--gt-root", args.annotators or [str(args.gt)], args.gt_root)
    predictions = _files(
        "--pred-root", args.compare or ([args.pred] if args.pred else []), args.pred_root
    )
    _check_outputs(args, [path for path, _ in (*truths, *predictions)])
    if args.annotators:
        _report_consistency(args, human_consistency(*truths, *predictions, **_options(args)))
        return 0
    results = [_evaluate(args, truths[0], files) for files in predictions]
    (_report_comparison if args.compare else _report)(args, *results)
    return 0


def _files(option: str, paths: Sequence[str], roots: Sequence[str] | None) -> list[Files]:
    """Each JSON with its folder of PNGs."""
    if roots and len(roots) != len(paths):
        raise ConfigError(f"{option} names {len(roots)} folders for {len(paths)} JSONs; one each")
    folders: Sequence[str | None] = roots or [None for _ in paths]
    return list(zip(paths, folders, strict=True))


def _check_outputs(args: argparse.Namespace, inputs: Sequence[str]) -> None:
    if args.segments and (args.compare or args.annotators):
        raise ConfigError("--segments is of one result; give it with --gt and --pred")
    for path in inputs:
        for option in ("output", "segments"):
            written = getattr(args, option)
            if written and os.path.realpath(written) == os.path.realpath(path):
                raise ConfigError(f"--{option} {written} is an input; choose another file")


def _options(args: argparse.Namespace) -> dict:
    """Those of `evaluate_files`."""
    return {
        "num_threads": max(0, args.threads),
        "gt_area": args.gt_area,
        "boundary": args.boundary,
        "only_common": args.only_common,
        "progress": True,
    }


def _evaluate(args: argparse.Namespace, truth: Files, prediction: Files) -> FileResult:
    result = evaluate_files(*truth, *prediction, **_options(args))
    if args.only_common:
        name = f"{prediction[0]}: " if args.compare else ""
        print(
            f"{name}{len(result.per_image)} images are in both files; left out are"
            f" {result.left_out[0]} without a prediction and {result.left_out[1]} without ground"
            " truth"
        )
    return result


def _report(args: argparse.Namespace, result: FileResult) -> None:
    """Print and write one result."""
    print(result_text(result.measures))
    print(costliest_text(result.per_image))
    if args.output:
        write_file(args.output, json.dumps(_content(result), indent=1).encode())
    if args.segments:
        text = segment_csv(result.measures, _file_names(result))
        write_file(args.segments, text.encode())


def _report_comparison(args: argparse.Namespace, first: FileResult, second: FileResult) -> None:
    """Print and write a comparison of two results, on the images that both have."""
    common = [i for i in first.measures.images if i in second.measures.images]
    if not common:
        raise ConfigError(f"{args.compare[0]} and {args.compare[1]} have no image in common")
    comparison = compare_results(
        first.measures.subset(common), second.measures.subset(common), _file_names(first)
    )
    print(comparison_text(comparison, first.categories, *args.compare))
    if args.output:
        content = named_comparison(comparison, first.categories, *args.compare)
        write_file(args.output, json.dumps(content, indent=1).encode())


def _report_consistency(args: argparse.Namespace, consistency: HumanConsistency) -> None:
    """Print and write how well people, and a model, agree."""
    names = dict(zip("AB", args.annotators, strict=True))
    if args.pred:
        names["model"] = args.pred
    print("\n".join(f"{name}: {path}" for name, path in names.items()))
    print(consistency_text(consistency))
    if args.output:
        content = {**names, **named_consistency(consistency)}
        write_file(args.output, json.dumps(content, indent=1).encode())


def _file_names(result: FileResult) -> dict:
    return {image["image_id"]: image["file_name"] for image in result.per_image}


def _content(result: FileResult) -> dict:
    # An image with no segment to compare has the PQ NaN, which JSON lacks: it becomes null.
    images = [{**image, "pq": or_none(image["pq"])} for image in result.per_image]
    return {**named_result(result.measures), "per_image": images}
