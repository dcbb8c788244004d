"""PanopticExtEoMT: training, its three outputs, batches and options."""

from __future__ import annotations

import math

import pytest
import torch

from tests.tiny.eomt import DINOV2, DINOV3, build
from tests.tiny.mask_former import THINGS, mapped, predict, train
from tests.tiny.model_inputs import IS_THING

pytest.importorskip("timm", reason="EoMT's ViT is a timm model")

PLAIN = "vit_tiny_patch16_224"  # one class token, with a position


@pytest.fixture(scope="module", params=[DINOV2, DINOV3, PLAIN])
def model(request):
    return build(**{"MODEL.VIT.NAME": request.param})


def test_gradient_reaches_every_parameter(model):
    losses = train(model, [mapped(), mapped(seed=1)])
    kinds = ["loss_ce", "loss_dice", "loss_mask"]
    assert sorted(losses) == sorted(k + s for k in kinds for s in ("", "_0", "_1", "_2"))
    assert [n for n, p in model.named_parameters() if p.grad is None] == []


def test_outputs_are_unified_and_at_the_asked_size(model):
    output = predict(model, [{**mapped((50, 70)), "height": 61, "width": 83}])[0]
    panoptic, segments = output["panoptic_seg"]
    assert panoptic.shape == (61, 83) and panoptic.dtype == torch.int32
    assert output["sem_seg"].shape == (len(IS_THING), 61, 83)
    assert output["instances"].image_size == (61, 83)
    assert len(output["instances"]) > 0
    assert set(output["instances"].pred_classes.tolist()) <= set(THINGS)
    assert all(s["isthing"] == IS_THING[s["category_id"]] for s in segments)


def test_one_image_gives_the_same_as_in_a_batch(model):
    inputs = [mapped(), mapped(seed=1)]
    both, alone = predict(model, inputs)[1], predict(model, inputs[1:])[0]
    torch.testing.assert_close(both["sem_seg"], alone["sem_seg"], rtol=1e-4, atol=1e-4)
    assert torch.equal(both["panoptic_seg"][0], alone["panoptic_seg"][0])


@pytest.mark.parametrize("nums", [(0,), (0, 2), (20, 1)])
def test_no_object_and_more_objects_than_queries_train(model, nums):
    inputs = [mapped(num=num, size=(32, 400), seed=i) for i, num in enumerate(nums)]
    losses = train(model, inputs)
    assert all(math.isfinite(loss) for loss in losses.values())
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


def test_prefixes_of_the_state_dict(model):
    names = [n for n in model.state_dict() if not n.startswith("backbone.net.")]
    assert {n.rsplit(".", 1)[0] for n in names} == {
        "criterion",
        "sem_seg_head.q",
        "sem_seg_head.class_head",
        *(f"sem_seg_head.mask_head.{i}" for i in (0, 2, 4)),
        *(f"sem_seg_head.upscale.{j}.{p}" for j in (0, 1) for p in ("conv1", "conv2", "norm")),
    }
