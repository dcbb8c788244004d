"""The options of `draw_panoptic` on a command line."""

from __future__ import annotations

import argparse
from typing import Any

from panoptic_ext.commands.command_line import split_options

__all__ = ["add_drawing_options", "take_drawing_options"]


def add_drawing_options(parser: argparse.ArgumentParser) -> None:
    """Add --alpha, --no-labels, --font-size, --boxes, --classes and --legend."""
    group = parser.add_argument_group("pictures")
    group.add_argument("--alpha", type=float, default=0.5, help="opacity of segments, 0 to 1")
    group.add_argument("--no-labels", action="store_true", help="write no class names")
    group.add_argument("--font-size", type=float, metavar="PIXELS", help="of class names")
    group.add_argument("--boxes", action="store_true", help="draw the boxes of things")
    group.add_argument("--classes", nargs="+", metavar="NAME", help="draw these classes alone")
    group.add_argument(
        "--legend",
        action="store_true",
        help="add the classes below, with colours and numbers; not below videos",
    )


def take_drawing_options(args: argparse.Namespace) -> dict[str, Any]:
    """The keywords of `draw_panoptic` that differ from its defaults.

    Side effect: config values that argparse took for class names are moved to `args.opts`.
    """
    if args.classes and hasattr(args, "opts"):
        args.classes, args.opts = split_options(args.classes, args.opts, is_value=lambda _: False)
    options: dict[str, Any] = {}
    if args.alpha != 0.5:
        options["alpha"] = args.alpha
    if args.no_labels:
        options["labels"] = False
    if args.font_size is not None:
        options["font_size"] = args.font_size
    if args.boxes:
        options["boxes"] = True
    if args.classes is not None:
        options["classes"] = args.classes
    if args.legend:
        options["legend"] = True
    return options
