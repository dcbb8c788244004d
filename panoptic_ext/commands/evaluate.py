"""Panoptic quality of one COCO panoptic result against another: two models, people, or one each.

Example:
    panoptic-ext evaluate --gt panoptic_val.json --gt-root panoptic_val \\
        --pred panoptic_predictions.json --pred-root panoptic_predictions
"""

from __future__ import annotations

import argparse
import json
import math
import os
from collections.abc import Sequence

from panoptic_ext.atomic import write_file
from panoptic_ext.commands.command_line import command_main, command_parser
from panoptic_ext.errors import ConfigError
from panoptic_ext.evaluation.compare_files import FileResult, evaluate_files
from panoptic_ext.evaluation.image_measures import GT_AREAS
from panoptic_ext.evaluation.report import named_result
from panoptic_ext.evaluation.segment_list import segment_csv
from panoptic_ext.evaluation.tables import result_text


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = command_parser("evaluate", __doc__)
    parser.add_argument("--gt", required=True, help="COCO panoptic JSON of the ground truth")
    parser.add_argument("--gt-root", help="folder of its PNGs (default: the JSON without .json)")
    parser.add_argument("--pred", required=True, help="COCO panoptic JSON of the predictions")
    parser.add_argument("--pred-root", help="folder of its PNGs (default: the JSON without .json)")
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
        "--only-common",
        action="store_true",
        help="compare the images that both have, such as a subset; default: the same in both",
    )
    return parser.parse_args(argv)


@command_main(parse_args, output=lambda args: args.output)
def main(args: argparse.Namespace) -> int:
    """Compare and print; returns 0."""
    for path in (args.gt, args.pred):
        for option in ("output", "segments"):
            written = getattr(args, option)
            if written and os.path.realpath(written) == os.path.realpath(path):
                raise ConfigError(f"--{option} {written} is an input; choose another file")
    result = evaluate_files(
        args.gt,
        args.gt_root,
        args.pred,
        args.pred_root,
        num_threads=max(0, args.threads),
        gt_area=args.gt_area,
        only_common=args.only_common,
        progress=True,
    )
    if args.only_common:
        without_prediction, without_truth = result.left_out
        print(
            f"{len(result.per_image)} images are in both files; left out are {without_prediction} "
            f"without a prediction and {without_truth} without ground truth"
        )
    print(result_text(result.measures))
    if args.output:
        write_file(args.output, json.dumps(_content(result), indent=1).encode())
    if args.segments:
        names = {image["image_id"]: image["file_name"] for image in result.per_image}
        write_file(args.segments, segment_csv(result.measures, names).encode())
    return 0


def _content(result: FileResult) -> dict:
    # An image with no segment to compare has the PQ NaN, which JSON lacks: it becomes null.
    images = [
        {**image, "pq": None if math.isnan(image["pq"]) else image["pq"]}
        for image in result.per_image
    ]
    return {**named_result(result.measures), "per_image": images}
