"""Check panoptic data sets and report everything that is wrong with them at once.

    panoptic-ext data check --config-file my.yaml
    panoptic-ext data check --datasets coco_panoptic_val
    panoptic-ext data check --json panoptic.json --image-root images --png-root panoptic

Exit code: 0 nothing wrong (warnings at most), 1 problems found, 2 nothing could be checked.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Sequence

from detectron2.data import DatasetCatalog

from panoptic_ext.commands.command_line import (
    command_main,
    command_parser,
    non_negative_int,
    split_options,
)
from panoptic_ext.data import (
    PanopticSource,
    check_panoptic,
    check_same_categories,
    count_segments,
)
from panoptic_ext.data.datasets.check_files import CheckInterrupted
from panoptic_ext.engine.run_config import load_cfg
from panoptic_ext.errors import ConfigError


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = command_parser("data check", __doc__, config_values=True)
    add = parser.add_argument
    add("--config-file", default="", help="check the data sets of DATASETS.TRAIN and DATASETS.TEST")
    add("--datasets", nargs="+", default=[], help="registered names, in place of the config's")
    add("--json", help="COCO panoptic JSON of a data set that is not registered")
    add("--image-root", help="its images")
    add("--png-root", help="its label PNGs")
    add("--encoding", default="rgb", help='"rgb" or "divisor"')
    add("--label-divisor", type=non_negative_int, default=1000, metavar="N",
        help='of "divisor": id = category * N + instance; default: 1000')  # fmt: skip
    add("--no-pixels", action="store_true", help="quick: open no image and no label map")
    add("--workers", type=int, default=4, help="threads that read files")
    add(
        "--show",
        type=non_negative_int,
        default=100,
        help="problems printed for each data set; 0: all",
    )
    args = parser.parse_args(argv)
    args.datasets, args.opts = split_options(
        args.datasets, args.opts, is_value=DatasetCatalog.__contains__
    )
    return args


@command_main(parse_args)
def main(args: argparse.Namespace) -> int:
    """Check every data set; returns 0, or 1 if problems were found."""
    failed = False
    targets, names = find_targets(args)
    for target in targets:
        failed |= report(target, args)
    if not failed and len(names) > 1:
        check_same_categories(names)
    return int(failed)


def find_targets(args: argparse.Namespace) -> tuple[list[str | PanopticSource], list[str]]:
    """The data sets to check, and the registered names that must have the same categories."""
    if args.json or args.image_root or args.png_root:
        if not (args.json and args.image_root and args.png_root):
            raise ConfigError("--json, --image-root and --png-root belong together; give all three")
        if args.label_divisor < 1:
            raise ConfigError("--label-divisor is 0, expected 1 or more")
        paths = (args.json, args.image_root, args.png_root)
        source = PanopticSource(*paths, encoding=args.encoding, label_divisor=args.label_divisor)
        return [source], []
    cfg = load_cfg(args.config_file, args.opts, use_data=False)
    names = args.datasets or list(dict.fromkeys([*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST]))
    if not names:
        raise ConfigError("nothing to check; give --config-file, --datasets or --json")
    return list(names), [] if args.datasets else names


def report(target: str | PanopticSource, args: argparse.Namespace) -> bool:
    """Check one data set and print its problems; returns whether there are errors among them."""
    name = target if isinstance(target, str) else target.json
    interruption = None
    try:
        problems = check_panoptic(
            target, pixels=not args.no_pixels, workers=args.workers, progress=sys.stderr.isatty()
        )
    except CheckInterrupted as error:
        # The problems found so far are printed first; the interruption goes on below.
        problems, interruption = error.problems, error
    limit = args.show or len(problems)
    for problem in problems[:limit]:
        print(problem)
    if len(problems) > limit:
        print(f"... and {len(problems) - limit} more; --show 0 prints all")
    failed = any(not problem.warning for problem in problems)
    if problems:
        kinds = Counter(problem.kind for problem in problems)
        summary = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
        print(f"{name}: {len(problems)} problem{'s' * (len(problems) > 1)}: {summary}")
    if interruption is not None:
        raise interruption
    if not failed:
        print(f"{name}: good, {count_segments(target)}")
    return failed
