"""A backbone: non-overlapping patches, each stage half as fine as the one before."""

from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY
from detectron2.modeling.backbone import Backbone
from torch import nn

# Name of each feature map -> its channels and its stride in pixels.
FEATURES = {"res2": (16, 4), "res3": (32, 8), "res4": (64, 16), "res5": (128, 32)}


class PatchBackbone(Backbone):
    """(B, C, h, w) images -> FEATURES by name, (B, channels, h / stride, w / stride) each."""

    size_divisibility = 32  # images are padded to a multiple of this

    def __init__(self, in_channels: int) -> None:
        super().__init__()
        self.stages = nn.ModuleDict()
        last_channels, last_stride = in_channels, 1
        for name, (channels, stride) in FEATURES.items():
            size = stride // last_stride
            convolution = nn.Conv2d(last_channels, channels, size, stride=size)
            self.stages[name] = nn.Sequential(convolution, nn.GroupNorm(8, channels), nn.GELU())
            last_channels, last_stride = channels, stride

    def forward(self, x):
        features = {}
        for name, stage in self.stages.items():
            x = features[name] = stage(x)
        return features

    def output_shape(self):
        return {n: ShapeSpec(channels=c, stride=s) for n, (c, s) in FEATURES.items()}


@BACKBONE_REGISTRY.register()
def build_patch_backbone(cfg, input_shape):
    return PatchBackbone(input_shape.channels)
