"""The interface of a run's evaluators, which extends Detectron2's."""

from __future__ import annotations

from typing import TYPE_CHECKING

from detectron2.evaluation import DatasetEvaluator

if TYPE_CHECKING:
    from panoptic_ext.evaluation.panoptic_evaluation import PanopticEvaluator

__all__ = ["RunEvaluator"]


class RunEvaluator(DatasetEvaluator):
    """An evaluator that a run can wait for, and whose worst and best images it can draw.

    Besides `reset`, `process` and `evaluate` of every DatasetEvaluator, a run uses the two members
    here. A third party's evaluator derives from this class to offer one of them or both. A run also
    accepts a plain DatasetEvaluator, without them.
    """

    def wait(self) -> None:
        """Wait until all predictions so far are compared; all workers call it.

        An evaluator that compares in threads raises their errors here. By default there is nothing
        to wait for.
        """

    @property
    def panoptic(self) -> PanopticEvaluator | None:
        """The evaluator whose `worst`, `best` and `per_image` a contact sheet shows, or None."""
        return None
