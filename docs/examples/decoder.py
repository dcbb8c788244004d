"""A transformer decoder: each query looks once at the coarsest features."""

from detectron2.config import configurable
from torch import nn

from panoptic_ext.modeling.transformer_decoder import (
    TRANSFORMER_DECODER_REGISTRY,
    DecoderOutputs,
    QueryMasks,
    TransformerDecoder,
)


@TRANSFORMER_DECODER_REGISTRY.register()
class OneLookDecoder(TransformerDecoder):
    @configurable
    def __init__(self, *, in_channels, num_classes, num_queries, num_heads, mask_dim):
        super().__init__()
        self.queries = nn.Embedding(num_queries, in_channels)
        self.attention = nn.MultiheadAttention(in_channels, num_heads, batch_first=True)
        self.norm = nn.LayerNorm(in_channels)
        self.classes = nn.Linear(in_channels, num_classes + 1)  # the last one is "no object"
        self.masks = nn.Linear(in_channels, mask_dim)

    @classmethod
    def from_config(cls, cfg, in_channels):
        return {
            "in_channels": in_channels,
            "num_classes": cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES,
            "num_queries": cfg.MODEL.MASK_FORMER.NUM_OBJECT_QUERIES,
            "num_heads": cfg.MODEL.MASK_FORMER.NHEADS,
            "mask_dim": cfg.MODEL.SEM_SEG_HEAD.MASK_DIM,
        }

    def forward(self, multi_scale_features, mask_features, *, aux):
        pixels = multi_scale_features[0].flatten(2).transpose(1, 2)  # (B, h * w, in_channels)
        queries = self.queries.weight.expand(len(pixels), -1, -1)  # (B, Q, in_channels)
        queries = self.norm(queries + self.attention(queries, pixels, pixels)[0])
        masks = QueryMasks(self.masks(queries), mask_features)
        return DecoderOutputs(self.classes(queries), masks)
