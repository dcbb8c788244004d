"""Errors of predict: wrong options, results of other models, and files that fail."""

from __future__ import annotations

import json
import re
import signal

import pytest

from panoptic_ext.commands import predict
from panoptic_ext.prediction.predictor import Predictor
from tests.tiny.finished_run import picture

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"--input": "nowhere/*.png"}, "nothing to predict.*nothing matches"),
        ({"--config-file": "nowhere.yaml"}, "nowhere.yaml"),
        ({"--config-file": "."}, "has no config.yaml"),
        ({"--weights": "nowhere.pth"}, "nowhere.pth"),
        ({"--no-pictures": None}, "--save-panoptic"),
        ({"--confidence-threshold": "2"}, "0 to 1"),
        ({"--alpha": "2"}, "alpha, the opacity of segments, is 2"),
        ({"--font-size": "0"}, "font_size is 0"),
        ({"--batch-size": "0"}, "--batch-size is 0"),
        ({"--classes": "gras"}, "unknown class to draw 'gras'; did you mean 'grass'"),
        ({"MODEL.DEVICES": "cpu"}, "MODEL.DEVICE"),
    ],
)
def test_wrong_options_are_one_error(base, tmp_path, capsys, monkeypatch, changed, message):
    monkeypatch.chdir(tmp_path)
    given = {
        "--config-file": str(base / "run"),
        "--input": str(base / "data" / "images"),
        "--output": str(tmp_path / "out"),
    }
    pairs = {**given, **changed}
    arguments = [word for pair in pairs.items() for word in pair if word is not None]
    assert predict.main(arguments) == 2
    printed = capsys.readouterr().err
    assert printed.startswith("error: ") or "\nerror: " in printed
    assert re.search(message, printed), printed


def test_results_of_two_models_are_not_mixed(base, tmp_path, capsys):
    image = str(base / "data" / "images" / "a" / "same.jpg")
    arguments = ["--config-file", str(base / "run"), "--input", image]
    arguments += ["--output", str(tmp_path / "out")]
    assert predict.main(arguments) == 0
    other = [*arguments, "--confidence-threshold", "0.9"]
    assert predict.main(other) == 2
    assert "CONFIDENCE_THRESH was 0.5, is 0.9; choose another" in capsys.readouterr().err
    assert predict.main([*other, "--overwrite"]) == 0
    assert "1 predicted" in capsys.readouterr().out


def test_a_model_without_a_panoptic_result(base, tmp_path, capsys, monkeypatch):
    call = Predictor.__call__

    def without(self, image):
        return {k: v for k, v in call(self, image).items() if k == "sem_seg"}

    monkeypatch.setattr(predict.Predictor, "__call__", without)
    arguments = ["--config-file", str(base / "run"), "--output", str(tmp_path / "out"), "--input"]
    arguments.append(str(base / "data" / "images"))
    assert predict.main([*arguments, "--save-panoptic"]) == 2
    assert "error: the model gives no panoptic result, only sem_seg" in capsys.readouterr().err
    assert predict.main(arguments) == 0
    assert (tmp_path / "out" / "a" / "same.jpg").is_file()


def test_inputs_are_never_overwritten(base, tmp_path, capsys):
    picture().save(tmp_path / "a.png")
    before = (tmp_path / "a.png").read_bytes()
    arguments = ["--input", str(tmp_path / "a.png"), "--output", str(tmp_path)]
    assert predict.main(["--config-file", str(base / "run"), *arguments]) == 2
    assert "would replace the input" in capsys.readouterr().err
    assert (tmp_path / "a.png").read_bytes() == before


def _three_images(folder):
    folder.mkdir()
    for name in ("a.jpg", "n" * 249 + ".bmp", "z.jpg"):  # with .png behind it, .bmp is too long
        picture().save(folder / name)
    (folder / "link.jpg").symlink_to("a.jpg")
    return folder


def test_files_after_a_failed_one_are_predicted(base, tmp_path, capsys, monkeypatch):
    """Out of memory, a name that is too long, results inside the input folder, links."""
    images = _three_images(tmp_path / "images")
    call, calls = Predictor.__call__, []

    def needs_much(self, image):
        calls.append(image)
        if len(calls) == 1:
            raise MemoryError
        return call(self, image)

    monkeypatch.setattr(predict.Predictor, "__call__", needs_much)
    arguments = ["--config-file", str(base / "run"), "--input", str(images)]
    arguments += ["--output", str(images / "out")]
    assert predict.main(arguments) == 1
    printed = capsys.readouterr()
    assert "2 predicted, 0 were there already, 2 failed" in printed.out
    failed = [line for line in printed.err.splitlines() if line.startswith("failed: ")]
    assert "a.jpg: an image of 48 x 64" in failed[0] and "does not fit into memory" in failed[0]
    assert failed[1].endswith("would have 257 bytes, more than the file system takes; rename it")
    assert predict.main(arguments) == 1
    printed = capsys.readouterr()
    assert "1 predicted, 2 were there already, 1 failed" in printed.out
    assert f"1 left out, results of this tool: {images}/out" in printed.out
    assert {p.name for p in (images / "out").glob("*.jpg")} == {"a.jpg", "link.jpg", "z.jpg"}


def test_a_signal_ends_after_the_current_file(base, tmp_path, capsys, monkeypatch):
    """The message names the same command, which then predicts the other file."""
    call = Predictor.__call__

    def interrupted(self, image):
        signal.raise_signal(signal.SIGTERM)
        return call(self, image)

    arguments = ["--config-file", str(base / "run"), "--save-panoptic", "--no-pictures"]
    arguments += ["--output", str(tmp_path / "out"), "--input", str(base / "data" / "images")]
    with monkeypatch.context() as patch:
        patch.setattr(predict.Predictor, "__call__", interrupted)
        assert predict.main(arguments) == 143
    printed = capsys.readouterr()
    assert "1 predicted, 0 were there already, 0 failed, 1 left" in printed.out
    assert printed.err.endswith("\nstopped; the same command goes on where it was\n")
    assert len(json.loads((tmp_path / "out" / "panoptic.json").read_text())["images"]) == 1
    assert predict.main(arguments) == 0
    assert "1 predicted, 1 were there already, 0 failed" in capsys.readouterr().out


def test_an_output_that_cannot_be_written(base, tmp_path, capsys):
    (tmp_path / "file").touch()
    image = str(base / "data" / "images" / "a" / "same.jpg")
    arguments = ["--config-file", str(base / "run"), "--input", image]
    assert predict.main([*arguments, "--output", str(tmp_path / "file" / "out")]) == 2
    assert "error: cannot write to" in capsys.readouterr().err
