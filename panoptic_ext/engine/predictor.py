"""The address that README and users' scripts know: see panoptic_ext.prediction.predictor."""

from panoptic_ext.prediction.predictor import Predictor, load_run_cfg

__all__ = ["Predictor", "load_run_cfg"]
