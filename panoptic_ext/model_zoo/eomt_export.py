"""Write an EoMT of this project as a model of transformers, which its `from_pretrained` reads."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from panoptic_ext.atomic import TemporaryFile, write_file
from panoptic_ext.errors import CheckpointError, ConfigError
from panoptic_ext.modeling.backbone.vit_names import is_dinov3
from panoptic_ext.modeling.eomt.published_weights import BACKBONE, HEAD, to_transformers
from panoptic_ext.modeling.meta_arch.eomt import PanopticExtEoMT
from panoptic_ext.optional_packages import import_optional

__all__ = ["export_eomt", "image_processor_config", "network_config"]

_PATCHES = f"{BACKBONE}patch_embed.proj.weight"


def export_eomt(
    model: PanopticExtEoMT,
    folder: str | os.PathLike,
    *,
    class_names: Sequence[str],
    image_size: int = 0,
    channels: str = "RGB",
    packed_swiglu: bool = False,
) -> str:
    """Write config.json, preprocessor_config.json and model.safetensors into a folder.

    `EomtForUniversalSegmentation.from_pretrained(folder)`, with rotary position embedding
    `EomtDinov3ForUniversalSegmentation`, gives the same logits.

    Args:
        model: with its weights.
        folder: made if it is not there; the three files are replaced.
        class_names: of the head's classes.
        image_size: side of the square images that their model takes, pixels. 0: that for which the
            position embedding is stored. Any other is for encoders with rotary embedding only.
        channels: order of the model's inputs, "RGB" or "BGR" (INPUT.FORMAT); theirs is RGB.
        packed_swiglu: names of the giant encoder's MLP as in transformers 4.

    Returns:
        The name of transformers' class.

    Raises:
        ConfigError: their model has no such architecture, or another number of classes.
        CheckpointError: it has no place for a tensor, or the files cannot be written.
    """
    package = import_optional("safetensors.torch", "hf", "writing a model of transformers")
    config = network_config(model, class_names=class_names, image_size=image_size)
    flip = channels == "BGR"
    masked = model.masked_attention and model.annealing is None
    weights = to_transformers(
        _in_rgb(model.state_dict()) if flip else model.state_dict(),
        queried_blocks=model.sem_seg_head.num_blocks,
        mask_probability=1.0 if masked else 0.0,
        packed_swiglu=packed_swiglu,
    )
    pixels = image_processor_config(
        size=config["image_size"],
        pixel_mean=_pixels(model.pixel_mean, flip=flip),
        pixel_std=_pixels(model.pixel_std, flip=flip),
        windows=model.task == "semantic",
    )
    for name, content in (("config.json", config), ("preprocessor_config.json", pixels)):
        text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
        write_file(os.path.join(folder, name), text.encode(), error=CheckpointError)
    # The parts of one tensor of ours would share its memory, which safetensors refuses.
    whole = {name: value.detach().cpu().clone() for name, value in weights.items()}
    with TemporaryFile(os.path.join(folder, "model.safetensors")) as temporary:
        package.save_file(whole, temporary.path, metadata={"format": "pt"})
        temporary.commit()
    return config["architectures"][0]


def network_config(
    model: PanopticExtEoMT, *, class_names: Sequence[str], image_size: int = 0
) -> dict[str, Any]:
    """The content of config.json; see `export_eomt`.

    Raises:
        ConfigError: their model has no such architecture, or another number of classes.
    """
    state, net = model.state_dict(), model.backbone.net
    encoder = {n.removeprefix(BACKBONE): v for n, v in state.items() if n.startswith(BACKBONE)}
    number = len(state[f"{HEAD}class_head.bias"]) - 1
    if len(class_names) != number:
        raise ConfigError(f"{len(class_names)} class names for a model of {number} classes")
    upscaling = {name for name in state if name.startswith(f"{HEAD}upscale.") and "conv2" in name}
    labels = {str(i): name for i, name in enumerate(class_names)}
    common = {
        "hidden_size": model.backbone.embed_dim,
        "num_hidden_layers": model.backbone.depth,
        "num_attention_heads": net.blocks[0].attn.num_heads,
        "num_register_tokens": model.backbone.num_prefix_tokens - 1,
        "patch_size": model.backbone.patch_size,
        "layer_norm_eps": net.norm.eps,
        "hidden_act": "gelu",
        "num_blocks": model.sem_seg_head.num_blocks,
        "num_queries": len(state[f"{HEAD}q.weight"]),
        "num_upscale_blocks": len(upscaling),
        "no_object_weight": float(model.criterion.empty_weight[-1]),
        "id2label": labels,
        "label2id": {name: int(i) for i, name in labels.items()},
        "dtype": "float32",
    }
    if is_dinov3(encoder):
        return _dinov3(encoder, net, image_size) | common
    return _dinov2(encoder, net, image_size) | common


def image_processor_config(
    *, size: int, pixel_mean: Sequence[float], pixel_std: Sequence[float], windows: bool
) -> dict[str, Any]:
    """The content of preprocessor_config.json.

    Args:
        size: side of the square images, pixels.
        pixel_mean, pixel_std: of red, green and blue, 0 to 1.
        windows: the shortest side becomes `size` and the image is cut into windows, for semantic
            segmentation; else the longest side does, and black is added.
    """
    return {
        "image_processor_type": "EomtImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": size, "longest_edge": None if windows else size},
        "resample": 2,  # bilinear
        "do_split_image": windows,
        "do_pad": not windows,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(pixel_mean),
        "image_std": list(pixel_std),
    }


def _dinov2(encoder: Mapping[str, Tensor], net: nn.Module, image_size: int) -> dict[str, Any]:
    stored = net.patch_embed.img_size[0]
    if image_size not in (0, stored):
        raise ConfigError(
            f"the image size is {image_size}, but the position embedding is stored for {stored}; "
            f"set MODEL.VIT.IMAGE_SIZE {image_size}, and it is resampled when weights are loaded"
        )
    width = encoder["cls_token"].shape[-1]
    first, second = (encoder[f"blocks.0.mlp.{layer}.weight"] for layer in ("fc1", "fc2"))
    gated = first.shape[0] == 2 * second.shape[1]
    # Their hidden width is a multiple of D; of a gated MLP two thirds of that, rounded up to 8.
    ratio = round(second.shape[1] * (1.5 if gated else 1.0) / width)
    theirs = (int(ratio * width * 2 / 3) + 7) // 8 * 8 if gated else ratio * width
    if theirs != second.shape[1]:
        raise ConfigError(
            f"the ViT's MLP has {second.shape[1]} hidden channels, which transformers' EoMT cannot "
            f"have at a width of {width}"
        )
    return {
        "architectures": ["EomtForUniversalSegmentation"],
        "model_type": "eomt",
        "image_size": stored,
        "mlp_ratio": ratio,
        "use_swiglu_ffn": gated,
    }


def _dinov3(encoder: Mapping[str, Tensor], net: nn.Module, image_size: int) -> dict[str, Any]:
    if "blocks.0.mlp.fc1_g.weight" in encoder:
        # Their `hidden_act` is that of the MLP and of the heads in one.
        raise ConfigError(
            "the ViT has gated MLPs with SiLU, but in transformers' EoMT-DINOv3 the heads, which "
            "have GELU, would then have SiLU, too; it has no such model"
        )
    return {
        "architectures": ["EomtDinov3ForUniversalSegmentation"],
        "model_type": "eomt_dinov3",
        "image_size": image_size or net.patch_embed.img_size[0],
        "intermediate_size": encoder["blocks.0.mlp.fc1.weight"].shape[0],
        "rope_parameters": {"rope_type": "default", "rope_theta": net.rope.temperature},
        "pos_embed_rescale": net.rope.rescale_coords,
    }


def _in_rgb(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of a model on BGR images, for RGB ones."""
    return {**state_dict, _PATCHES: state_dict[_PATCHES].flip(1)}


def _pixels(values: Tensor, *, flip: bool) -> list[float]:
    """Grey levels -> values of 0 to 1, red first."""
    ordered = values.flatten().flip(0) if flip else values.flatten()
    return (ordered.to(torch.float64) / 255).cpu().tolist()
