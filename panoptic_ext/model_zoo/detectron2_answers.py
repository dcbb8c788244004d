"""What the functions of `detectron2.model_zoo` answer for names of panoptic_ext's zoo.

A name is that of an entry, or the path of a config that comes with panoptic_ext, such as
coco/mask2former/mask2former_R50_bs16_50ep.yaml; ".yaml" may be left out. `detectron2_zoo` calls
these functions, which have the arguments and defaults of Detectron2's.
"""

from __future__ import annotations

from detectron2.config import CfgNode
from torch import nn

from panoptic_ext.config.shipped import shipped_config
from panoptic_ext.errors import ConfigError, nearest
from panoptic_ext.model_zoo import catalog, checkpoints, configs, models

__all__ = [
    "get",
    "get_checkpoint_url",
    "get_config",
    "get_config_file",
    "is_ours",
    "nearest_name",
]


def is_ours(name: str) -> bool:
    """Whether a name is one of the zoo."""
    return (
        bool(_shipped(name)) or {name, name.removesuffix(".yaml")} & set(catalog.names()) != set()
    )


def nearest_name(name: str) -> str:
    """The text "; did you mean ...?" for an unknown name; "" if it looks like Detectron2's."""
    return "" if "/" in name else nearest(name, catalog.names())


def get_config_file(config_path: str) -> str:
    """Path of the config; merging it needs the keys of `add_panoptic_ext_config`."""
    return _shipped(config_path) or configs.written_config(catalog.find(config_path))


def get_config(config_path: str, trained: bool = False) -> CfgNode:
    """The config with all keys; if `trained`, MODEL.WEIGHTS is the published weights."""
    shipped = _shipped(config_path)
    if not shipped:
        return configs.get_config(config_path, trained=trained)
    if trained:
        return configs.get_config(_entry_name(config_path, shipped))
    return configs.load_shipped(shipped)


def get_checkpoint_url(config_path: str) -> str:
    """The published address of the weights; `zoo://NAME` if they are no file of the web.

    Raises:
        RuntimeError: there are none, as Detectron2's function raises it.
    """
    shipped = _shipped(config_path)
    name = _entry_name(config_path, shipped) if shipped else config_path
    try:
        return checkpoints.get_checkpoint_url(name)
    except ConfigError as error:  # a model that reads its weights itself
        raise RuntimeError(str(error)) from error


def get(config_path: str, trained: bool = False, device: str | None = None) -> nn.Module:
    """The model in training mode, with the weights of its config."""
    cfg = get_config(config_path, trained)
    return models.build_with_weights(cfg, strict=trained, device=device)


def _entry_name(name: str, config: str) -> str:
    entry = configs.entry_of_config(config)
    if entry is None:
        raise RuntimeError(f"Pretrained model for {name} is not available!")
    return entry.name


def _shipped(name: str) -> str:
    return shipped_config(name if name.endswith(".yaml") else f"{name}.yaml")
