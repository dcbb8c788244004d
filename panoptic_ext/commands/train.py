"""Train or resume a model, or evaluate one; with torchrun, on several workers.

    panoptic-ext train --config-file my.yaml
    panoptic-ext train --config-file my.yaml --resume
    panoptic-ext train --config-file my.yaml --eval-only MODEL.WEIGHTS output/model_final.pth

A config is a YAML file of yours, or one that comes with panoptic_ext, such as
shapes/panoptic_fpn/panoptic_fpn_R18_shapes.yaml.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from detectron2.engine import default_argument_parser

from panoptic_ext.commands.command_line import command_main, program_name
from panoptic_ext.engine.main import train_or_evaluate, worker_name
from panoptic_ext.engine.resume_command import command_to_resume, take_flags

_EPILOG = """\
On several machines:
    (machine 0)$ {0} --machine-rank 0 --num-machines 2 --dist-url URL [options]
    (machine 1)$ {0} --machine-rank 1 --num-machines 2 --dist-url URL [options]
"""
_FLAGS = ("--resume", "--eval-only", "--dry-run")
_ENDED_AT_ONCE = "stopped at once; a checkpoint that is there is whole. To go on from it: {}"


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line and keep it, as `argv`; --resume etc. may follow KEY VALUE pairs."""
    argv = list(sys.argv[1:] if argv is None else argv)
    args = build_parser().parse_args(argv)
    args.argv = argv
    flags, args.opts = take_flags(args.opts, _FLAGS)
    for flag in flags:
        setattr(args, flag.removeprefix("--").replace("-", "_"), True)
    return args


def build_parser() -> argparse.ArgumentParser:
    """Detectron2's arguments and --dry-run."""
    program = program_name("train")
    parser = default_argument_parser(epilog=_EPILOG.format(program))
    parser.prog, parser.description = program, __doc__
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="build everything, run one training step and evaluate one image, then stop; "
        "trains nothing and writes no checkpoint",
    )
    return parser


# No output folder: `train_or_evaluate` explains the errors of the operating system that a user can
# mend, such as a full disk. The others keep their traceback.
@command_main(
    parse_args,
    output=None,
    stopped=lambda args: _ENDED_AT_ONCE.format(command_to_resume(args.argv)),
    worker=worker_name,
)
def main(args: argparse.Namespace) -> int:
    """Train, evaluate or try one step (--dry-run); returns the exit code."""
    return train_or_evaluate(args)
