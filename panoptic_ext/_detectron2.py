"""Check, before every other import, that Detectron2 is installed, and which one it is."""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import os
import re
import warnings
from typing import Any
from urllib.parse import unquote, urlsplit

__all__ = [
    "MINIMUM",
    "detectron2_build",
    "detectron2_version",
    "import_quietly",
    "require_detectron2",
]

MINIMUM = (0, 6)  # major and minor version of the oldest Detectron2 that works

_INSTALL = """\
Detectron2 is not on PyPI under its own name. With torch and torchvision installed, run
    python tools/install_detectron2.py
from a checkout of panoptic_ext (it takes v0.6 from PyPI's sources, nothing is compiled), or install
it as its own documentation says:
    https://detectron2.readthedocs.io/tutorials/install.html"""


def require_detectron2() -> None:
    """Import Detectron2 and check its version.

    Raises:
        ImportError: Detectron2 is missing, cannot be imported or is older than 0.6; the message
            gives what was found and the command to run.
    """
    try:
        detectron2 = importlib.import_module("detectron2")
    except ModuleNotFoundError as error:
        if error.name == "detectron2":
            raise ImportError(
                f"panoptic_ext is a plugin for Detectron2, and Detectron2 is missing.\n{_INSTALL}",
                name="detectron2",
            ) from error
        raise ImportError(
            f"Detectron2 is installed but needs {error.name!r}, which is missing.\n"
            f"Install it (python -m pip install {error.name}) or install Detectron2 again.\n"
            f"{_INSTALL}",
            name=error.name,
        ) from error
    version = str(getattr(detectron2, "__version__", "unknown"))
    if _leading_numbers(version) < MINIMUM:
        raise ImportError(
            f"panoptic_ext needs Detectron2 {MINIMUM[0]}.{MINIMUM[1]} or newer; found {version} in "
            f"{getattr(detectron2, '__path__', ['an unknown folder'])[0]}.\nRemove it (python -m "
            f"pip uninstall detectron2), then:\n{_INSTALL}",
            name="detectron2",
        )


def import_quietly() -> None:
    """Import the modules of Detectron2 and fvcore that call torch.jit.script, without its warning.

    torch has deprecated torch.jit.script, so each of these modules would cause a FutureWarning at
    every start of every program. The user's filters of warnings are the same afterwards.
    """
    # Before the filters are saved: torch and torchvision add filters of their own, which must stay.
    for name in ("torch", "torchvision"):
        importlib.import_module(name)
    with warnings.catch_warnings():
        # This filter comes before the user's: `python -W error` would otherwise end the import.
        warnings.filterwarnings("ignore", message=r"`torch\.jit\.\w+` is deprecated")
        for name in ("fvcore.nn", "detectron2.modeling"):
            importlib.import_module(name)


def detectron2_build() -> dict[str, Any]:
    """Describe the imported Detectron2.

    Returns:
        "version": its own `__version__`. "is_main": whether it is newer than v0.6.
        "imported_from": its folder. "distribution": name and version of the installed distribution
        that the folder belongs to, or None for a folder on sys.path.
    """
    # v0.6 of 2021 and today's main both have the version 0.6. A config key that main added tells
    # them apart.
    from detectron2.config import get_cfg

    package = importlib.import_module("detectron2")
    folder = os.path.realpath(package.__path__[0])
    return {
        "version": str(package.__version__),
        "is_main": "FLOAT32_PRECISION" in get_cfg(),
        "imported_from": folder,
        "distribution": next(
            (
                f"{distribution.name} {distribution.version}"
                for distribution in importlib.metadata.distributions(name="detectron2")
                if folder in _package_folders(distribution)
            ),
            None,
        ),
    }


def detectron2_version() -> str:
    """The version for messages: "0.6" for v0.6, "0.6 (main)" for Detectron2 main."""
    build = detectron2_build()
    return f"{build['version']} (main)" if build["is_main"] else build["version"]


def _package_folders(distribution: importlib.metadata.Distribution) -> list[str]:
    """Folders in which the package of a distribution may be: installed, or an editable source."""
    folders = [str(distribution.locate_file("detectron2"))]
    source = json.loads(distribution.read_text("direct_url.json") or "{}")
    if source.get("dir_info", {}).get("editable"):
        folders.append(os.path.join(unquote(urlsplit(source["url"]).path), "detectron2"))
    return [os.path.realpath(folder) for folder in folders]


def _leading_numbers(version: str) -> tuple[int, ...]:
    """(0, 6) of "0.6", "0.6+cu111" or "0.6.1.dev2"; () if the version starts with no number."""
    numbers = re.match(r"\d+(\.\d+)?", version)
    return tuple(int(part) for part in numbers[0].split(".")) if numbers else ()
