"""Our decoder's tensors under their names in a published PMT file, each written out."""

from __future__ import annotations

BLOCK = {
    "attn.q_bias": "attention.q_proj.bias",
    "attn.v_bias": "attention.v_proj.bias",
    "attn.proj.weight": "attention.o_proj.weight",
    "attn.proj.bias": "attention.o_proj.bias",
    "gamma_1": "layer_scale1.lambda1",
    "gamma_2": "layer_scale2.lambda1",
    "mlp.fc1.weight": "mlp.up_proj.weight",
    "mlp.fc1.bias": "mlp.up_proj.bias",
    "mlp.fc2.weight": "mlp.down_proj.weight",
    "mlp.fc2.bias": "mlp.down_proj.bias",
}


def published(head):
    """Names as in `sem_seg_head.*`, without that prefix -> names as in a published file."""
    renamed = {}
    for name, value in head.items():
        first, _, rest = name.partition(".")
        number, _, inner = rest.partition(".")
        if first == "lateral":
            part, _, end = inner.partition(".")
            new = {
                "norm": f"bn.{number}.{end}",
                "project": f"decoder.lateral_projections.{number}.{end}",
                "scale": f"decoder.scalers.{number}",
            }[part]
        elif first == "blocks" and inner == "attn.qkv.weight":
            for letter, third in zip("qkv", value.chunk(3), strict=True):
                new = f"decoder.blocks.{number}.attention.{letter}_proj.weight"
                renamed[f"network.{new}"] = third
            continue
        elif first == "blocks":
            new = f"decoder.blocks.{number}.{BLOCK.get(inner, inner)}"
        elif first == "norm":
            new = f"decoder.decoder_norm.{rest}"
        else:
            new = f"decoder.{name}"
        renamed[f"network.{new}"] = value
    return renamed
