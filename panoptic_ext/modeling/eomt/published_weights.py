"""Weights of EoMT as they are published, to this project's names and back.

Four name sets are published: the `.bin` files of its authors and the form of transformers, each for
DINOv2 (`EomtForUniversalSegmentation`) and DINOv3 (`EomtDinov3ForUniversalSegmentation`) encoders.
A `.bin` file of DINOv3 holds differences to Meta's encoder, which its licence does not let others
publish; everything else in it is whole.

Shape legend: D width, C classes without "no object", Q queries, L2 blocks with queries.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from panoptic_ext.errors import CheckpointError
from panoptic_ext.modeling.backbone.vit_names import (
    encoder_to_timm,
    is_dinov3,
    timm_to_transformers,
    transformers_to_timm,
    with_biases,
)

__all__ = [
    "BACKBONE",
    "HEAD",
    "EomtForm",
    "base_of_differences",
    "from_published",
    "is_eomt",
    "published_form",
    "to_bin",
    "to_transformers",
]

BACKBONE = "backbone.net."
"""Prefix of the encoder's tensors in our models; timm's names follow."""
HEAD = "sem_seg_head."
"""Prefix of queries, class head, mask head and upscaling."""

_EMPTY_WEIGHT = "criterion.empty_weight"
_NETWORK = "network."
_ENCODER = "network.encoder.backbone."
_MASK_PROBABILITIES = "attn_mask_probs"
# Tensors of theirs that ours has no use for: annealing is computed from the iteration, the weights
# of classes from the config, and pixels are normalised by MODEL.PIXEL_MEAN and PIXEL_STD.
_UNUSED = re.compile(
    r"(network\.)?attn_mask_probs|criterion\..*|network\.encoder\.pixel_(mean|std)"
)
# Our beginning of a name below HEAD -> transformers'; `.bin` files have ours.
_HEAD_NAMES = {
    "q.": "query.",
    "class_head.": "class_predictor.",
    "mask_head.0.": "mask_head.fc1.",
    "mask_head.2.": "mask_head.fc2.",
    "mask_head.4.": "mask_head.fc3.",
}
_UPSCALE = (r"upscale\.(\d+)\.(conv1|conv2)\.", r"upscale_block.block.\1.\2.")
_UPSCALE_NORM = (r"upscale\.(\d+)\.norm\.", r"upscale_block.block.\1.layernorm2d.")
_UPSCALE_BACK = (r"upscale_block\.block\.(\d+)\.(conv1|conv2)\.", r"upscale.\1.\2.")
_UPSCALE_NORM_BACK = (r"upscale_block\.block\.(\d+)\.layernorm2d\.", r"upscale.\1.norm.")
# Width -> the name of timm's DINOv3 model, with biases of query and value where it has them.
_ENCODERS = {
    384: "vit_small_patch16_dinov3_qkvb",
    768: "vit_base_patch16_dinov3_qkvb",
    1024: "vit_large_patch16_dinov3_qkvb",
    1280: "vit_huge_plus_patch16_dinov3_qkvb",
    4096: "vit_7b_patch16_dinov3",
}


class EomtForm(NamedTuple):
    """A published form of EoMT's weights.

    Attributes:
        is_bin: `.bin` of the authors; else transformers'.
        is_dinov3: the encoder is DINOv3; else DINOv2.
    """

    is_bin: bool
    is_dinov3: bool

    @property
    def is_difference(self) -> bool:
        """Whether the encoder's tensors are differences to a base encoder."""
        return self.is_bin and self.is_dinov3


def published_form(state_dict: Mapping[str, object]) -> EomtForm | None:
    """The published form of a state dict, by its names; None if it has none of them."""
    if "network.q.weight" in state_dict:
        return EomtForm(True, any(".attention.q_proj." in name for name in state_dict))
    if "query.weight" in state_dict and "class_predictor.weight" in state_dict:
        return EomtForm(False, "embeddings.position_embeddings.weight" not in state_dict)
    return None


def is_eomt(state_dict: Mapping[str, object]) -> bool:
    """Whether a state dict is a published EoMT, of any of the four forms."""
    return published_form(state_dict) is not None


def base_of_differences(state_dict: Mapping[str, Tensor]) -> str:
    """The name of timm's model of the encoder to which a `.bin` file of DINOv3 holds differences.

    Raises:
        CheckpointError: the file has no class token.
    """
    name = f"{_ENCODER}patch_embed.cls_token"
    if name not in state_dict:
        raise CheckpointError(f"{name} is missing of the weights: incomplete, take the whole file")
    return _base_name(state_dict[name])


def from_published(
    state_dict: Mapping[str, Tensor], base: Mapping[str, Tensor] | None = None
) -> dict[str, Tensor]:
    """A published state dict -> our names, `backbone.net.*` and `sem_seg_head.*`.

    Args:
        state_dict: of one of the four forms.
        base: the encoder that a `.bin` file of DINOv3 was trained from, as `encoder_to_timm` takes
            it. The other forms do not need it.

    Raises:
        CheckpointError: no published form, an unknown or missing tensor, or a file of differences
            without its base or with another one.
    """
    form = published_form(state_dict)
    if form is None:
        raise CheckpointError(
            "the names are none of EoMT's: expected network.q.weight of its authors' .bin files, "
            "or query.weight and class_predictor.weight of transformers"
        )
    used = {name: value for name, value in state_dict.items() if not _UNUSED.fullmatch(name)}
    if not form.is_bin:
        head, encoder = _split_transformers(used)
    else:
        encoder = encoder_to_timm(_below(_ENCODER, used))
        head = _below(_NETWORK, {n: v for n, v in used.items() if not n.startswith(_ENCODER)})
    if form.is_difference:
        encoder = _with_base(encoder, base)
    return _prefixed(BACKBONE, encoder) | _prefixed(HEAD, head)


def to_transformers(
    state_dict: Mapping[str, Tensor],
    *,
    queried_blocks: int,
    mask_probability: float = 0.0,
    packed_swiglu: bool = False,
) -> dict[str, Tensor]:
    """Our state dict -> transformers' form, of EoMT or, with rotary embedding, of EoMT-DINOv3.

    Args:
        state_dict: of a `PanopticExtEoMT`.
        queried_blocks: L2.
        mask_probability: becomes `attn_mask_probs` of each of them. 0: no masks in evaluation.
        packed_swiglu: names of a gated MLP as in transformers 4.

    Raises:
        CheckpointError: their model has no place for a tensor of the encoder.
    """
    theirs = timm_to_transformers(_below(BACKBONE, state_dict), packed_swiglu=packed_swiglu)
    for name, value in _below(HEAD, state_dict).items():
        theirs[_head_name(name)] = value
    return theirs | {
        _MASK_PROBABILITIES: torch.full((queried_blocks,), mask_probability),
        _EMPTY_WEIGHT: _empty_weight(state_dict),
    }


def to_bin(
    state_dict: Mapping[str, Tensor],
    *,
    queried_blocks: int,
    pixel_mean: Tensor,
    pixel_std: Tensor,
    base: Mapping[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """Our state dict -> the form of the authors' `.bin` files.

    Args:
        state_dict: of a `PanopticExtEoMT`.
        queried_blocks: L2.
        pixel_mean, pixel_std: of red, green and blue, 3 values of 0 to 1.
        base: of a DINOv3 encoder, the weights that it was trained from, as `encoder_to_timm` takes
            them: the differences to them are written.

    Raises:
        CheckpointError: the encoder is DINOv3 and `base` is missing or another encoder.
    """
    encoder = _below(BACKBONE, state_dict)
    if is_dinov3(encoder):
        known = _checked_base(encoder, base)
        difference = {n: value - known[n] for n, value in with_biases(encoder).items()}
        encoder = {_in_bin(n): v for n, v in timm_to_transformers(difference).items()}
    theirs = _prefixed(_ENCODER, encoder) | _prefixed(_NETWORK, _below(HEAD, state_dict))
    return theirs | {
        _NETWORK + _MASK_PROBABILITIES: torch.zeros(queried_blocks),
        "network.encoder.pixel_mean": pixel_mean.reshape(1, 3, 1, 1),
        "network.encoder.pixel_std": pixel_std.reshape(1, 3, 1, 1),
        _EMPTY_WEIGHT: _empty_weight(state_dict),
    }


def _split_transformers(
    theirs: Mapping[str, Tensor],
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Head in our names, encoder in timm's."""
    head: dict[str, Tensor] = {}
    encoder: dict[str, Tensor] = {}
    back = {theirs: ours for ours, theirs in _HEAD_NAMES.items()}
    for name, value in theirs.items():
        begin = next((begin for begin in back if name.startswith(begin)), None)
        if begin is not None:
            head[back[begin] + name.removeprefix(begin)] = value
        elif name.startswith("upscale_block."):
            head[re.sub(*_UPSCALE_NORM_BACK, re.sub(*_UPSCALE_BACK, name))] = value
        else:
            encoder[name] = value
    return head, transformers_to_timm(encoder)


def _head_name(ours: str) -> str:
    for begin, theirs in _HEAD_NAMES.items():
        if ours.startswith(begin):
            return theirs + ours.removeprefix(begin)
    return re.sub(*_UPSCALE_NORM, re.sub(*_UPSCALE, ours))


def _in_bin(name: str) -> str:
    for begin, new in (("embeddings.", "patch_embed."), ("layers.", "blocks.")):
        name = new + name.removeprefix(begin) if name.startswith(begin) else name
    return name.removeprefix("layer") if name.startswith("layernorm.") else name


def _with_base(
    difference: Mapping[str, Tensor], base: Mapping[str, Tensor] | None
) -> dict[str, Tensor]:
    known = _checked_base(difference, base)
    return {name: value.float() + known[name] for name, value in with_biases(difference).items()}


def _checked_base(
    encoder: Mapping[str, Tensor], base: Mapping[str, Tensor] | None
) -> dict[str, Tensor]:
    """`base` in timm's names, float32 and with biases, for the encoder of these names."""
    wanted = _base_name(encoder["cls_token"])
    give = (
        f"Give that encoder as MODEL.EOMT.ENCODER_WEIGHTS, such as timm://{wanted} or a file of it"
    )
    if base is None:
        raise CheckpointError(
            f"the encoder's weights are differences to the DINOv3 encoder {wanted}, which is not "
            f"given. {give}"
        )
    try:
        renamed = encoder_to_timm(base, BACKBONE)
    except CheckpointError as error:
        raise CheckpointError(
            f"the weights are differences to the DINOv3 encoder {wanted}, but the base is no "
            f"encoder alone: {error}. {give}"
        ) from error
    known = {name: value.float() for name, value in with_biases(renamed).items()}
    for name, value in encoder.items():
        if name not in known or known[name].shape != value.shape:
            found = f"is {tuple(known[name].shape)}" if name in known else "is missing"
            raise CheckpointError(
                f"the weights are differences to the DINOv3 encoder {wanted}, but the base is "
                f"another one: {name} {found}, expected {tuple(value.shape)}. {give}"
            )
    return known


def _base_name(cls_token: Tensor) -> str:
    """The name of timm's DINOv3 model of a class token's width."""
    width = cls_token.shape[-1]
    return _ENCODERS.get(width, f"of width {width}")


def _empty_weight(state_dict: Mapping[str, Tensor]) -> Tensor:
    """The weights of classes in the loss (C + 1,): the state dict's, or the published ones."""
    classes = state_dict[f"{HEAD}class_head.bias"]
    found = state_dict.get(_EMPTY_WEIGHT)
    if found is not None and found.shape == classes.shape:
        return found
    weight = torch.ones(len(classes))
    weight[-1] = 0.1
    return weight


def _below(prefix: str, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {n.removeprefix(prefix): v for n, v in state_dict.items() if n.startswith(prefix)}


def _prefixed(prefix: str, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + name: value for name, value in state_dict.items()}
