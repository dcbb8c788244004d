"""What MODEL.BACKBONE.FREEZE, FREEZE_NORMS and MODEL.FREEZE leave untouched by a training step."""

from __future__ import annotations

import copy
import logging

import pytest
import torch
from fvcore.nn.precise_bn import get_bn_modules
from torch import nn

from panoptic_ext.engine.build_model import build_model
from panoptic_ext.engine.freezing import freeze
from panoptic_ext.engine.optimizer import build_optimizer, solver_groups
from panoptic_ext.errors import ConfigError
from panoptic_ext.modeling.backbone.freezing import freeze_parameters, put_frozen_in_evaluation
from tests.tiny.mask_former import NAME, mapped, tiny_cfg
from tests.tiny.model_inputs import fake_metadata

TIMM = {
    "MODEL.BACKBONE.NAME": "build_timm_backbone",
    "MODEL.TIMM.NAME": "mobilenetv2_035",
    "MODEL.TIMM.NORM": "FrozenBN",
}
SWIN = {
    "MODEL.BACKBONE.NAME": "D2SwinTransformer",
    "MODEL.SWIN.EMBED_DIM": 8,
    "MODEL.SWIN.DEPTHS": [1, 2, 1, 1],
    "MODEL.SWIN.NUM_HEADS": [1, 1, 2, 2],
    "MODEL.SWIN.WINDOW_SIZE": 4,
}


@pytest.fixture(autouse=True)
def classes():
    fake_metadata(NAME)


def built(**keys):
    torch.manual_seed(0)
    cfg = tiny_cfg(**keys)
    return build_model(cfg), cfg


def frozen_names(model):
    return {name for name, p in model.named_parameters() if not p.requires_grad}


def changed(model, cfg):
    """Names in the state dict that two training steps change."""
    optimizer, before = build_optimizer(cfg, model), copy.deepcopy(model.state_dict())
    for _ in range(2):
        model.train()  # as the trainer before the first step and behind each evaluation
        optimizer.zero_grad()
        sum(model([mapped()]).values()).backward()
        optimizer.step()
    return {n for n, value in model.state_dict().items() if not torch.equal(value, before[n])}


@pytest.mark.parametrize(
    ("number", "stages"),
    [(1, ()), (3, ("res2", "res3")), ("all", ("res2", "res3", "res4", "res5"))],
)
def test_frozen_stages_keep_weights_and_statistics(number, stages):
    model, cfg = built(**{"MODEL.BACKBONE.FREEZE": number})
    frozen = tuple(f"backbone.{part}." for part in ("stem", *stages))
    assert frozen_names(model) == {n for n, _ in model.named_parameters() if n.startswith(frozen)}
    assert {n for n in model.state_dict() if not n.startswith(frozen)} > (
        found := changed(model, cfg)
    )
    assert any(n.startswith("backbone.res5") for n in found) == (number != "all")
    assert any(n.startswith("sem_seg_head.") for n in found)


def test_the_stages_of_a_timm_model_end_at_its_features():
    pytest.importorskip("timm", reason="timm is not installed")
    for number, blocks in ((1, (0,)), (4, (0, 1, 2, 3, 4))):
        model, _ = built(**TIMM, **{"MODEL.BACKBONE.FREEZE": number})
        parts = ("conv_stem.", *(f"blocks.{i}." for i in blocks))
        expected = tuple(f"backbone.net.{part}" for part in parts)
        names = {n for n, _ in model.named_parameters() if n.startswith(expected)}
        assert frozen_names(model) == names


def test_the_first_stage_of_hrnet_has_another_name_than_its_features():
    pytest.importorskip("timm", reason="timm is not installed")
    stem, stage = ("conv1.", "conv2."), ("layer1.",)
    for number, parts in ((1, stem), (2, stem + stage)):
        model, _ = built(
            **{**TIMM, "MODEL.TIMM.NAME": "hrnet_w18_small", "MODEL.BACKBONE.FREEZE": number}
        )
        names = {name.removeprefix("backbone.net.") for name in frozen_names(model)}
        assert {part for part in parts if any(n.startswith(part) for n in names)} == {*parts}
        assert all(name.startswith(parts) for name in names)


@pytest.mark.parametrize(
    ("number", "parts"),
    [
        (1, ("patch_embed.",)),
        (3, ("patch_embed.", "layers.0.", "layers.1.")),
        ("all", ("patch_embed.", "layers.", "norm")),
    ],
)
def test_the_stages_of_swin(number, parts):
    model, cfg = built(**SWIN, **{"MODEL.BACKBONE.FREEZE": number})
    frozen = tuple(f"backbone.{part}" for part in parts)
    assert frozen_names(model) == {n for n, _ in model.named_parameters() if n.startswith(frozen)}
    found = changed(model, cfg)
    assert not {n for n in found if n.startswith(frozen)}
    assert any(n.startswith("backbone.layers.3.") for n in found) == (number != "all")
    assert any(n.startswith("sem_seg_head.") for n in found)


def test_autograd_keeps_nothing_of_a_frozen_beginning():
    model, _ = built(**{"MODEL.BACKBONE.FREEZE": 2})
    features = model.train().backbone(model.preprocess_image([mapped()]).tensor)
    assert [features[f"res{i}"].requires_grad for i in (2, 3, 4, 5)] == [False, True, True, True]


def test_frozen_norms_keep_their_statistics_and_fold_to_the_same():
    model, cfg = built(**{"MODEL.BACKBONE.FREEZE_NORMS": True})
    assert {n.rsplit(".", 2)[-2] for n in frozen_names(model)} == {"norm"}
    found = changed(model, cfg)
    assert not {n for n in found if n.startswith("backbone.") and ".norm." in n}
    assert any(n.startswith("backbone.stem") for n in found)


def test_parts_by_name_and_the_line_that_says_so(caplog):
    with caplog.at_level(logging.INFO, "panoptic_ext.engine.freezing"):
        model, cfg = built(**{"MODEL.FREEZE": ["backbone", "sem_seg_head.pixel_decoder"]})
    parts = ("backbone.", "sem_seg_head.pixel_decoder.")
    assert frozen_names(model) == {n for n, _ in model.named_parameters() if n.startswith(parts)}
    (line,) = (r.getMessage() for r in caplog.records)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert "Frozen: backbone, sem_seg_head.pixel_decoder;" in line and f"{trained:,} of" in line
    assert not any(n.startswith(parts) for n in changed(model, cfg))


def test_what_the_model_froze_itself_is_said(caplog):
    """FREEZE 1 frees nothing of what Detectron2's FREEZE_AT 2 froze."""
    with caplog.at_level(logging.INFO, "panoptic_ext.engine.freezing"):
        model, _ = built(**{"MODEL.BACKBONE.FREEZE_AT": 2, "MODEL.BACKBONE.FREEZE": 1})
    own = [name for name in frozen_names(model) if name.startswith("backbone.res2.")]
    (line,) = (r.getMessage() for r in caplog.records)
    assert f"the stem of backbone, {len(own)} parameters as the model is built" in line


def test_a_copy_keeps_its_own_parts_in_evaluation_mode():
    model, _ = built(**{"MODEL.BACKBONE.FREEZE": "all"})
    twin = copy.deepcopy(model).train()
    twin([mapped()])
    assert not twin.backbone.training and twin.sem_seg_head.training
    model.train()
    assert model.backbone.training  # until its next pass
    model([mapped()])
    assert not model.backbone.training


def test_rates_of_layers_are_those_of_what_is_left():
    model, cfg = built(**{"MODEL.BACKBONE.FREEZE": 3, "SOLVER.LAYER_DECAY": 0.5})
    free, _ = built(**{"SOLVER.LAYER_DECAY": 0.5})
    rates = [
        {
            n: g["lr"]
            for g in solver_groups(cfg.SOLVER, m)
            for n, p in m.named_parameters()
            if any(p is q for q in g["params"])
        }
        for m in (model, free)
    ]
    assert set(rates[0]) == set(rates[1]) - frozen_names(model)
    assert rates[0].items() <= rates[1].items()


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"MODEL.FREEZE": ["sem_seg_head.pixel"]}, "did you mean 'sem_seg_head.pixel_decoder'"),
        ({"MODEL.BACKBONE.FREEZE": 7}, "has 4 stages; expected at most 5"),
    ],
)
def test_what_is_not_there_is_an_error(keys, words):
    with pytest.raises(ConfigError, match=words):
        built(**keys)


def test_a_backbone_without_stages():
    cfg = tiny_cfg(**{"MODEL.BACKBONE.FREEZE": 2})
    model = nn.Module()
    model.backbone = nn.Linear(2, 2)
    with pytest.raises(ConfigError, match="the stages of Linear are unknown"):
        freeze(model, cfg)


def test_frozen_norms_are_none_of_those_that_precise_bn_takes():
    model = nn.Sequential(nn.BatchNorm2d(2), nn.BatchNorm2d(2))
    freeze_parameters(model, {"0.weight", "0.bias"})
    model.train()
    assert get_bn_modules(model) == [*model]
    put_frozen_in_evaluation(model)
    assert get_bn_modules(model) == [model[1]]
