"""Evaluation: panoptic quality of models and of files, and mIoU and AP of the same run."""

from panoptic_ext.evaluation.build import IfGiven, PanopticEvaluators, build_evaluator
from panoptic_ext.evaluation.compare_files import FileResult, evaluate_files
from panoptic_ext.evaluation.instance_evaluation import PanopticInstanceEvaluator
from panoptic_ext.evaluation.kept_predictions import KeptPrediction
from panoptic_ext.evaluation.panoptic_evaluation import PanopticEvaluator
from panoptic_ext.evaluation.panoptic_quality import ClassCounts, PQStat, match_image
from panoptic_ext.evaluation.semantic_evaluation import PanopticSemSegEvaluator

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
