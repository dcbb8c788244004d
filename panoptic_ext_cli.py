"""The program `panoptic-ext`: the list of its commands, and the settings made before torch loads.

This module lies beside the package and not in it, because importing any module of panoptic_ext
loads torch. That takes seconds, which would delay the list of commands, and torch reads some
settings when it loads.
"""

from __future__ import annotations

import difflib
import importlib
import os
import signal
import sys
import warnings
from collections.abc import Sequence

__all__ = ["ALIASES", "COMMANDS", "PROGRAM", "main", "module_of", "prepare"]

PROGRAM = "panoptic-ext"

COMMANDS = {
    "train": "train or resume a model, or evaluate it with --eval-only",
    "evaluate": "compare two COCO panoptic results, such as a model's and the ground truth",
    "predict": "predict images, folders and videos: pictures, lists of segments, COCO files",
    "data check": "check data sets and report everything that is wrong with them at once",
    "data visualize": "draw the ground truth of data sets, as on disk or as the model sees it",
    "data convert": "convert labels of other tools to COCO panoptic, and COCO panoptic to others",
    "combine": "merge one model's instances and another's semantic predictions, from files",
    "compare-fusions": "compare panoptic fusions on the same weights: a table and pictures",
    "compare-runs": "draw the learning curves of several trainings into one picture",
    "zoo": "list, fetch and verify published models, and make an entry of your own",
    "export-transformers": "write a trained EoMT as a model of transformers",
    "parameter-table": "count the parameters of models, or list their tensors",
    "demo": "train and evaluate on generated shapes, and draw what came out",
}
"""What each command does, in the order of `panoptic-ext --help`; see `module_of`."""

ALIASES = {"check-data": "data check", "visualize-data": "data visualize"}
"""Former names of commands, which go on working."""

_GROUPS = {"data": "Data sets for panoptic segmentation: make, check and look at them."}

_HELP = ("-h", "--help")

# The filters are not set in `main`: the processes that a training spawns import this module without
# calling it. At every start, torch warns of a few functions that fvcore and Detectron2 script.
warnings.filterwarnings("ignore", message="`torch.jit.script` is deprecated")
# Pillow warns of an attack where a file, which the user named, has 90 to 179 million pixels. One
# that needs too much memory, or has more pixels, ends in an error of our own.
warnings.filterwarnings("ignore", message="Image size .* could be decompression bomb")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: its name and its arguments; None takes those of the process.

    Returns:
        The exit code: the command's own; 2 where there is no command of this name.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    name = arguments.pop(0) if arguments else ""
    group = ""
    if name in _GROUPS:
        group, name = name, arguments.pop(0) if arguments else ""
    if name in _HELP:
        sys.stdout.write(_usage(group))
        return 0
    command = f"{group} {name}" if group else ALIASES.get(name, name)
    if command not in COMMANDS:
        sys.stderr.write(_unknown(name, group))
        return 2
    prepare(command)
    return importlib.import_module(module_of(command)).main(arguments)


def module_of(command: str) -> str:
    """The module that runs a command: `data check` is `panoptic_ext.commands.check_data`."""
    words = reversed(command.replace("-", "_").split(" "))
    return f"panoptic_ext.commands.{'_'.join(words)}"


def prepare(command: str) -> None:
    """Make the settings that have to come before torch loads; settings of the user stay."""
    if command in ("train", "demo"):
        # Threads that wait by spinning take several times the CPU time on a machine that is busy
        # with other work.
        os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        # Ctrl-C while torch loads would print a traceback; now it ends the process silently. The
        # command handles the signal later (panoptic_ext.interruption.signals_of_a_command).
        signal.signal(signal.SIGINT, signal.SIG_DFL)


def _usage(group: str = "") -> str:
    commands = _commands(group)
    width = max(map(len, commands))
    lines = [f"  {name:{width}}  {text}" for name, text in commands.items()]
    program = f"{PROGRAM} {group}" if group else PROGRAM
    return "\n".join(
        [
            f"usage: {program} COMMAND [options]",
            "",
            _GROUPS.get(group, "Panoptic segmentation with Detectron2."),
            "",
            "commands:",
            *lines,
            "",
            f"`{program} COMMAND --help` shows the options of a command.",
            "",
        ]
    )


def _commands(group: str) -> dict[str, str]:
    """{name behind the program and the group: what it does}."""
    prefix = f"{group} " if group else ""
    return {c[len(prefix) :]: text for c, text in COMMANDS.items() if c.startswith(prefix)}


def _unknown(name: str, group: str) -> str:
    if not name:
        return f"{_usage(group)}\nerror: no command given\n"
    commands = list(_commands(group))
    # The words of panoptic_ext.errors.unknown, which cannot be imported without loading torch.
    known = [*commands, *([] if group else ALIASES)]
    nearest = difflib.get_close_matches(name.replace("_", "-"), known, n=1)
    hint = f"; did you mean {nearest[0]!r}? " if nearest else "; "
    return (
        f"error: unknown command {f'{group} {name}'.strip()!r}{hint}known: {', '.join(commands)}\n"
    )


if __name__ == "__main__":
    sys.exit(main())
