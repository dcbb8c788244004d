"""What the command lines in tools/ share: where config values begin, how they end, and why."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Sequence

from detectron2.config import CfgNode, get_cfg

from panoptic_ext.config.detectron2_main import MAIN_DEFAULTS
from panoptic_ext.errors import PanopticExtError
from panoptic_ext.interruption import Interrupted, signals_of_a_command

__all__ = ["count", "explain_os_error", "run_command", "split_options"]

_DOTTED_KEY = re.compile(r"[A-Z][A-Z0-9_]*(\.\w+)*\.[A-Z0-9_]+")


def run_command(work: Callable[[], int], *, output: str = "", stopped: str = "stopped") -> int:
    """Run a command line; what a user can mend, and a signal, end it with one line on stderr.

    Args:
        work: returns the exit code.
        output: the folder or file that results go to.
        stopped: the line after Ctrl-C where `work` has none of its own.

    Returns:
        The exit code: that of `work`; 2 after an error, 130 after Ctrl-C, 143 after SIGTERM.
    """
    with signals_of_a_command():
        try:
            return work()
        except Interrupted as interrupted:
            sys.stderr.write(f"{interrupted}\n")
            return interrupted.exit_code
        except KeyboardInterrupt:
            sys.stderr.write(f"{stopped}\n")
            return 130
        except PanopticExtError as error:
            sys.stderr.write(f"error: {error}\n")
        except OSError as error:
            sys.stderr.write(f"error: {explain_os_error(error, output or os.curdir)}\n")
        return 2


def count(text: str) -> int:
    """An argparse type: a whole number, 0 or more."""
    value = int(text)
    if value < 0:
        raise ValueError(f"{value} is less than 0")
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
