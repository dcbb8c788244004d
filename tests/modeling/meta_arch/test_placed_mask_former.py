"""Mask2Former with PlacedQueryTransformerDecoder: trains, predicts, and keeps twins apart."""

from __future__ import annotations

import math

import pytest
import torch

from panoptic_ext.engine.checkpoint.checkpointer import Checkpointer
from panoptic_ext.errors import ConfigError
from panoptic_ext.modeling.mask_classification import criterion as criterion_module
from panoptic_ext.modeling.mask_classification.losses import semantic_loss
from tests.fusion.naive_extents import check_extents
from tests.tiny.mask_former import THINGS, build, mapped, predict, train
from tests.tiny.model_inputs import IS_THING

PLACED = {
    "MODEL.MASK_FORMER.TRANSFORMER_DECODER_NAME": "PlacedQueryTransformerDecoder",
    "MODEL.MASK_FORMER.NUM_OBJECT_QUERIES": 6,
    "MODEL.MASK_FORMER.SEMANTIC_LOSS_WEIGHT": 5.0,
    "MODEL.MASK_FORMER.TEST.STUFF_AREA_THRESHOLD": 0,
}
STUFF = [i for i in range(len(IS_THING)) if i not in THINGS]
TASKS = {
    "fused": {"MODEL.MASK_FORMER.TEST.HADAMARD_FUSION": True},
    "panoptic": {},
    "instance": {
        "MODEL.MASK_FORMER.TASK": "instance",
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
        build(**PLACED, **{"MODEL.MASK_FORMER.TASK": "semantic"})


def test_more_things_than_places_are_logged_once(caplog):
    model = build(**PLACED)
    crowd = mapped(num=12)
    crowd["segments"].gt_classes = torch.full((12,), THINGS[0])
    crowd["segments"].gt_isthing = torch.ones(12, dtype=torch.bool)
    for _ in range(2):
        train(model, [crowd])
    told = [r.getMessage() for r in caplog.records if "NUM_OBJECT_QUERIES" in r.getMessage()]
    assert len(told) == 1 and "12 objects but the model 6 queries: 6 of them" in told[0]


def sees_only(model, label):
    """Make the semantic map of a model say one class everywhere, and no query find anything."""
    with torch.no_grad():
        last = model.sem_seg_head.predictor.semantic_head[-1]
        last.weight.zero_()
        last.bias.copy_(torch.nn.functional.one_hot(torch.tensor(label), len(IS_THING)) * 9.0)
        model.sem_seg_head.predictor.class_embed.weight.zero_()
        model.sem_seg_head.predictor.class_embed.bias.zero_()
        model.sem_seg_head.predictor.class_embed.bias[-1] = 50.0
    return model


def test_stuff_comes_from_the_semantic_map():
    model = sees_only(build(**PLACED), STUFF[-1])
    ids, segments = predict(model, [mapped()])[0]["panoptic_seg"]
    assert [(s["category_id"], s["isthing"], s["area"]) for s in segments] == [
        (STUFF[-1], False, 64 * 96)
    ]
    assert segments[0]["score"] > 0.99 and bool((ids == segments[0]["id"]).all())


def test_a_thing_in_the_semantic_map_alone_is_void():
    ids, segments = predict(sees_only(build(**PLACED), THINGS[0]), [mapped()])[0]["panoptic_seg"]
    assert segments == [] and not ids.any()


def test_things_come_from_queries_and_lie_on_stuff():
    model = sees_only(build(**PLACED), STUFF[0])
    with torch.no_grad():
        predictor = model.sem_seg_head.predictor
        predictor.class_embed.bias[-1] = 0.0
        predictor.class_embed.bias[THINGS[0]] = 50.0
        predictor.semantic_head[-1].bias.mul_(0.05)  # less sure than the windows of queries
    ids, segments = predict(model, [mapped()])[0]["panoptic_seg"]
    assert segments[0]["category_id"] == THINGS[0] and segments[-1]["category_id"] == STUFF[0]
    check_extents(ids, segments)
    assert sum(s["area"] for s in segments) == ids.numel()


def test_small_stuff_is_dropped():
    cfg = {**PLACED, "MODEL.MASK_FORMER.TEST.STUFF_AREA_THRESHOLD": 64 * 96 + 1}
    assert predict(sees_only(build(**cfg), STUFF[0]), [mapped()])[0]["panoptic_seg"][1] == []


def test_all_outputs_at_once_and_stuff_takes_no_place_of_an_instance():
    on = dict.fromkeys(("SEMANTIC_ON", "INSTANCE_ON", "PANOPTIC_ON"), True)
    keys = {f"MODEL.MASK_FORMER.TEST.{name}": value for name, value in on.items()}
    model = build(**PLACED, **keys, **{"TEST.DETECTIONS_PER_IMAGE": 2})
    with torch.no_grad():
        model.sem_seg_head.predictor.class_embed.bias[THINGS[0]] = 50.0
    result = predict(model, [mapped()])[0]
    assert result["instances"].pred_classes.tolist() == [THINGS[0]] * 2
    assert result["sem_seg"].shape == (len(IS_THING), 64, 96)
    torch.testing.assert_close(result["sem_seg"].sum(0), torch.ones(64, 96))


def test_queries_learn_things_and_the_semantic_map_every_class(model, monkeypatch):
    seen = {}
    image = mapped(num=len(IS_THING))
    image["segments"].gt_classes = torch.arange(len(IS_THING))
    image["segments"].gt_isthing = torch.tensor(IS_THING, dtype=torch.bool)

    def semantic(logits, labels, balance):
        seen["labels"] = labels.unique().tolist()
        return semantic_loss(logits, labels, balance)

    monkeypatch.setattr(criterion_module, "semantic_loss", semantic)
    model.criterion.matcher.register_forward_pre_hook(lambda _, args: seen.update(targets=args[1]))
    train(model, [image])
    assert [target.labels.tolist() for target in seen["targets"]] == [THINGS]
    assert seen["labels"] == [-1, *range(len(IS_THING))]


def test_the_map_of_an_instance_model_gives_neither_stuff_nor_scores():
    keys = {**TASKS["instance"], "MODEL.MASK_FORMER.TEST.SEMANTIC_ON": True}
    result = predict(sees_only(build(**PLACED, **keys), STUFF[0]), [mapped()])[0]
    assert result["panoptic_seg"][1] == []
    assert result["sem_seg"].max() < 1e-3


def test_no_query_is_refused():
    with pytest.raises(ConfigError, match="NUM_OBJECT_QUERIES is 0, expected 1 or more"):
        build(**{**PLACED, "MODEL.MASK_FORMER.NUM_OBJECT_QUERIES": 0})


def test_the_threshold_of_stuff_in_the_key_of_panoptic_fpn_is_refused():
    """As in configs from before there was MODEL.MASK_FORMER.TEST.STUFF_AREA_THRESHOLD."""
    old = {"MODEL.PANOPTIC_FPN.COMBINE.STUFF_AREA_LIMIT": 512}
    placed = {key: value for key, value in PLACED.items() if "STUFF_AREA" not in key}
    with pytest.raises(ConfigError, match=r"set MODEL.MASK_FORMER.TEST.STUFF_AREA_THRESHOLD 512"):
        build(**placed, **old, **{"MODEL.MASK_FORMER.TEST.STUFF_AREA_THRESHOLD": 4096})
    assert build(**PLACED, **old).segmentation.stuff_area_threshold == 0


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
