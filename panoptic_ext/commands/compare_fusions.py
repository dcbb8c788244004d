"""Compare panoptic fusions on the same weights: a table of PQ, and pictures side by side.

Several runs are seeds of one configuration; the table then has means and ranges.

Example:
    panoptic-ext compare-fusions --runs output/facade/efficientps --sheet fusions.png
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterable, Sequence
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog
from tqdm import tqdm

from panoptic_ext.commands.command_line import command_main, command_parser, non_negative_int
from panoptic_ext.data.datasets.parsed import parsed_once
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


class Sheet:
    """Chooses images evenly over a data set and draws the result of each fusion beside them."""

    def __init__(self, dataset: str, num_images: int) -> None:
        self._dataset = dataset
        records = {record["image_id"]: record for record in DatasetCatalog.get(dataset)}
        step = max(1, len(records) // max(num_images, 1))
        self._records = {i: records[i] for i in list(records)[::step][:num_images]}
        self._rows: list[SheetRow] = []

    def add(self, inputs: dict[str, Any], results: dict[str, Any]) -> None:
        """Keep {fusion: (panoptic_seg, segments_info)} of an image that is to be drawn."""
        record = self._records.get(inputs["image_id"])
        if record is None:
            return
        first, *others = ((ids.cpu().numpy(), segments) for ids, segments in results.values())
        image = read_image(record["file_name"], "RGB")
        self._rows.append(SheetRow(image, ground_truth_segments(record), first, others=others))

    def draw(self, path: str, fusions: Iterable[str]) -> None:
        """Write the picture."""
        contact_sheet(
            self._rows,
            MetadataCatalog.get(self._dataset),
            path,
            title=f"{self._dataset}: fusions of the same weights",
            cell_width=320,
            columns=("image", "truth", *fusions),
        )


def compare_run(run: str, args: argparse.Namespace, *, draw: bool) -> dict[str, dict[str, float]]:
    """Results of `compare_fusions` on one run's weights; draws its contact sheet if `draw`."""
    cfg = load_run_cfg(run, args.opts, own_data=True)
    name, data = load_test_data(cfg)
    weights = args.weights or find_weights(cfg, opts=args.opts, path=run)
    predictor = Predictor(cfg, weights=weights)
    fusions = fusions_of(predictor, args.fusions)
    if not args.fusions:
        for left_out, reason in fusions_left_out(predictor, fusions).items():
            print(f"left out: {left_out} {reason}")
    sheet = Sheet(name, args.images) if draw else None
    results = compare_fusions(
        predictor,
        fusions,
        tqdm(data, total=len(data), desc=os.path.basename(os.path.normpath(run)), unit="image"),
        make_evaluator=lambda: PanopticEvaluator(name),
        on_image=sheet.add if sheet else None,
    )
    if sheet:
        sheet.draw(args.sheet, fusions)
    return results


@command_main(parse_args, output=lambda args: args.sheet)
def main(args: argparse.Namespace) -> int:
    """Compare and print; returns 0."""
    with parsed_once():  # the evaluators of all fusions share one reading of the data set
        results = [
            compare_run(run, args, draw=bool(args.sheet) and number == 0)
            for number, run in enumerate(args.runs)
        ]
    print(fusion_table(results))
    if args.sheet:
        print(f"pictures: {args.sheet}")
    return 0
