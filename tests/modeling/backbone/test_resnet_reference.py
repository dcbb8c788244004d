"""Detectron2's ResNet, in the reference's reduced size, gives the published features."""

import torch
from detectron2.config import get_cfg
from detectron2.modeling import build_backbone

from tests.mask2former_reference import needs_reference, reference_arrays
from tests.modeling.backbone.test_swin import PIXEL_MEAN, PIXEL_STD


@needs_reference
def test_equals_the_published_resnet():
    weights, expected = (reference_arrays(f"resnet_{kind}") for kind in ("weights", "activations"))
    cfg = get_cfg()
    cfg.MODEL.BACKBONE.NAME = "build_resnet_backbone"
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res2", "res3", "res4", "res5"]
    cfg.MODEL.RESNETS.STRIDE_IN_1X1 = False
    cfg.MODEL.RESNETS.STEM_OUT_CHANNELS = 8
    cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 16
    cfg.MODEL.RESNETS.WIDTH_PER_GROUP = 4
    resnet = build_backbone(cfg).eval()
    prefix = "backbone."
    state = {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}
    report = resnet.load_state_dict(state, strict=False)
    assert not report.unexpected_keys
    assert not [name for name in report.missing_keys if "num_batches_tracked" not in name]
    image = (expected["image"].permute(2, 0, 1).float() - PIXEL_MEAN) / PIXEL_STD
    padding = (0, -image.shape[2] % 32, 0, -image.shape[1] % 32)
    with torch.no_grad():
        found = resnet(torch.nn.functional.pad(image, padding)[None])
    assert list(found) == ["res2", "res3", "res4", "res5"]
    for name, ours in found.items():
        scale = expected[name].abs().max()
        assert (ours - expected[name]).abs().max() <= 1e-5 * scale, name
