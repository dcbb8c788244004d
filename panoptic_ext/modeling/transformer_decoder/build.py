"""The registry of transformer decoders and how a config names one of them."""

from __future__ import annotations

from typing import Any

from detectron2.utils.registry import Registry
from torch import nn

from panoptic_ext.errors import look_up

__all__ = ["TRANSFORMER_DECODER_REGISTRY", "build_transformer_decoder"]

TRANSFORMER_DECODER_REGISTRY = Registry("PANOPTIC_EXT_TRANSFORMER_DECODER")
TRANSFORMER_DECODER_REGISTRY.__doc__ = """
Classes called as `decoder(cfg, in_channels)`, whose `forward(multi_scale_features, mask_features,
*, aux)` returns "pred_logits", "pred_masks" and "aux_outputs". One whose `forward` has the keyword
`dense` is called in training with `dense=False` and returns "mask_embed" (B, Q, mask_dim) instead
of "pred_masks": the loss then computes what it needs of the masks. It may also return
"mask_features", where masks are a product with others than it was given; "place_logits"
(B, 1, h, w) and "place_boxes" (B, 4, h, w), which ask for the loss of object centres
(`losses.centre_loss`, `losses.box_loss`); "places" (B, Q, 2), which keeps each query to the targets
that it lies in (`matcher.out_of_place`); and "semantic_logits" (B, K, h, w), which stuff and
semantic segmentation come from: its queries then learn things alone. A class that gives these says
so by `gives_semantic_logits = True`.
"""


def build_transformer_decoder(cfg: Any, in_channels: int) -> nn.Module:
    """Build the decoder that MODEL.MASK_FORMER.TRANSFORMER_DECODER_NAME names.

    Args:
        cfg: a config with the keys of `add_panoptic_ext_config`.
        in_channels: channels of each of the multi-scale features.

    Raises:
        ConfigError: unknown name.
    """
    name = cfg.MODEL.MASK_FORMER.TRANSFORMER_DECODER_NAME
    key = "MODEL.MASK_FORMER.TRANSFORMER_DECODER_NAME"
    return look_up(TRANSFORMER_DECODER_REGISTRY, key, name)(cfg, in_channels)
