"""What the commands share: their parser, where config values begin, how they end, and why."""

from __future__ import annotations

import argparse
import functools
import os
import re
import sys
from collections.abc import Callable, Sequence

from detectron2.config import CfgNode, get_cfg

from panoptic_ext.config.detectron2_main import MAIN_DEFAULTS
from panoptic_ext.errors import PanopticExtError
from panoptic_ext.interruption import Interrupted, signals_of_a_command

__all__ = [
    "command_parser",
    "ends_with_a_message",
    "explain_os_error",
    "fraction",
    "non_negative_int",
    "split_options",
]

_DOTTED_KEY = re.compile(r"[A-Z][A-Z0-9_]*(\.\w+)*\.[A-Z0-9_]+")

Run = Callable[[argparse.Namespace], int]


def command_parser(name: str, description: str | None) -> argparse.ArgumentParser:
    """The parser of a command; its usage line shows how the command was started.

    Args:
        name: of the command, such as "check-data".
        description: printed as it is, such as the docstring of the command's module.
    """
    return argparse.ArgumentParser(
        prog=program_name(name),
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def program_name(name: str) -> str:
    """How usage lines call a command: "panoptic-ext NAME", or the script that stands for it."""
    script = os.path.basename(sys.argv[0])
    if script == "__main__.py":
        return f"python -m panoptic_ext {name}"
    return script if script.endswith(".py") else f"panoptic-ext {name}"


def ends_with_a_message(
    *,
    output: Callable[[argparse.Namespace], str | None] | None = lambda args: None,
    stopped: Callable[[argparse.Namespace], str] = lambda args: "stopped",
    worker: Callable[[], str] = lambda: "",
) -> Callable[[Run], Run]:
    """Decorate what runs a command: errors that a user can mend, and signals, become one line.

    The line goes to stderr, without a traceback. The exit code is that of the function; 2 after an
    error, 130 after Ctrl-C, 143 after SIGTERM.

    Args:
        output: the folder or file that results go to, by which a failed write is told from a
            failed read. None leaves errors of the operating system their traceback.
        stopped: the line after Ctrl-C where the function has none of its own.
        worker: which of several processes prints an error, such as " (worker 1)".
    """

    def decorate(run: Run) -> Run:
        @functools.wraps(run)
        def run_to_the_end(args: argparse.Namespace) -> int:
            with signals_of_a_command():
                try:
                    return run(args)
                except Interrupted as interrupted:
                    sys.stderr.write(f"{interrupted}\n")
                    return interrupted.exit_code
                except KeyboardInterrupt:
                    sys.stderr.write(f"{stopped(args)}\n")
                    return 130
                except PanopticExtError as error:
                    sys.stderr.write(f"error{worker()}: {error}\n")
                except OSError as error:
                    if output is None:
                        raise
                    reason = explain_os_error(error, output(args) or os.curdir)
                    sys.stderr.write(f"error{worker()}: {reason}\n")
                return 2

        return run_to_the_end

    return decorate


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
    """Give config values that followed an option of many values to the config.

    `--input a.jpg MODEL.DEVICE cpu` is read by argparse as three inputs.

    Args:
        values: what the option took.
        opts: the KEY VALUE pairs that argparse found.
        is_value: whether a word that looks like a config key is a value all the same.

    Returns:
        The values in front of the first config key; that key and all after it, then `opts`.
    """
    top_level = {key for key, value in get_cfg().items() if not isinstance(value, CfgNode)}
    top_level.update(key for key in MAIN_DEFAULTS if "." not in key)
    for at, word in enumerate(values):
        if (_DOTTED_KEY.fullmatch(word) or word in top_level) and not is_value(word):
            return list(values[:at]), [*values[at:], *opts]
    return list(values), list(opts)


def explain_os_error(error: OSError, output: str) -> str:
    """Which file an operation failed on: one below `output` cannot be written.

    Args:
        error: without a file name, as that of a full disk, it is taken to be about `output`.
        output: the folder that results go to.
    """
    name = os.fsdecode(error.filename) if isinstance(error.filename, (str, bytes)) else output
    reason = error.strerror or str(error) or type(error).__name__
    folder = os.path.join(os.path.abspath(output), "")
    if os.path.join(os.path.abspath(name), "").startswith(folder):
        return f"cannot write to {name}: {reason}"
    return f"{name}: {reason}"
