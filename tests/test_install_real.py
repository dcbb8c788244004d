"""The real thing: Detectron2's sources from PyPI, patched, installed aside and used."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import ROOT

pytestmark = pytest.mark.slow

TOOL = ROOT / "tools" / "install_detectron2.py"
NO_NETWORK = ("could not fetch",)

# Runs in a process whose PYTHONPATH has the new install in front.
USE = """
import sys, detectron2
assert detectron2.__file__.startswith(sys.argv[1]), detectron2.__file__

import glob, numpy as np, os, torch
from detectron2 import model_zoo
from detectron2.config import get_cfg
from detectron2.data import MetadataCatalog, transforms as T
from detectron2.evaluation import coco_evaluation, fast_eval_api
from detectron2.layers import DeformConv, ROIAlign, ROIAlignRotated, batched_nms
from detectron2.modeling import build_model
from detectron2.projects import deeplab, point_rend
from detectron2.utils.collect_env import collect_env_info
from detectron2.utils.visualizer import Visualizer

zoo = os.path.join(os.path.dirname(model_zoo.__file__), "configs")
assert len(glob.glob(zoo + "/**/*.yaml", recursive=True)) == 92
cfg = get_cfg()
cfg.merge_from_file(
    model_zoo.get_config_file("COCO-PanopticSegmentation/panoptic_fpn_R_50_3x.yaml")
)
cfg.MODEL.DEVICE = "cpu"
model = build_model(cfg).eval()
with torch.no_grad():
    out = model([{"image": torch.zeros(3, 64, 96), "height": 64, "width": 96}])[0]
assert out["panoptic_seg"][0].shape == (64, 96)

boxes = torch.tensor([[0.0, 0, 4, 4], [0, 0, 4, 4.1]])
assert len(batched_nms(boxes, torch.tensor([0.9, 0.8]), torch.zeros(2), 0.5)) == 1
rois = torch.tensor([[0, 0, 0, 4.0, 4]])
assert ROIAlign((2, 2), 1.0, 0)(torch.ones(1, 1, 8, 8), rois).eq(1).all()
DeformConv(2, 2, 3, padding=1)(torch.rand(1, 2, 4, 4), torch.zeros(1, 18, 4, 4))
try:
    ROIAlignRotated((2, 2), 1.0, 0)(torch.ones(1, 1, 8, 8), torch.zeros(1, 6))
except NotImplementedError as error:
    assert "compiled operator" in str(error)
else:
    raise AssertionError("an operator that is not there gave a result")
assert fast_eval_api.COCOeval_opt is coco_evaluation.COCOeval

image = np.zeros((40, 60, 3), np.uint8)
T.ExtentTransform((0, 0, 20, 20), (10, 10)).apply_image(image)
metadata = MetadataCatalog.get("real").set(thing_classes=["a"], stuff_classes=["sky"])
segments = [{"id": 1, "isthing": True, "category_id": 0, "score": 0.5}]
drawn = Visualizer(image, metadata).draw_panoptic_seg(torch.ones(40, 60).int(), segments)
assert drawn.get_image().shape == (40, 60, 3)
assert "not built" in collect_env_info()
print("used")
"""


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("detectron2")
    result = subprocess.run(
        [sys.executable, TOOL, "--force", "--target", folder],
        capture_output=True,
        text=True,
        check=False,
    )
    if result.returncode == 2 and any(sign in result.stderr for sign in NO_NETWORK):
        pytest.skip(f"the package index cannot be reached: {result.stderr.strip()}")
    assert result.returncode == 0, result.stderr
    return folder


def test_pip_records_it(target: Path) -> None:
    (record,) = target.glob("detectron2-*.dist-info/RECORD")
    files = record.read_text().splitlines()
    assert any(line.startswith("detectron2/_C.py,") for line in files)
    assert sum(line.split(",")[0].endswith(".yaml") for line in files) == 92
    for project in ("point_rend", "deeplab", "panoptic_deeplab"):
        assert any(line.startswith(f"detectron2/projects/{project}/") for line in files)


def test_it_works(target: Path, tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-c", USE, str(target)],
        env=os.environ | {"PYTHONPATH": str(target)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0 and result.stdout.endswith("used\n"), result.stderr
