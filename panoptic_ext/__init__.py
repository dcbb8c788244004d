"""panoptic_ext: panoptic segmentation models, data sets and evaluation for Detectron2.

Importing it registers its models and data sets in Detectron2's registries and catalogues and
changes nothing else, except that whoever registers the name of one of its data sets later gets it.
"""

from panoptic_ext._detectron2 import import_quietly, require_detectron2

require_detectron2()
import_quietly()

from panoptic_ext import data, modeling  # noqa: E402, F401  (imported to register)
from panoptic_ext.config import add_panoptic_ext_config  # noqa: E402
from panoptic_ext.data import register_panoptic  # noqa: E402

__version__ = "0.1.0"
__all__ = ["__version__", "add_panoptic_ext_config", "register_panoptic"]
