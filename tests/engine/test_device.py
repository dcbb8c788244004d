"""The GPU that MODEL.DEVICE numbers becomes the current one."""

import pytest
import torch
from detectron2.config import get_cfg

from panoptic_ext.engine.device import make_current


@pytest.mark.parametrize(
    ("device", "made"), [("cpu", []), ("cuda", []), ("cuda:1", [torch.device("cuda:1")])]
)
def test_a_numbered_gpu_becomes_the_current_one(device, made, monkeypatch):
    calls = []
    monkeypatch.setattr(torch.cuda, "set_device", calls.append)
    cfg = get_cfg()
    cfg.MODEL.DEVICE = device
    make_current(cfg)
    assert calls == made
