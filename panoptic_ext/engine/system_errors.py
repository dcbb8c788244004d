"""Explain errors of the operating system during a run, and how to mend them."""

from __future__ import annotations

import errno

from panoptic_ext.errors import ConfigError, DatasetError, PanopticExtError

__all__ = ["explain_system_error"]


def explain_system_error(error: BaseException) -> PanopticExtError | None:
    """A clear error for a data worker that died or a full disk; None for any other error."""
    text = str(error)
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return ConfigError(
            f"the disk is full ({text}). Free space, or give another folder with OUTPUT_DIR; the "
            "last checkpoint is untouched: go on with --resume"
        )
    if not isinstance(error, RuntimeError) or "DataLoader worker" not in text:
        return None
    if "shared memory" in text or "bus error" in text.lower():
        why = (
            "shared memory (/dev/shm) is full. Give it more (docker run --shm-size=8g), or lower "
            "DATALOADER.NUM_WORKERS (0 needs none)"
        )
    else:
        why = (
            "it was killed, most often by the system because memory ran out. Lower "
            "DATALOADER.NUM_WORKERS or the image size"
        )
    return DatasetError(
        f"a data loading worker died: {why}. The last checkpoint is untouched: go on with "
        f"--resume. ({text.splitlines()[0]})"
    )
