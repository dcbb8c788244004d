"""Learning rate and weight decay of every parameter, by name, beside the published rules."""

from __future__ import annotations

import re

import pytest
from detectron2.modeling import build_model
from torch import nn

from panoptic_ext.engine.optimizer import build_optimizer
from panoptic_ext.engine.run_config import load_cfg
from tests import ROOT

NORM = r"(norm|norm\d|decoder_norm|input_proj\.\d\.1)\.(weight|bias)"
EMBEDDING = r"predictor\.(query_feat|query_embed|level_embed)\.weight"
POSITION = r"relative_position_bias_table|absolute_pos_embed"
# Of the tensors that train: names as in the published checkpoints.
R50 = "coco/mask2former/mask2former_R50_bs16_50ep"
SWIN = "coco/mask2former/mask2former_swin_tiny_bs16_50ep"


def published(name: str) -> tuple[float, float]:
    """Learning rate and weight decay that the published training gives the tensor of that name."""
    lr = 1e-5 if name.startswith("backbone.") else 1e-4
    return lr, 0.0 if re.search(rf"(^|\.)({NORM}|{EMBEDDING}|{POSITION})$", name) else 0.05


def groups_by_name(config: str, *opts: str) -> dict[str, tuple[float, float]]:
    """Of a model whose weights are left as they come: only names and groups count."""
    cfg = load_cfg(str(ROOT / f"configs/{config}.yaml"), ["MODEL.DEVICE", "cpu", *opts])
    with pytest.MonkeyPatch.context() as patch:
        for name in ("normal_", "trunc_normal_", "xavier_uniform_", "kaiming_uniform_"):
            patch.setattr(nn.init, name, lambda tensor, *_, **__: tensor)
        model = build_model(cfg)
    names = {parameter: name for name, parameter in model.named_parameters()}
    return {
        names[parameter]: (group["lr"], group["weight_decay"])
        for group in build_optimizer(cfg, model).param_groups
        for parameter in group["params"]
    }


@pytest.mark.parametrize(
    ("config", "opts", "tensors", "without_decay"),
    [(R50, (), 345, 93), (SWIN, ("MODEL.SWIN.APE", "True"), 470, 170)],
)
def test_every_parameter_is_in_its_published_group(config, opts, tensors, without_decay):
    """The 12 bias tables of Swin-T were decayed."""
    found = groups_by_name(config, *opts)
    assert {name: pair for name, pair in found.items() if pair != published(name)} == {}
    assert len(found) == tensors
    assert sum(decay == 0 for _, decay in found.values()) == without_decay
