"""The functions of `detectron2.model_zoo`, which answer the names of panoptic_ext's zoo as well.

`install` puts functions in front of Detectron2's own, `uninstall` restores these. A name that
Detectron2 knows never comes here: its own function gives the answer, or the error. Of any other
name, an entry of the zoo or a config that comes with panoptic_ext answers.

A function that was imported by name before panoptic_ext (`from detectron2.model_zoo import
get_config`) stays Detectron2's own. Of these only `get` knows our names: it calls the other three
by the module.
"""

from __future__ import annotations

import functools
import importlib
import warnings
from collections.abc import Callable
from types import ModuleType
from typing import Any

__all__ = ["FUNCTIONS", "install", "uninstall"]

FUNCTIONS = ("get_config_file", "get_config", "get_checkpoint_url", "get")
"""The functions that are replaced, in both `detectron2.model_zoo` and its module `model_zoo`."""

_originals: dict[str, Callable] = {}


def install() -> None:
    """Let `detectron2.model_zoo` answer our names, too; a second call changes nothing."""
    modules = _modules()
    if _originals or not modules:
        return
    for name in FUNCTIONS:
        original = getattr(modules[-1], name)
        _originals[name] = original
        replacement = _in_front_of(original, name)
        for module in modules:
            # A function that another package has put there in the meantime stays.
            if getattr(module, name) is original:
                setattr(module, name, replacement)


def uninstall() -> None:
    """Restore Detectron2's own functions; a second call changes nothing."""
    for module in _modules() if _originals else ():
        for name, original in _originals.items():
            if getattr(getattr(module, name), "__wrapped__", None) is original:
                setattr(module, name, original)
    _originals.clear()


def _modules() -> list[ModuleType]:
    """The package and its module; [] if this Detectron2 has no working model zoo."""
    # Detectron2 main, and v0.6 as published, import pkg_resources, which warns that it is
    # deprecated and is missing in the newest setuptools.
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*pkg_resources")
        try:
            package = importlib.import_module("detectron2.model_zoo")
            return [package, importlib.import_module("detectron2.model_zoo.model_zoo")]
        except (ImportError, AttributeError):  # the latter of old setuptools on Python 3.12
            return []


def _in_front_of(original: Callable, name: str) -> Callable:
    @functools.wraps(original)
    def function(config_path: str, *args: Any, **kwargs: Any) -> Any:
        if _is_known_to_detectron2(config_path):
            return original(config_path, *args, **kwargs)
        answers = importlib.import_module("panoptic_ext.model_zoo.detectron2_answers")
        if answers.is_ours(config_path):
            return getattr(answers, name)(config_path, *args, **kwargs)
        try:
            return original(config_path, *args, **kwargs)
        except RuntimeError as error:
            hint = answers.nearest_name(config_path)
            if not hint or str(error).endswith(hint):  # their functions call each other
                raise
            raise RuntimeError(f"{error}{hint}") from error

    return function


def _is_known_to_detectron2(name: Any) -> bool:
    """Whether its own functions have a config or weights of this name, or refuse its type."""
    if not isinstance(name, str):
        return True
    for function in ("get_config_file", "get_checkpoint_url"):
        try:
            return bool(_originals[function](name))
        except RuntimeError:  # it has none
            continue
    return False
