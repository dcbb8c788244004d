"""docs/transformers.md: its YAML and its Python run, with a tiny network in place of the hub's."""

from __future__ import annotations

import re

import torch
import yaml

from panoptic_ext.engine import Checkpointer, load_cfg, save_run_info
from panoptic_ext.prediction.predictor import Predictor
from tests import ROOT
from tests.tiny.finished_run import picture
from tests.tiny.transformers_models import save_tiny
from tests.tiny.transformers_predictor import CLASSES, transformers

TEXT = (ROOT / "docs" / "transformers.md").read_text(encoding="utf-8")


def test_the_examples_run(tmp_path, monkeypatch):
    (content,) = re.findall(r"^```yaml\n(.*?)^```", TEXT, re.DOTALL | re.MULTILINE)
    first, code = re.findall(r"^```python\n(.*?)^```", TEXT, re.DOTALL | re.MULTILINE)
    values = yaml.safe_load(content)
    assert values["MODEL"]["TRANSFORMERS"]["NAME_OR_PATH"] == "facebook/detr-resnet-50-panoptic"
    values["_BASE_"] = str(ROOT / values["_BASE_"])
    values["MODEL"]["TRANSFORMERS"]["NAME_OR_PATH"] = save_tiny("detr", tmp_path / "net", CLASSES)
    values["MODEL"]["DEVICE"] = "cpu"
    (tmp_path / "detr.yaml").write_text(yaml.safe_dump(values))
    cfg = load_cfg(str(tmp_path / "detr.yaml"))
    run = tmp_path / "output" / "coco" / "transformers"
    run.mkdir(parents=True)
    Checkpointer(Predictor(cfg).model, str(run)).save("model_final")
    save_run_info(cfg, str(run))
    monkeypatch.chdir(tmp_path)
    picture().save("photo.jpg")
    for source in ("net", "detr.yaml"):
        assert "facebook/detr-resnet-50-panoptic" in first
        exec(first.replace("facebook/detr-resnet-50-panoptic", source), {})
        (tmp_path / "drawn.png").unlink()
    exec(compile(code, "docs/transformers.md", "exec"), {})
    pipeline = transformers.pipeline("image-segmentation", model="my-network")
    assert set(pipeline.model.config.id2label.values()) == set(CLASSES)
    assert isinstance(next(pipeline.model.parameters()), torch.Tensor)
