"""Config keys of training on small machines: gradient accumulation, averages."""

from __future__ import annotations

from detectron2.config import CfgNode as CN

__all__ = ["add_training_keys"]


def add_training_keys(cfg: CN) -> None:
    """Add the keys, in place."""
    # Parts of each batch of IMS_PER_BATCH images that are computed one after another, each in the
    # memory of its images alone, before the one update of the weights. Learning rate, schedule and
    # iterations stay as they are. 1: the batch as a whole; at most the images of a worker.
    cfg.SOLVER.ACCUMULATION_STEPS = 1

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

    # Metric, as metrics.json names it ("panoptic_seg/PQ", "sem_seg/mIoU", "segm/AP"; with several
    # data sets "NAME/panoptic_seg/PQ"), whose best evaluation is kept: its weights as
    # model_best.pth, which predict and zoo add then take of a run's folder. "": none is.
    cfg.TEST.BEST_METRIC = ""
    # Whether a lower value of BEST_METRIC is better. None: if its name has "loss" or "error" in it.
    cfg.TEST.BEST_METRIC_LOWER = None
    # End a training whose evaluations no longer improve BEST_METRIC. TEST.EVAL_PERIOD has to be
    # set.
    cfg.TEST.EARLY_STOPPING = CN()
    # Evaluations in a row without improvement, after which the training ends; 0: never.
    cfg.TEST.EARLY_STOPPING.PATIENCE = 0
    # An improvement is more than this over the last value that was one, in the metric's unit.
    cfg.TEST.EARLY_STOPPING.MIN_DELTA = 0.0
