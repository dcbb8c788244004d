"""timm's own pretrained weights as weights of a backbone: MODEL.WEIGHTS timm://NAME or NAME.TAG.

timm downloads them; what it has loaded is kept under the names that its feature maps' model has, or
for a plain ViT under its own, so that later loads need no network.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import ModuleType
from typing import Any

from panoptic_ext.download import sha256_of
from panoptic_ext.engine.checkpoint.backbone_input import BackboneInput
from panoptic_ext.errors import CheckpointError, ConfigError, unknown
from panoptic_ext.hub import hub_address, why_unknown_host
from panoptic_ext.model_zoo.converted_files import backbone_file, converted_file
from panoptic_ext.modeling.backbone.timm_backbone import import_timm
from panoptic_ext.modeling.backbone.timm_vit import is_plain_vit

__all__ = ["timm_weights"]

_HUB_FILES = ("model.safetensors", "pytorch_model.bin")
# What timm and huggingface_hub raise where weights do not exist, cannot be had or do not fit.
_TIMM_ERRORS = (RuntimeError, AttributeError, AssertionError, TypeError, ValueError, OSError)


def timm_weights(name: str) -> str:
    """The path of timm's pretrained weights of a model.

    Args:
        name: of a timm model, as MODEL.TIMM.NAME and MODEL.VIT.NAME take it, with or without the
            tag of its weights: "resnet18" or "resnet18.tv_in1k".

    Raises:
        ConfigError: timm is not installed, or has no such model or no such weights.
        CheckpointError: they cannot be downloaded, or do not fit the model.
    """
    timm = import_timm(name.partition(".")[0])
    config = _pretrained_cfg(timm, name)
    local = config.file or _cached_by_hub(config)
    source = sha256_of(local) if local else f"{config.hf_hub_id} {config.hf_hub_filename}"
    return converted_file(
        f"timm-{config.architecture}.{config.tag}",
        f"{source} {config.url} timm {timm.__version__}",
        lambda: _converted(timm, name, config, local),
    )


def _pretrained_cfg(timm: ModuleType, name: str) -> Any:
    """timm's description of the weights."""
    architecture = name.partition(".")[0]
    known = timm.list_pretrained(f"{architecture}.*") + timm.list_pretrained(architecture)
    if not known:
        raise ConfigError(f"timm {timm.__version__} has no pretrained weights of {architecture}")
    if name != architecture and name not in known:
        raise ConfigError(unknown("pretrained weights of timm", name, known))
    return timm.get_pretrained_cfg(name)


def _cached_by_hub(config: Any) -> str:
    """The file of the weights in huggingface_hub's cache, or ""."""
    try:
        hub = importlib.import_module("huggingface_hub")
    except ImportError:  # timm says so where it needs the package
        return ""
    if not config.hf_hub_id or config.custom_load:
        return ""
    names = [config.hf_hub_filename] if config.hf_hub_filename else _HUB_FILES
    files = (hub.try_to_load_from_cache(config.hf_hub_id, name) for name in names)
    # A file that the hub is known not to have is a marker, which is no text.
    return next((file for file in files if isinstance(file, str)), "")


def _converted(timm: ModuleType, name: str, config: Any, local: str) -> Mapping[str, Any]:
    overlay = {"file": local, "hf_hub_id": None, "url": ""} if local else None
    try:
        if not local:
            _check_host(config)
        with _without_retry_warnings():
            model = timm.create_model(
                name, pretrained=True, pretrained_cfg_overlay=overlay, **_kind_of_model(timm, name)
            )
    except _TIMM_ERRORS as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise CheckpointError(
            f"timm's weights {name} cannot be loaded from "
            f"{local or config.hf_hub_id or config.url}: {reason.rstrip('.')}. Check the network, "
            "or get a file of them in another way and give its path as MODEL.WEIGHTS"
        ) from error
    mean, std = (tuple(255.0 * value for value in part) for part in (config.mean, config.std))
    return backbone_file(model.state_dict(), BackboneInput(config.architecture, mean, std))


def _kind_of_model(timm: ModuleType, name: str) -> dict[str, Any]:
    """Arguments of timm's model: feature maps, or a plain ViT without its classifier."""
    return {"num_classes": 0} if is_plain_vit(timm, name) else {"features_only": True}


def _check_host(config: Any) -> None:
    """Raise OSError at once where the name of the host is not known, i.e. without a network."""
    reason = why_unknown_host(hub_address() if config.hf_hub_id else str(config.url or ""))
    if reason:
        raise OSError(reason)


@contextmanager
def _without_retry_warnings() -> Iterator[None]:
    """Leave it to the error at the end to say that there is no network."""
    logger = logging.getLogger("huggingface_hub")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
