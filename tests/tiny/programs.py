"""Programs of this repository in processes of their own that do not load torch anew.

multiprocessing's fork server has loaded the package, and nothing has run in it. A process that it
forks equals one that has just started Python and loaded the same, without the seconds that takes.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from subprocess import CompletedProcess
from tempfile import TemporaryDirectory
from typing import Any

from tests import PATIENCE, ROOT

_CONTEXT = multiprocessing.get_context("forkserver")
_COMMANDS = ("combine", "compare_fusions", "demo", "evaluate", "predict", "train")
# The first of them leaves out torch's warnings, as at every start of the program.
_CONTEXT.set_forkserver_preload(
    ["panoptic_ext_cli", *(f"panoptic_ext.commands.{name}" for name in _COMMANDS)]
)


class Program:
    """A process that has been started, with its output in a file of `folder` for each stream.

    Args:
        function: runs in the process with `arguments`; a module's function.
        folder: gets `stdout` and `stderr`; made where it is not there.
        cwd: the process's folder.
        env: variables, above those of this process.
        own_group: whether it leads a process group, as a command of an interactive shell does.
    """

    def __init__(
        self,
        function: Callable[..., object],
        *arguments: object,
        folder: Path,
        cwd: Path = ROOT,
        env: Mapping[str, str] | None = None,
        own_group: bool = False,
    ) -> None:
        folder.mkdir(exist_ok=True)
        self._folder = folder
        settings = (str(folder), str(cwd), {**os.environ, **(env or {})}, own_group)
        self._process = _CONTEXT.Process(target=_run, args=(settings, function, arguments))
        self._process.start()
        assert self._process.pid is not None
        self.pid: int = self._process.pid

    @property
    def output(self) -> tuple[str, str]:
        """What it has written to stdout and stderr."""
        files = [self._folder / name for name in ("stdout", "stderr")]
        stdout, stderr = (file.read_text() if file.exists() else "" for file in files)
        return stdout, stderr

    def poll(self) -> int | None:
        """The exit code, minus the number of the signal that ended it; None while it runs."""
        return self._process.exitcode

    def wait(self, timeout: float = PATIENCE) -> int:
        """The exit code, after its end.

        Raises:
            TimeoutError: it did not end in `timeout` seconds, and was killed.
        """
        self._process.join(timeout)
        code = self._process.exitcode
        if code is None:
            self._process.kill()
            raise TimeoutError("\n".join(["the process did not end:", *self.output])[-6000:])
        return code

    def wait_for(self, path: Path) -> None:
        """Return as soon as there is a file.

        Raises:
            AssertionError: the process ended before, or the file did not come.
        """
        end = time.monotonic() + PATIENCE
        while not path.exists():
            assert self.poll() is None and time.monotonic() < end, "\n".join(self.output)[-6000:]
            time.sleep(0.01)


def run_function(
    function: Callable[..., object], *arguments: object, **options: Any
) -> CompletedProcess[str]:
    """Run a function in a process of its own; options are those of `Program`, but for the folder.

    Returns:
        As subprocess.run does.
    """
    with TemporaryDirectory() as folder:
        program = Program(function, *arguments, folder=Path(folder), **options)
        code = program.wait()
        return CompletedProcess(arguments, code, *program.output)


def run_workers(function: Callable[..., object], *arguments: object, number: int = 2) -> list[str]:
    """Run `function(rank, *arguments)` in several processes at once.

    Returns:
        What each wrote to stdout.

    Raises:
        AssertionError: one failed; has its output.
    """
    with TemporaryDirectory() as folder:
        workers = [
            Program(function, rank, *arguments, folder=Path(folder, str(rank)))
            for rank in range(number)
        ]
        for worker in workers:
            assert worker.wait() == 0, "\n".join(worker.output)[-6000:]
        return [worker.output[0] for worker in workers]


def run_script(*words: str, **options: Any) -> CompletedProcess[str]:
    """Run a file, or a module with its name behind -m, with arguments, as Python does."""
    return run_function(script, *words, **options)


def script(*words: str) -> None:
    """What `python WORDS` does, in this process."""
    if words[0] == "-m":
        sys.argv = list(words[1:])
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
        return
    sys.argv = list(words)
    sys.path.insert(0, str(Path(words[0]).resolve().parent))
    runpy.run_path(words[0], run_name="__main__")


def _run(
    settings: tuple[str, str, dict[str, str], bool],
    function: Callable[..., object],
    arguments: Sequence[object],
) -> None:
    """In the new process."""
    folder, cwd, environment, own_group = settings
    if own_group:
        os.setsid()
    for descriptor, name in ((1, "stdout"), (2, "stderr")):
        file = os.open(os.path.join(folder, name), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.dup2(file, descriptor)
        os.close(file)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    multiprocessing.set_start_method(None, force=True)  # that of a new Python, for data workers
    warnings.simplefilter("ignore")
    function(*arguments)
