"""One evaluation parses and checks the JSON of its data set once (F5)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from detectron2.modeling import build_model

from panoptic_ext.commands.train import main
from panoptic_ext.data.coco import panoptic_files
from panoptic_ext.data.datasets import parsed
from panoptic_ext.engine.checkpoint.checkpointer import Checkpointer
from panoptic_ext.engine.run_config import load_cfg
from tests import ROOT
from tests.tiny import predictions as toy
from tests.tiny.programs import run_function

CONFIG = str(ROOT / "configs/shapes/panoptic_fpn/panoptic_fpn_R18_shapes.yaml")
NAME = "toy_parsed_once"


def counted_evaluation(folder: str, options: list[str]) -> None:
    """Print who opens the truth's JSON as JSON, and who checks one, in an evaluation."""
    toy.register(Path(folder), NAME)
    options = [*options, "MODEL.WEIGHTS", ""]
    Checkpointer(build_model(load_cfg(CONFIG, options)), folder).save("weights")
    toy.unregister(NAME)
    toy.register(Path(folder), NAME)
    options[-1] = f"{folder}/weights.pth"
    counts = {"parses": 0, "checks": 0}
    load, check = json.load, parsed.check_structure

    def counted_load(stream: Any, *args: Any, **kwargs: Any) -> Any:
        counts["parses"] += Path(stream.name).name == "truth.json"
        return load(stream, *args, **kwargs)

    def counted_check(*args: Any, **kwargs: Any) -> Any:
        counts["checks"] += 1
        return check(*args, **kwargs)

    json.load = counted_load
    parsed.check_structure = panoptic_files.check_structure = counted_check
    assert main(["--config-file", CONFIG, "--eval-only", *options]) == 0
    print(json.dumps(counts))


@pytest.mark.slow
def test_eval_only_parses_and_checks_the_json_once(tmp_path: Path) -> None:
    """With all evaluators and a contact sheet, and classes that stand in the JSON alone."""
    options = ["DATASETS.TRAIN", f"('{NAME}',)", "DATASETS.TEST", f"('{NAME}',)"]
    options += ["MODEL.DEVICE", "cpu", "DATALOADER.NUM_WORKERS", "0"]
    options += ["TEST.EVALUATORS", "['panoptic', 'semantic', 'instance']"]
    options += ["TEST.CONTACT_SHEET", "1", "OUTPUT_DIR", str(tmp_path / "out")]
    done = run_function(counted_evaluation, str(tmp_path), options)
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout.splitlines()[-1]) == {"parses": 1, "checks": 1}
    folder = tmp_path / "out" / "inference" / NAME
    results = json.loads((folder / "results.json").read_text())
    assert {"panoptic_seg", "sem_seg", "bbox"} <= set(results)
    assert (folder / "contact_sheet.png").is_file()
