"""Find the config and the weights of a model that is named in one of many ways."""

from __future__ import annotations

import glob
import importlib
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any

import torch
from detectron2.config import CfgNode

from panoptic_ext.config.shipped import shipped_config, shipped_configs
from panoptic_ext.config.yaml_reader import merge_settings, read_opts
from panoptic_ext.engine.device import choose_device
from panoptic_ext.engine.run_config import load_cfg
from panoptic_ext.errors import ConfigError, listed, quoted, unknown
from panoptic_ext.model_zoo import catalog
from panoptic_ext.model_zoo.configs import SCHEME, entry_of_config, get_config, load_shipped
from panoptic_ext.prediction.inputs import IMAGE_SUFFIXES, VIDEO_SUFFIXES
from panoptic_ext.prediction.predictor import find_weights, load_run_cfg

__all__ = ["find_model", "source_name"]

_CONFIG_FILE = "config.yaml"  # of a run
_TRANSFORMERS_FILE = "config.json"  # of a folder that transformers wrote
_TRANSFORMERS_BASE = "common/transformers/Base-TransformersPanoptic.yaml"
_CHECKPOINTS = (".pth", ".pkl", ".pt", ".bin", ".safetensors")
_HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
_EXPECTED = (
    "expected a model of the zoo (`panoptic-ext zoo list`), the output folder of a training run, a"
    " checkpoint in it, or a YAML file"
)

Found = tuple[CfgNode, Callable[[], str]] | None
"""A config, and a function that finds its weights; None where the name is of another kind."""


def find_model(
    source: str | os.PathLike | CfgNode,
    *,
    weights: str | os.PathLike | None = None,
    device: Any = None,
    opts: Sequence[Any] = (),
) -> tuple[CfgNode, str]:
    """The config and the weights to predict with.

    Args:
        source: one of the following, in this order. What exists as a path: the file of a zoo entry
            or the folder that `panoptic-ext zoo add` wrote, which is added to the zoo of this
            process; the output folder of a training run, a checkpoint in it, a YAML file, a folder
            that transformers saved a model in. A name of the model zoo. A config that comes with
            panoptic_ext, which has the weights that were trained with it where the zoo has them. A
            config of Detectron2's model zoo. A name on Hugging Face's hub, "owner/name". Or a
            config in memory.
        weights: a checkpoint. None: those of the zoo; of a run, or a config whose OUTPUT_DIR is
            one, the last checkpoint; else MODEL.WEIGHTS of the config.
        device: such as "cpu", "cuda:1" or a torch.device. None: CUDA where it is there, else the
            CPU.
        opts: KEY VALUE pairs, applied last.

    Returns:
        A frozen config, whose classes are registered, and the weights' path or address; "" where
        the model reads its weights itself.

    Raises:
        ConfigError: nothing has this name (the message suggests the nearest), its config is wrong,
            it has no weights, or the device is not there.
    """
    opts = ["MODEL.DEVICE", _device(device), *map(str, opts)]
    cfg, find = _find(source, opts)
    return cfg, find() if weights is None else os.path.expanduser(os.fspath(weights))


def source_name(source: str | os.PathLike | CfgNode) -> str:
    """A short name of a model, which a folder can have."""
    if isinstance(source, CfgNode):
        return str(source.MODEL.META_ARCHITECTURE)
    path = os.path.expanduser(os.fspath(source)).removeprefix(SCHEME)
    if os.path.basename(path) == _CONFIG_FILE or path.lower().endswith(_CHECKPOINTS):
        path = os.path.dirname(os.path.abspath(path))
    return os.path.basename(os.path.abspath(path)).removesuffix(".yaml")


def _find(source: str | os.PathLike | CfgNode, opts: list[str]) -> tuple[CfgNode, Callable]:
    if isinstance(source, CfgNode):
        cfg = _with_options(source, opts)
        return cfg, lambda: find_weights(cfg, opts=opts)
    name = os.path.expanduser(os.fspath(source))
    for find in (_of_path, _of_zoo, _of_shipped_config, _of_detectron2, _of_hub):
        found = find(name, opts)
        if found is not None:
            return found
    raise ConfigError(_unknown(name))


def _of_path(path: str, opts: list[str]) -> Found:
    if not os.path.lexists(path):
        return None
    is_folder = os.path.isdir(path)
    entry_file = _entry_file(path)
    if entry_file:
        return _of_zoo(catalog.add(entry_file)[0], opts)
    if is_folder and not os.path.lexists(os.path.join(path, _CONFIG_FILE)):
        if os.path.isfile(os.path.join(path, _TRANSFORMERS_FILE)):
            return _of_transformers(path, opts)
        raise ConfigError(_no_run(path))
    if path.lower().endswith(_CHECKPOINTS) and not is_folder:
        return _of_checkpoint(path, opts)
    if path.lower().endswith(IMAGE_SUFFIXES + VIDEO_SUFFIXES) and not is_folder:
        raise ConfigError(
            f"{path} is a picture or a video, expected a model; the model comes first: load(MODEL)"
            f"({path!r}) in Python, predict --model MODEL {path} on a command line"
        )
    entry = None if is_folder else entry_of_config(path)
    if entry is not None:
        return _of_zoo(entry.name, opts)
    cfg = load_run_cfg(path, opts)
    return cfg, lambda: find_weights(cfg, opts=opts, path=path)


def _entry_file(path: str) -> str:
    """The file of a zoo entry: `path`, or the one in that folder; "" if none or several."""
    pattern = os.path.join(glob.escape(path), "*.yaml")
    files = glob.glob(pattern) if os.path.isdir(path) else [path]
    files = [file for file in files if file.endswith(".yaml") and os.path.isfile(file)]
    found = [file for file in files if catalog.is_whole_entry(file)]
    return found[0] if len(found) == 1 else ""


def _of_checkpoint(path: str, opts: list[str]) -> Found:
    folder = os.path.dirname(os.path.abspath(path))
    if not os.path.lexists(os.path.join(folder, _CONFIG_FILE)):
        raise ConfigError(
            f"{path} lies in no run's folder: there is no {_CONFIG_FILE} beside it. Name the model,"
            f" and the checkpoint as its weights: load(MODEL, weights={path!r}) in Python, --model"
            f" MODEL --weights {path} on a command line"
        )
    return load_run_cfg(folder, opts), lambda: path


def _of_zoo(name: str, opts: list[str]) -> Found:
    name = name.removeprefix(SCHEME).removesuffix(".yaml")
    if name not in catalog.names():
        return None
    cfg = _with_options(get_config(name), opts)
    # Not by `find_weights`, which would prefer a checkpoint that lies in OUTPUT_DIR by chance.
    return cfg, lambda: cfg.MODEL.WEIGHTS


def _of_shipped_config(name: str, opts: list[str]) -> Found:
    path = shipped_config(name if name.endswith(".yaml") else f"{name}.yaml")
    if not path:
        return None
    entry = entry_of_config(path)
    if entry is not None:
        return _of_zoo(entry.name, opts)
    cfg = _with_options(load_shipped(path), opts)
    return cfg, lambda: find_weights(cfg, opts=opts)


def _of_detectron2(name: str, opts: list[str]) -> Found:
    name = name if name.endswith(".yaml") else f"{name}.yaml"
    try:
        zoo = importlib.import_module("detectron2.model_zoo")
        path = zoo.get_config_file(name)
    except (ImportError, RuntimeError):  # there is no zoo, or no such file in it
        return None
    cfg = _with_options(load_cfg(path, opts, use_data=False), ())
    # MODEL.WEIGHTS of its configs are those that their training began with.
    is_published = "MODEL.WEIGHTS" not in opts[::2]
    return cfg, lambda: zoo.get_checkpoint_url(name) if is_published else cfg.MODEL.WEIGHTS


def _of_hub(name: str, opts: list[str]) -> Found:
    # A mistyped path would be looked for on the hub, which takes long without a network.
    owner = os.path.dirname(name)
    known = {known.split("/")[0] for known in (*catalog.names(), *_shipped_names()) if "/" in known}
    is_path = os.path.isdir(owner) or owner in {*known, "configs", "output"}
    is_path = is_path or name.endswith((".yaml", *_CHECKPOINTS))
    if is_path or not _HUB_NAME.fullmatch(name):
        return None
    for entry in catalog.entries().values():
        if entry.weights == ("hub", name):
            return _of_zoo(entry.name, opts)
    return _of_transformers(name, opts)


def _of_transformers(name_or_path: str, opts: list[str]) -> Found:
    name = ["MODEL.TRANSFORMERS.NAME_OR_PATH", name_or_path]
    cfg = _with_options(load_cfg(shipped_config(_TRANSFORMERS_BASE), [*name, *opts]), ())
    return cfg, lambda: cfg.MODEL.WEIGHTS


def _with_options(cfg: CfgNode, opts: Sequence[str]) -> CfgNode:
    """A copy with the options, for the device of this machine, frozen."""
    cfg = cfg.clone()
    cfg.defrost()
    merge_settings(cfg, read_opts(opts))
    choose_device(cfg, training=False)
    cfg.freeze()
    return cfg


def _device(device: Any) -> str:
    if device is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        name = str(torch.device(device))  # of a number, too: 0 is cuda:0
    except (RuntimeError, TypeError) as error:
        raise ConfigError(
            f"device is {quoted(device)}, which torch does not know; expected such as 'cpu', 'cuda'"
            " or 'cuda:1'"
        ) from error
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise ConfigError(
            f"device is {quoted(name)}, but torch finds no CUDA on this machine; leave it"
            " out, or take 'cpu'"
        )
    return name


def _no_run(folder: str) -> str:
    pattern = os.path.join(glob.escape(folder), "**", _CONFIG_FILE)
    runs = sorted(os.path.dirname(path) for path in glob.glob(pattern, recursive=True))
    mend = f"runs below it: {listed(runs, show=str)}" if runs else _EXPECTED
    return f"{folder} has no {_CONFIG_FILE}, so it is no output folder of a training run; {mend}"


def _unknown(name: str) -> str:
    known = [*catalog.names(), *_shipped_names(), *_paths_beside(name)]
    mend = f"{_EXPECTED}; {os.path.abspath(name)} does not exist"
    return unknown("model", name, known, limit=0, mend=mend)


def _shipped_names() -> Iterator[str]:
    root = os.path.abspath(shipped_configs())
    for path in glob.iglob(os.path.join(root, "**", "*.yaml"), recursive=True):
        if not os.path.basename(path).startswith("Base-"):
            yield os.path.relpath(path, root).replace(os.sep, "/")


def _paths_beside(path: str) -> Iterator[str]:
    folder = os.path.dirname(path)
    with suppress(OSError):
        yield from (os.path.join(folder, name) for name in os.listdir(folder or os.curdir))
