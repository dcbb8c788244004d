"""Find the YAML files that come with panoptic_ext.

A checkout has them in configs/ beside the package, a wheel has them in the package.
"""

from __future__ import annotations

import os

from panoptic_ext.errors import ConfigError, shortened

__all__ = ["find_config", "shipped_config", "shipped_configs"]

_PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def shipped_configs() -> str:
    """The folder that holds common/, coco/, shapes/ and so on."""
    of_wheel = os.path.join(_PACKAGE, "configs")
    return of_wheel if os.path.isdir(of_wheel) else os.path.join(_PACKAGE, os.pardir, "configs")


def shipped_config(path: str) -> str:
    """Absolute path of a file that comes with the package; "" if there is none.

    Args:
        path: relative to the folder of the shipped files, with or without "configs/" in front.
    """
    shipped = _place_among_shipped(path)
    return shipped if os.path.isfile(shipped) else ""


def _place_among_shipped(path: str) -> str:
    name = os.path.normpath(path).removeprefix(f"configs{os.sep}")
    return os.path.join(os.path.abspath(shipped_configs()), name)


def find_config(path: str) -> str:
    """Find a config file: one of the user's, or else one that comes with the package.

    Args:
        path: of a YAML file. A relative path is looked up in the current folder, then among the
            shipped files, with or without "configs/" in front.

    Returns:
        `path` itself if there is such a file or folder; otherwise the shipped file's absolute path.

    Raises:
        ConfigError: there is no such file; the message lists the places.
    """
    path = os.path.expanduser(path)
    # lexists, not exists: a dangling link gets its own error where the file is read.
    if os.path.lexists(path) or os.path.isabs(path):
        return path
    shipped = shipped_config(path)
    if shipped:
        return shipped
    configs = os.path.abspath(shipped_configs())
    raise ConfigError(
        f"config file {shortened(path, 300)} does not exist; looked for {os.path.abspath(path)} and"
        f" {_place_among_shipped(path)}. Check the path; `ls {configs}` lists the configs that come"
        " with panoptic_ext"
    )
