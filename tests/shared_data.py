"""Where the data beside the repository is."""

from __future__ import annotations

import os
from pathlib import Path


def shared_data_folder() -> Path:
    """$PANOPTIC_EXT_SHARED or ../shared/data; it may be missing, which is a reason to skip."""
    given = os.environ.get("PANOPTIC_EXT_SHARED")
    root = Path(__file__).resolve().parent.parent
    return Path(given) if given else root.parent / "shared" / "data"
