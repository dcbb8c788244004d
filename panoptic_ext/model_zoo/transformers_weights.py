"""Weights of `transformers`' Mask2FormerForUniversalSegmentation, to this project's names and back.

Both state dicts hold the same tensors, apart from names and from attention, whose three input
projections are one tensor here and three there. Backbones: ResNet and Swin, the latter in the names
of transformers 4 and 5. Only `load_from_transformers` with the name of a model needs the package.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from panoptic_ext.errors import CheckpointError, listed, unknown
from panoptic_ext.optional_packages import import_optional

__all__ = ["from_transformers", "load_from_transformers", "our_name", "to_transformers"]

_PIXELS = r"model\.pixel_level_module\."
_BACKBONE = _PIXELS + r"encoder\."
_QUERIES = r"model\.transformer_module\."
_SELF = r"sem_seg_head.predictor.transformer_self_attention_layers.\1."
_CROSS = r"sem_seg_head.predictor.transformer_cross_attention_layers.\1."
_FFN = r"sem_seg_head.predictor.transformer_ffn_layers.\1."
_ENCODER = r"sem_seg_head.pixel_decoder.transformer.encoder.layers.\1."
_BLOCK = r"backbone.layers.\1.blocks.\2."
_REST = r"(.+)"

# Pattern of their name -> our name.
_HEAD = {
    r"class_predictor\." + _REST: r"sem_seg_head.predictor.class_embed.\1",
    r"criterion\.empty_weight": "criterion.empty_weight",
    _QUERIES + r"queries_embedder\.weight": "sem_seg_head.predictor.query_embed.weight",
    _QUERIES + r"queries_features\.weight": "sem_seg_head.predictor.query_feat.weight",
    _QUERIES + r"level_embed\.weight": "sem_seg_head.predictor.level_embed.weight",
    _QUERIES + r"input_projections\." + _REST: r"sem_seg_head.predictor.input_proj.\1",
    _QUERIES + r"decoder\.layernorm\." + _REST: r"sem_seg_head.predictor.decoder_norm.\1",
    _QUERIES + r"decoder\.mask_predictor\.mask_embedder\.(\d+)\.0\." + _REST: (
        r"sem_seg_head.predictor.mask_embed.layers.\1.\2"
    ),
    _QUERIES + r"decoder\.layers\.(\d+)\.self_attn\.out_proj\." + _REST: (
        _SELF + r"self_attn.out_proj.\2"
    ),
    _QUERIES + r"decoder\.layers\.(\d+)\.self_attn_layer_norm\." + _REST: _SELF + r"norm.\2",
    _QUERIES + r"decoder\.layers\.(\d+)\.cross_attn\." + _REST: _CROSS + r"multihead_attn.\2",
    _QUERIES + r"decoder\.layers\.(\d+)\.cross_attn_layer_norm\." + _REST: _CROSS + r"norm.\2",
    _QUERIES + r"decoder\.layers\.(\d+)\.fc([12])\." + _REST: _FFN + r"linear\2.\3",
    _QUERIES + r"decoder\.layers\.(\d+)\.final_layer_norm\." + _REST: _FFN + r"norm.\2",
    _PIXELS + r"decoder\.level_embed": "sem_seg_head.pixel_decoder.transformer.level_embed",
    _PIXELS + r"decoder\.input_projections\." + _REST: r"sem_seg_head.pixel_decoder.input_proj.\1",
    _PIXELS + r"decoder\.mask_projection\." + _REST: r"sem_seg_head.pixel_decoder.mask_features.\1",
    _PIXELS + r"decoder\.(adapter|layer)_(\d+)\.0\." + _REST: (
        r"sem_seg_head.pixel_decoder.\1_\2.\3"
    ),
    _PIXELS + r"decoder\.(adapter|layer)_(\d+)\.1\." + _REST: (
        r"sem_seg_head.pixel_decoder.\1_\2.norm.\3"
    ),
    _PIXELS + r"decoder\.encoder\.layers\.(\d+)\.self_attn\." + _REST: _ENCODER + r"self_attn.\2",
    _PIXELS + r"decoder\.encoder\.layers\.(\d+)\.self_attn_layer_norm\." + _REST: (
        _ENCODER + r"norm1.\2"
    ),
    _PIXELS + r"decoder\.encoder\.layers\.(\d+)\.fc([12])\." + _REST: _ENCODER + r"linear\2.\3",
    _PIXELS + r"decoder\.encoder\.layers\.(\d+)\.final_layer_norm\." + _REST: _ENCODER
    + r"norm2.\2",
}
_SWIN_BLOCK = _BACKBONE + r"encoder\.layers\.(\d+)\.blocks\.(\d+)\."
_SWIN = {
    _BACKBONE + r"embeddings\.patch_embeddings\.projection\." + _REST: (
        r"backbone.patch_embed.proj.\1"
    ),
    _BACKBONE + r"embeddings\.norm\." + _REST: r"backbone.patch_embed.norm.\1",
    _BACKBONE
    + r"encoder\.layers\.(\d+)\.downsample\."
    + _REST: r"backbone.layers.\1.downsample.\2",
    _SWIN_BLOCK + r"layernorm_before\." + _REST: _BLOCK + r"norm1.\3",
    _SWIN_BLOCK + r"layernorm_after\." + _REST: _BLOCK + r"norm2.\3",
    _SWIN_BLOCK + r"attention\.(?:self|relative_position_bias)\.(relative_position_bias_table)": (
        _BLOCK + r"attn.\3"
    ),
    _SWIN_BLOCK + r"attention\.(?:output\.dense|o_proj)\." + _REST: _BLOCK + r"attn.proj.\3",
    _SWIN_BLOCK + r"(?:intermediate\.dense|mlp\.fc1)\." + _REST: _BLOCK + r"mlp.fc1.\3",
    _SWIN_BLOCK + r"(?:output\.dense|mlp\.fc2)\." + _REST: _BLOCK + r"mlp.fc2.\3",
}
# The three input projections of an attention: our one tensor holds them one below the other.
_FUSED = {
    _QUERIES + r"decoder\.layers\.(\d+)\.self_attn\.([qkv])_proj\.(weight|bias)": (
        _SELF + r"self_attn.in_proj_\3"
    ),
    _SWIN_BLOCK + r"attention\.(?:self\.)?(?:([qkv])_proj|(query|key|value))\.(weight|bias)": (
        _BLOCK + r"attn.qkv.\5"
    ),
}
_PARTS = {"q": 0, "k": 1, "v": 2}
# Tensors of theirs that ours makes itself or has no use for.
_UNUSED = re.compile(
    r".*\.(num_batches_tracked|relative_position_index)|" + _BACKBONE + r"layernorm\..*"
)
# Buffers of ours that a state dict of theirs lacks.
_MADE_HERE = ("num_batches_tracked", "relative_position_index")


def our_name(name: str) -> tuple[str, int | None] | None:
    """Where a tensor of theirs goes.

    Args:
        name: a key of their state dict.

    Returns:
        Our key, and which third of our tensor it is (0 query, 1 key, 2 value) or None for all of
        it. None for a tensor that is not needed here.

    Raises:
        CheckpointError: no such tensor in any Mask2Former on ResNet or Swin.
    """
    name = name.replace("pixel_level_module.encoder.swin.", "pixel_level_module.encoder.")
    if _UNUSED.fullmatch(name):
        return None
    for pattern, ours in _FUSED.items():
        found = re.fullmatch(pattern, name)
        if found:
            letter = next(g for g in found.groups() if g and g[0] in _PARTS and not g.isdigit())
            return found.expand(ours), _PARTS[letter[0]]
    for pattern, ours in (_HEAD | _SWIN).items():
        found = re.fullmatch(pattern, name)
        if found:
            return found.expand(ours), None
    backbone = _resnet_name(name) or _swin_norm_name(name)
    if backbone is None:
        raise CheckpointError(
            f"tensor {name!r} is none of transformers' Mask2FormerForUniversalSegmentation with a "
            "ResNet or Swin backbone; give the state dict of such a model, nothing added to it"
        )
    return backbone, None


def from_transformers(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Their state dict -> ours, as `load_state_dict` of the same architecture takes it.

    Raises:
        CheckpointError: an unknown tensor, or a third of an attention's projection is missing.
    """
    ours: dict[str, Tensor] = {}
    thirds: dict[str, dict[int, Tensor]] = {}
    for name, tensor in state_dict.items():
        target = our_name(name)
        if target is None:
            continue
        if target[1] is None:
            ours[target[0]] = tensor
        else:
            thirds.setdefault(target[0], {})[target[1]] = tensor
    for name, parts in thirds.items():
        if len(parts) != 3:
            lacking = [letter for letter, part in _PARTS.items() if part not in parts]
            raise CheckpointError(
                f"{name} needs the projections of query, key and value, but the state dict lacks "
                f"{' and '.join(lacking)}; it is incomplete, take the whole one"
            )
        ours[name] = torch.cat([parts[i] for i in range(3)])
    return ours


def to_transformers(state_dict: Mapping[str, Tensor], names: Iterable[str]) -> dict[str, Tensor]:
    """Our state dict -> theirs.

    Args:
        state_dict: ours.
        names: the keys of their model's state dict; those that have no counterpart are left out,
            so load the result with `strict=False` and look at what it reports.

    Raises:
        CheckpointError: an unknown name, one whose tensor `state_dict` lacks, or placed queries,
            which their model does not have.
    """
    placed = [name for name in state_dict if ".place_head." in name]
    if placed:
        raise CheckpointError(
            f"the state dict has {placed[0]!r}, but transformers' model has no placed queries; "
            "set MODEL.MASK_FORMER.TRANSFORMER_DECODER_NAME MultiScaleMaskedTransformerDecoder"
        )
    theirs: dict[str, Tensor] = {}
    for name in names:
        target = our_name(name)
        if target is None:
            continue
        ours, part = target
        if ours not in state_dict:
            raise CheckpointError(
                f"their tensor {name!r}: "
                + unknown(
                    "tensor of the state dict",
                    ours,
                    state_dict,
                    limit=0,
                    mend="both models must have the same architecture",
                )
            )
        tensor = state_dict[ours]
        theirs[name] = tensor if part is None else tensor.chunk(3)[part]
    return theirs


def load_from_transformers(model: nn.Module, source: str | nn.Module | Mapping[str, Any]) -> None:
    """Fill one of our models with their weights; all of it, or an error and nothing is changed.

    Args:
        model: a `PanopticExtMaskFormer` on a ResNet or on our Swin.
        source: their model, its state dict, or a name or folder for `from_pretrained` (this needs
            the `hf` extra).

    Raises:
        CheckpointError: a tensor is missing, left over or of another shape; names them. Or
            `transformers` is missing or cannot read `source`.
    """
    if isinstance(source, str):
        source = _pretrained(source)
    given = source.state_dict() if isinstance(source, nn.Module) else source
    converted = from_transformers(given)
    wanted = model.state_dict()
    wrong = [
        f"{name} is {tuple(converted[name].shape)}, expected {tuple(wanted[name].shape)}"
        for name in converted
        if name in wanted and converted[name].shape != wanted[name].shape
    ]
    missing = [
        n
        for n in wanted
        if n not in converted
        and n.rpartition(".")[2] not in _MADE_HERE
        and not n.startswith("semantic_classifier.")  # of training alone
    ]
    unexpected = [name for name in converted if name not in wanted]
    if wrong or missing or unexpected:
        kinds = {"of another shape": wrong, "missing": missing, "not in this model": unexpected}
        report = "; ".join(
            f"{len(names)} {kind} ({listed(names, 3, show=str)})"
            for kind, names in kinds.items()
            if names
        )
        raise CheckpointError(
            f"the weights from transformers do not fit this model: {report}. Give the config the "
            "same backbone, widths, layers, queries and number of classes"
        )
    model.load_state_dict(converted, strict=False)


def _pretrained(name: str) -> nn.Module:
    what = f"reading the weights {name!r}"
    transformers = import_optional("transformers", "hf", what, error=CheckpointError)
    try:
        return transformers.Mask2FormerForUniversalSegmentation.from_pretrained(name)
    except (OSError, ValueError) as error:
        reason = str(error).strip().split("\n")[0]
        raise CheckpointError(
            f"transformers cannot read Mask2Former weights {name!r}: {reason}"
        ) from error


def _resnet_name(name: str) -> str | None:
    """Detectron2's name of a tensor of a ResNet: stages are res2 to res5, convolutions from 1."""
    prefix = "model.pixel_level_module.encoder."
    name = name.removeprefix(prefix)
    found = re.fullmatch(r"embedder\.embedder\.(convolution|normalization)\.(.+)", name)
    if found:
        return _conv_part("backbone.stem.conv1", *found.groups())
    found = re.fullmatch(
        r"encoder\.stages\.(\d+)\.layers\.(\d+)\.(?:(shortcut)|layer\.(\d))\."
        r"(convolution|normalization)\.(.+)",
        name,
    )
    if not found:
        return None
    stage, block, shortcut, number, kind, rest = found.groups()
    layer = shortcut or f"conv{int(number) + 1}"
    return _conv_part(f"backbone.res{int(stage) + 2}.{block}.{layer}", kind, rest)


def _conv_part(layer: str, kind: str, rest: str) -> str:
    return f"{layer}.{rest}" if kind == "convolution" else f"{layer}.norm.{rest}"


def _swin_norm_name(name: str) -> str | None:
    """The norm of a Swin stage's output: their stages count from 1, our norms from 0."""
    found = re.fullmatch(_BACKBONE + r"hidden_states_norms\.stage(\d+)\." + _REST, name)
    return found and f"backbone.norm{int(found[1]) - 1}.{found[2]}"
