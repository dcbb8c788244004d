"""timm's plain Vision Transformers: which models those are, how they are built, and the errors."""

from __future__ import annotations

import difflib
from types import ModuleType
from typing import Any

from torch.torch_version import TorchVersion

from panoptic_ext.errors import ConfigError, listed, shortened
from panoptic_ext.modeling.backbone.timm_backbone import TIMM_ERRORS
from panoptic_ext.optional_packages import import_optional

__all__ = ["create_plain_vit", "import_timm_for_vit", "is_plain_vit"]

_OLDEST_TIMM = "1.0.22"  # before it, DINOv3 is missing or blocks of EVA take no mask
# timm's modules whose models are all of the classes VisionTransformer and Eva.
_MODULES = ("vision_transformer", "eva", "deit")
# ViTs on the stem of a ResNet, without its stages. From random weights they learn what outlines are
# much sooner than on patches of pixels (docs/eomt.md).
_WITH_STEM = "vit_*_r_s*_p*"
_EXAMPLES = (
    "'vit_base_patch14_reg4_dinov2', 'vit_base_patch16_dinov3_qkvb' or 'vit_small_patch16_224'"
)
# Argument of timm's classes -> the key below MODEL.VIT.
_KEYS = {
    "patch_size": "PATCH_SIZE",
    "img_size": "IMAGE_SIZE",
    "embed_dim": "EMBED_DIM",
    "depth": "DEPTH",
    "num_heads": "NUM_HEADS",
    "drop_path_rate": "DROP_PATH_RATE",
    "rope_rescale_coords": "ROPE_RESCALE",
}


def create_plain_vit(name: str, *, pretrained: bool = False, **changes: Any) -> Any:
    """timm's VisionTransformer or Eva of a name, for images of any size, without its classifier.

    Args:
        name: of a timm model, with or without the tag of its weights.
        pretrained: whether to download timm's weights.
        changes: arguments of timm's class that differ from the model's own, such as `depth`.

    Raises:
        ConfigError: timm is missing, has no such model, the model is no plain ViT, a change does
            not fit it, or its weights cannot be had.
    """
    timm = import_timm_for_vit(name)
    if not is_plain_vit(timm, name):
        raise ConfigError(
            f"MODEL.VIT.NAME {name!r} is no plain ViT, i.e. blocks of one width over patches of "
            f"one size, as timm's VisionTransformer and Eva are; take one such as {_EXAMPLES}. "
            "MODEL.BACKBONE.NAME build_timm_backbone takes other models, by MODEL.TIMM.NAME"
        )
    _check_values(changes)
    arguments = {"num_classes": 0, "dynamic_img_size": True, **changes}
    rope_rescale = arguments.pop("rope_rescale_coords", None)
    try:
        net = timm.create_model(name, pretrained=pretrained, **arguments)
    except TIMM_ERRORS as error:
        raise ConfigError(_why_not_built(name, str(error), pretrained, changes)) from error
    _check_built(name, net, changes)
    if rope_rescale is not None:
        _rescale_rope(name, net, float(rope_rescale))
    net.attn_pool = None  # a part of the classifier, such as SigLIP's
    return net


def is_plain_vit(timm: ModuleType, name: str) -> bool:
    """Whether timm's model of this name is a plain ViT.

    Args:
        timm: the package.
        name: of a model that exists, with or without the tag of its weights.
    """
    return name.partition(".")[0] in _plain_vits(timm)


def import_timm_for_vit(name: str) -> ModuleType:
    """The package timm, which has a model of this name.

    Raises:
        ConfigError: timm is not installed, is too old, or has no such model.
    """
    timm = import_optional("timm", "timm", f"the ViT {name!r}")
    if TorchVersion(timm.__version__) < _OLDEST_TIMM:
        raise ConfigError(
            f"MODEL.VIT needs timm {_OLDEST_TIMM} or newer, found {timm.__version__}; "
            f"pip install 'timm>={_OLDEST_TIMM}'"
        )
    if timm.is_model(name):
        return timm
    near = difflib.get_close_matches(name[:100].lower(), _plain_vits(timm), n=4, cutoff=0.5)
    hint = f"near names: {listed(near)}; " if near else ""
    raise ConfigError(
        f"unknown MODEL.VIT.NAME {shortened(name)!r} for timm {timm.__version__}; {hint}"
        "timm.list_models(module='vision_transformer') and module='eva' list plain ViTs"
    )


def _plain_vits(timm: ModuleType) -> list[str]:
    names = [name for module in _MODULES for name in timm.list_models(module=module)]
    return names + timm.list_models(_WITH_STEM, module="vision_transformer_hybrid")


def _check_values(changes: dict[str, Any]) -> None:
    for argument, value in changes.items():
        least = 1 if argument != "drop_path_rate" else 0
        if value < least or (argument == "drop_path_rate" and value >= 1):
            expected = "0 to less than 1" if argument == "drop_path_rate" else "1 or more, or 0"
            raise ConfigError(f"MODEL.VIT.{_KEYS[argument]} is {value}; expected {expected}")


def _check_built(name: str, net: Any, changes: dict[str, Any]) -> None:
    """Refuse sizes that timm takes, but which fail or lose a part later."""
    patch, image = net.patch_embed.feat_ratio(), changes.get("img_size", 0)
    if image % patch:
        raise ConfigError(
            f"MODEL.VIT.IMAGE_SIZE {image} is no multiple of the patches' side, {patch} pixels; "
            f"take {max(image // patch, 1) * patch}, or another MODEL.VIT.PATCH_SIZE"
        )
    heads, dim = changes.get("num_heads"), net.embed_dim
    step = 4 if getattr(net, "rope", None) is not None else 1
    if heads and dim % (step * heads):
        many = f"{step} times as many" if step > 1 else "as many"
        raise ConfigError(
            f"{name!r} with {dim} channels cannot have MODEL.VIT.NUM_HEADS {heads}: channels have "
            f"to be a multiple of {many}; change it, or MODEL.VIT.EMBED_DIM"
        )


def _rescale_rope(name: str, net: Any, factor: float) -> None:
    """Set the augmentation of positions, of which timm before 1.0.27 makes no argument."""
    rope: Any = getattr(net, "rope", None)
    if not hasattr(rope, "rescale_coords"):
        raise ConfigError(
            f"MODEL.VIT.ROPE_RESCALE is {factor}, but {name!r} has no rotary position embedding "
            "that timm rescales; set it to 0, or take a DINOv3"
        )
    rope.rescale_coords, rope.aug_active = factor, True


def _why_not_built(name: str, reason: str, pretrained: bool, changes: dict[str, Any]) -> str:
    reason = reason.strip().split("\n")[0].rstrip(".")
    mend = "check " + ", ".join(f"MODEL.VIT.{_KEYS[key]} {changes[key]}" for key in changes)
    if pretrained:
        mend = (
            "MODEL.VIT.PRETRAINED needs weights that exist and a network; set it to False and give "
            "MODEL.WEIGHTS instead"
        )
    return f"timm cannot build {name!r}: {reason}; {mend}"
