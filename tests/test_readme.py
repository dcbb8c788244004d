"""What the README says can be done: its YAML loads, its commands, files and links exist."""

from __future__ import annotations

import importlib
import inspect
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.engine import default_argument_parser
from PIL import Image

from panoptic_ext.commands import drawing_options
from panoptic_ext.data.datasets.metadata_file import save_metadata
from panoptic_ext.engine.run_config import load_cfg
from panoptic_ext.errors import DatasetError
from panoptic_ext.prediction import predictor
from panoptic_ext_cli import COMMANDS, module_of
from tests import ROOT
from tests.tiny.panoptic_dataset import TinyDataset

# Options that a command takes from elsewhere.
DRAWING = inspect.getsource(drawing_options)
DETECTRON2 = inspect.getsource(default_argument_parser)
README = (ROOT / "README.md").read_text(encoding="utf-8")
PYTHON = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


@pytest.fixture
def my_yaml(tmp_path, monkeypatch, clean_catalogs):
    """The README's my.yaml, beside configs/ and the data that it names."""
    block = re.search(r"```yaml\n(.*?)```", README, re.DOTALL).group(1)
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    (tmp_path / "my.yaml").write_text(block)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    data = TinyDataset(tmp_path / "street")
    for split in ("train", "val"):
        shutil.copy(data.json, data.root / f"panoptic_{split}.json")
    return load_cfg("my.yaml", ["MODEL.DEVICE", "cpu"])


def test_own_data_yaml_loads_and_trains_in_minutes(my_yaml):
    assert my_yaml.DATASETS.TRAIN == ("street_train",)
    assert my_yaml.SOLVER.MAX_ITER <= 2000 and my_yaml.TEST.EVAL_PERIOD > 0


@pytest.mark.parametrize("data_is_there", [True, False])
def test_python_lines_predict_and_draw_after_that_run(my_yaml, monkeypatch, data_is_there):
    Path("output/street").mkdir(parents=True)
    Path("output/street/config.yaml").write_text(my_yaml.dump())
    save_metadata(MetadataCatalog.get("street_train"), "output/street/metadata.json")
    for catalog in (DatasetCatalog, MetadataCatalog):
        catalog.remove("street_train")
    if not data_is_there:
        shutil.rmtree("street")

    class Untrained:
        def __init__(self, cfg):
            self.metadata = MetadataCatalog.get(cfg.DATASETS.TRAIN[0])

        def __call__(self, image):
            segment = {"id": 1, "category_id": 1, "isthing": True}
            return {"panoptic_seg": (np.ones(image.shape[:2], np.int32), [segment])}

    monkeypatch.setattr(predictor, "Predictor", Untrained)
    Image.new("RGB", (50, 40)).save("photo.jpg")
    values: dict = {}
    exec(next(block for block in PYTHON if "register_panoptic(" in block), values)
    assert values["predictor"].metadata.thing_classes == ["road", "car", "person"]
    assert Path("drawn.png").is_file()
    if not data_is_there:  # who means to read the run's data is told that the name is taken
        with pytest.raises(DatasetError, match="registered with other content"):
            predictor.load_run_cfg("output/street", own_data=True)


@pytest.mark.parametrize("link", sorted(set(re.findall(r"\]\(((?!http)[^)#]+)\)", README))))
def test_links_lead_somewhere(link):
    assert (ROOT / link).exists()


@pytest.mark.parametrize("script", sorted(set(re.findall(r"python ([\w/]+\.py)", README))))
def test_scripts_exist(script):
    assert (ROOT / script).is_file()


TEXTS = ["README.md", "datasets/README.md", "CONTRIBUTING.md"]
TUTORIALS = [str(path.relative_to(ROOT)) for path in sorted(ROOT.glob("docs/tutorials/*.md"))]


@pytest.mark.parametrize("text", [*TEXTS, *TUTORIALS])
def test_commands_exist_and_know_their_options(text):
    lines = (ROOT / text).read_text(encoding="utf-8").replace("\\\n", " ").splitlines()
    calls = [call for line in lines for call in re.findall(r"panoptic-ext ([a-z][^`#]*)", line)]
    assert calls or text == "CONTRIBUTING.md"
    for call in calls:
        words = call.split()
        name = " ".join(words[: 2 if words[0] == "data" else 1])
        assert name in COMMANDS, call
        module = importlib.import_module(module_of(name))
        source = Path(module.__file__).read_text() + DRAWING + DETECTRON2
        for option in re.findall(r"--[a-z-]+", " ".join(words)):
            assert f'"{option}"' in source, call
