"""PanopticExtEoMT: training, its three outputs, batches, options and mistakes in its keys.

`test_eomt_against_transformers` has the numbers.
"""

from __future__ import annotations

import logging
import math

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from torch.utils._python_dispatch import TorchDispatchMode

from panoptic_ext.errors import ConfigError
from panoptic_ext.modeling.eomt import head
from panoptic_ext.modeling.meta_arch.eomt import PanopticExtEoMT
from tests.tiny.eomt import DINOV2, DINOV3, build, tiny_cfg
from tests.tiny.mask_former import THINGS, mapped, predict, train
from tests.tiny.model_inputs import IS_THING

pytest.importorskip("timm", reason="EoMT's ViT is a timm model")

PLAIN = "vit_tiny_patch16_224"  # one class token, with a position
OFF = {"MODEL.EOMT.ANNEALING": "off"}
SQUARE = (64, 64)


@pytest.fixture(scope="module", params=[DINOV2, DINOV3, PLAIN])
def model(request):
    return build(**{"MODEL.VIT.NAME": request.param})


def test_the_published_name_builds_it():
    assert type(build_model(tiny_cfg())) is PanopticExtEoMT
    assert tiny_cfg().SOLVER.WEIGHT_DECAY_EMBED is None  # embeddings decay, as published


def test_gradient_reaches_every_parameter(model):
    losses = train(model, [mapped(), mapped(seed=1)])
    kinds = ["loss_ce", "loss_dice", "loss_mask"]
    assert sorted(losses) == sorted(k + s for k in kinds for s in ("", "_0", "_1", "_2"))
    assert [n for n, p in model.named_parameters() if p.grad is None] == []


def test_masks_follow_the_iteration(monkeypatch):
    """Also where a training is resumed: nothing but the iteration decides."""
    drawn = []
    original = head.attention_mask
    monkeypatch.setattr(
        head, "attention_mask", lambda *args: drawn.append(args[-1]) or original(*args)
    )
    model = build(**{"SOLVER.MAX_ITER": 600, "MODEL.EOMT.ANNEALING_FIRST": [0, 100]})
    model.train()
    half = 0.5**0.9
    expected = {0: [1, 1, 1], 50: [half, 1, 1], 100: [1, 1], 300: [half, 1], 450: [half], 500: []}
    for start, probabilities in expected.items():
        drawn.clear()
        with EventStorage(start):
            model([mapped()])
        assert drawn == pytest.approx(probabilities)


def test_a_loop_without_iterations_is_warned_of_once(caplog):
    model = build()
    model.train()
    for _ in range(2):
        model([mapped()])
    assert caplog.text.count("outside of Detectron2's EventStorage") == 1


class TokenSquares(TorchDispatchMode):
    """Counts results of size (..., T, T)."""

    def __init__(self, tokens):
        super().__init__()
        self.tokens, self.count = tokens, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        results = func(*args, **(kwargs or {}))
        for one in results if isinstance(results, (tuple, list)) else [results]:
            self.count += tuple(getattr(one, "shape", ())[-2:]) == (self.tokens, self.tokens)
        return results


def test_evaluation_has_nothing_of_tokens_by_tokens():
    model = build(**{"MODEL.EOMT.NUM_QUERIES": 100})
    tokens = 100 + 5 + 16
    with TokenSquares(tokens) as squares:
        predict(model, [mapped(SQUARE)])
    assert squares.count == 0
    with TokenSquares(tokens) as squares:
        train(model, [mapped(SQUARE)])
    assert squares.count > 0


@pytest.mark.parametrize("nums", [(0,), (0, 2), (20, 1)])
def test_no_object_and_more_objects_than_queries_train(model, nums):
    inputs = [mapped(num=num, size=(32, 400), seed=i) for i, num in enumerate(nums)]
    losses = train(model, inputs)
    assert all(math.isfinite(loss) for loss in losses.values())
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


def test_more_objects_than_queries_are_reported_once(caplog):
    model = build()
    for seed in range(2):
        train(model, [mapped(num=20, size=(32, 400), seed=seed)])
    warnings = [r.getMessage() for r in caplog.records if "objects but" in r.getMessage()]
    assert len(warnings) == 1
    assert "0.png has 20 objects but the model 8 queries" in warnings[0]
    assert "Raise MODEL.EOMT.NUM_QUERIES" in warnings[0]


def test_one_image_gives_the_same_as_in_a_batch(model):
    inputs = [mapped(), mapped(seed=1)]
    both, alone = predict(model, inputs)[1], predict(model, inputs[1:])[0]
    torch.testing.assert_close(both["sem_seg"], alone["sem_seg"], rtol=1e-4, atol=1e-4)
    assert torch.equal(both["panoptic_seg"][0], alone["panoptic_seg"][0])


@pytest.mark.parametrize("size", [(50, 70), (1, 1), (16, 33)])
def test_sizes_that_the_patch_does_not_divide(model, size):
    given = mapped(size, num=1)
    assert all(math.isfinite(loss) for loss in train(model, [given]).values())
    assert predict(model, [given])[0]["panoptic_seg"][0].shape == size


def test_outputs_are_unified_and_at_the_asked_size(model):
    output = predict(model, [{**mapped(), "height": 61, "width": 83}])[0]
    panoptic, segments = output["panoptic_seg"]
    assert panoptic.shape == (61, 83) and panoptic.dtype == torch.int32
    assert output["sem_seg"].shape == (len(IS_THING), 61, 83)
    assert output["instances"].image_size == (61, 83)
    assert len(output["instances"]) > 0
    assert set(output["instances"].pred_classes.tolist()) <= set(THINGS)
    assert all(s["isthing"] == IS_THING[s["category_id"]] for s in segments)


def test_an_instance_model_counts_its_things_alone():
    switches = {f"MODEL.MASK_FORMER.TEST.{name}_ON": False for name in ("PANOPTIC", "SEMANTIC")}
    model = build(
        **switches,
        **{"MODEL.MASK_FORMER.TASK": "instance", "MODEL.SEM_SEG_HEAD.NUM_CLASSES": len(THINGS)},
    )
    train(model, [mapped()])
    output = predict(model, [mapped()])[0]
    assert list(output) == ["instances"]
    assert set(output["instances"].pred_classes.tolist()) == set(THINGS)


def test_a_semantic_loss_on_the_upscaled_patches():
    model = build(**{"MODEL.MASK_FORMER.SEMANTIC_LOSS_WEIGHT": 2.0})
    assert math.isfinite(train(model, [mapped()])["loss_sem_seg"])
    assert all(p.grad is not None for p in model.parameters())


def test_without_deep_supervision_the_last_output_alone_is_trained():
    losses = train(build(**{"MODEL.MASK_FORMER.DEEP_SUPERVISION": False}), [mapped()])
    assert sorted(losses) == ["loss_ce", "loss_dice", "loss_mask"]


def test_gradient_checkpointing_changes_no_loss():
    losses = []
    for recompute in (False, True):
        one = build(**{"MODEL.VIT.GRADIENT_CHECKPOINTING": recompute})
        torch.manual_seed(1)
        losses.append(train(one, [mapped()]))
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_training_and_inference_in_bfloat16(model):
    expected = predict(model, [mapped()])[0]["sem_seg"]
    model.train()
    model.zero_grad()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = model([mapped(), mapped(seed=1)])
        found = predict(model, [mapped()])[0]["sem_seg"]
    sum(losses.values()).backward()
    assert all(loss.dtype == torch.float32 and loss.isfinite() for loss in losses.values())
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())
    torch.testing.assert_close(found, expected, rtol=0.2, atol=0.1)


@pytest.mark.slow
def test_compiled_blocks_give_the_same(monkeypatch):
    """Traced and differentiated as for real; writing and building C++ takes minutes on a CPU."""
    original = torch.nn.Module.compile
    monkeypatch.setattr(
        torch.nn.Module, "compile", lambda module: original(module, backend="aot_eager")
    )
    small = {"MODEL.VIT.DEPTH": 1, "MODEL.EOMT.NUM_BLOCKS": 1}
    plain, model = build(**small), build(**small, **{"MODEL.VIT.COMPILE": True})
    assert list(model.state_dict()) == list(plain.state_dict())
    expected, found = (predict(one, [mapped()])[0]["sem_seg"] for one in (plain, model))
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
    torch.manual_seed(0)
    losses = train(plain, [mapped()])
    torch.manual_seed(0)
    assert train(model, [mapped()]) == pytest.approx(losses, rel=1e-3)


def test_prefixes_of_the_state_dict(model):
    names = [n for n in model.state_dict() if not n.startswith("backbone.net.")]
    assert {n.rsplit(".", 1)[0] for n in names} == {
        "criterion",
        "sem_seg_head.q",
        "sem_seg_head.class_head",
        *(f"sem_seg_head.mask_head.{i}" for i in (0, 2, 4)),
        *(f"sem_seg_head.upscale.{j}.{p}" for j in (0, 1) for p in ("conv1", "conv2", "norm")),
    }


WRONG = [
    ({"MODEL.EOMT.NUM_BLOCKS": 5}, r"NUM_BLOCKS is 5, but .* has 4 blocks; expected 1 to 4"),
    ({"MODEL.EOMT.NUM_BLOCKS": 0}, r"NUM_BLOCKS is 0"),
    ({"MODEL.EOMT.NUM_QUERIES": 0}, r"NUM_QUERIES is 0, expected 1 or more"),
    ({"MODEL.EOMT.ANNEALING": "of"}, r"unknown MODEL.EOMT.ANNEALING 'of'; did you mean 'off'"),
    ({"MODEL.EOMT.ANNEALING_POWER": 0.0}, r"ANNEALING_POWER is 0.0, expected more than 0"),
    ({"MODEL.EOMT.ANNEALING_FIRST": [9, 2]}, r"ANNEALING_FIRST holds \[9, 2\], expected \[start"),
    ({"MODEL.EOMT.ANNEALING_FIRST": [3000]}, r"ANNEALING_FIRST holds \[3000\], expected \[start"),
    ({"MODEL.BACKBONE.NAME": "build_resnet_backbone"}, r"EoMT needs a plain ViT; set it to build_"),
]


@pytest.mark.parametrize(("changes", "message"), WRONG)
def test_wrong_keys_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        build(**changes)


PAIRS = [
    ([[0, 10]], r"ANNEALING has 1 pairs, but MODEL.EOMT.NUM_BLOCKS is 3; give \[start, end\] for"),
    ([[0, 10], [10, 20], [30, 20]], r"ANNEALING holds \[30, 20\], expected \[start, end\]"),
    ([[0, 10], [10, 20], 30], r"ANNEALING holds 30, expected \[start, end\]"),
    ([[0, 10], [10, 20], [20, 30.5]], r"ANNEALING holds \[20, 30.5\], expected \[start, end\]"),
]


@pytest.mark.parametrize(("pairs", "message"), PAIRS)
def test_wrong_pairs_are_refused(pairs, message):
    cfg = tiny_cfg()
    cfg.MODEL.EOMT.ANNEALING = pairs
    with pytest.raises(ConfigError, match=message):
        build_model(cfg)


def test_given_pairs_are_taken():
    cfg = tiny_cfg()
    cfg.MODEL.EOMT.ANNEALING = [[0, 10], [10, 20], [20, 30]]
    model = build_model(cfg)
    assert model.annealing.pairs == ((0, 10), (10, 20), (20, 30))


@pytest.mark.parametrize(
    ("changes", "warned"),
    [
        ({"SOLVER.MAX_ITER": 1}, True),
        ({"SOLVER.MAX_ITER": 1000, "MODEL.EOMT.ANNEALING_FIRST": [0, 3000]}, True),
        ({"SOLVER.MAX_ITER": 1, **OFF}, False),
        ({"SOLVER.MAX_ITER": 1, "MODEL.EOMT.MASKED_ATTENTION": False}, False),
        ({"SOLVER.MAX_ITER": 6}, False),
    ],
)
def test_a_training_without_room_for_annealing_is_warned_of(changes, warned, caplog):
    with caplog.at_level(logging.WARNING):
        build(**changes)
    assert ("leaves no room for MODEL.EOMT.ANNEALING" in caplog.text) is warned
