"""Inputs and outputs of the published Mask2Former; `tests/reference/README.md` says what there is.

The small vectors are part of the repository, the whole-network activations and weights are read
from the data folder beside it.
"""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch

from tests.reference.make_vectors import HERE, NAMES, decode
from tests.shared_data import shared_data_folder

FOLDER = shared_data_folder() / "mask2former_reference"

# For tests that need more than the vectors of the repository.
needs_reference = pytest.mark.skipif(
    not FOLDER.is_dir(),
    reason=f"{FOLDER} is missing (PANOPTIC_EXT_SHARED names another folder than its parent)",
)


@cache
def vectors(name: str) -> dict[str, Any]:
    """The file of that name in the repository: its `cases` and encoded `arrays`."""
    return json.loads((HERE / f"{name}.json").read_text(encoding="utf-8"))


def reference_arrays(name: str) -> dict[str, torch.Tensor]:
    """All arrays of a reference, by their names there."""
    if name in NAMES:
        entries = vectors(name)["arrays"]
        return {key: torch.from_numpy(decode(entry)) for key, entry in entries.items()}
    with np.load(FOLDER / f"{name}.npz") as arrays:
        return {key: torch.from_numpy(arrays[key]) for key in arrays.files}


def reference_json(name: str) -> Any:
    """The table of a reference: its cases, or the segments of an image."""
    if name in NAMES:
        return vectors(name)["cases"]
    return json.loads((FOLDER / f"{name}.json").read_text())
