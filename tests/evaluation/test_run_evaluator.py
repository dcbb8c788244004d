"""The interface that a run asks evaluators by."""

from __future__ import annotations

from detectron2.evaluation import DatasetEvaluator

from panoptic_ext.evaluation import OptionalEvaluator, PanopticEvaluators, RunEvaluator


class Plain(DatasetEvaluator):
    """A third party's evaluator, which knows nothing of ours; `panoptic` is its own business."""

    panoptic = "not an evaluator"

    def evaluate(self):
        return {"plain": {"done": 1}}


class Waiting(RunEvaluator):
    waited = 0

    def wait(self):
        self.waited += 1


def test_a_run_asks_only_evaluators_of_its_interface():
    plain, waiting = Plain(), Waiting()
    both = PanopticEvaluators(
        [OptionalEvaluator(plain, "sem_seg", "plain"), OptionalEvaluator(waiting, "x", "waiting")]
    )
    both.wait()
    assert waiting.waited == 1 and both.panoptic is None
    assert not hasattr(both.evaluators[0], "summary")
