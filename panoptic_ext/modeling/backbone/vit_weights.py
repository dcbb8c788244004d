"""Fit the weights of a plain ViT to a model: names, size of the patches and of the image, biases.

Shape legend: D width, P pixels of a patch's side, N patches.
"""

from __future__ import annotations

import importlib
import logging
import math
import re
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from panoptic_ext.errors import CheckpointError
from panoptic_ext.modeling.backbone.vit_names import encoder_to_timm

__all__ = ["fit_vit_weights"]

logger = logging.getLogger(__name__)

_PATCHES = "patch_embed.proj.weight"
_POSITIONS = "pos_embed"
_BIAS = re.compile(r"(.*\.attn\.)[qv]_bias")
# First parts of the names of an encoder alone: timm's, transformers' and Meta's.
_ENCODER_PARTS = {
    "blocks", "cls_token", "embeddings", "fc_norm", "head", "layer", "layernorm", "local_cls_norm",
    "mask_token", "model", "norm", "norm_pre", "patch_embed", "pos_embed", "reg_token",
    "register_tokens", "rope", "rope_embed", "storage_tokens",
}  # fmt: skip
_OF_META = {"mask_token", "register_tokens", "storage_tokens"}


def fit_vit_weights(state_dict: dict[str, Tensor], prefix: str, net: nn.Module) -> None:
    """Edit weights, in place, so that a ViT of timm loads them.

    The names of an encoder alone become timm's; they may be timm's, those of transformers' DINOv3
    or Meta's. Its patch embedding is resampled to the model's patch size, as timm does. Position
    embeddings are resampled (bicubic, antialiased) in weights of whole models, too. Biases of query
    and value that weights lack are 0.

    Args:
        state_dict: of an encoder alone, or of a whole model.
        prefix: of the ViT's names in the model, such as "backbone.net.".
        net: timm's model.

    Raises:
        CheckpointError: a whole model has another patch size, or the model has no place for biases.
    """
    first = prefix.partition(".")[0]
    alone = all(name.partition(".")[0] in {first, *_ENCODER_PARTS} for name in state_dict)
    wanted = net.state_dict()
    if alone:
        # A file's names may have got the prefix before, as far as they are the model's.
        encoder = {name.removeprefix(prefix): value for name, value in state_dict.items()}
        encoder = _timm_names(encoder, net)
    else:
        encoder = {n.removeprefix(prefix): v for n, v in state_dict.items() if n.startswith(prefix)}
    if not encoder.keys() & wanted.keys():
        return
    _resample(encoder, net, patches=alone)
    _fit_biases(encoder, wanted)
    for name in list(state_dict):
        if alone or name.startswith(prefix):
            del state_dict[name]
    # Names that the model lacks, such as a classifier's, keep none: the report tells them apart.
    state_dict.update(
        {prefix + n if n in wanted or not alone else n: v for n, v in encoder.items()}
    )


def _timm_names(encoder: dict[str, Tensor], net: nn.Module) -> dict[str, Tensor]:
    if not _OF_META & encoder.keys():
        return encoder_to_timm(encoder)
    if not hasattr(net, "pos_embed") or net.pos_embed is None:
        # timm's function prints if the model lacks biases; they are checked below.
        encoder = _split_biases(encoder)
    module = importlib.import_module(type(net).__module__)
    convert = getattr(module, "checkpoint_filter_fn", None)
    return encoder if convert is None else convert(encoder, net)


def _split_biases(encoder: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Meta's DINOv3: the bias of query, key and value as timm has it, the key's left out."""
    split: dict[str, Tensor] = {}
    for name, value in encoder.items():
        if name.endswith(".attn.qkv.bias"):
            query, _, third = value.chunk(3)
            block = name.removesuffix("qkv.bias")
            split |= {f"{block}q_bias": query, f"{block}v_bias": third}
        else:
            split[name] = value
    return split


def _resample(encoder: dict[str, Tensor], net: nn.Module, *, patches: bool) -> None:
    layers = importlib.import_module("timm.layers")
    weight, own = encoder.get(_PATCHES), net.patch_embed.proj.weight
    if weight is not None and weight.shape[:2] == own.shape[:2] and weight.shape != own.shape:
        found, expected = weight.shape[-1], own.shape[-1]
        if not patches:
            raise CheckpointError(
                f"the weights are of a whole model with patches of {found} pixels, but the ViT has "
                f"patches of {expected}; set MODEL.VIT.PATCH_SIZE {found}. The patch embedding is "
                "resampled for weights of an encoder alone"
            )
        encoder[_PATCHES] = layers.resample_patch_embed(weight, list(own.shape[-2:]))
        logger.info("Patch embedding resampled from %d to %d pixels", found, expected)
    positions, own = encoder.get(_POSITIONS), getattr(net, _POSITIONS, None)
    if positions is None or own is None or positions.shape[-1] != own.shape[-1]:
        return
    number = 0 if getattr(net, "no_embed_class", False) else net.num_prefix_tokens
    old, new = _side(positions, number), net.patch_embed.grid_size
    if positions.shape != own.shape and old:
        encoder[_POSITIONS] = layers.resample_abs_pos_embed(
            positions, new_size=list(new), num_prefix_tokens=number
        )
        logger.info("Position embedding resampled from %d x %d to %d x %d patches", old, old, *new)


def _side(positions: Tensor, num_prefix_tokens: int) -> int:
    """The side of a square grid of N patches; 0 if it is none."""
    patches = max(positions.shape[1] - num_prefix_tokens, 0)
    side = math.isqrt(patches)
    return side if side * side == patches else 0


def _fit_biases(encoder: dict[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    """Biases of query and value, which only some of timm's DINOv3 models have (`_qkvb`)."""
    lacking = [
        name
        for name in wanted
        if name not in encoder
        and (found := _BIAS.fullmatch(name))
        and f"{found[1]}qkv.weight" in encoder
    ]
    if lacking:
        encoder.update({name: torch.zeros_like(wanted[name]) for name in lacking})
        logger.info("The weights have no biases of query and value; these are 0")
    for name in [n for n in encoder if _BIAS.fullmatch(n) and n not in wanted]:
        if encoder.pop(name).any():
            raise CheckpointError(
                f"the weights have biases of query and value ({name} is not 0), which the ViT "
                "lacks; take the model of timm that has them: MODEL.VIT.NAME ..._qkvb"
            )
