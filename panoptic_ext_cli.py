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

__all__ = ["COMMANDS", "PROGRAM", "main", "prepare"]

PROGRAM = "panoptic-ext"

COMMANDS = {
    "train": "train or resume a model, or evaluate it with --eval-only",
    "evaluate": "compare two COCO panoptic results, such as a model's and the ground truth",
    "predict": "predict images, folders and videos: pictures, lists of segments, COCO files",
    "check-data": "check data sets and report everything that is wrong with them at once",
    "visualize-data": "draw the ground truth of data sets, as on disk or as the model sees it",
    "combine": "merge one model's instances and another's semantic predictions, from files",
    "compare-fusions": "compare panoptic fusions on the same weights: a table and pictures",
    "compare-runs": "draw the learning curves of several trainings into one picture",
    "zoo": "list, fetch and verify published models, and make an entry of your own",
    "export-transformers": "write a trained EoMT as a model of transformers",
    "parameter-table": "count the parameters of models, or list their tensors",
    "demo": "train and evaluate on generated shapes, and draw what came out",
}
"""What each command does, in the order of `panoptic-ext --help`.

`panoptic_ext.commands.check_data` runs `check-data`, and so on.
"""

_HELP = ("-h", "--help")

# At every start, torch warns of a few functions that fvcore and Detectron2 script. The filter is
# not set in `main`: the processes that a training spawns import this module without calling it.
warnings.filterwarnings("ignore", message="`torch.jit.script` is deprecated")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: its name and its arguments; None takes those of the process.

    Returns:
        The exit code: the command's own; 2 where there is no command of this name.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    name = arguments.pop(0) if arguments else ""
    if name in _HELP:
        sys.stdout.write(_usage())
        return 0
    if name not in COMMANDS:
        sys.stderr.write(_unknown(name))
        return 2
    prepare(name)
    module = importlib.import_module(f"panoptic_ext.commands.{name.replace('-', '_')}")
    return module.main(arguments)


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


def _usage() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {text}" for name, text in COMMANDS.items()]
    return "\n".join(
        [
            f"usage: {PROGRAM} COMMAND [options]",
            "",
            "Panoptic segmentation with Detectron2.",
            "",
            "commands:",
            *lines,
            "",
            f"`{PROGRAM} COMMAND --help` shows the options of a command.",
            "",
        ]
    )


def _unknown(name: str) -> str:
    if not name:
        return f"{_usage()}\nerror: no command given\n"
    # The words of panoptic_ext.errors.unknown, which cannot be imported without loading torch.
    nearest = difflib.get_close_matches(name.replace("_", "-"), COMMANDS, n=1)
    hint = f"; did you mean {nearest[0]!r}? " if nearest else "; "
    return f"error: unknown command {name!r}{hint}known: {', '.join(COMMANDS)}\n"


if __name__ == "__main__":
    sys.exit(main())
