"""The YAML files that come with panoptic_ext: where they lie, and how a name finds one of them.

A checkout has them in configs/ beside the package, a wheel within it.
"""

from __future__ import annotations

import os

from panoptic_ext.errors import ConfigError, shortened

__all__ = ["find_config", "shipped_configs"]

_PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def shipped_configs() -> str:
    """The folder that holds common/, coco/, shapes/ and so on."""
    of_wheel = os.path.join(_PACKAGE, "configs")
    return of_wheel if os.path.isdir(of_wheel) else os.path.join(_PACKAGE, os.pardir, "configs")


def find_config(path: str) -> str:
    """The file that a config's name means: one of the user's, else one that comes with the package.

    Args:
        path: of a YAML file; relative ones are looked up in the current folder, then among the
            shipped ones, with "configs/" in front of them or without it.

    Returns:
        `path` itself where there is such a file or folder, or an absolute path.

    Raises:
        ConfigError: there is none; it lists the places.
    """
    path = os.path.expanduser(path)
    # lexists: what is wrong with a dangling link is said where the file is read.
    if os.path.lexists(path) or os.path.isabs(path):
        return path
    configs = os.path.abspath(shipped_configs())
    name = os.path.normpath(path)
    found = os.path.join(configs, name.removeprefix(f"configs{os.sep}"))
    if os.path.isfile(found):
        return found
    raise ConfigError(
        f"config file {shortened(path, 300)} does not exist; looked for {os.path.abspath(path)} and"
        f" {found}. Check the path; `ls {configs}` lists the configs that come with panoptic_ext"
    )
