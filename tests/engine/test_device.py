"""The device of a run: the CPU where there is no CUDA, and the GPU that MODEL.DEVICE numbers."""

import logging

import pytest
import torch
from detectron2.config import get_cfg

from panoptic_ext.engine.device import make_current
from tests.tiny.training import TinyTrainer, tiny_cfg


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


def test_a_trainer_runs_on_the_cpu_where_there_is_no_cuda(tmp_path, monkeypatch, caplog):
    """As `panoptic-ext train`, with the same line, for those who call it from Python."""
    logging.getLogger("panoptic_ext").propagate = True
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    cfg = tiny_cfg(tmp_path)
    cfg.MODEL.DEVICE = "cuda"  # the default
    cfg.SOLVER.AMP.ENABLED, cfg.SOLVER.AMP.DTYPE = True, "float16"
    cfg.freeze()
    trainer = TinyTrainer(cfg)
    assert (trainer.cfg.MODEL.DEVICE, cfg.MODEL.DEVICE) == ("cpu", "cuda")
    assert trainer.grad_scaler is None
    assert "CUDA is not available: running on the CPU instead, in full precision" in caplog.text
    caplog.clear()
    TinyTrainer(trainer.cfg)
    assert "CUDA" not in caplog.text
