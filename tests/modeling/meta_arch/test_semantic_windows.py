"""Semantic scores from windows: naive sums, one window against the plain model, every model."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from detectron2.config import get_cfg
from detectron2.modeling import build_model
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from panoptic_ext.errors import ConfigError
from panoptic_ext.modeling.meta_arch.semantic_windows import SemanticWindows, in_windows
from tests.tiny.mask_former import build, predict

SEMANTIC = {
    f"MODEL.MASK_FORMER.TEST.{name}_ON": name == "SEMANTIC"
    for name in ("PANOPTIC", "SEMANTIC", "INSTANCE")
}


class Blur(nn.Module):
    """Scores of three classes that depend on the whole of an image."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[int] = []

    def forward(self, inputs):
        self.batches.append(len(inputs))
        return [self.one(x["image"].float(), (x["height"], x["width"])) for x in inputs]

    def one(self, image, size):
        scores = image - image.mean((1, 2), keepdim=True)
        return {"sem_seg": F.interpolate(scores[None], size, mode="bilinear")[0]}


def picture(height, width, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (3, height, width), generator=generator, dtype=torch.uint8)


def naive(model, image, side, size):
    """EoMT's rule, written out for an image whose shorter side is `side`."""
    longer = max(image.shape[1:])
    count = math.ceil(longer / side)
    overlap = (count * side - longer) / (count - 1) if count > 1 else 0
    total, counts = torch.zeros(3, *image.shape[1:]), torch.zeros(image.shape[1:])
    for j in range(count):
        start = int(j * (side - overlap))
        if image.shape[1] > image.shape[2]:
            where = (slice(start, start + side), slice(None))
        else:
            where = (slice(None), slice(start, start + side))
        window = image[:, where[0], where[1]]
        total[:, where[0], where[1]] += model.one(window.float(), window.shape[1:])["sem_seg"]
        counts[where] += 1
    return F.interpolate((total / counts)[None], size, mode="bilinear")[0]


@given(st.integers(0, 40), st.booleans(), st.integers(1, 30), st.integers(1, 30))
def test_equals_the_naive_sum(more, is_tall, height, width) -> None:
    image = picture(8 + more, 8) if is_tall else picture(8, 8 + more)
    given_input = {"image": image, "height": height, "width": width}
    found = SemanticWindows(Blur(), 8)([given_input])[0]["sem_seg"]
    torch.testing.assert_close(found, naive(Blur(), image, 8, (height, width)))


@given(st.integers(1, 20), st.integers(1, 20))
def test_an_image_that_fits_is_seen_whole(height, width) -> None:
    image = picture(height, width)
    found = SemanticWindows(Blur(), 20)([{"image": image}])[0]["sem_seg"]
    assert torch.equal(found, Blur().one(image.float(), (height, width))["sem_seg"])


def test_an_image_larger_on_both_sides_has_a_grid_of_windows() -> None:
    model = Blur()
    output = SemanticWindows(model, 8, windows_at_once=4)([{"image": picture(20, 17)}])[0]
    assert output["sem_seg"].shape == (3, 20, 17) and torch.isfinite(output["sem_seg"]).all()
    assert model.batches == [4, 4, 1]


def test_windows_of_several_images_share_batches() -> None:
    model = Blur()
    inputs = [{"image": picture(8, 20, seed)} for seed in range(3)]
    together = SemanticWindows(model, 8, windows_at_once=4)(inputs)
    assert model.batches == [4, 4, 1]
    for one, given_input in zip(together, inputs, strict=True):
        alone = SemanticWindows(Blur(), 8)([given_input])[0]["sem_seg"]
        assert torch.equal(one["sem_seg"], alone)


def test_without_windows_the_model_stays_as_it_is() -> None:
    model = Blur()
    assert in_windows(model, 0) is model
    windowed = in_windows(model.eval(), 8)
    assert isinstance(windowed, SemanticWindows) and windowed.model is model
    assert not windowed.training


def test_mask2former_in_one_window_and_in_several() -> None:
    model = build("Base-Semantic", **SEMANTIC)
    square = {"image": picture(64, 64), "height": 64, "width": 64}
    plain = predict(model, [square])[0]["sem_seg"]
    assert torch.equal(SemanticWindows(model, 64)([square])[0]["sem_seg"], plain)
    wide = {"image": picture(64, 100), "height": 50, "width": 70}
    found = SemanticWindows(model, 64)([wide])[0]["sem_seg"]
    left, right = (wide["image"][:, :, start : start + 64] for start in (0, 36))
    windows = predict(model, [{"image": left}, {"image": right}])
    total = torch.zeros(len(plain), 64, 100)
    total[:, :, :64] += windows[0]["sem_seg"]
    total[:, :, 36:] += windows[1]["sem_seg"]
    total[:, :, 36:64] /= 2
    expected = F.interpolate(total[None], (50, 70), mode="bilinear")[0]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_detectron2s_semantic_segmentor() -> None:
    cfg = get_cfg()
    cfg.merge_from_list(["MODEL.META_ARCHITECTURE", "SemanticSegmentor", "MODEL.DEVICE", "cpu"])
    cfg.merge_from_list(["MODEL.BACKBONE.NAME", "build_resnet_fpn_backbone"])
    cfg.merge_from_list(["MODEL.RESNETS.OUT_FEATURES", ["res2", "res3", "res4", "res5"]])
    cfg.merge_from_list(["MODEL.FPN.IN_FEATURES", ["res2", "res3", "res4", "res5"]])
    cfg.merge_from_list(["MODEL.FPN.OUT_CHANNELS", 32, "MODEL.SEM_SEG_HEAD.CONVS_DIM", 32])
    cfg.merge_from_list(["MODEL.RESNETS.DEPTH", 18, "MODEL.RESNETS.RES2_OUT_CHANNELS", 64])
    cfg.merge_from_list(["MODEL.SEM_SEG_HEAD.NUM_CLASSES", 3])
    torch.manual_seed(0)
    model = build_model(cfg).eval()
    square = {"image": picture(64, 64), "height": 64, "width": 64}
    plain = predict(model, [square])[0]["sem_seg"]
    assert torch.equal(SemanticWindows(model, 64)([square])[0]["sem_seg"], plain)
    wide = {"image": picture(64, 150), "height": 60, "width": 140}
    assert SemanticWindows(model, 64)([wide])[0]["sem_seg"].shape == (3, 60, 140)


def test_a_model_with_segments_is_refused() -> None:
    text = "sem_seg alone.*PanopticExtMaskFormer gives instances, panoptic_seg, sem_seg; set SEMA"
    with pytest.raises(ConfigError, match=text):
        SemanticWindows(build().eval(), 64)([{"image": picture(64, 64)}])
