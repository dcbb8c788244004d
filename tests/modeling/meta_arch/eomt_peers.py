"""Tiny random EoMTs of transformers, and what they compute at each depth.

Shapes: B images, Q queries, K classes, T targets, h x w mask logits, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

from tests.tiny.eomt_published import import_transformers
from tests.tiny.model_inputs import IS_THING

__all__ = [
    "CLASSES",
    "FAMILIES",
    "SIDE",
    "build_peer",
    "fixed_points",
    "predictions_of",
    "randomise",
    "weighted_losses",
]

CLASSES, SIDE = len(IS_THING), 64
FAMILIES = ("dinov2", "dinov2_giant", "dinov3")
_SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "num_queries": 7,
    "num_blocks": 3,
    "image_size": SIDE,
    "patch_size": 16,
    "train_num_points": 48,
    "num_labels": CLASSES,
}


def build_peer(family: str, attention: str = "eager", **sizes: Any) -> nn.Module:
    """A random model in eval mode, whose attention masks are on (p = 1).

    Args:
        family: one of FAMILIES; the giant one has a SwiGLU, and needs a width that 3 divides.
        attention: of a DINOv2, "eager" or "sdpa".
        sizes: other values of the config.
    """
    transformers = import_transformers(family == "dinov3")
    torch.manual_seed(0)
    keys = {**_SIZES, **sizes}
    model: nn.Module
    if family == "dinov3":
        # transformers' default is 1e-6, DINOv3's own value is 1e-5. Positions are not rescaled at
        # random, because no two implementations draw the same number.
        keys = {"intermediate_size": 4 * keys["hidden_size"], "layer_norm_eps": 1e-5, **keys}
        config = transformers.EomtDinov3Config(pos_embed_rescale=None, **keys)
        model = transformers.EomtDinov3ForUniversalSegmentation(config)
    else:
        # In float64 torch's fused attention misreads the float32 masks of this model.
        config = transformers.EomtConfig(
            use_swiglu_ffn=family == "dinov2_giant", attn_implementation=attention, **keys
        )
        model = transformers.EomtForUniversalSegmentation(config)
    randomise(model)
    return model.eval()


@torch.no_grad()
def randomise(model: nn.Module) -> None:
    """Weights such that no tensor is at 0 or 1, queries differ and masks have both signs."""
    generator = torch.Generator().manual_seed(1)
    for name, tensor in model.named_parameters():
        values = torch.randn(tensor.shape, generator=generator)
        if tensor.dim() == 1:
            is_factor = name.endswith("weight") or "lambda" in name
            tensor.copy_(0.7 + 0.1 * values if is_factor else 0.1 * values)
        elif "token" in name or "query" in name or "position" in name:
            tensor.copy_(values)
        else:
            tensor.copy_(values * (1.2 / tensor[0].numel() ** 0.5))


@contextmanager
def recorded_predictions(model: nn.Module) -> Any:
    """Collect (masks, classes) of every depth of transformers' model in a list."""
    collected: list[tuple[Tensor, Tensor]] = []
    predict = model.predict

    def recording(tokens: Tensor) -> tuple[Tensor, Tensor]:
        collected.append(predict(tokens))
        return collected[-1]

    with mock.patch.object(model, "predict", recording):
        yield collected


def predictions_of(model: nn.Module, pixels: Tensor) -> list[tuple[Tensor, Tensor]]:
    """(B, Q, K + 1) class and (B, Q, h, w) mask logits of every depth, the last one last."""
    with recorded_predictions(model) as collected:
        model(pixel_values=pixels)
    return [(classes, masks) for masks, classes in collected]


def weighted_losses(
    model: nn.Module, pixels: Tensor, masks: list[Tensor], labels: list[Tensor]
) -> tuple[Tensor, list[dict[str, float]]]:
    """The total loss, and the weighted losses of every depth, the last one last.

    Args:
        masks: of each image (T, H, W).
        labels: of each image (T,).
    """
    by_depth: list[dict[str, float]] = []
    get_losses: Callable[..., dict[str, Tensor]] = model.get_loss_dict

    def recording(**arguments: Any) -> dict[str, Tensor]:
        losses = get_losses(**arguments)
        by_depth.append({name: loss.item() for name, loss in losses.items()})
        return losses

    with mock.patch.object(model, "get_loss_dict", recording):
        outputs = model(pixel_values=pixels, mask_labels=masks, class_labels=labels)
    return outputs.loss, by_depth


@contextmanager
def fixed_points() -> Any:
    """Every draw of random points (..., P, 2) gives the first P of one fixed sequence.

    So two implementations compare masks at the same points, whatever they draw first.
    """
    sequence = torch.rand(20000, 2, generator=torch.Generator().manual_seed(3))
    rand = torch.rand

    def fixed(*shape: Any, **keys: Any) -> Tensor:
        sizes = shape[0] if len(shape) == 1 and not isinstance(shape[0], int) else shape
        if len(sizes) < 2 or sizes[-1] != 2:
            return rand(*shape, **keys)
        return sequence[: sizes[-2]].expand(*sizes).clone()

    with mock.patch.object(torch, "rand", fixed):
        yield
