"""panoptic_ext: panoptic segmentation models, data sets and evaluation for Detectron2.

Importing the package registers its models and data sets in Detectron2's registries and catalogues,
and addresses such as `zoo://NAME` in its PathManager. It changes nothing else but two things:
`DatasetCatalog.register` lets other code register a name of these data sets for a data set of its
own, and the functions of `detectron2.model_zoo` answer names of `panoptic_ext.model_zoo` as well
(`panoptic_ext.model_zoo.detectron2_zoo.uninstall()` restores them).
"""

import importlib
import sys
from typing import TYPE_CHECKING, Any

# `python -m panoptic_ext COMMAND` imports this file before __main__, and importing this file loads
# torch. What must happen before that is therefore done here. While Python searches for the module
# to run, sys.argv[0] is "-m".
if sys.argv[:1] == ["-m"] and sys.orig_argv[-len(sys.argv)] in ("panoptic_ext", "-mpanoptic_ext"):
    import panoptic_ext_cli

    panoptic_ext_cli.prepare((*sys.argv, "")[1])

from panoptic_ext._detectron2 import import_quietly, require_detectron2

require_detectron2()
import_quietly()

# E402: the rooms can be imported only after Detectron2 has been found.
from panoptic_ext import data, modeling  # noqa: E402, F401  (imported to register)
from panoptic_ext.config import add_panoptic_ext_config  # noqa: E402
from panoptic_ext.data import (  # noqa: E402
    id2rgb,
    id_to_rgb,
    map_categories,
    read_png_string,
    register_panoptic,
    rgb2id,
    rgb_to_id,
    write_png_string,
)
from panoptic_ext.model_zoo import detectron2_zoo, path_handlers  # noqa: E402

path_handlers.register_path_handlers()
detectron2_zoo.install()

if TYPE_CHECKING:
    from panoptic_ext.prediction.load import load
    from panoptic_ext.prediction.panoptic_result import PanopticResult
    from panoptic_ext.prediction.predictor import Predictor, load_run_cfg

__version__ = "0.1.0"
__all__ = [
    "PanopticResult",
    "Predictor",
    "__version__",
    "add_panoptic_ext_config",
    "id2rgb",
    "id_to_rgb",
    "load",
    "load_run_cfg",
    "map_categories",
    "read_png_string",
    "register_panoptic",
    "rgb2id",
    "rgb_to_id",
    "write_png_string",
]

# Name -> its module, imported at the first use: some import training and evaluation, which takes
# time.
_LAZY_NAMES = {
    "PanopticResult": "panoptic_ext.prediction.panoptic_result",
    "Predictor": "panoptic_ext.prediction.predictor",
    "load": "panoptic_ext.prediction.load",
    "load_run_cfg": "panoptic_ext.prediction.predictor",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY_NAMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_LAZY_NAMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY_NAMES})
