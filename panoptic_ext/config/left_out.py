"""Keys of Detectron2 that are derived from the data set as long as nobody gives them a value.

Detectron2's defaults, 54 and 80 classes, are COCO's. They are wrong for any other data set, and for
COCO's 133 classes too. `add_panoptic_ext_config` therefore marks these keys as left out:

- load_cfg, and so train_net.py, sets them when it reads a config;
- a model of panoptic_ext that is built from another config (by Detectron2's build_model,
  DefaultTrainer or DefaultPredictor) calls `complete_config`, which sets them in a copy.

Only `panoptic_ext.data` can register and read data sets, and models do not import it. It therefore
registers its function here, by `derive_with`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from detectron2.config import CfgNode as CN

from panoptic_ext.config.published_names import resolve_published_names

__all__ = [
    "DERIVED_KEYS",
    "Architecture",
    "complete_config",
    "derive_with",
    "get_key",
    "is_left_out",
    "mark_left_out",
    "set_key",
    "settle",
]

DERIVED_KEYS = (
    "MODEL.SEM_SEG_HEAD.NUM_CLASSES",
    "MODEL.SEM_SEG_HEAD.IGNORE_VALUE",
    "MODEL.ROI_HEADS.NUM_CLASSES",
)
_DEFAULTS = "__panoptic_ext_defaults__"  # in a node's __dict__, as the flags of yacs are


class Architecture(Protocol):
    """The part of `MetaArchitecture` that is needed to derive numbers of classes."""

    has_contiguous_classes: bool

    def head_classes(self, cfg: Any, num_classes: int, num_things: int) -> int:
        """Derive MODEL.SEM_SEG_HEAD.NUM_CLASSES from the classes of a data set."""
        ...


Derive = Callable[[CN, Any], None]
_derive_functions: list[Derive] = []  # of panoptic_ext.data, if it has been imported


class _EqualToPlainNodes(type):
    """Metaclass that makes a class of nodes equal to Detectron2's CfgNode.

    yacs merges a block of a file, which is a CfgNode, only into a block of an equal class.
    """

    def __eq__(cls, other: object) -> bool:
        return cls is other or other is CN

    def __hash__(cls) -> int:
        return hash(CN)


class _NodeWithDerivedKeys(CN, metaclass=_EqualToPlainNodes):
    """A block of keys of which some are left out until they are set.

    A key that is left out is stored as None. Copies, pickles and dumped files therefore distinguish
    it from a number that somebody gave, even if that is the default. Code that reads the key gets
    Detectron2's default: Detectron2's own models, which derive nothing, are built as before.
    """

    def __getitem__(self, name: str) -> Any:
        value = super().__getitem__(name)
        return self.__dict__.get(_DEFAULTS, {}).get(name) if value is None else value

    def get(self, name: str, default: Any = None) -> Any:
        """As `dict.get`, but by `__getitem__`, which `dict.get` does not call."""
        try:
            return self[name]
        except KeyError:
            return default

    def stored(self, name: str) -> Any:
        """The value as it is stored: None if it is left out."""
        return super().__getitem__(name)


def mark_left_out(cfg: CN) -> None:
    """Mark the DERIVED_KEYS as left out, in place; they keep Detectron2's defaults for readers."""
    for block in ("SEM_SEG_HEAD", "ROI_HEADS"):
        plain = cfg.MODEL[block]
        node = _NodeWithDerivedKeys()
        node.__dict__.update(plain.__dict__)
        node.__dict__[_DEFAULTS] = {}
        for name, value in plain.items():
            node[name] = value
        cfg.MODEL[block] = node
    for key in DERIVED_KEYS:
        node, name = _node_of(cfg, key)
        node.__dict__[_DEFAULTS][name] = node[name]
        node[name] = None


def is_left_out(cfg: CN, key: str) -> bool:
    """Whether nobody gave a value to `key`, one of DERIVED_KEYS."""
    node, name = _node_of(cfg, key)
    return isinstance(node, _NodeWithDerivedKeys) and node.stored(name) is None


def get_key(cfg: CN, key: str) -> Any:
    """The value of a full key such as "MODEL.ROI_HEADS.NUM_CLASSES"."""
    node, name = _node_of(cfg, key)
    return node[name]


def set_key(cfg: CN, key: str, value: Any) -> None:
    """Set the value of a full key of an unfrozen config."""
    node, name = _node_of(cfg, key)
    node[name] = value


def settle(cfg: CN) -> None:
    """Set keys that are still left out to Detectron2's default, in place: a dump then shows it."""
    for key in DERIVED_KEYS:
        if is_left_out(cfg, key):
            node, name = _node_of(cfg, key)
            node[name] = node[name]


def derive_with(derive: Derive) -> None:
    """Name the function that registers the data sets of a config and derives what is left out.

    Args:
        derive: called with an unfrozen config, which it completes in place, and the
            meta-architecture that is built from this config.
    """
    _derive_functions[:] = [derive]


def complete_config(cfg: CN, arch: Any) -> CN:
    """Complete a config, so that a model can be built from it, whichever code has read it.

    A meta-architecture calls this first in its `from_config`. Numbers of classes and the value of
    void that nobody gave are taken from the data set. Data sets that the config describes
    (DATASETS.PANOPTIC, DATASETS.INSTANCES) are registered. Published names are resolved.

    Args:
        cfg: frozen or not; it is not changed.
        arch: the meta-architecture's class, see `Architecture`.

    Returns:
        A copy, not frozen.

    Raises:
        ConfigError: a published mapper is unknown, or a block of DATASETS is wrong.
        DatasetError: the data set cannot be read.
    """
    copy = cfg.clone()
    copy.defrost()
    if any(is_left_out(cfg, key) for key in DERIVED_KEYS):
        # load_cfg has resolved the names of its configs already, and a second time would undo what
        # a user has set since. A config whose numbers are all given is one of load_cfg or of a run,
        # or its author is responsible for it.
        resolve_published_names(copy)
    for derive in _derive_functions:
        derive(copy, arch)
    return copy


def _node_of(cfg: CN, key: str) -> tuple[CN, str]:
    *parents, name = key.split(".")
    for parent in parents:
        cfg = cfg[parent]
    return cfg, name
