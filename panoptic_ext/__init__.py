"""panoptic_ext: panoptic segmentation models, data sets and evaluation for Detectron2.

Importing it registers its models and data sets in Detectron2's registries and catalogues and
changes nothing else, except that whoever registers the name of one of its data sets later gets it.
"""

import importlib
import sys
from typing import TYPE_CHECKING, Any

# `python -m panoptic_ext COMMAND` imports this file before __main__, which would be too late for
# what has to happen before torch loads. While Python looks for a module, sys.argv[0] is "-m".
if sys.argv[:1] == ["-m"] and sys.orig_argv[-len(sys.argv)] in ("panoptic_ext", "-mpanoptic_ext"):
    import panoptic_ext_cli

    panoptic_ext_cli.prepare((*sys.argv, "")[1])

from panoptic_ext._detectron2 import import_quietly, require_detectron2

require_detectron2()
import_quietly()

from panoptic_ext import data, modeling  # noqa: E402, F401  (imported to register)
from panoptic_ext.config import add_panoptic_ext_config  # noqa: E402
from panoptic_ext.data import register_panoptic  # noqa: E402

if TYPE_CHECKING:
    from panoptic_ext.prediction.predictor import Predictor, load_run_cfg

__version__ = "0.1.0"
__all__ = [
    "Predictor",
    "__version__",
    "add_panoptic_ext_config",
    "load_run_cfg",
    "register_panoptic",
]

# Imported when they are asked for: training and evaluation, which they need, are not light.
_LAZY = ("Predictor", "load_run_cfg")


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module("panoptic_ext.prediction.predictor"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})
