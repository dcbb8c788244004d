"""Import packages that only some features need."""

from __future__ import annotations

import importlib
from types import ModuleType

from panoptic_ext.errors import ConfigError, PanopticExtError

__all__ = ["import_optional"]


def import_optional(
    package: str, extra: str, user: str, *, error: type[PanopticExtError] = ConfigError
) -> ModuleType:
    """Import a package, or say how it is installed.

    Args:
        package: name of its module.
        extra: of panoptic_ext, which installs it.
        user: what needs it, for the error, such as "the backbone 'resnet18'".
        error: class of the error.

    Raises:
        PanopticExtError: of the class `error`; the package cannot be imported.
    """
    try:
        return importlib.import_module(package)
    except ImportError as reason:
        raise error(
            f"{user} needs the package {package}, which cannot be imported ({reason}); "
            f"pip install 'panoptic_ext[{extra}]'"
        ) from reason
