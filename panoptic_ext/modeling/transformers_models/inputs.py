"""Detectron2's input dicts -> what a network of transformers takes.

Shapes: B images, P parts of an image, H x W an image as it comes, h x w the network's input, N
targets.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from panoptic_ext.modeling.mask_classification.targets import IdMapTargets, build_mask_targets
from panoptic_ext.modeling.transformers_models.families import Family

__all__ = ["TestInput", "TrainBatch", "make_test_input", "make_train_batch"]


@dataclass(frozen=True)
class TestInput:
    """An image as its processor makes it.

    Attributes:
        pixels: (P, 3, h, w) float32. P is 1, or the number of windows of a semantic EoMT.
        size: height and width of the image in it, without padding; of the whole image for windows.
        offsets: [image, start, end] of each window; empty if the image is whole.
    """

    pixels: Tensor
    size: tuple[int, int]
    offsets: list[Any]


@dataclass(frozen=True)
class TrainBatch:
    """Images of a training step, padded to one size, and their targets.

    Attributes:
        pixels: (B, 3, h, w) float32.
        valid: (B, h, w) int64, 0 where an image is padded.
        masks: for each image (N, h, w) float32, 0 or 1.
        labels: for each image (N,) int64 label ids of the network.
    """

    pixels: Tensor
    valid: Tensor
    masks: list[Tensor]
    labels: list[Tensor]


def make_test_input(
    image: Tensor, processor: Any, family: Family, *, size: Sequence[int] = ()
) -> TestInput:
    """Resize, pad and normalise an image by its processor, as transformers' pipeline does.

    Args:
        image: (3, H, W) RGB, 0 to 255; rounded to whole grey levels.
        processor: the image processor.
        family: of the network.
        size: shorter and longer side, pixels; empty for the processor's.
    """
    grey = image if image.dtype == torch.uint8 else image.round().clamp(0, 255).to(torch.uint8)
    options: dict[str, Any] = {"return_tensors": "pt", "input_data_format": "channels_first"}
    if size:
        options["size"] = {"shortest_edge": size[0], "longest_edge": size[1]}
    if family.takes_task:
        options["task_inputs"] = ["panoptic"]  # of no effect on the image
    # On the CPU wherever the network is: resizing on a GPU rounds some pixels to another level.
    made = processor(images=[grey.cpu()], **options)
    pixels = made["pixel_values"]
    offsets = list(made.get("patch_offsets") or [])
    inner = (pixels.shape[-2], pixels.shape[-1])
    if family.is_square and processor.do_resize:
        inner = _resized(grey.shape[-2:], options.get("size") or dict(processor.size), processor)
    return TestInput(pixels, inner, offsets)


def make_train_batch(
    batched_inputs: Sequence[dict[str, Any]],
    processor: Any,
    family: Family,
    *,
    reverse_channels: bool,
    side: int,
    label_of_class: Tensor,
    device: torch.device,
) -> TrainBatch:
    """Normalise and pad augmented images, which are not resized, and make their targets.

    Args:
        batched_inputs: as `PanopticDatasetMapper` makes them for training.
        processor: its mean and deviation are taken.
        family: of the network.
        reverse_channels: whether images are BGR.
        side: of the input of a square network, pixels: a larger image is shrunk to it.
        label_of_class: (K,) int64 on the CPU, the label id of each class.
        device: of the batch.
    """
    if family.is_square:
        batched_inputs = [_within(inputs, side) for inputs in batched_inputs]
    images = [inputs["image"] for inputs in batched_inputs]
    if family.is_square:
        height = width = side
    else:
        height, width = (
            -(-max(image.shape[axis] for image in images) // family.divisor) * family.divisor
            for axis in (1, 2)
        )
    pixels, valid = [], []
    for image in images:
        rgb = (image.flip(0) if reverse_channels else image).to(device).float()
        pad = (0, width - image.shape[2], 0, height - image.shape[1])
        # A square network was trained with black around its images, the others with the mean.
        if family.is_square:
            pixels.append(_normalised(F.pad(rgb, pad), processor))
        else:
            pixels.append(F.pad(_normalised(rgb, processor), pad))
        valid.append(F.pad(torch.ones_like(rgb[0], dtype=torch.int64), pad))
    masks, labels = [], []
    for inputs in batched_inputs:
        targets = build_mask_targets(
            inputs,
            task="panoptic",
            padded_size=(height, width),
            device=device,
            class_index=label_of_class,
        )
        assert isinstance(targets, IdMapTargets)
        ids = torch.arange(1, len(targets) + 1, device=device)
        masks.append((targets.id_map == ids[:, None, None]).float())
        labels.append(targets.labels)
    return TrainBatch(torch.stack(pixels), torch.stack(valid), masks, labels)


def _normalised(image: Tensor, processor: Any) -> Tensor:
    if processor.do_rescale:
        image = image * processor.rescale_factor
    if processor.do_normalize:
        mean, deviation = (
            torch.tensor(values, device=image.device).view(-1, 1, 1)
            for values in (processor.image_mean, processor.image_std)
        )
        image = (image - mean) / deviation
    return image


def _within(inputs: dict[str, Any], side: int) -> dict[str, Any]:
    """The same input, shrunk until its longer side is at most `side` pixels."""
    height, width = inputs["image"].shape[-2:]
    factor = side / max(height, width)
    if factor >= 1:
        return inputs
    size = (max(1, round(height * factor)), max(1, round(width * factor)))
    image = F.interpolate(
        inputs["image"][None].float(), size, mode="bilinear", align_corners=False, antialias=True
    )
    shrunk = {**inputs, "image": image[0]}
    if "panoptic_ids" in inputs:
        ids = F.interpolate(inputs["panoptic_ids"][None, None].double(), size, mode="nearest-exact")
        shrunk["panoptic_ids"] = ids[0, 0].to(inputs["panoptic_ids"].dtype)
    return shrunk


def _resized(image_size: Sequence[int], size: dict[str, int], processor: Any) -> tuple[int, int]:
    """Size of an image after the processor's resizing, before it is padded."""
    from transformers import image_transforms

    # EoMT's processor has its own function in transformers 4, which rounds; that of 5 truncates.
    module = sys.modules[type(processor).__module__]
    resized = getattr(module, "get_size_with_aspect_ratio", None)
    height, width = (resized or image_transforms.get_size_with_aspect_ratio)(
        tuple(image_size), size["shortest_edge"], size.get("longest_edge")
    )
    return int(height), int(width)
