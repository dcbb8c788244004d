"""Config keys of training on small machines: averaged weights."""

from __future__ import annotations

from detectron2.config import CfgNode as CN

__all__ = ["add_training_keys"]


def add_training_keys(cfg: CN) -> None:
    """Add the keys, in place."""
    # Exponential moving average (EMA) of the trained weights, beside the training.
    cfg.SOLVER.EMA = CN()
    # Keep the average. Evaluations within the training use it, and so does everything that reads a
    # checkpoint: its "model" is the average. --resume goes on with the trained weights, which the
    # checkpoint holds, too.
    cfg.SOLVER.EMA.ENABLED = False
    # Share of the old average that an iteration keeps, 0 to less than 1: after t iterations the
    # average is that of about the last 1 / (1 - DECAY) ones.
    cfg.SOLVER.EMA.DECAY = 0.999
    # Keep less at the start, min(DECAY, (1 + t) / (10 + t)) after t updates, so that the average
    # covers about the last tenth of a short training. False: DECAY from the first iteration, in
    # which a training of less than some 1 / (1 - DECAY) iterations mostly averages its start.
    cfg.SOLVER.EMA.WARMUP = True
