"""Evaluation: panoptic quality of models and of files, and mIoU and AP of the same run."""

from .build import IfGiven, PanopticEvaluators, build_evaluator
from .files import FileResult, evaluate_files
from .instance_evaluation import PanopticInstanceEvaluator
from .kept_predictions import KeptPrediction
from .panoptic_evaluation import PanopticEvaluator
from .panoptic_quality import ClassCounts, PQStat, match_image
from .semantic_evaluation import PanopticSemSegEvaluator

__all__ = [
    "ClassCounts",
    "FileResult",
    "IfGiven",
    "KeptPrediction",
    "PQStat",
    "PanopticEvaluator",
    "PanopticEvaluators",
    "PanopticInstanceEvaluator",
    "PanopticSemSegEvaluator",
    "build_evaluator",
    "evaluate_files",
    "match_image",
]
