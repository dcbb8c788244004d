"""Which models read MODEL.PANOPTIC_FUSION, and what the others say of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import META_ARCH_REGISTRY

from panoptic_ext.config import add_panoptic_ext_config
from panoptic_ext.errors import ConfigError

__all__ = ["check_fusion_keys"]

BLOCK = "MODEL.PANOPTIC_FUSION"
_IN_DUMPS_ALONE = "GLOBAL.HACK"  # a key of Detectron2's that nobody writes, but that dumps have


def check_fusion_keys(cfg: CfgNode, given: Mapping[str, str]) -> None:
    """Refuse keys of MODEL.PANOPTIC_FUSION that the model does not read.

    The `config.yaml` of a run from before Panoptic FPN took a fusion has the whole block, which
    EfficientPS alone read then. It is set back, in place, for the other models.

    Args:
        cfg: unfrozen, with a registered MODEL.META_ARCHITECTURE.
        given: where each key was given.

    Raises:
        ConfigError: names each key, its value and what is read instead.
    """
    arch = META_ARCH_REGISTRY.get(cfg.MODEL.META_ARCHITECTURE)
    takes_fusion, replaced = hasattr(arch, "default_fusion"), getattr(arch, "combine_keys", {})
    if not _is_known(arch) or (takes_fusion and not replaced):
        return
    keys, defaults = cfg.MODEL.PANOPTIC_FUSION, _defaults()
    dump = _file_of(given.get(_IN_DUMPS_ALONE, ""))
    if dump and "INPUT.KEEP_EMPTY_SEGMENTS" not in given:
        for name, value in _items(defaults):
            if _file_of(given.get(f"{BLOCK}.{name}", "")) == dump:
                _set(keys, name, value)
    changed = {
        f"{BLOCK}.{name}": value
        for (name, value), (_, default) in zip(_items(keys), _items(defaults), strict=True)
        if value != default
    }
    if not takes_fusion:
        _refuse(changed, f"{arch.__name__} takes no fusion; leave the key out")
        return
    for name, key in replaced.items():
        told = {k: v for k, v in changed.items() if k == f"{BLOCK}.{name}"}
        _refuse(told, f"{arch.__name__} reads MODEL.PANOPTIC_FPN.COMBINE.{key}; set that instead")


def _is_known(arch: type) -> bool:
    """Whether it is ours or Detectron2's; others may read the keys in ways of their own."""
    return arch.__module__.startswith(("panoptic_ext.", "detectron2."))


def _file_of(source: str) -> str:
    """The file of a "file:line"; "" for the command line."""
    return source.rpartition(":")[0]


def _refuse(changed: Mapping[str, Any], why: str) -> None:
    if changed:
        told = ", ".join(f"{key} is {value!r}" for key, value in changed.items())
        raise ConfigError(f"{told}, but {why}")


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
