"""Mask2Former with PlacedQueryTransformerDecoder: trains, predicts, and keeps twins apart."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from panoptic_ext.engine.checkpoint import Checkpointer
from panoptic_ext.errors import ConfigError
from panoptic_ext.modeling.query_masks import stuff_as_queries
from tests.fakes import IS_THING

from .tiny_mask_former import THINGS, build, mapped, predict, train

PLACED = {
    "MODEL.MASK_FORMER.TRANSFORMER_DECODER_NAME": "PlacedQueryTransformerDecoder",
    "MODEL.MASK_FORMER.NUM_OBJECT_QUERIES": 6,
    "MODEL.MASK_FORMER.SEMANTIC_LOSS_WEIGHT": 5.0,
}
TASKS = {
    "panoptic": {},
    "instance": {
        "INPUT.PANOPTIC_TARGETS": ("instances",),
        "MODEL.MASK_FORMER.TEST.INSTANCE_ON": True,
    },
}


@pytest.fixture(scope="module")
def model():
    return build(**PLACED)


@pytest.mark.parametrize("task", sorted(TASKS))
def test_every_task_trains_with_a_gradient_everywhere_and_predicts(task):
    model = build(**PLACED, **TASKS[task])
    losses = train(model, [mapped(), mapped((50, 70), seed=1)])
    assert all(map(math.isfinite, losses.values()))
    assert losses["loss_centre"] > 0 and len(losses) == 3 * 4 + 3
    assert [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None] == []
    result = predict(model, [mapped()])[0]
    assert result["panoptic_seg"][0].shape == (64, 96)


@pytest.mark.parametrize("nums", [(0,), (0, 2), (20, 1), (375,)])
def test_no_object_and_more_objects_than_queries_train(model, nums):
    losses = train(model, [mapped(num=num, seed=i) for i, num in enumerate(nums)])
    assert all(map(math.isfinite, losses.values()))


def test_one_pixel(model):
    assert all(map(math.isfinite, train(model, [mapped((1, 1), num=1), mapped()]).values()))
    assert predict(model, [mapped((1, 1), num=1)])[0]["panoptic_seg"][0].shape == (1, 1)


def test_training_in_bfloat16(model):
    with torch.autocast("cpu", torch.bfloat16):
        losses = train(model, [mapped()])
    exact = train(model, [mapped()])
    assert all(map(math.isfinite, losses.values()))
    assert losses["loss_centre"] == pytest.approx(exact["loss_centre"], rel=0.05)


def test_the_semantic_task_has_nothing_to_place_queries_on():
    with pytest.raises(ConfigError, match="Base-Semantic-Small"):
        build(**PLACED, **{"INPUT.PANOPTIC_TARGETS": ("sem_seg",)})


def test_more_things_than_places_are_told_once(caplog):
    model = build(**PLACED)
    crowd = mapped(num=12)
    crowd["segments"].gt_classes = torch.full((12,), THINGS[0])
    crowd["segments"].gt_isthing = torch.ones(12, dtype=torch.bool)
    for _ in range(2):
        train(model, [crowd])
    told = [r.getMessage() for r in caplog.records if "NUM_OBJECT_QUERIES" in r.getMessage()]
    assert len(told) == 1 and "12 objects but the model 6 queries: 6 of them" in told[0]


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 6), st.integers(1, 5), st.integers(1, 5), st.integers(0, 99))
def test_stuff_masks_are_on_where_the_semantic_map_says_so(classes, height, width, seed):
    generator = torch.Generator().manual_seed(seed)
    semantic = torch.randn(2, classes, height, width, generator=generator)
    stuff = torch.randperm(classes, generator=generator)[: (classes + 1) // 2]
    logits, masks = stuff_as_queries(semantic, stuff)
    assert logits.shape == (2, len(stuff), classes + 1) and masks.shape[:2] == logits.shape[:2]
    assert torch.equal(logits.softmax(-1).argmax(-1), stuff.expand(2, -1))
    assert logits.softmax(-1).max(-1).values.min() > 0.999
    for row, own in enumerate(stuff.tolist()):
        others = [i for i in range(classes) if i != own]
        if others:
            margin = semantic[:, own] - semantic[:, others].amax(1)
            torch.testing.assert_close(masks[:, row], margin)
            assert torch.equal(masks[:, row] > 0, semantic.argmax(1) == own)


def test_stuff_comes_from_the_semantic_map_and_things_from_queries(model):
    stuff = [i for i in range(len(IS_THING)) if i not in THINGS]
    learning = build(**PLACED)
    with torch.no_grad():
        last = learning.sem_seg_head.predictor.semantic_head[-1]
        last.weight.zero_()
        last.bias.copy_(torch.nn.functional.one_hot(torch.tensor(stuff[-1]), len(IS_THING)) * 9.0)
        learning.sem_seg_head.predictor.class_embed.bias[-1] = 50.0  # no query finds anything
    ids, segments = predict(learning, [mapped()])[0]["panoptic_seg"]
    assert [(s["category_id"], s["isthing"]) for s in segments] == [(stuff[-1], False)]
    assert bool((ids == segments[0]["id"]).all())


def test_stuff_without_its_loss_is_refused():
    with pytest.raises(ConfigError, match=r"SEMANTIC_LOSS_WEIGHT is 0.*above 0"):
        build(**{**PLACED, "MODEL.MASK_FORMER.SEMANTIC_LOSS_WEIGHT": 0.0})


def test_the_weight_of_the_centres_counts():
    key = "MODEL.MASK_FORMER.CENTRE_LOSS_WEIGHT"
    one, three = (train(build(**PLACED, **{key: w}), [mapped()])["loss_centre"] for w in (1.0, 3.0))
    assert three == pytest.approx(3 * one, rel=1e-5)
    with pytest.raises(ConfigError, match="CENTRE_LOSS_WEIGHT is -1"):
        build(**PLACED, **{key: -1.0})


def test_more_places_at_inference_load_the_same_weights(tmp_path):
    model = build(**PLACED)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter))
    Checkpointer(model, str(tmp_path)).save("model")
    more = build(**{**PLACED, "MODEL.MASK_FORMER.NUM_OBJECT_QUERIES": 40})
    report = Checkpointer(more).load(str(tmp_path / "model.pth"))
    assert report is not None
    for name, value in model.state_dict().items():
        assert torch.equal(value, more.state_dict()[name])
