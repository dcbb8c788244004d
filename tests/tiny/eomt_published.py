"""Tiny random models of transformers' EoMT, and the authors' `.bin` files that agree with them."""

import re
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

IMAGE_SIZE = 64
WIDTH = 32
HEADS = 2
DEPTH = 4
BLOCKS = 2  # with queries
QUERIES = 5
CLASSES = 3

FORMS = ("transformers_v2", "transformers_v3", "bin_v2", "bin_v3")


class Lazy(dict):
    """Values that are made when they are first asked for.

    So a test of DINOv2 alone also runs where transformers has no EoMT of DINOv3.
    """

    def __init__(self, make: Callable[[str], Any]) -> None:
        super().__init__()
        self.make = make

    def __missing__(self, key: str) -> Any:
        self[key] = self.make(key)
        return self[key]


def import_transformers(dinov3: bool) -> ModuleType:
    """transformers; the test is skipped if it needs an EoMT that this version does not have."""
    import transformers

    if dinov3 and not hasattr(transformers, "EomtDinov3Config"):
        pytest.skip(f"transformers {transformers.__version__} has no eomt_dinov3")
    return transformers


def available_forms() -> tuple[str, ...]:
    """Those of FORMS whose models this version of transformers has."""
    import transformers

    has_dinov3 = hasattr(transformers, "EomtDinov3Config")
    return tuple(form for form in FORMS if has_dinov3 or form.endswith("v2"))


def transformers_model(dinov3: bool, *, swiglu: bool = False, **changes) -> nn.Module:
    """A random model in evaluation without masks; all parameters random, biases and norms, too."""
    transformers = import_transformers(dinov3)
    sizes = {
        "hidden_size": WIDTH,
        "num_hidden_layers": DEPTH,
        "num_attention_heads": HEADS,
        "image_size": IMAGE_SIZE,
        "num_blocks": BLOCKS,
        "num_queries": QUERIES,
        "num_labels": CLASSES,
        **changes,
    }
    torch.manual_seed(0)
    if dinov3:
        config = transformers.EomtDinov3Config(
            intermediate_size=4 * WIDTH, layer_norm_eps=1e-5, use_gated_mlp=swiglu, **sizes
        )
        model = transformers.EomtDinov3ForUniversalSegmentation(config)
    else:
        model = transformers.EomtForUniversalSegmentation(
            transformers.EomtConfig(use_swiglu_ffn=swiglu, **sizes)
        )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.2)
        model.attn_mask_probs.zero_()
    return model.eval()


def features(model: nn.Module, images: Tensor) -> Tensor:
    """The encoder's normed tokens, without queries."""
    hidden = model.embeddings(images)
    rope = {}
    if hasattr(model, "rope_embeddings"):
        rope["position_embeddings"] = model.rope_embeddings(images)
    for layer in model.layers:
        hidden = layer(hidden, **rope)
    return model.layernorm(hidden)


def weights_of(form: str, theirs: dict[str, Tensor], base: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights in one of FORMS.

    Args:
        theirs: state dict of transformers' model of this form's encoder.
        base: of bin_v3.
    """
    if form.startswith("transformers"):
        return theirs
    return bin_of_dinov2(theirs) if form == "bin_v2" else bin_of_dinov3(theirs, base)


def bin_of_dinov2(theirs: dict[str, Tensor]) -> dict[str, Tensor]:
    """The authors' file of a model, from transformers' state dict, name by name."""
    network = {}
    for name, value in theirs.items():
        if ".attention." in name and ".out_proj." not in name:
            continue
        for pattern, new in _BIN_V2:
            name = re.sub(pattern, new, name)
        network[name] = value
    for i in range(DEPTH):
        for kind in ("weight", "bias"):
            parts = [theirs[f"layers.{i}.attention.{part}_proj.{kind}"] for part in "qkv"]
            network[f"network.encoder.backbone.blocks.{i}.attn.qkv.{kind}"] = torch.cat(parts)
    positions = "network.encoder.backbone.pos_embed"
    return _with_pixels({**network, positions: network[positions][None]})


def bin_of_dinov3(theirs: dict[str, Tensor], base: dict[str, Tensor]) -> dict[str, Tensor]:
    """The authors' file of differences to `base`, an encoder in the names of transformers 5."""
    network = {}
    for name, value in theirs.items():
        of_base = re.sub("^layers", "model.layer", re.sub("^layernorm", "norm", name))
        for pattern, new in _BIN_V3:
            name = re.sub(pattern, new, name)
        network[name] = value - base[of_base] if of_base in base else value
    return _with_pixels(network)


def encoder_of_dinov3() -> nn.Module:
    """A random encoder from which `transformers_model(dinov3=True)` could have been trained."""
    import transformers

    config = transformers.DINOv3ViTConfig(
        hidden_size=WIDTH,
        num_hidden_layers=DEPTH,
        num_attention_heads=HEADS,
        intermediate_size=4 * WIDTH,
        num_register_tokens=4,
        image_size=IMAGE_SIZE,
    )
    torch.manual_seed(1)
    return transformers.DINOv3ViTModel(config).eval()


def _with_pixels(network: dict[str, Tensor]) -> dict[str, Tensor]:
    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    pixels = {"pixel_mean": torch.tensor(mean), "pixel_std": torch.tensor(std)}
    shaped = {f"network.encoder.{n}": v.reshape(1, 3, 1, 1) for n, v in pixels.items()}
    return {n: v.clone() for n, v in (network | shaped).items()}


_BACKBONE = "network.encoder.backbone."
_HEAD = [
    (r"^attn_mask_probs", "network.attn_mask_probs"),
    (r"^query\.", "network.q."),
    (r"^class_predictor\.", "network.class_head."),
    (r"^mask_head\.fc1\.", "network.mask_head.0."),
    (r"^mask_head\.fc2\.", "network.mask_head.2."),
    (r"^mask_head\.fc3\.", "network.mask_head.4."),
    (r"^upscale_block\.block\.", "network.upscale."),
    (r"\.layernorm2d\.", ".norm."),
    (r"^layers\.", _BACKBONE + "blocks."),
    (r"^layernorm\.", _BACKBONE + "norm."),
]
_BIN_V2 = [
    *_HEAD,
    (r"^embeddings\.cls_token", _BACKBONE + "cls_token"),
    (r"^embeddings\.register_tokens", _BACKBONE + "reg_token"),
    (r"^embeddings\.position_embeddings\.weight", _BACKBONE + "pos_embed"),
    (r"^embeddings\.patch_embeddings\.projection\.", _BACKBONE + "patch_embed.proj."),
    (r"attention\.out_proj", "attn.proj"),
    (r"layer_scale(\d)\.lambda1", r"ls\1.gamma"),
]
_BIN_V3 = [*_HEAD, (r"^embeddings\.", _BACKBONE + "patch_embed.")]
