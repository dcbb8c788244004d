"""An evaluator: the share of the pixels that a model gives to a segment instead of to void.

Run it: python evaluator.py CONFIG [KEY VALUE ...]
"""

import sys

from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm

from panoptic_ext.engine import Trainer, load_cfg


class CoverageEvaluator(DatasetEvaluator):
    """Reads `panoptic_seg` of each output; the result is a percentage."""

    def reset(self):
        self._covered = self._pixels = 0

    def process(self, inputs, outputs):
        for output in outputs:
            panoptic_seg, _ = output["panoptic_seg"]
            self._covered += int((panoptic_seg > 0).sum())
            self._pixels += panoptic_seg.numel()

    def evaluate(self):
        counts = comm.gather((self._covered, self._pixels))  # of all workers, on the first one
        if not comm.is_main_process():
            return {}
        covered, pixels = (sum(column) for column in zip(*counts, strict=True))
        return {"coverage": {"percent": 100 * covered / pixels}}


class MyTrainer(Trainer):
    @classmethod
    def build_evaluator(cls, cfg, dataset_name):
        return [super().build_evaluator(cfg, dataset_name), CoverageEvaluator()]


if __name__ == "__main__":
    trainer = MyTrainer(load_cfg(sys.argv[1], sys.argv[2:]))
    trainer.resume_or_load(resume=False)
    trainer.train()
