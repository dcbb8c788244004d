"""Check that keys of MODEL.PANOPTIC_FUSION are set only for models that read them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from detectron2.config import CfgNode, get_cfg

from panoptic_ext.config import add_panoptic_ext_config
from panoptic_ext.errors import ConfigError

__all__ = ["check_fusion_keys"]

BLOCK = "MODEL.PANOPTIC_FUSION"
# A key of Detectron2 that nobody writes by hand: a file that has it is a dump of a whole config.
_KEY_OF_DUMPS = "GLOBAL.HACK"
# Dumps without this key were written before Panoptic FPN took a fusion.
_KEY_OF_NEW_DUMPS = "INPUT.KEEP_EMPTY_SEGMENTS"


def check_fusion_keys(
    cfg: CfgNode,
    given: Mapping[str, str],
    *,
    default_fusion: str | None,
    combine_keys: Mapping[str, str],
) -> None:
    """Refuse keys of MODEL.PANOPTIC_FUSION that the model does not read.

    The `config.yaml` of a run from before Panoptic FPN took a fusion has the whole block, which
    only EfficientPS read then. For the other models the block is reset, in place, to its defaults.

    Args:
        cfg: unfrozen.
        given: key -> source of every key that was given, such as "file:line".
        default_fusion, combine_keys: attributes of the model, see
            panoptic_ext.modeling.meta_arch.base.MetaArchitecture.

    Raises:
        ConfigError: names each key that is not read, its value, and the key that is read instead.
    """
    if default_fusion is None or (default_fusion and not combine_keys):
        return
    model = cfg.MODEL.META_ARCHITECTURE
    keys, defaults = cfg.MODEL.PANOPTIC_FUSION, _defaults()
    dump = _file_of(given.get(_KEY_OF_DUMPS, ""))
    if dump and _KEY_OF_NEW_DUMPS not in given:
        # Only values from the dump are reset: those of the command line are the user's.
        for name, value in _items(defaults):
            if _file_of(given.get(f"{BLOCK}.{name}", "")) == dump:
                _set(keys, name, value)
    changed = {
        f"{BLOCK}.{name}": value
        for (name, value), (_, default) in zip(_items(keys), _items(defaults), strict=True)
        if value != default
    }
    if not default_fusion:
        _refuse(changed, f"{model} takes no fusion; leave the key out")
        return
    for name, key in combine_keys.items():
        setting = {k: v for k, v in changed.items() if k == f"{BLOCK}.{name}"}
        _refuse(setting, f"{model} reads MODEL.PANOPTIC_FPN.COMBINE.{key}; set that instead")


def _file_of(source: str) -> str:
    """The file of a "file:line"; "" for the command line."""
    return source.rpartition(":")[0]


def _refuse(changed: Mapping[str, Any], why: str) -> None:
    if changed:
        settings = ", ".join(f"{key} is {value!r}" for key, value in changed.items())
        raise ConfigError(f"{settings}, but {why}")


def _defaults() -> CfgNode:
    cfg = get_cfg()
    add_panoptic_ext_config(cfg)
    return cfg.MODEL.PANOPTIC_FUSION


def _items(node: CfgNode, prefix: str = "") -> list[tuple[str, Any]]:
    pairs = []
    for name, value in node.items():
        if isinstance(value, CfgNode):
            pairs.extend(_items(value, f"{prefix}{name}."))
        else:
            pairs.append((prefix + name, value))
    return pairs


def _set(node: CfgNode, name: str, value: Any) -> None:
    *parents, key = name.split(".")
    for parent in parents:
        node = node[parent]
    node[key] = value
