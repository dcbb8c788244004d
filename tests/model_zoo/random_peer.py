"""Random weights for transformers' Mask2Former under which its outputs are worth comparing."""

from __future__ import annotations

import math
import re
import zlib

import torch
from torch import Tensor, nn

from panoptic_ext.model_zoo.transformers_weights import our_name

__all__ = ["randomise"]


@torch.no_grad()
def randomise(model: nn.Module) -> None:
    """Draw every tensor anew, from its name here and its shape alone, in place.

    So the weights are the same whatever a version of transformers calls its tensors, in which order
    it has them and how it starts them. No tensor is at 0 or 1; queries differ; classes and masks
    are sharp. As initialised, a post-norm decoder makes all queries alike, and batch norms end the
    signal.
    """
    for name, tensor in model.state_dict().items():
        target = our_name(name)
        if target is None or target[0] == "criterion.empty_weight":
            continue
        generator = torch.Generator().manual_seed(zlib.crc32(repr(target).encode()))
        tensor.copy_(_draw(target[0], tensor.shape, generator))


def _draw(name: str, shape: torch.Size, generator: torch.Generator) -> Tensor:
    if name.endswith("running_var"):
        return torch.empty(shape).uniform_(0.7, 1.5, generator=generator)
    if len(shape) == 1 and name.endswith("weight"):  # of a norm
        return torch.empty(shape).uniform_(0.5, 1.2, generator=generator)
    values = torch.randn(shape, generator=generator)
    if len(shape) == 1:
        return 0.03 * values
    for part, scale in _NO_PRODUCT.items():
        if part in name:
            return scale * values
    if re.search(r"mask_features|mask_embed|class_embed", name):
        # Rows of sum 0: what ReLU leaves above 0 everywhere would drown what differs.
        values -= values.mean(tuple(range(1, len(shape))), keepdim=True)
    gain = next((g for ending, g in _GAIN.items() if re.search(ending, name)), math.sqrt(2))
    return gain / math.sqrt(math.prod(shape[1:])) * values


_NO_PRODUCT = {"query_": 1.0, "level_embed": 0.3, "position_bias_table": 0.5}
_GAIN = {
    r"sampling_offsets": 0.5,  # pixels
    r"in_proj_weight": 0.5,  # soft attention: a pixel that rounding masks otherwise shows little
    r"predictor.*(out_proj|linear2)\.weight": 0.2,  # or attention makes all queries alike
    r"mask_embed\.layers\.2": 3.0,
    r"class_embed": 4.0,
}
