"""Prepare the output folder of a run."""

from __future__ import annotations

import os

from panoptic_ext.atomic import TemporaryFile, remove_leftovers
from panoptic_ext.errors import ConfigError

__all__ = ["prepare_output"]


def prepare_output(folder: str) -> None:
    """Make the output folder, remove the leftovers of killed runs and try to write a file.

    Raises:
        ConfigError: the folder cannot be made or written.
    """
    try:
        os.makedirs(folder, exist_ok=True)
        remove_leftovers(folder)
        with TemporaryFile(os.path.join(folder, ".write-test")) as probe:
            probe.stream.write(b"x" * 4096)
            probe.stream.flush()
    except OSError as error:
        raise ConfigError(
            f"OUTPUT_DIR {folder} cannot be written: {error.strerror or error}. Free space, mend "
            "its permissions, or give another folder with OUTPUT_DIR FOLDER"
        ) from error
