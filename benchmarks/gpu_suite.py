"""All that a GPU has to show, in one command that goes on where the last call stopped.

    python benchmarks/gpu_suite.py [--minutes 8] [--output output/gpu_suite] [--only kernels ...]

Its parts are the tests marked gpu, the Triton kernels against grid_sample, training and inference
of Mask2Former R50 and EoMT against transformers', torch.compile, the fusions, the evaluator, and a
training of ten minutes with its curve (`--list` names them). Each is a row of measurements. A
measurement that is done is in `results.json` at once, and `table.md` is written anew: the machine
may be lost at any time. After `--minutes` no further measurement begins, and the next call goes on.
Running out of memory is a result. So is an error; if it takes the CUDA context or the process with
it, a new process goes on with the rest. `--retry` measures again what failed.

`--smoke` runs everything with tiny sizes, on a CPU too, in this process.
"""

from __future__ import annotations

import argparse
import importlib
import logging
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from gpu_suite_results import Results
from gpu_suite_table import table_of

__all__ = ["Suite", "main"]

ROOT = Path(__file__).resolve().parents[1]

# Module and function of each part, imported when it runs: some need packages of the extras.
PARTS = {
    "tests": ("gpu_suite_runs", "gpu_tests"),
    "kernels": ("gpu_suite_models", "kernels"),
    "training": ("gpu_suite_models", "training"),
    "inference": ("gpu_suite_models", "inference"),
    "fusion": ("gpu_suite_models", "fusions"),
    "evaluator": ("gpu_suite_models", "evaluator"),
    "facade": ("gpu_suite_runs", "facade"),
}
_LOST = 17  # exit code of a worker whose CUDA context is broken
_MOST_TRIES = 2  # of a measurement during which the process or the machine was lost


class OutOfTime(Exception):
    """The time of this call is over."""


class Suite:
    """What the parts get: the device, the sizes, the time that is left, and where results go.

    Attributes:
        device: "cuda" or "cpu".
        smoke: whether sizes are tiny.
        folder: for files of the parts.
    """

    def __init__(
        self, device: str, folder: Path, minutes: float, *, smoke: bool, retry: bool = False
    ) -> None:
        self.device, self.smoke, self.folder = device, smoke, folder
        self.results = Results(folder / "results.json")
        self.copies: list[Path] = []
        self._end = time.monotonic() + 60 * minutes
        self._retry = retry

    def seconds_left(self) -> float:
        """Until the end of this call."""
        return self._end - time.monotonic()

    def measure(self, key: str, call: Callable[[], dict[str, Any]]) -> None:
        """Run `call` and keep what it returns, unless an earlier call of the suite has done so.

        Args:
            key: part and measurement, "kernels/bf16 1024 x 1024 batch 1".
            call: returns plain values by name. With an entry "unfinished" it is called again by
                the next call of the suite.

        Raises:
            OutOfTime: before it runs.
        """
        known = self.results.row(key)
        failed = known is not None and "error" in known
        if known is not None and not (failed and self._retry) and "unfinished" not in known:
            return
        if self.seconds_left() <= 0:
            raise OutOfTime
        if self.results.begin(key) > _MOST_TRIES:
            self._keep(key, {"error": f"the process was lost {_MOST_TRIES} times during it"})
            return
        start = time.perf_counter()
        try:
            row = call()
        except torch.OutOfMemoryError:
            row = {"error": "out of memory"}
        except Exception as error:  # whatever it is, the other measurements go on
            logging.getLogger(__name__).warning("%s", key, exc_info=True)
            row = {"error": f"{type(error).__name__}: {error}"[:400]}
        self._keep(key, {**row, "seconds": round(time.perf_counter() - start, 1)})
        if "error" in row and self.device == "cuda":
            self._check_context()

    def _keep(self, key: str, row: dict[str, Any]) -> None:
        self.results.end(key, row)
        self.write_table()
        shown = row.get("error", "unfinished" if "unfinished" in row else "done")
        print(f"{key}: {shown} ({row.get('seconds', 0)} s)", flush=True)

    def write_table(self) -> None:
        """Write table.md, and copy both files to the folders of --copy."""
        table = self.folder / "table.md"
        table.write_text(table_of(self.results.content), encoding="utf-8")
        for copy in self.copies:
            copy.mkdir(parents=True, exist_ok=True)
            for path in (self.results.path, table):
                shutil.copy(path, copy / path.name)

    def _check_context(self) -> None:
        """End this process if no kernel can run in it any more."""
        try:
            torch.cuda.empty_cache()
            torch.cuda.synchronize()
        except RuntimeError:
            sys.exit(_LOST)

    def run(self, parts: list[str]) -> bool:
        """Run parts; returns whether all of them came to their end."""
        if self.device == "cuda":
            # As long as this process has not said so, sums of float32 are full float32 on CUDA.
            torch.backends.cuda.matmul.allow_tf32 = False
        try:
            for part in parts:
                module, function = PARTS[part]
                try:
                    run_part = getattr(importlib.import_module(module), function)
                except ImportError as error:
                    reason = f"{error}"
                    self.measure(f"{part}/import", lambda reason=reason: {"error": reason})
                    continue
                run_part(self)
        except OutOfTime:
            return False
        return True


def run_workers(options: argparse.Namespace, arguments: list[str]) -> int:
    """Run the suite in a process of its own, and in another one where that was lost."""
    end = time.monotonic() + 60 * options.minutes
    while True:
        minutes = (end - time.monotonic()) / 60
        command = [sys.executable, __file__, *arguments, "--worker", "--minutes", f"{minutes}"]
        code = subprocess.run(command, check=False).returncode
        if code in (0, 3):
            return code
        print(f"the process ended with code {code}; a new one goes on", flush=True)
        results = Results(options.output / "results.json")
        running = results.running()
        if code != _LOST and running is not None:
            results.end(running, {"error": f"the process ended with code {code}"})
        if minutes <= 0 or (code != _LOST and running is None):
            return 1


def parse_options(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--minutes", type=float, default=8.0, help="after which nothing begins")
    parser.add_argument("--output", type=Path, default=ROOT / "output/gpu_suite")
    parser.add_argument("--copy", type=Path, nargs="*", default=[], help="folders for the results")
    parser.add_argument("--only", nargs="+", choices=tuple(PARTS), default=list(PARTS))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes")
    parser.add_argument("--retry", action="store_true", help="measure again what failed")
    parser.add_argument("--list", action="store_true", help="print the parts and what is done")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.device == "cpu" and not (options.smoke or options.list):
        parser.error("there is no CUDA device; --smoke runs the suite with tiny sizes on a CPU")
    return options


def main(arguments: list[str] | None = None) -> int:
    """Returns 0 when everything is done, 3 when the time was over before."""
    arguments = sys.argv[1:] if arguments is None else arguments
    options = parse_options(arguments)
    options.output.mkdir(parents=True, exist_ok=True)
    if options.list:
        content = Results(options.output / "results.json").content
        for part in PARTS:
            rows = [row for key, row in content["rows"].items() if key.startswith(f"{part}/")]
            failed = sum("error" in row for row in rows)
            print(f"{part}: {len(rows)} measured, {failed} of them failed")
        return 0
    if not (options.worker or options.smoke):
        return run_workers(options, arguments)
    if not options.smoke:
        os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
    suite = Suite(
        options.device,
        options.output,
        options.minutes,
        smoke=options.smoke,
        retry=options.retry,
    )
    suite.copies = options.copy
    suite.results.note_environment(options.device, ROOT)
    done = suite.run(options.only)
    suite.write_table()
    print(f"{'all done' if done else 'time is over'}: {options.output / 'table.md'}", flush=True)
    return 0 if done else 3


if __name__ == "__main__":
    sys.exit(main())
