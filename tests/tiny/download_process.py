"""A process that downloads one file, for tests of several processes and of signals."""

from __future__ import annotations

import os
import subprocess
import sys

from tests import ROOT

# The package's own __init__ imports torch and Detectron2, which a download does not need.
_SCRIPT = f"""
import sys, types
package = types.ModuleType("panoptic_ext")
package.__path__ = [{str(ROOT / "panoptic_ext")!r}]
sys.modules["panoptic_ext"] = package
from panoptic_ext.download import fetch
from panoptic_ext.errors import PanopticExtError
from panoptic_ext.interruption import Interrupted
PREPARE
try:
    print(fetch(sys.argv[1], sys.argv[2], progress=False))
except (PanopticExtError, Interrupted) as error:
    sys.exit(type(error).__name__ + ": " + str(error))
"""


def start_download(
    address: str, path: object, *, prepare: str = "", wrapper: tuple[str, ...] = ()
) -> subprocess.Popen[str]:
    """Start a process that prints the path, or fails with the error's class and text on stderr.

    Args:
        address, path: as in `fetch`.
        prepare: statements that it runs before.
        wrapper: a command that runs the process.
    """
    script = _SCRIPT.replace("PREPARE", prepare)
    return subprocess.Popen(
        [*wrapper, sys.executable, "-c", script, address, str(path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
