"""Every model over a plain ViT with a feature pyramid: a step on shapes from its shipped config."""

import pytest
import torch
from detectron2.utils.events import EventStorage

from panoptic_ext.engine import Trainer
from panoptic_ext.engine.checkpoint.checkpointer import Checkpointer
from panoptic_ext.engine.run_config import load_cfg
from panoptic_ext.errors import ConfigError
from panoptic_ext.modeling.backbone.plain_vit import PlainViT

pytest.importorskip("timm", reason="the ViTs are timm's")

SMALL = {
    "MODEL.DEVICE": "cpu",
    "MODEL.VIT.EMBED_DIM": 32,
    "MODEL.VIT.DEPTH": 2,
    "MODEL.VIT.NUM_HEADS": 2,
    "MODEL.SIMPLE_FEATURE_PYRAMID.OUT_CHANNELS": 16,
    "DATALOADER.NUM_WORKERS": 0,
    "DATASETS.SHAPES.NUM_TRAIN": 2,
    "DATASETS.SHAPES.NUM_VAL": 1,
    "SOLVER.IMS_PER_BATCH": 2,
    "SOLVER.WARMUP_ITERS": 0,
    "SOLVER.LAYER_DECAY": 0.5,
}


def shapes_trainer(model, folder, **changes):
    values = {**SMALL, "OUTPUT_DIR": folder / "run", "DATASETS.SHAPES.CACHE": folder, **changes}
    opts = [str(text) for pair in values.items() for text in pair]
    return Trainer(load_cfg(f"shapes/{model}/{model}_vit_tiny_shapes.yaml", opts))


def step(trainer):
    """Names of the backbone's parameters that a step changes."""
    model = trainer.model
    before = {name: value.clone() for name, value in model.backbone.state_dict().items()}
    with EventStorage():
        losses = model(next(iter(trainer.data_loader)))
    sum(losses.values()).backward()
    trainer.optimizer.step()
    after = model.backbone.state_dict()
    return {name for name, value in after.items() if not value.equal(before[name])}


@pytest.mark.parametrize("model", ["mask2former", "panoptic_fpn", "efficientps"])
def test_a_step_changes_the_vit_and_every_level(model, tmp_path):
    trainer = shapes_trainer(model, tmp_path)
    changed = step(trainer)
    prefix = "bottom_up." if model == "efficientps" else ""
    for name in ("net.blocks.0.attn.qkv.weight", "net.pos_embed", "net.norm.weight"):
        assert f"{prefix}bottom_up.{name}" in changed
    for first in ("simfp_2.0", "simfp_3.0", "simfp_4.1", "simfp_5.1"):
        assert f"{prefix}{first}.weight" in changed
    rates = {
        name: group["lr"] / trainer.cfg.SOLVER.BASE_LR
        for group in trainer.optimizer.param_groups
        for name, parameter in trainer.model.backbone.named_parameters()
        if any(parameter is other for other in group["params"])
    }
    assert rates[f"{prefix}bottom_up.net.pos_embed"] == pytest.approx(0.5)
    assert rates[f"{prefix}bottom_up.net.blocks.1.mlp.fc1.weight"] == pytest.approx(1)
    assert rates[f"{prefix}simfp_2.0.weight"] == pytest.approx(1)


def test_a_frozen_vit_under_mask2former_stays(tmp_path):
    trainer = shapes_trainer("mask2former", tmp_path, **{"MODEL.VIT.FREEZE": True})
    changed = step(trainer)
    assert "simfp_2.0.weight" in changed
    assert not any(name.startswith("bottom_up.") for name in changed)


def test_an_encoder_of_other_patches_loads_below_the_pyramid(tmp_path):
    model = shapes_trainer("mask2former", tmp_path).model
    other = PlainViT("vit_tiny_patch16_224", embed_dim=32, depth=2, num_heads=2, img_size=80)
    torch.save(other.net.state_dict(), tmp_path / "vit.pth")
    Checkpointer(model).load(str(tmp_path / "vit.pth"))
    state = model.backbone.bottom_up.net.state_dict()
    assert state.keys() == other.net.state_dict().keys()
    assert state["blocks.1.mlp.fc2.weight"].equal(other.net.blocks[1].mlp.fc2.weight)
    assert state["norm.weight"].equal(other.net.norm.weight)
    positions = state["pos_embed"]
    assert positions.shape == (1, 257, 32)
    assert positions[:, :1].equal(other.net.pos_embed[:, :1])


@pytest.mark.parametrize(
    ("model", "key", "value", "message"),
    [
        (
            "mask2former",
            "MODEL.BACKBONE.NAME",
            "build_plain_vit_backbone",
            "'res2'.*known: last_feat; build_plain_vit_pyramid_backbone makes",
        ),
        (
            "panoptic_fpn",
            "MODEL.SIMPLE_FEATURE_PYRAMID.OUT_FEATURES",
            "['res2']",
            r"the feature 'p2'.*SIMPLE_FEATURE_PYRAMID.OUT_FEATURES = \['res2'\]",
        ),
    ],
)
def test_levels_that_a_head_lacks_are_one_error(model, key, value, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        shapes_trainer(model, tmp_path, **{key: value})
