"""Names of a plain ViT's tensors: timm's, and those of transformers' EoMT, to each other.

Two kinds of encoder have names of their own: DINOv2 (learned position embedding, bias of query, key
and value; any other ViT of timm with a learned embedding is written in this form) and DINOv3
(rotary embedding, no bias of the key). In timm they are `VisionTransformer` and `Eva`.

Shape legend: D width, H hidden width of the MLP, N patches, R register tokens.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from panoptic_ext.errors import CheckpointError, listed

__all__ = [
    "encoder_to_timm",
    "is_dinov3",
    "num_blocks",
    "timm_to_transformers",
    "transformers_to_timm",
    "with_biases",
]

# timm's beginning of a name -> transformers'. Attention and gated MLPs, whose tensors are cut and
# joined, are not in these tables.
_STEM = {
    "cls_token": "embeddings.cls_token",
    "reg_token": "embeddings.register_tokens",
    "norm.": "layernorm.",
}
_BLOCK = {"norm1.": "norm1.", "norm2.": "norm2."}
_DINOV2 = (
    {**_STEM, "patch_embed.proj.": "embeddings.patch_embeddings.projection."},
    {
        **_BLOCK,
        "attn.proj.": "attention.out_proj.",
        "ls1.gamma": "layer_scale1.lambda1",
        "ls2.gamma": "layer_scale2.lambda1",
        "mlp.fc1.": "mlp.fc1.",
        "mlp.fc2.": "mlp.fc2.",
    },
)
_DINOV3 = (
    {**_STEM, "patch_embed.proj.": "embeddings.patch_embeddings."},
    {
        **_BLOCK,
        "attn.proj.": "attention.o_proj.",
        "gamma_1": "layer_scale1.lambda1",
        "gamma_2": "layer_scale2.lambda1",
        "mlp.fc1.": "mlp.up_proj.",
        "mlp.fc1_g.": "mlp.gate_proj.",
        "mlp.fc1_x.": "mlp.up_proj.",
        "mlp.fc2.": "mlp.down_proj.",
    },
)
# Beginnings of names of a DINOv3 encoder, in `.bin` files and in transformers' DINOv3 (version 4,
# version 5) -> those of transformers' EoMT.
_ENCODER_NAMES = {
    "patch_embed.patch_embeddings.": "embeddings.patch_embeddings.",
    "patch_embed.": "embeddings.",
    "blocks.": "layers.",
    "model.layer.": "layers.",
    "layer.": "layers.",
    "norm.": "layernorm.",
}
# The MLP of the giant encoder: files of 2025 hold its first layer packed, the gate first, as timm
# does; transformers 5 cuts it in two.
_PACKED_IN, _PACKED_OUT = "mlp.weights_in.", "mlp.weights_out."
_POSITIONS = "embeddings.position_embeddings.weight"
# Of pretraining alone, and buffers that every model makes itself.
_UNUSED = re.compile(r"embeddings\.mask_token|rope_embeddings\..*|.*\.inv_freq")
_PARTS = ("q", "k", "v")


def is_dinov3(state_dict: Mapping[str, Tensor]) -> bool:
    """Whether names, timm's or transformers', are those of an encoder with rotary embedding.

    Args:
        state_dict: of an encoder alone, or of a whole EoMT in transformers' form.
    """
    return "pos_embed" not in state_dict and _POSITIONS not in state_dict


def num_blocks(names: Iterable[str], prefix: str) -> int:
    """How many numbers follow `prefix` ("blocks.", "layers.") in names, from 0 on."""
    pattern = re.compile(re.escape(prefix) + r"(\d+)\.")
    return 1 + max((int(m[1]) for m in map(pattern.match, names) if m), default=-1)


def transformers_to_timm(theirs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """An encoder in the form of transformers' EoMT -> timm's names.

    Args:
        theirs: `embeddings.*`, `layers.<i>.*` and `layernorm.*`, the giant's MLP packed or cut.

    Returns:
        The state dict of timm's ViT without classifier; tensors keep their dtype. Biases of query
        and value of DINOv3 are there if the file has them.

    Raises:
        CheckpointError: a name is unknown, or a part of an attention or of a gated MLP is missing.
    """
    dinov3 = is_dinov3(theirs)
    stem, block = _DINOV3 if dinov3 else _DINOV2
    stem = {new: old for old, new in stem.items()}
    block = {new: old for old, new in block.items()} | {"mlp.up_proj.": "mlp.fc1."}
    if not dinov3:
        block |= {_PACKED_IN: "mlp.fc1.", _PACKED_OUT: "mlp.fc2.", "mlp.down_proj.": "mlp.fc2."}
    ours: dict[str, Tensor] = {}
    for name, tensor in _joined(theirs, dinov3=dinov3).items():
        if name == _POSITIONS:
            ours["pos_embed"] = tensor[None]
        elif name.startswith("blocks."):  # joined
            ours[name] = tensor
        elif not _UNUSED.fullmatch(name):
            ours[_renamed(name, stem, block, ("layers.", "blocks."))] = tensor
    return ours


def timm_to_transformers(
    ours: Mapping[str, Tensor], *, packed_swiglu: bool = False
) -> dict[str, Tensor]:
    """timm's ViT -> the form of transformers' EoMT, with the same outputs.

    What their model always has and a ViT lacks is filled in: layer scales of 1, biases of 0. A
    class token's position embedding is added to the token.

    Args:
        ours: the state dict of timm's ViT without classifier.
        packed_swiglu: names of a gated MLP as in transformers 4 (`weights_in`, `weights_out`).

    Raises:
        CheckpointError: the ViT has a tensor for which their model has no place.
    """
    dinov3 = is_dinov3(ours)
    stem, block = _DINOV3 if dinov3 else _DINOV2
    theirs: dict[str, Tensor] = {}
    for name, tensor in _completed(ours, dinov3=dinov3).items():
        if name == "pos_embed":
            theirs[_POSITIONS] = tensor[0]
        elif _is_gated(name, ours, dinov3=dinov3):
            theirs.update(_cut_mlp(name, tensor, packed=packed_swiglu))
        elif ".attn.q" in name or ".attn.v_bias" in name:
            theirs.update(_cut_attention(name, tensor))
        else:
            theirs[_renamed(name, stem, block, ("blocks.", "layers."))] = tensor
    return theirs


def encoder_to_timm(state_dict: Mapping[str, Tensor], prefix: str = "") -> dict[str, Tensor]:
    """An encoder alone -> timm's names.

    Args:
        state_dict: names of timm's ViT, of transformers' DINOv3 (`DINOv3ViTModel`), or of a DINOv3
            encoder in a `.bin` file of EoMT.
        prefix: if there are names that begin with it, all others are left out, and it is cut off.

    Raises:
        CheckpointError: an unknown or missing tensor, if the names are not timm's.
    """
    encoder = dict(state_dict)
    if prefix and any(name.startswith(prefix) for name in encoder):
        encoder = {n.removeprefix(prefix): v for n, v in encoder.items() if n.startswith(prefix)}
    if not any(".attention.q_proj." in name for name in encoder):
        return encoder
    return transformers_to_timm({_in_eomt(name): value for name, value in encoder.items()})


def with_biases(encoder: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A DINOv3 encoder in timm's names; biases of query and value that it lacks are 0."""
    complete = dict(encoder)
    for i in range(num_blocks(encoder, "blocks.")):
        for name in (f"blocks.{i}.attn.q_bias", f"blocks.{i}.attn.v_bias"):
            complete.setdefault(name, torch.zeros(encoder["cls_token"].shape[-1]))
    return complete


def _renamed(
    name: str, stem: Mapping[str, str], block: Mapping[str, str], prefixes: tuple[str, str]
) -> str:
    found = re.match(re.escape(prefixes[0]) + r"(\d+)\.", name)
    rest = name[found.end() :] if found else name
    for old, new in (block if found else stem).items():
        if rest == old or (old.endswith(".") and rest.startswith(old)):
            start = f"{prefixes[1]}{found[1]}." if found else ""
            return start + new + rest.removeprefix(old)
    raise CheckpointError(
        f"tensor {name!r} is none of a plain ViT that EoMT of transformers has a form for: DINOv2 "
        "or another ViT with a learned position embedding, or DINOv3"
    )


def _in_eomt(name: str) -> str:
    for begin, new in _ENCODER_NAMES.items():
        if name.startswith(begin):
            return new + name.removeprefix(begin)
    return name


def _joined(theirs: Mapping[str, Tensor], *, dinov3: bool) -> dict[str, Tensor]:
    """Join query, key and value, and gate and up of a gated MLP, under timm's names."""
    joined = dict(theirs)
    for i in range(num_blocks(theirs, "layers.")):
        for kind in ("weight", "bias"):
            names = [f"layers.{i}.attention.{part}_proj.{kind}" for part in _PARTS]
            found = [joined.pop(name, None) for name in names]
            joined.update(_joined_attention(f"blocks.{i}.attn.", kind, names, found, dinov3=dinov3))
        for kind in ("weight", "bias"):
            gate = joined.pop(f"layers.{i}.mlp.gate_proj.{kind}", None)
            if gate is not None:
                up = _there(joined.pop(f"layers.{i}.mlp.up_proj.{kind}", None), f"layer {i}'s up")
                mlp = f"blocks.{i}.mlp."
                if dinov3:
                    joined |= {f"{mlp}fc1_g.{kind}": gate, f"{mlp}fc1_x.{kind}": up}
                else:
                    joined[f"{mlp}fc1.{kind}"] = torch.cat([gate, up])
    return joined


def _joined_attention(
    prefix: str, kind: str, names: list[str], found: list[Tensor | None], *, dinov3: bool
) -> dict[str, Tensor]:
    if dinov3 and kind == "bias":
        if found[1] is not None and found[1].any():
            raise CheckpointError(
                f"{names[1]} is not 0, but DINOv3 has no bias of the key, and neither has timm's "
                "model; take weights that were trained without it"
            )
        pairs = {"q_bias": found[0], "v_bias": found[2]}
        return {prefix + name: part for name, part in pairs.items() if part is not None}
    parts = [_there(part, name) for part, name in zip(found, names, strict=True)]
    return {f"{prefix}qkv.{kind}": torch.cat(parts)}


def _there(tensor: Tensor | None, name: str) -> Tensor:
    if tensor is None:
        raise CheckpointError(f"{name} is missing of the weights: incomplete, take the whole file")
    return tensor


def _is_gated(name: str, ours: Mapping[str, Tensor], *, dinov3: bool) -> bool:
    """Whether a tensor is of a packed gated MLP: fc1 has 2H outputs, fc2 H inputs."""
    found = re.match(r"(blocks\.\d+\.mlp\.)fc[12]\.", name)
    if found is None or dinov3:
        return False
    first, second = (ours[f"{found[1]}{layer}.weight"] for layer in ("fc1", "fc2"))
    return first.shape[0] == 2 * second.shape[1]


def _cut_mlp(name: str, tensor: Tensor, *, packed: bool) -> dict[str, Tensor]:
    layer = name.replace("blocks.", "layers.", 1)
    if ".fc2." in layer:
        return {layer.replace("mlp.fc2.", _PACKED_OUT if packed else "mlp.down_proj."): tensor}
    if packed:
        return {layer.replace("mlp.fc1.", _PACKED_IN): tensor}
    gate, up = tensor.chunk(2)
    return {
        layer.replace("mlp.fc1.", "mlp.gate_proj."): gate,
        layer.replace("mlp.fc1.", "mlp.up_proj."): up,
    }


def _cut_attention(name: str, tensor: Tensor) -> dict[str, Tensor]:
    block, _, rest = name.replace("blocks.", "layers.", 1).partition(".attn.")
    if rest in ("q_bias", "v_bias"):
        return {f"{block}.attention.{rest[0]}_proj.bias": tensor}
    kind = rest.removeprefix("qkv.")
    if kind not in ("weight", "bias"):
        raise CheckpointError(
            f"tensor {name!r} has no place in transformers' EoMT, whose attention has no norms of "
            "query and key; such a ViT cannot be written in its form"
        )
    parts = zip(_PARTS, tensor.chunk(3), strict=True)
    return {f"{block}.attention.{part}_proj.{kind}": third for part, third in parts}


def _completed(ours: Mapping[str, Tensor], *, dinov3: bool) -> dict[str, Tensor]:
    """timm's ViT with all tensors that transformers' model has."""
    complete = dict(ours)
    cls_token = ours.get("cls_token")
    if cls_token is None:
        raise CheckpointError(
            "the ViT has no class token, which transformers' EoMT always has; it cannot be written "
            "in its form"
        )
    width = cls_token.shape[-1]
    complete.setdefault("reg_token", cls_token.new_zeros(1, 0, width))
    scales = ("gamma_1", "gamma_2") if dinov3 else ("ls1.gamma", "ls2.gamma")
    for i in range(num_blocks(ours, "blocks.")):
        for scale in scales:
            complete.setdefault(f"blocks.{i}.{scale}", cls_token.new_ones(width))
        biases = {"q_bias": width, "v_bias": width} if dinov3 else {"qkv.bias": 3 * width}
        for name, size in biases.items():
            complete.setdefault(f"blocks.{i}.attn.{name}", cls_token.new_zeros(size))
    if not dinov3:
        complete |= _positions_of_patches(complete)
    return complete


def _positions_of_patches(vit: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Position embedding of the patches alone; that of prefix tokens is added to these."""
    prefix = [name for name in ("cls_token", "reg_token") if vit[name].shape[1]]
    positions = vit["pos_embed"]
    if math.isqrt(positions.shape[1]) ** 2 == positions.shape[1]:
        return {}
    number = sum(vit[name].shape[1] for name in prefix)
    if math.isqrt(positions.shape[1] - number) ** 2 != positions.shape[1] - number:
        raise CheckpointError(
            f"the position embedding has {positions.shape[1]} tokens, expected a square, or a "
            f"square and {number} for {listed(prefix, 2, show=str)}"
        )
    tokens = torch.cat([vit[name] for name in prefix], 1) + positions[:, :number]
    parts = tokens.split([vit[name].shape[1] for name in prefix], 1)
    return {**dict(zip(prefix, parts, strict=True)), "pos_embed": positions[:, number:]}
