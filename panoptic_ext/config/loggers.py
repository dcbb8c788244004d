"""Keys of the places to which a training writes its losses and results."""

from __future__ import annotations

from detectron2.config import CfgNode as CN

from panoptic_ext.errors import ConfigError, check_known, quoted

__all__ = ["add_logger_keys", "check_loggers"]

LOGGERS = ("console", "json", "tensorboard", "wandb", "mlflow")


def add_logger_keys(cfg: CN) -> None:
    """Add the keys of loggers to `cfg`, in place."""
    # Where losses, learning rates and results are written: "console" (and log.txt), "json"
    # (metrics.json, which learning curves are drawn from), "tensorboard", "wandb" and "mlflow". The
    # last two also get the config and the contact sheets, and need their packages
    # (pip install 'panoptic_ext[wandb]' or 'panoptic_ext[mlflow]').
    cfg.LOGGERS = ["console", "json", "tensorboard"]

    # A run of Weights & Biases. A resumed training goes on in the same run.
    cfg.WANDB = CN()
    # Name of the project. "": $WANDB_PROJECT, or what wandb takes.
    cfg.WANDB.PROJECT = ""
    # User or team. "": $WANDB_ENTITY, or what wandb takes.
    cfg.WANDB.ENTITY = ""
    # Name of the run. "": $WANDB_NAME, or the name of OUTPUT_DIR.
    cfg.WANDB.NAME = ""
    # "online", "offline" (files in OUTPUT_DIR/wandb, for `wandb sync`). "": $WANDB_MODE, or online.
    # If wandb cannot go online, the run is offline.
    cfg.WANDB.MODE = ""

    # A run of MLflow. A resumed training goes on in the same run.
    cfg.MLFLOW = CN()
    # Address of the tracking server, or a folder. "": $MLFLOW_TRACKING_URI, or OUTPUT_DIR/mlruns.
    cfg.MLFLOW.TRACKING_URI = ""
    # Name of the experiment. "": $MLFLOW_EXPERIMENT_NAME, or panoptic_ext.
    cfg.MLFLOW.EXPERIMENT = ""
    # Name of the run. "": the name of OUTPUT_DIR.
    cfg.MLFLOW.NAME = ""


def check_loggers(cfg: CN) -> None:
    """Check LOGGERS and WANDB.MODE.

    Raises:
        ConfigError: a name is unknown, or the value is no list.
    """
    if isinstance(cfg.LOGGERS, str):
        raise ConfigError(f"LOGGERS must be a list of names; write [{quoted(cfg.LOGGERS)}]")
    for name in cfg.LOGGERS:
        check_known("LOGGERS", name, LOGGERS)
    check_known("WANDB.MODE", cfg.WANDB.MODE, ("", "online", "offline"))
