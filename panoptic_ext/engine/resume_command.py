"""The command line that resumes a training, for the user to copy from the terminal."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from collections.abc import Sequence

__all__ = ["GOES_ON", "command_to_resume", "take_flags", "with_command"]

GOES_ON = "The same command with --resume goes on from there"
"""The end of a message about stopping; `with_command` replaces it by the command line."""

_RESUME = "--resume"


def command_to_resume(argv: Sequence[str]) -> str:
    """This program's command line with --resume, quoted for a shell.

    Args:
        argv: the arguments of the command `train`.
    """
    words = [*_start(argv), _RESUME, *(word for word in argv if word != _RESUME)]
    return " ".join(word if word == "..." else shlex.quote(word) for word in words)


def _start(argv: Sequence[str]) -> list[str]:
    """The words before `argv`, e.g. `python train_net.py` or `panoptic-ext train`."""
    script, *words = sys.argv
    # `panoptic-ext` has the word `train` before `argv`; the script train_net.py has none.
    before = words[: len(words) - len(argv)] if words[len(words) - len(argv) :] == [*argv] else []
    program = [script]
    if os.path.basename(script) == "__main__.py":
        program = ["-m", os.path.basename(os.path.dirname(script))]
    if "TORCHELASTIC_RUN_ID" in os.environ:  # a worker cannot see the options of torchrun
        return ["torchrun", "...", *program, *before]
    if script.endswith(".py"):
        python = "python" if shutil.which("python") == sys.executable else sys.executable
        return [python, *program, *before]
    # The name alone if the shell finds this file by it, else the path.
    name = os.path.basename(script)
    on_path = shutil.which(name)
    is_on_path = on_path is not None and os.path.realpath(on_path) == os.path.realpath(script)
    return [name if is_on_path else script, *before]


def with_command(message: str, argv: Sequence[str]) -> str:
    """`message` with the command in place of `GOES_ON`, if it ends with that."""
    if not message.endswith(GOES_ON):
        return message
    return f"{message.removesuffix(GOES_ON)}To go on from there: {command_to_resume(argv)}"


def take_flags(opts: Sequence[str], flags: Sequence[str]) -> tuple[list[str], list[str]]:
    """Take options without a value out of KEY VALUE pairs, e.g. one that was appended to them.

    Args:
        opts: the words of the pairs and options.
        flags: options such as "--resume". In the place of a value, such a word is the value.

    Returns:
        The options that were there; the words of the pairs.
    """
    taken: list[str] = []
    pairs: list[str] = []
    for word in opts:
        is_key = len(pairs) % 2 == 0
        (taken if is_key and word in flags else pairs).append(word)
    return taken, pairs
