"""What the commands share: their parser, their types of options, their exit codes and errors."""

from __future__ import annotations

import argparse
import functools
import os
import re
import select
import signal
import sys
from collections.abc import Callable, Sequence
from typing import Protocol

from detectron2.config import CfgNode, get_cfg

from panoptic_ext.config.detectron2_main import MAIN_DEFAULTS
from panoptic_ext.errors import PanopticExtError
from panoptic_ext.interruption import Interrupted, Terminated, signals_of_a_command

__all__ = [
    "command_main",
    "command_parser",
    "explain_os_error",
    "fraction",
    "non_negative_int",
    "split_options",
]

_DOTTED_KEY = re.compile(r"[A-Z][A-Z0-9_]*(\.\w+)*\.[A-Z0-9_]+")

Run = Callable[[argparse.Namespace], int]
"""What runs a command: its parsed arguments -> the exit code."""


class Main(Protocol):
    """The `main` of a command."""

    def __call__(self, argv: Sequence[str] | None = None) -> int:
        """Run the command with these arguments, by default the process's; the exit code."""


def command_parser(
    name: str, description: str | None, *, config_values: bool = False
) -> argparse.ArgumentParser:
    """The parser of a command; its usage line shows how the command was started.

    Args:
        name: of the command, such as "data check".
        description: printed as it is, such as the docstring of the command's module.
        config_values: take KEY VALUE pairs after the options, as `opts`.
    """
    parser = argparse.ArgumentParser(
        prog=program_name(name),
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    if config_values:
        parser.add_argument(
            "opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="config values"
        )
    return parser


def program_name(name: str) -> str:
    """The name of a command in usage lines: "panoptic-ext NAME", or the script that runs it."""
    script = os.path.basename(sys.argv[0])
    if script == "__main__.py":
        return f"python -m panoptic_ext {name}"
    return script if script.endswith(".py") else f"panoptic-ext {name}"


def command_main(
    parse_args: Callable[[Sequence[str] | None], argparse.Namespace],
    *,
    output: Callable[[argparse.Namespace], str | None] | None = lambda args: None,
    stopped: Callable[[argparse.Namespace], str] = lambda args: "stopped",
    worker: Callable[[], str] = lambda: "",
) -> Callable[[Run], Main]:
    """Decorator: make the `main(argv)` of a command from the function that runs parsed arguments.

    Errors that a user can mend, and signals, become one line on stderr, without a traceback. The
    exit code is that of the function; 2 after an error, 130 after Ctrl-C, 143 after SIGTERM, 141
    without a message where what reads stdout ends first, such as head.

    Args:
        parse_args: parses the command line.
        output: the folder or file that results go to. A failed operation on a file below it is
            reported as a failed write. None leaves errors of the operating system their traceback.
        stopped: the line after Ctrl-C and SIGTERM where the function has none of its own.
        worker: which of several processes prints an error, such as " (worker 1)".
    """

    def decorate(run: Run) -> Main:
        @functools.wraps(run)
        def main(argv: Sequence[str] | None = None) -> int:
            args = parse_args(argv)
            with signals_of_a_command():
                try:
                    status = run(args)
                    sys.stdout.flush()
                    return status
                except Interrupted as interrupted:
                    sys.stderr.write(f"{interrupted}\n")
                    return interrupted.exit_code
                except KeyboardInterrupt as signalled:
                    sys.stderr.write(f"{stopped(args)}\n")
                    return 143 if isinstance(signalled, Terminated) else 130
                except PanopticExtError as error:
                    sys.stderr.write(f"error{worker()}: {error}\n")
                except OSError as error:
                    if isinstance(error, BrokenPipeError) and _has_read_enough():
                        return 128 + signal.SIGPIPE
                    if output is None:
                        raise
                    reason = explain_os_error(error, output(args) or os.curdir)
                    sys.stderr.write(f"error{worker()}: {reason}\n")
                return 2

        return main

    return decorate


def _has_read_enough() -> bool:
    """Whether nobody reads stdout any more, as behind `| head`; what is left is then dropped."""
    poll = select.poll()
    poll.register(1)
    if not any(event & select.POLLERR for _, event in poll.poll(0)):
        return False
    # Python flushes stdout at its end once more.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    return True


def non_negative_int(text: str) -> int:
    """An argparse type: a whole number, 0 or more."""
    try:
        value = int(text)
    except ValueError:
        value = -1
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of 0 or more")
    return value


def fraction(text: str) -> float:
    """An argparse type: a number from 0 to 1."""
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 to 1")
    return value


def split_options(
    values: Sequence[str],
    opts: Sequence[str],
    *,
    is_value: Callable[[str], object] = os.path.exists,
) -> tuple[list[str], list[str]]:
    """Separate the values of an option from the config values that follow them.

    argparse reads `--input a.jpg MODEL.DEVICE cpu` as three inputs.

    Args:
        values: the words that argparse gave to the option.
        opts: the KEY VALUE pairs that argparse found.
        is_value: whether a word in the form of a config key is a value of the option.

    Returns:
        The values in front of the first config key; that key and all after it, then `opts`.
    """
    # Keys without a dot, such as SEED, could be names of files: only those that exist count.
    top_level = {key for key, value in get_cfg().items() if not isinstance(value, CfgNode)}
    top_level.update(key for key in MAIN_DEFAULTS if "." not in key)
    for position, word in enumerate(values):
        if (_DOTTED_KEY.fullmatch(word) or word in top_level) and not is_value(word):
            return list(values[:position]), [*values[position:], *opts]
    return list(values), list(opts)


def explain_os_error(error: OSError, output: str) -> str:
    """One line that names the file and the reason; a file below `output` cannot be written.

    Args:
        error: one without a file name, such as that of a full disk, counts as one of `output`.
        output: the folder that results go to.
    """
    name = os.fsdecode(error.filename) if isinstance(error.filename, (str, bytes)) else output
    reason = error.strerror or str(error) or type(error).__name__
    folder = os.path.join(os.path.abspath(output), "")
    if os.path.join(os.path.abspath(name), "").startswith(folder):
        return f"cannot write to {name}: {reason}"
    return f"{name}: {reason}"
