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

    # Learning rate and length for another batch or another data set than those of the recipe from
    # which a config takes its SOLVER. The number of passes over the data set stays, so MAX_ITER,
    # STEPS, WARMUP_ITERS, BACKBONE_WARMUP_ITERS, CHECKPOINT_PERIOD, TEST.EVAL_PERIOD and pairs of
    # MODEL.EOMT.ANNEALING change in proportion. BASE_LR is proportional to the batch with SGD
    # (Goyal et al. 2017, arXiv:1706.02677), to its square root with AdamW (Malladi et al. 2022,
    # arXiv:2205.10287). A line of the log says what became what; the run's config.yaml has the
    # new values and is not scaled again.
    cfg.SOLVER.AUTO_SCALE = CN()
    # Scale learning rate and length by the keys below.
    cfg.SOLVER.AUTO_SCALE.ENABLED = False
    # IMS_PER_BATCH for which BASE_LR and MAX_ITER were chosen. 0: that of the last base, or of the
    # config file itself where it sets one of them, so `SOLVER.IMS_PER_BATCH 4
    # SOLVER.AUTO_SCALE.ENABLED True` is enough.
    cfg.SOLVER.AUTO_SCALE.REFERENCE_BATCH_SIZE = 0
    # Images of the training set for which MAX_ITER was chosen. 0: MAX_ITER does not depend on the
    # number of images.
    cfg.SOLVER.AUTO_SCALE.REFERENCE_IMAGES = 0
    # Passes over the training set, or over its random subset (DATALOADER.RANDOM_SUBSET_RATIO), in
    # place of those that MAX_ITER of the recipe makes. 0: as many.
    cfg.SOLVER.AUTO_SCALE.EPOCHS = 0.0
    # Take the largest batch that the memory of the GPU holds: before the training, steps on the
    # largest images are tried with growing batches, and a tenth of the memory is left free.
    # IMS_PER_BATCH is then the batch for which BASE_LR and MAX_ITER were chosen, and AUTO_SCALE's
    # rule is applied. With ACCUMULATION_STEPS n the largest part that fits is found, and the batch
    # is n parts. A resumed run keeps its batch. CUDA only; in Python call `with_fitting_batch` of
    # `panoptic_ext.engine`.
    cfg.SOLVER.AUTO_BATCH_SIZE = False
