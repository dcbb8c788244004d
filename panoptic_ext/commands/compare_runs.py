"""Learning curves of several trainings in one picture, over iterations and over minutes.

Runs with the same label are seeds of one configuration: one colour, and one row of the table.

Example:
    panoptic-ext compare-runs --output curves.svg \\
        "Panoptic FPN=output/facade/panoptic_fpn" "Mask2Former=output/facade/mask2former"
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence

from panoptic_ext.commands.command_line import command_main, command_parser
from panoptic_ext.errors import ConfigError
from panoptic_ext.visualization.learning_curves import curve_table, draw_curves, read_curve


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = command_parser("compare-runs", __doc__)
    parser.add_argument("runs", nargs="+", metavar="LABEL=OUTPUT_DIR", help="label and folder")
    parser.add_argument("--output", required=True, help="picture: .svg, .png or .pdf")
    parser.add_argument("--metric", default="panoptic_seg/PQ", help="key of metrics.json")
    parser.add_argument("--title", default="")
    return parser.parse_args(argv)


@command_main(parse_args, output=lambda args: args.output)
def main(args: argparse.Namespace) -> int:
    """Draw the curves and print their table; returns 0."""
    curves = []
    for word in args.runs:
        label, separator, folder = word.partition("=")
        if not separator:
            label, folder = os.path.basename(os.path.normpath(word)), word
        curves.append(read_curve(folder, label, args.metric))
    metric = args.metric.rsplit("/", 1)[-1]
    try:
        draw_curves(curves, args.output, title=args.title, metric=metric)
    except ValueError as error:  # matplotlib raises it for an unknown suffix
        raise ConfigError(str(error)) from error
    print(curve_table(curves, metric))
    print(f"curves: {args.output}")
    return 0
