"""Configs of the entries of the model zoo, with the classes of their data sets."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import yaml
from detectron2.config import CfgNode
from detectron2.data import Metadata, MetadataCatalog
from iopath.common.file_io import get_cache_dir

from panoptic_ext.atomic import write_atomic
from panoptic_ext.config.shipped import shipped_config
from panoptic_ext.data.datasets.builtin import register_builtin
from panoptic_ext.data.datasets.known_classes import describe_classes, known_categories
from panoptic_ext.data.datasets.metadata import class_attributes
from panoptic_ext.engine.run_config import load_cfg
from panoptic_ext.errors import ConfigError, listed
from panoptic_ext.model_zoo.catalog import entries, find
from panoptic_ext.model_zoo.entry import ZooEntry, hub_model
from panoptic_ext.model_zoo.licences import record_licence, tell_licence

__all__ = [
    "SCHEME",
    "classes_of",
    "config_file",
    "entry_of_config",
    "get_config",
    "load_shipped",
    "written_config",
]

SCHEME = "zoo://"
"""Beginning of the addresses by which MODEL.WEIGHTS names the weights of an entry."""


def get_config(name: str, *, trained: bool = True) -> CfgNode:
    """The complete config of an entry; its class names are registered in MetadataCatalog.

    Neither the weights nor the files of the data set are needed.

    Args:
        name: of an entry.
        trained: whether MODEL.WEIGHTS is the entry's weights, "zoo://NAME"; "" for a model that
            reads them itself (those of transformers). False leaves the weights that the config's
            own training began with; a model of transformers then has random ones.

    Returns:
        A config that is not frozen, with all keys of panoptic_ext.

    Raises:
        ConfigError: there is no such entry, it is a backbone, or its config is wrong.
        DatasetError: a data set of the entry's name is registered with other classes.
    """
    entry = find(name)
    cfg = _load(config_file(entry), entry, _options(entry))
    if entry.weights.kind == "hub":
        cfg.MODEL.TRANSFORMERS.PRETRAINED = trained
        if trained:  # transformers fetches the weights itself, so this is where they are asked for
            tell_licence(entry)
            record_licence(entry)
    elif trained:
        cfg.MODEL.WEIGHTS = f"{SCHEME}{entry.name}"
    return cfg


def load_shipped(path: str) -> CfgNode:
    """The config of a file that comes with the package, with the classes of a built-in data set.

    Args:
        path: absolute.

    Returns:
        A config that is not frozen.
    """
    cfg = load_cfg(path, use_data=False)
    names = (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST)
    classes = _built_in_classes(names[0]) if names else None
    cfg = load_cfg(path, use_data=classes is None, trained_on=classes).clone()
    cfg.defrost()
    return cfg


def config_file(entry: ZooEntry) -> str:
    """Path of an entry's config: beside the entry's file, or one that comes with the package.

    Raises:
        ConfigError: the entry is a backbone, or there is no such file.
    """
    if not entry.config:
        raise ConfigError(
            f"{entry.name} holds the weights of a backbone, not a model: give them to a config of "
            f"yours, MODEL.WEIGHTS {SCHEME}{entry.name}"
        )
    own = os.path.join(entry.folder, os.path.expanduser(entry.config))
    path = own if os.path.isfile(own) else shipped_config(entry.config)
    if not path:
        raise ConfigError(
            f"{entry.path}: config {entry.config} does not exist, neither beside this file nor "
            "among the configs that come with panoptic_ext"
        )
    return path


def written_config(entry: ZooEntry) -> str:
    """As `config_file`; where the entry adds keys to its config, a file in the cache with both."""
    options = _options(entry)
    path = config_file(entry)
    if not options:
        return path
    content: dict[str, Any] = {"_BASE_": path}
    for key, value in zip(options[::2], options[1::2], strict=True):
        node = content
        *blocks, leaf = key.split(".")
        for block in blocks:
            node = node.setdefault(block, {})
        node[leaf] = value
    folder = os.path.join(get_cache_dir(), "panoptic_ext", "configs")
    written = os.path.join(folder, f"{entry.name.replace('/', '-')}.yaml")
    try:
        os.makedirs(folder, exist_ok=True)
        write_atomic(written, lambda stream: stream.write(yaml.safe_dump(content).encode()))
    except OSError as error:
        raise ConfigError(
            f"{written} cannot be written: {error.strerror or error}. Name a folder that can be in "
            "the environment variable FVCORE_CACHE"
        ) from error
    return written


def entry_of_config(path: str) -> ZooEntry | None:
    """The entry that has a config of its own at `path`; None if none or several have it."""
    same = [e for e in entries().values() if e.config and _is_same(config_file(e), path)]
    return same[0] if len(same) == 1 else None


def _is_same(first: str, second: str) -> bool:
    return os.path.realpath(first) == os.path.realpath(second)


def _options(entry: ZooEntry) -> list[str]:
    """KEY VALUE pairs that an entry adds to its config."""
    if entry.weights.kind != "hub":
        return []
    return ["MODEL.TRANSFORMERS.NAME_OR_PATH", hub_model(entry)]


def _load(path: str, entry: ZooEntry, options: list[str]) -> CfgNode:
    classes = classes_of(entry)
    cfg = load_cfg(path, options, use_data=False, trained_on=classes).clone()
    cfg.defrost()
    names = (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST)
    if entry.data_set not in names:
        raise ConfigError(
            f"{entry.path}: data_set is {entry.data_set}, but {path} names "
            f"{listed(names) or 'none'} in DATASETS.TRAIN and DATASETS.TEST; name one of these"
        )
    for name in names:
        describe_classes(name, classes.as_dict())
    return cfg


def classes_of(entry: ZooEntry) -> Metadata:
    """Metadata with the classes of an entry, in no catalogue.

    Raises:
        ConfigError: they are not known, or those of a built-in data set are given as well.
    """
    if entry.classes:
        if known_categories(entry.data_set) is not None:
            raise ConfigError(
                f"{entry.path}: {entry.data_set} is a built-in data set, whose classes are known; "
                "leave `classes` out, or give `data_set` another name"
            )
        return Metadata(name=entry.data_set, **class_attributes(entry.classes))
    classes = _built_in_classes(entry.data_set)
    if classes is None:
        raise ConfigError(
            f"{entry.path}: the classes of {entry.data_set} are not known, because it is no "
            "built-in data set; list them under `classes`, each with name and isthing"
        )
    return classes


def _built_in_classes(name: str) -> Metadata | None:
    """The classes of a built-in data set, of panoptic_ext or of Detectron2; None of any other."""
    categories = known_categories(name)
    if categories is not None:
        register_builtin([name])
        return Metadata(name=name, **class_attributes(categories))
    metadata: Mapping = MetadataCatalog.get(name).as_dict() if name in MetadataCatalog else {}
    names = metadata.get("thing_classes")
    if names is None:
        return None
    values = {key: value for key, value in metadata.items() if key != "name"}
    return Metadata(name=name, **{"isthing": (True,) * len(names), **values})
