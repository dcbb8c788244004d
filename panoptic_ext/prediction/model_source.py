"""Find the config and the weights of a model that is named in one of several ways."""

from __future__ import annotations

import os
from collections.abc import Sequence

from detectron2.config import CfgNode
from detectron2.model_zoo import model_zoo as detectron2_zoo

from panoptic_ext.config.shipped import shipped_config, shipped_configs
from panoptic_ext.config.yaml_reader import merge_settings, read_opts
from panoptic_ext.engine.device import choose_device
from panoptic_ext.errors import ConfigError, nearest, quoted
from panoptic_ext.model_zoo import catalog
from panoptic_ext.model_zoo.configs import SCHEME, entry_of_config, get_config, load_shipped
from panoptic_ext.prediction.predictor import find_weights, load_run_cfg

__all__ = ["find_model"]

_KINDS = (
    "a model of the zoo (`panoptic-ext zoo list`), the output folder of a training run, or a YAML"
    " file"
)


def find_model(
    source: str | os.PathLike | CfgNode,
    *,
    weights: str | os.PathLike | None = None,
    device: str | None = None,
    opts: Sequence[str] = (),
) -> tuple[CfgNode, str]:
    """The config and the weights to predict with.

    Args:
        source: the output folder of a run; a YAML file, of the user's or one that comes with
            panoptic_ext; a name in the model zoo, of panoptic_ext or of Detectron2; or a config.
        weights: a checkpoint. None: the run's last one, the zoo's, or MODEL.WEIGHTS.
        device: such as "cpu" or "cuda:1". None: MODEL.DEVICE, or the CPU where there is no CUDA.
        opts: KEY VALUE pairs, applied last.

    Returns:
        A frozen config, whose classes are registered, and the weights' path or address.

    Raises:
        ConfigError: there is no such model, or its config is wrong.
    """
    opts = [*opts, *(("MODEL.DEVICE", device) if device else ())]
    cfg, found = _find(source, opts, needs_weights=weights is None)
    return cfg, found if weights is None else os.path.expanduser(os.fspath(weights))


def _find(
    source: str | os.PathLike | CfgNode, opts: Sequence[str], *, needs_weights: bool
) -> tuple[CfgNode, str]:
    """As `find_model`; the weights are "" where none are needed."""
    path = "" if isinstance(source, CfgNode) else os.path.expanduser(os.fspath(source))
    if os.path.lexists(path):
        cfg, run = _config_of_path(path, opts), path
    elif isinstance(source, CfgNode):
        cfg, run = _with_options(source, opts), ""
    else:
        cfg, run = _config_of_name(os.fspath(source), opts), ""
    return cfg, find_weights(cfg, opts=opts, path=run) if needs_weights else ""


def _config_of_path(path: str, opts: Sequence[str]) -> CfgNode:
    """Of a run's folder or a YAML file; of one that the zoo has weights for, with these."""
    entry = entry_of_config(path) if os.path.isfile(path) else None
    return _with_options(get_config(entry.name), opts) if entry else load_run_cfg(path, opts)


def _config_of_name(name: str, opts: Sequence[str]) -> CfgNode:
    file = name if name.endswith(".yaml") else f"{name}.yaml"
    entry = name.removeprefix(SCHEME).removesuffix(".yaml")
    if entry in catalog.names():
        return _with_options(get_config(entry), opts)
    shipped = shipped_config(file)
    if shipped:
        entry_of_file = entry_of_config(shipped)
        cfg = get_config(entry_of_file.name) if entry_of_file else load_shipped(shipped)
        return _with_options(cfg, opts)
    if file in detectron2_zoo._ModelZooUrls.CONFIG_PATH_TO_URL_SUFFIX:
        weights = ["MODEL.WEIGHTS", detectron2_zoo.get_checkpoint_url(file)]
        return load_run_cfg(detectron2_zoo.get_config_file(file), [*weights, *opts])
    raise ConfigError(_unknown(name))


def _with_options(cfg: CfgNode, opts: Sequence[str]) -> CfgNode:
    """A copy with the options, for the device of this machine, frozen."""
    cfg = cfg.clone()
    cfg.defrost()
    merge_settings(cfg, read_opts(opts))
    choose_device(cfg)
    cfg.freeze()
    return cfg


def _unknown(name: str) -> str:
    if os.sep in name or name.startswith((".", "~")):
        hint = f"; {os.path.abspath(os.path.expanduser(name))} does not exist"
    else:
        hint = nearest(name, catalog.names())
    return (
        f"unknown model {quoted(name, 300)}{hint}; expected {_KINDS}. The YAML files that come"
        f" with panoptic_ext lie in {os.path.abspath(shipped_configs())}"
    )
