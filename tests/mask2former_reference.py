"""Inputs and outputs of the published Mask2Former, from the data folder beside the repository."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch

from tests.shared_data import shared_data_folder

FOLDER = shared_data_folder() / "mask2former_reference"

needs_reference = pytest.mark.skipif(
    not FOLDER.is_dir(),
    reason=f"{FOLDER} is missing (PANOPTIC_EXT_SHARED names another folder than its parent)",
)


def reference_arrays(name: str) -> dict[str, torch.Tensor]:
    """All arrays of `<name>.npz`."""
    with np.load(FOLDER / f"{name}.npz") as arrays:
        return {key: torch.from_numpy(arrays[key]) for key in arrays.files}


def reference_json(name: str) -> Any:
    """The contents of `<name>.json`."""
    return json.loads((FOLDER / f"{name}.json").read_text())
