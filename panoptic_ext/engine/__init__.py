"""Runs: configs, data loading, training, checkpoints and evaluation."""

from panoptic_ext.engine.auto_batch import with_fitting_batch
from panoptic_ext.engine.checkpoint.checkpointer import Checkpointer
from panoptic_ext.engine.loader import TrainLoader, build_test_loader, build_train_loader
from panoptic_ext.engine.run_config import load_cfg
from panoptic_ext.engine.run_info import save_run_info
from panoptic_ext.engine.trainer import Trainer

__all__ = [
    "Checkpointer",
    "TrainLoader",
    "Trainer",
    "build_test_loader",
    "build_train_loader",
    "load_cfg",
    "save_run_info",
    "with_fitting_batch",
]
