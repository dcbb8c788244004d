"""The YAML files of configs/: their list, what loads them, and reports of all that fail."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TypeVar

import pytest
import torch
from detectron2.config import CfgNode

from panoptic_ext.engine.run_config import load_cfg
from tests import ROOT
from tests.tiny.transformers_models import tiny_architecture

CONFIGS = sorted(ROOT.glob("configs/**/*.yaml"))
LEAVES = [path for path in CONFIGS if not path.name.startswith("Base-")]

Item = TypeVar("Item")

# A full Swin-L takes seconds to build; nothing is downloaded.
SMALLER = ("MODEL.SWIN.DEPTHS", "[1, 1, 1, 1]", "MODEL.TIMM.PRETRAINED", "False")


def relative(path: Path) -> str:
    """Path below configs/."""
    return path.relative_to(ROOT / "configs").as_posix()


_NARROW_VIT = {
    "MODEL.VIT.EMBED_DIM": 96,
    "MODEL.VIT.NUM_HEADS": 3,
    "MODEL.VIT.IMAGE_SIZE": 64,
}
# The most blocks that carry queries of EoMT, and one more.
_TINY_VIT = {**_NARROW_VIT, "MODEL.VIT.DEPTH": 6}


@cache
def load_shipped(path: Path, *, tiny: bool = True) -> CfgNode:
    """The frozen config of a file on the CPU, its data set's classes filled in.

    The data sets must be there, see the fixture `dataset_jsons`.

    Args:
        path: of the file.
        tiny: whether a network that is too large, or on the hub, is replaced by a tiny one.
    """
    changes = tiny_network(path) if tiny else {}
    pairs = [part for pair in changes.items() for part in map(str, pair)]
    return load_cfg(str(path), ["MODEL.DEVICE", "cpu", *SMALLER, *pairs])


def tiny_network(path: Path) -> dict[str, object]:
    """Keys of a tiny network for a leaf on a ViT, or of transformers, whose own is on the hub."""
    if path.parent.name == "pmt":
        return _NARROW_VIT  # its FEATURE_BLOCKS are those of the whole depth
    if path.parent.name == "eomt" or "_vit_" in path.name:
        return _TINY_VIT
    if path.parent.name != "transformers":
        return {}
    pytest.importorskip("transformers", minversion="4.57", reason="EoMT of the hf extra is absent")
    return {
        "MODEL.TRANSFORMERS.PRETRAINED": False,
        "MODEL.TRANSFORMERS.ARCHITECTURE": tiny_architecture(path.name.split("_")[0]),
    }


def failures(check: Callable[[Item], None], items: Iterable[Item]) -> dict[str, str]:
    """Run a check on every item: name -> error of those that fail.

    One test over many files says all that fail, each with its reason.
    """
    found = {}
    for item in items:
        try:
            check(item)
        except Exception as error:
            name = relative(item) if isinstance(item, Path) else str(item)
            found[name] = f"{type(error).__name__}: {error}"
    return found


@contextmanager
def without_initialisation() -> Iterator[None]:
    """Within it, parameters keep the memory that they get: half the time of building a model.

    For tests that look at names, shapes and counts alone.
    """
    with pytest.MonkeyPatch.context() as patch:
        for name in dir(torch.nn.init):
            if name.endswith("_") and not name.startswith("_"):
                patch.setattr(torch.nn.init, name, lambda tensor, *args, **kwargs: tensor)
        yield
