"""Keys of how long a training lasts: by time, and by the sizes of its batch and its data set."""

from __future__ import annotations

from detectron2.config import CfgNode as CN

__all__ = ["add_training_length_keys"]


def add_training_length_keys(cfg: CN) -> None:
    """Add the keys of the length of a training to `cfg`, in place."""
    # Minutes that the training takes, its evaluations and checkpoints and the last evaluation
    # included; building the model is not. The number of iterations follows from the measured time
    # of a step. SOLVER.MAX_ITER, STEPS, WARMUP_ITERS, BACKBONE_WARMUP_ITERS, CHECKPOINT_PERIOD,
    # TEST.EVAL_PERIOD and MODEL.EOMT.ANNEALING keep their proportions: the training passes the
    # whole schedule, faster or slower. 0: MAX_ITER iterations.
    cfg.SOLVER.TIME_BUDGET = 0.0
