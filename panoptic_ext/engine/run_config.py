"""Make a complete and checked config of a config file and `KEY VALUE` pairs."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import Any

from detectron2.config import CfgNode, get_cfg
from detectron2.data import DatasetCatalog, Metadata
from detectron2.modeling import META_ARCH_REGISTRY

from panoptic_ext.config import add_panoptic_ext_config
from panoptic_ext.config.fusion_keys import check_fusion_keys
from panoptic_ext.config.image_values import check_test_images, pads_black
from panoptic_ext.config.left_out import DERIVED_KEYS, get_key, is_left_out, set_key, settle
from panoptic_ext.config.loggers import check_loggers
from panoptic_ext.config.published_names import resolve_published_names
from panoptic_ext.config.yaml_reader import Setting, merge_settings, read_file, read_opts
from panoptic_ext.data import check_same_categories, has_instances_alone, register_from_config
from panoptic_ext.data.datasets.builtin import builtin_names
from panoptic_ext.data.datasets.class_numbers import (
    DerivedNumber,
    class_numbers,
    dataset_names,
    derive_left_out,
    void_number,
)
from panoptic_ext.data.datasets.known_classes import describe_classes
from panoptic_ext.engine.auto_scale import set_reference_batch
from panoptic_ext.engine.best_metric import check_best_metric_keys
from panoptic_ext.engine.precision import check_precision
from panoptic_ext.engine.weight_average import check_average_keys
from panoptic_ext.errors import ConfigError, look_up, quoted, unknown
from panoptic_ext.modeling.meta_arch.base import MetaArchitecture, meta_architecture
from panoptic_ext.modeling.meta_arch.semantic_windows import check_windows

__all__ = ["has_own_weights", "load_cfg", "warn_if_warmup_never_ends", "without_pretrained"]

logger = logging.getLogger(__name__)


def load_cfg(
    config_file: str,
    opts: Sequence[str] = (),
    *,
    use_data: bool = True,
    trained_on: Metadata | None = None,
) -> CfgNode:
    """Read, complete and check a config.

    Data sets of the config are registered. If the value of void pixels, and for models of
    panoptic_ext the numbers of classes, are left out, they are taken from the data set; if they are
    given, they are compared with it. See `_data_set_wins` for numbers in a `_BASE_`.

    Args:
        config_file: YAML file; "" takes the defaults.
        opts: KEY VALUE ... pairs, applied last.
        use_data: False leaves classes and void as given and reads no data set, e.g. to predict
            with a trained model's `config.yaml` on a machine without the data set.
        trained_on: see `register_from_config`. If `use_data` is False, numbers that are left out
            follow from these classes, which data sets without their files get.

    Returns:
        A frozen config.

    Raises:
        ConfigError: the config is wrong; the message gives file and line and how to mend it.
        DatasetError: the data set cannot be read.
    """
    cfg = get_cfg()
    add_panoptic_ext_config(cfg)
    settings = [*(read_file(config_file) if config_file else []), *read_opts(opts)]
    given = merge_settings(cfg, settings)
    if "VERSION" in given and get_cfg().VERSION != cfg.VERSION:
        raise ConfigError(
            f"{given['VERSION']}: VERSION {cfg.VERSION} of Detectron2's config format; only "
            f"{get_cfg().VERSION} is read. Rename the old keys as Detectron2's "
            "config/compat.py lists them"
        )
    _check_values(cfg)
    # The order matters: published names are resolved before the model's name is looked up, and the
    # data sets are registered before any of them is read.
    resolve_published_names(cfg, given)
    _check_model_name(cfg)
    arch = meta_architecture(cfg)
    check_fusion_keys(
        cfg, given, default_fusion=arch.default_fusion, combine_keys=arch.combine_keys
    )
    check_windows(cfg, arch)
    _warn_of_own_padding(cfg, arch)
    register_from_config(cfg, trained_on=trained_on)
    if use_data:
        _check_datasets_exist(cfg)
        _check_ground_truth(cfg)
        if arch.has_contiguous_classes:
            check_same_categories(dataset_names(cfg))
        _compare_numbers(cfg, class_numbers(cfg, arch), settings)
        _compare_numbers(cfg, void_number(cfg, arch), settings)
    elif trained_on is not None and any(is_left_out(cfg, key) for key in DERIVED_KEYS):
        for name in dataset_names(cfg):
            describe_classes(name, trained_on.as_dict())
        derive_left_out(cfg, arch)
    set_reference_batch(cfg, settings)
    settle(cfg)
    cfg.freeze()
    return cfg


def warn_if_warmup_never_ends(cfg: CfgNode) -> None:
    """Log a warning if a training ends before its learning rate reaches SOLVER.BASE_LR."""
    if cfg.SOLVER.MAX_ITER <= cfg.SOLVER.WARMUP_ITERS:
        logger.warning(
            "SOLVER.MAX_ITER %d is not more than SOLVER.WARMUP_ITERS %d: the learning rate never "
            "reaches SOLVER.BASE_LR; raise MAX_ITER or lower WARMUP_ITERS",
            cfg.SOLVER.MAX_ITER,
            cfg.SOLVER.WARMUP_ITERS,
        )


_SMALLEST_VALUES = {
    "SOLVER.IMS_PER_BATCH": 1,
    "SOLVER.MAX_ITER": 1,
    "SOLVER.ACCUMULATION_STEPS": 1,
    "SOLVER.CHECKPOINT_PERIOD": 1,
    "SOLVER.CHECKPOINTS_TO_KEEP": 0,
    "SOLVER.WARMUP_ITERS": 0,
    "SOLVER.REFERENCE_WORLD_SIZE": 0,
    "SOLVER.WEIGHT_DECAY": 0,
    "SOLVER.BACKBONE_MULTIPLIER": 0,
    "SOLVER.AUTO_SCALE.REFERENCE_BATCH_SIZE": 0,
    "SOLVER.AUTO_SCALE.REFERENCE_IMAGES": 0,
    "SOLVER.AUTO_SCALE.EPOCHS": 0,
    "SOLVER.TIME_BUDGET": 0,
    "DATALOADER.NUM_WORKERS": 0,
    "DATALOADER.REPEAT_THRESHOLD": 0,
    "DATALOADER.RANDOM_SUBSET_RATIO": 0,
    "INPUT.REDRAW_EMPTY": 0,
    "TEST.EVAL_PERIOD": 0,
    "TEST.EARLY_STOPPING.PATIENCE": 0,
    "TEST.EARLY_STOPPING.MIN_DELTA": 0,
    "TEST.CONTACT_SHEET": 0,
}


def _check_values(cfg: CfgNode) -> None:
    for key, least in _SMALLEST_VALUES.items():
        node: Any = cfg
        for name in key.split("."):
            node = node[name]
        if not least <= node < math.inf:  # NaN, too
            raise ConfigError(f"{key} = {node}, expected at least {least}, and a finite number")
    if not 0 < cfg.SOLVER.BASE_LR < math.inf:
        raise ConfigError(
            f"SOLVER.BASE_LR = {cfg.SOLVER.BASE_LR}, expected more than 0, and a finite number"
        )
    # AUTO_BATCH_SIZE chooses a batch of that many parts.
    is_given = not cfg.SOLVER.AUTO_BATCH_SIZE
    if is_given and cfg.SOLVER.ACCUMULATION_STEPS > cfg.SOLVER.IMS_PER_BATCH:
        raise ConfigError(
            f"SOLVER.ACCUMULATION_STEPS = {cfg.SOLVER.ACCUMULATION_STEPS} parts of a batch, "
            f"expected at most its images, SOLVER.IMS_PER_BATCH = {cfg.SOLVER.IMS_PER_BATCH}"
        )
    check_precision(cfg)
    check_average_keys(cfg)
    check_best_metric_keys(cfg)
    check_loggers(cfg)
    check_test_images(cfg)
    pads_black(cfg)  # checks the value
    device = cfg.MODEL.DEVICE
    if device != "cpu" and not device.startswith(("cuda", "mps", "xpu")):
        raise ConfigError(
            f"MODEL.DEVICE = {quoted(device)}, expected 'cuda', 'cuda:<number>' or 'cpu'"
        )
    if not cfg.OUTPUT_DIR:
        raise ConfigError("OUTPUT_DIR is empty; name a folder for logs and checkpoints")


def _check_model_name(cfg: CfgNode) -> None:
    look_up(META_ARCH_REGISTRY, "MODEL.META_ARCHITECTURE", cfg.MODEL.META_ARCHITECTURE)


def _warn_of_own_padding(cfg: CfgNode, arch: type[MetaArchitecture]) -> None:
    """Warn of keys that a model does not read which pads its batches itself."""
    asked = [name for name in ("PAD_VALUE", "PAD_TO_SQUARE") if cfg.INPUT[name] in ("black", True)]
    if asked and not arch.pads_by_config:
        logger.warning(
            "%s pads its batches in its own way, whatever INPUT.%s is; the data mapper obeys "
            "INPUT.PAD_VALUE in any case",
            arch.__name__,
            " and INPUT.".join(asked),
        )


def _check_datasets_exist(cfg: CfgNode) -> None:
    for key in ("TRAIN", "TEST"):
        names = cfg.DATASETS[key]
        if isinstance(names, str):
            raise ConfigError(f"DATASETS.{key} must be a list of names; write [{quoted(names)}]")
        for name in names:
            if name not in DatasetCatalog.list():
                known = {*DatasetCatalog.list(), *builtin_names()}
                mend = (
                    f"describe it under DATASETS.PANOPTIC.{name} (JSON, IMAGE_ROOT, PNG_ROOT), "
                    f"instances alone under DATASETS.INSTANCES.{name} (JSON, IMAGE_ROOT), or call "
                    "register_panoptic"
                )
                what = f"data set in DATASETS.{key}"
                raise ConfigError(unknown(what, name, known, mend=mend, limit=0))


def _check_ground_truth(cfg: CfgNode) -> None:
    """Raise ConfigError if a model of panoptic label maps is to be trained on instances alone."""
    arch = meta_architecture(cfg)
    if not arch.has_contiguous_classes or arch.learns_from_instances(cfg):
        return
    unfit = [name for name in dataset_names(cfg) if has_instances_alone(name)]
    if unfit:
        raise ConfigError(
            f"data set {unfit[0]} holds instances alone, and {cfg.MODEL.META_ARCHITECTURE} learns "
            "from panoptic label maps; name a panoptic data set, or take an instance model (a "
            "Mask2Former with MODEL.MASK_FORMER.TASK instance, as in "
            "configs/common/mask2former/Base-Instance.yaml)"
        )


def _compare_numbers(
    cfg: CfgNode, numbers: Sequence[DerivedNumber], settings: Sequence[Setting]
) -> None:
    """Set numbers to those of the data sets, in place; see `_take_from_data_set` for given ones."""
    for number in numbers:
        given = get_key(cfg, number.key)
        if not is_left_out(cfg, number.key) and given != number.value:
            _take_from_data_set(number, given, settings)
        set_key(cfg, number.key, number.value)


def _take_from_data_set(number: DerivedNumber, given: Any, settings: Sequence[Setting]) -> None:
    """Warn that a given value is replaced by the data set's, or refuse it.

    Raises:
        ConfigError: the value was not given for another data set, so one of the two is a mistake.
    """
    setting = next(s for s in reversed(settings) if s.key == number.key)
    text = f"{setting.source}: {number.key} = {given}, but {number.reason}"
    if _data_set_wins(setting, settings):
        logger.warning(
            "%s, which was chosen after it: the data set's %s is taken", text, number.value
        )
        return
    leave_out = "" if setting.in_base else "leave the key out (it is taken from the data set) or "
    raise ConfigError(f"{text}; {leave_out}set it to {number.value}")


def _data_set_wins(setting: Setting, settings: Sequence[Setting]) -> bool:
    """Whether a later file or the command line chose another data set than that of `setting`."""
    # A published file sets the number of classes of its own data set. A config that takes it as
    # `_BASE_` and names another data set cannot leave that key out, so the data set's number wins.
    place = next(i for i, s in enumerate(settings) if s is setting)
    data_set_keys = ("DATASETS.TRAIN", "DATASETS.TEST", "DATASETS.PANOPTIC.", "DATASETS.INSTANCES.")
    return any(s.key.startswith(data_set_keys) and s.file != setting.file for s in settings[place:])


def has_own_weights(cfg: CfgNode) -> bool:
    """Whether no file of weights is named and none is needed: the model reads its own."""
    return not cfg.MODEL.WEIGHTS and meta_architecture(cfg).loads_own_weights(cfg)


def without_pretrained(cfg: CfgNode) -> CfgNode:
    """The same config without pretrained weights, which a checkpoint will replace anyway."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.TIMM.PRETRAINED = False
    cfg.MODEL.VIT.PRETRAINED = False
    cfg.MODEL.TRANSFORMERS.PRETRAINED = False
    cfg.freeze()
    return cfg
