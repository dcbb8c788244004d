"""predict and export-transformers with EoMT models of the zoo, in the four published forms."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

import panoptic_ext
from panoptic_ext import model_zoo
from panoptic_ext.commands import export_transformers, predict
from panoptic_ext.model_zoo.catalog import ENVIRONMENT
from tests.tiny.eomt_published import FORMS, import_transformers
from tests.tiny.eomt_zoo import write_zoo
from tests.tiny.finished_run import picture
from tests.tiny.programs import run_script
from tests.tiny.zoo import own_zoo as own_zoo
from tests.tiny.zoo import zoo_run as zoo_run

pytest.importorskip("timm", reason="EoMT's ViT is a timm model")
transformers = pytest.importorskip("transformers", reason="the weights are of transformers' models")
pytest.importorskip("safetensors", reason="transformers writes safetensors")


@pytest.fixture
def zoo(tmp_path, own_zoo):
    folder = tmp_path / "zoo"
    folder.mkdir()
    files = write_zoo(folder)
    model_zoo.add(str(folder))
    picture(3).save(tmp_path / "street.jpg")
    return files


def result(folder) -> tuple[np.ndarray, list[dict]]:
    """The map of segment ids as a picture, and its segments."""
    annotation = json.loads((folder / "panoptic.json").read_text())["annotations"][0]
    image = np.asarray(Image.open(next(folder.rglob(annotation["file_name"]))))
    return image, annotation["segments_info"]


@pytest.mark.slow
def test_predict_a_photograph_with_weights_of_each_form(zoo, tmp_path):
    """The difference form in a process of its own; v2 forms agree, and so do v3 forms."""
    import_transformers(dinov3=True)
    results = {}
    for form in FORMS:
        output = tmp_path / form
        words = ["--model", f"tiny_{form}", str(tmp_path / "street.jpg"), "--output", str(output)]
        words.append("--save-panoptic")
        if form == "bin_v3":
            environment = {ENVIRONMENT: str(tmp_path / "zoo")}
            done = run_script("-m", "panoptic_ext", "predict", *words, env=environment)
            assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
        else:
            assert predict.main(words) == 0
        results[form] = result(output)
    for version in ("v2", "v3"):
        (first, segments), (second, same) = (
            results[f"{kind}_{version}"] for kind in ("transformers", "bin")
        )
        assert (first != second).mean() < 0.01
        assert len(segments) == len(same) > 0
    assert not np.array_equal(results["bin_v2"][0], results["bin_v3"][0])


@pytest.mark.parametrize("form", ["bin_v2", "bin_v3"])
def test_export_and_read_by_transformers(zoo, tmp_path, form, capsys):
    import_transformers(dinov3=form == "bin_v3")
    folder = tmp_path / "exported"
    arguments = ["--model", f"tiny_{form}", "--output", str(folder)]
    assert export_transformers.main(arguments) == 0
    kind = (
        "EomtDinov3ForUniversalSegmentation" if form == "bin_v3" else "EomtForUniversalSegmentation"
    )
    assert f"{kind}.from_pretrained" in capsys.readouterr().out
    theirs = getattr(transformers, kind).from_pretrained(folder).eval()
    assert theirs.config.id2label == {0: "disc", 1: "grass", 2: "sky"}
    ours = panoptic_ext.load(f"tiny_{form}", device="cpu").predictor.model
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        found, expected = ours.outputs(images), theirs(images)
    torch.testing.assert_close(
        found.pred_logits, expected.class_queries_logits, rtol=1e-5, atol=2e-5
    )
    # Back again: the folder is a checkpoint, too.
    again = panoptic_ext.load(f"tiny_{form}", weights=folder, device="cpu").predictor.model
    for name, value in ours.state_dict().items():
        torch.testing.assert_close(again.state_dict()[name], value, rtol=0, atol=1e-6)


def test_export_of_another_model(zoo_run, own_zoo, tmp_path, capsys):
    words = ["--model", str(zoo_run), "--output", str(tmp_path / "out")]
    assert export_transformers.main(words) == 2
    assert "META_ARCHITECTURE is" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
