"""Names of the published PMT files, `network.decoder.*` and `network.bn.*`, as ours.

The files hold the decoder alone: the encoder is the published DINOv3, unchanged.

Shapes: D channels of the encoder.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

__all__ = ["from_published", "is_published"]

_DECODER = "network.decoder."
_HEAD = "sem_seg_head."

# Beginnings of published names, and of ours behind "sem_seg_head."; all other parts have one name.
_NAMES = (
    (re.compile(r"network\.bn\.(\d+)\."), r"lateral.\1.norm."),
    (re.compile(r"network\.decoder\.lateral_projections\.(\d+)\."), r"lateral.\1.project."),
    (re.compile(r"network\.decoder\.scalers\.(\d+)$"), r"lateral.\1.scale"),
    (re.compile(r"network\.decoder\.decoder_norm\."), "norm."),
    (re.compile(r"network\.decoder\."), ""),
)
# Inside of a block: the published names are those of transformers' DINOv3, ours are timm's.
_BLOCK_NAMES = (
    ("attention.q_proj.bias", "attn.q_bias"),
    ("attention.v_proj.bias", "attn.v_bias"),
    ("attention.o_proj.", "attn.proj."),
    ("layer_scale1.lambda1", "gamma_1"),
    ("layer_scale2.lambda1", "gamma_2"),
    ("mlp.up_proj.", "mlp.fc1."),
    ("mlp.down_proj.", "mlp.fc2."),
)
_QUERY_WEIGHT = re.compile(r"(network\.decoder\.blocks\.\d+\.)attention\.q_proj\.weight$")
# State of a training that we compute from the iteration, and what follows from the config.
_LEFT_OUT = ("network.decoder.attn_mask_probs", "network.rope.", "criterion.")


def is_published(state_dict: Mapping[str, Tensor]) -> bool:
    """Whether the names are those of a published PMT file."""
    return any(name.startswith(_DECODER) for name in state_dict)


def from_published(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the tensors of a published file, and join the three projections of each attention.

    Args:
        state_dict: name -> tensor. Names that are not PMT's are kept.

    Returns:
        Our names -> tensors. The decoder's attention has one projection (3D, D) of query, key and
        value instead of three (D, D).
    """
    renamed = {}
    joined: set[str] = set()
    for match in filter(None, map(_QUERY_WEIGHT.match, state_dict)):
        parts = [f"{match[1]}attention.{part}_proj.weight" for part in "qkv"]
        if all(part in state_dict for part in parts):
            joined.update(parts)
            weight = torch.cat([state_dict[part] for part in parts])
            renamed[_our_name(f"{match[1]}attn.qkv.weight")] = weight
    for name, value in state_dict.items():
        if name not in joined and not name.startswith(_LEFT_OUT):
            renamed[_our_name(name)] = value
    return renamed


def _our_name(name: str) -> str:
    for published, ours in _NAMES:
        name, count = published.subn(_HEAD + ours, name, count=1)
        if count:
            break
    if name.startswith(f"{_HEAD}blocks."):
        for published_part, our_part in _BLOCK_NAMES:
            name = name.replace(published_part, our_part)
    return name
