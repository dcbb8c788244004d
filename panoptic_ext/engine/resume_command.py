"""The command that goes on with a training, to be copied from the terminal."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from collections.abc import Sequence

__all__ = ["GOES_ON", "command_to_resume", "take_flags", "with_command"]

GOES_ON = "The same command with --resume goes on from there"
"""How a message ends where only the program that trains knows its command line."""

_RESUME = "--resume"


def command_to_resume(argv: Sequence[str]) -> str:
    """The command line `argv` of this program, with --resume, quoted for a shell.

    Args:
        argv: arguments of the command `train`.
    """
    words = [*_start(argv), _RESUME, *(word for word in argv if word != _RESUME)]
    return " ".join(word if word == "..." else shlex.quote(word) for word in words)


def _start(argv: Sequence[str]) -> list[str]:
    """What stood before `argv`: a script, or `panoptic-ext train`, or with `python -m`."""
    script, *words = sys.argv
    # A script for one command has `argv` alone; the name of a command may stand before it.
    before = words[: len(words) - len(argv)] if words[len(words) - len(argv) :] == [*argv] else []
    program = [script]
    if os.path.basename(script) == "__main__.py":
        program = ["-m", os.path.basename(os.path.dirname(script))]
    if "TORCHELASTIC_RUN_ID" in os.environ:  # its own options are known to torchrun alone
        return ["torchrun", "...", *program, *before]
    if script.endswith(".py"):
        python = "python" if shutil.which("python") == sys.executable else sys.executable
        return [python, *program, *before]
    # By its name alone where the shell finds this file by that name.
    name = os.path.basename(script)
    found = shutil.which(name)
    is_found = found is not None and os.path.realpath(found) == os.path.realpath(script)
    return [name if is_found else script, *before]


def with_command(message: str, argv: Sequence[str]) -> str:
    """`message` with the command in place of `GOES_ON`, if it ends with that."""
    if not message.endswith(GOES_ON):
        return message
    return f"{message.removesuffix(GOES_ON)}To go on from there: {command_to_resume(argv)}"


def take_flags(opts: Sequence[str], flags: Sequence[str]) -> tuple[list[str], list[str]]:
    """Options without a value that stand among KEY VALUE pairs, such as one appended at the end.

    Args:
        opts: the pairs.
        flags: options such as "--resume"; one where a value is due is that value.

    Returns:
        The flags that are there; the pairs without them.
    """
    taken: list[str] = []
    pairs: list[str] = []
    for word in opts:
        is_key = len(pairs) % 2 == 0
        (taken if is_key and word in flags else pairs).append(word)
    return taken, pairs
