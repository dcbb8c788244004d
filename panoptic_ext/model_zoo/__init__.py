"""Published models by name: their configs, classes and weights, from a catalogue of YAML files.

    from panoptic_ext import model_zoo
    model_zoo.list("mask2former*coco")
    model_zoo.info("mask2former_R50_coco").figures["PQ"]
    cfg = model_zoo.get_config("mask2former_R50_coco")
    model = model_zoo.get("mask2former_R50_coco")

Entries are read at the first call.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from panoptic_ext.model_zoo.catalog import add
    from panoptic_ext.model_zoo.catalog import find as info
    from panoptic_ext.model_zoo.catalog import matching as list
    from panoptic_ext.model_zoo.checkpoints import get_checkpoint, get_checkpoint_url
    from panoptic_ext.model_zoo.configs import get_config
    from panoptic_ext.model_zoo.models import get

__all__ = ["add", "get", "get_checkpoint", "get_checkpoint_url", "get_config", "info", "list"]

# Name -> module and its name there. They are imported at the first use, because they import the
# training code, which takes time.
_LAZY_NAMES = {
    "add": ("catalog", "add"),
    "info": ("catalog", "find"),
    "list": ("catalog", "matching"),
    "get_checkpoint": ("checkpoints", "get_checkpoint"),
    "get_checkpoint_url": ("checkpoints", "get_checkpoint_url"),
    "get_config": ("configs", "get_config"),
    "get": ("models", "get"),
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY_NAMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, attribute = _LAZY_NAMES[name]
    return getattr(importlib.import_module(f"{__name__}.{module}"), attribute)


def __dir__() -> Any:
    return sorted({*globals(), *_LAZY_NAMES})
