"""The process of `pages.run_all`: reads commands as JSON, runs each in a child of its own.

Prints their outputs as a JSON list on the last line; ends with 1 after the first that fails.
"""

from __future__ import annotations

import json
import os
import runpy
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import panoptic_ext.commands.predict
import panoptic_ext.commands.train  # noqa: F401  (imported before the children start)
import panoptic_ext_cli
from panoptic_ext.commands import demo


def run(words: list[str]) -> None:
    """One command, in this process."""
    sys.argv = words
    if words[0] == "panoptic-ext":
        sys.exit(panoptic_ext_cli.main(words[1:]))
    sys.path.insert(0, str(Path(words[0]).resolve().parent))
    runpy.run_path(words[0], run_name="__main__")


def run_in_child(words: list[str]) -> tuple[int, str]:
    """Exit code and output of a command."""
    with tempfile.TemporaryFile("w+") as stream:
        child = os.fork()
        if child == 0:
            os.dup2(stream.fileno(), 1)
            os.dup2(stream.fileno(), 2)
            try:
                run(words)
            except SystemExit as stop:
                code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
            except BaseException:
                sys.excepthook(*sys.exc_info())
                code = 1
            else:
                code = 0
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
        _, status = os.waitpid(child, 0)
        stream.seek(0)
        return os.waitstatus_to_exitcode(status), stream.read()


def run_step(words: Sequence[str]) -> int:
    """A step of the demo, which has a process of its own: here a child of this one, too."""
    code, output = run_in_child(["panoptic-ext", *words[len(demo.PROGRAM) :]])
    sys.stdout.write(output)
    return code


def main() -> int:
    demo.run_to_end = run_step
    outputs = []
    for words in json.load(sys.stdin):
        code, output = run_in_child(words)
        outputs.append(output)
        if code != 0:
            print(f"{' '.join(words)}\nended with {code}:\n{output}")
            return 1
    print(json.dumps(outputs))
    return 0


if __name__ == "__main__":
    sys.exit(main())
