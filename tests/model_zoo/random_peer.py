"""Random weights for transformers' Mask2Former under which its outputs are worth comparing."""

from __future__ import annotations

import torch
from torch import nn

__all__ = ["randomise"]


@torch.no_grad()
def randomise(model: nn.Module) -> None:
    """No tensor at its initial 0 or 1; queries that differ; sharp classes and masks.

    As initialised, a post-norm decoder makes all queries alike, and batch norms end the signal.
    """
    for module in model.modules():
        if isinstance(module, (nn.BatchNorm2d, nn.GroupNorm, nn.LayerNorm)):
            module.weight.uniform_(0.5, 1.2)
            module.bias.normal_(0, 0.1)
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.7, 1.5)
        if isinstance(module, nn.Linear) and module.bias is not None:
            module.bias.add_(0.05 * torch.randn_like(module.bias))
    for name, weight in model.named_parameters():
        if name.endswith(("sampling_offsets.weight", "attention_weights.weight")):
            weight.normal_(0, 0.1)
        if "transformer_module" in name and name.endswith(("out_proj.weight", "fc2.weight")):
            weight.mul_(0.2)
        if ".queries_" in name:  # of size 0.02 as older transformers draw them, 1 in newer ones
            weight.normal_(0, 1)
        if name.endswith("mask_embedder.2.0.weight"):
            weight.mul_(10)
    model.class_predictor.weight.normal_(0, 0.3)
