#!/usr/bin/env python
"""Learning curves of several trainings in one picture, over iterations and over minutes.

Runs with the same label are seeds of one configuration: one colour, and one row of the table.

Example:
    tools/compare_runs.py --output curves.svg \\
        "Panoptic FPN=output/facade/panoptic_fpn" "Mask2Former=output/facade/mask2former"
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import warnings
from collections.abc import Sequence

# fvcore and Detectron2 script functions, and torch says so at every start.
warnings.filterwarnings("ignore", message="`torch.jit.script` is deprecated")
if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C while torch loads: no traceback
sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from panoptic_ext.commands.command_line import run_command
from panoptic_ext.errors import ConfigError
from panoptic_ext.visualization.learning_curves import curve_table, draw_curves, read_curve


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", metavar="LABEL=OUTPUT_DIR", help="label and folder")
    parser.add_argument("--output", required=True, help="picture: .svg, .png or .pdf")
    parser.add_argument("--metric", default="panoptic_seg/PQ", help="key of metrics.json")
    parser.add_argument("--title", default="")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    args = parse_args(argv)
    return run_command(lambda: run(args), output=args.output)


def run(args: argparse.Namespace) -> int:
    """Draw the curves and print their table; returns 0."""
    curves = []
    for given in args.runs:
        label, separator, folder = given.partition("=")
        if not separator:
            label, folder = os.path.basename(os.path.normpath(given)), given
        curves.append(read_curve(folder, label, args.metric))
    name = args.metric.rsplit("/", 1)[-1]
    try:
        draw_curves(curves, args.output, title=args.title, metric=name)
    except ValueError as error:  # matplotlib, of a suffix that it does not know
        raise ConfigError(str(error)) from error
    print(curve_table(curves, name))
    print(f"curves: {args.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
