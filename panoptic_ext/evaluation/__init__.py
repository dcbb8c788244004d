"""Evaluation: panoptic quality of models and of files, and mIoU and AP of the same run."""

from panoptic_ext.evaluation.build import OptionalEvaluator, PanopticEvaluators, build_evaluator
from panoptic_ext.evaluation.compare_files import FileResult, evaluate_files
from panoptic_ext.evaluation.image_measures import match_image
from panoptic_ext.evaluation.instance_evaluation import PanopticInstanceEvaluator
from panoptic_ext.evaluation.kept_predictions import KeptPrediction
from panoptic_ext.evaluation.measures import Measures
from panoptic_ext.evaluation.metric import PanopticQuality
from panoptic_ext.evaluation.panoptic_evaluation import PanopticEvaluator
from panoptic_ext.evaluation.panoptic_quality import ClassCounts, PQStat
from panoptic_ext.evaluation.run_evaluator import RunEvaluator
from panoptic_ext.evaluation.semantic_evaluation import PanopticSemSegEvaluator
from panoptic_ext.evaluation.truth import Truth

__all__ = [
    "ClassCounts",
    "FileResult",
    "KeptPrediction",
    "Measures",
    "OptionalEvaluator",
    "PQStat",
    "PanopticEvaluator",
    "PanopticEvaluators",
    "PanopticInstanceEvaluator",
    "PanopticQuality",
    "PanopticSemSegEvaluator",
    "RunEvaluator",
    "Truth",
    "build_evaluator",
    "evaluate_files",
    "match_image",
]
