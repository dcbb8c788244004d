"""Evaluation: panoptic quality of models and of files, and mIoU and AP of the same run."""

from .files import FileResult, evaluate_files
from .kept_predictions import KeptPrediction
from .panoptic_evaluation import PanopticEvaluator
from .panoptic_quality import ClassCounts, PQStat, match_image

__all__ = [
    "ClassCounts",
    "FileResult",
    "KeptPrediction",
    "PQStat",
    "PanopticEvaluator",
    "evaluate_files",
    "match_image",
]
