"""Compare panoptic fusions on the same weights: a table of PQ, and pictures side by side.

Several runs are seeds of one configuration; the table then has means and ranges.

Example:
    panoptic-ext compare-fusions --runs output/facade/efficientps --sheet fusions.png
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog
from tqdm import tqdm

from panoptic_ext.commands.command_line import command_parser, ends_with_a_message, non_negative_int
from panoptic_ext.data.image_files import read_image
from panoptic_ext.evaluation.panoptic_evaluation import PanopticEvaluator
from panoptic_ext.prediction.compare_fusions import (
    compare_fusions,
    fusion_table,
    fusions_left_out,
    fusions_of,
    load_test_data,
)
from panoptic_ext.prediction.predictor import Predictor, find_weights, load_run_cfg
from panoptic_ext.visualization.contact_sheet import SheetRow, contact_sheet, ground_truth_segments


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = command_parser("compare-fusions", __doc__)
    parser.add_argument("--runs", nargs="+", required=True, metavar="OUTPUT_DIR")
    parser.add_argument("--fusions", nargs="+", default=[], metavar="NAME", help="default: all")
    parser.add_argument("--weights", default="", help="checkpoint (default: the last of each run)")
    parser.add_argument("--sheet", help="picture of the first run's results, .png or .jpg")
    parser.add_argument(
        "--images", type=non_negative_int, default=3, help="rows of the picture (3)"
    )
    parser.add_argument("--opts", nargs=argparse.REMAINDER, default=[], metavar="KEY VALUE")
    return parser.parse_args(argv)


def compare_run(run: str, args: argparse.Namespace, *, sheet: bool) -> dict[str, dict[str, float]]:
    """Results of one run's weights; the contact sheet if wanted."""
    cfg = load_run_cfg(run, args.opts, own_data=True)
    name, data = load_test_data(cfg)
    predictor = Predictor(cfg, weights=args.weights or find_weights(cfg, opts=args.opts))
    fusions = fusions_of(predictor, args.fusions)
    if not args.fusions:
        for left_out, reason in fusions_left_out(predictor, fusions).items():
            print(f"left out: {left_out} {reason}")
    records = {record["image_id"]: record for record in DatasetCatalog.get(name)}
    step = max(1, len(records) // max(args.images, 1))
    chosen = set(list(records)[::step][: args.images]) if sheet else set()
    rows = []

    def keep(given: dict[str, Any], results: dict[str, Any]) -> None:
        if given["image_id"] not in chosen:
            return
        record = records[given["image_id"]]
        first, *others = ((ids.cpu().numpy(), segments) for ids, segments in results.values())
        image = read_image(record["file_name"], "RGB")
        rows.append(SheetRow(image, ground_truth_segments(record), first, others=others))

    found = compare_fusions(
        predictor,
        fusions,
        tqdm(data, total=len(data), desc=os.path.basename(os.path.normpath(run)), unit="image"),
        evaluator=lambda: PanopticEvaluator(name),
        seen=keep,
    )
    if sheet:
        columns = ("image", "truth", *fusions)
        title = f"{name}: fusions of the same weights"
        contact_sheet(
            rows,
            MetadataCatalog.get(name),
            args.sheet,
            title=title,
            cell_width=320,
            columns=columns,
        )
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    args = parse_args(argv)
    return run(args)


@ends_with_a_message(output=lambda args: args.sheet)
def run(args: argparse.Namespace) -> int:
    """Compare and print; returns 0."""
    results = [
        compare_run(run, args, sheet=bool(args.sheet) and number == 0)
        for number, run in enumerate(args.runs)
    ]
    print(fusion_table(results))
    if args.sheet:
        print(f"pictures: {args.sheet}")
    return 0
