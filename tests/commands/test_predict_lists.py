"""predict by the name of a model: inputs without an option, the default folder, JSON and CSV."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest
from PIL import Image

from panoptic_ext import load
from panoptic_ext.commands import predict
from panoptic_ext.prediction.segment_lists import CSV_COLUMNS
from tests.tiny.finished_run import picture

THRESHOLD = ["--confidence-threshold", "0.01"]


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with two photographs."""
    for number in range(2):
        picture(number).save(tmp_path / f"{number}.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def rows(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


@pytest.mark.parametrize(
    ("words", "inputs", "opts", "classes"),
    [
        (["0.png"], ["0.png"], [], None),
        (["0.png", "1.png", "MODEL.DEVICE", "x"], ["0.png", "1.png"], ["MODEL.DEVICE", "x"], None),
        (["0.png", "--alpha", "0.3", "1.png"], ["0.png", "1.png"], [], None),
        (["--input", "0.png", "1.png"], ["0.png", "1.png"], [], None),
        (["--input", "0.png", "SEED", "1"], ["0.png"], ["SEED", "1"], None),
        (["--classes", "sky", "disc", "0.png"], ["0.png"], [], ["sky", "disc"]),
        (["--classes", "sky", "0.png", "SEED", "1"], ["0.png"], ["SEED", "1"], ["sky"]),
        (["--classes", "sky", "--input", "0.png", "1.png"], ["0.png", "1.png"], [], ["sky"]),
        (["1.png", "--classes", "0.png"], ["1.png"], [], ["0.png"]),
        (["--output", "out", "SEED", "-1", "--input", "0.png"], ["0.png"], ["SEED", "-1"], None),
    ],
)  # fmt: skip
def test_words_are_inputs_classes_or_config_values(
    photos: Path, words: list[str], inputs: list[str], opts: list[str], classes: list[str] | None
) -> None:
    for arguments in (["--model", "output/demo", *words], [*words, "--model", "output/demo"]):
        args = predict.parse_args(arguments)
        assert (args.input, args.opts, args.classes) == (inputs, opts, classes)
        assert args.output == ("out" if "--output" in words else "predictions/demo")


def test_without_input_or_model_the_usage_is_printed(
    photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments, message in (
        (["--model", "x"], "no input: name images"),
        (["--model", "x", "SEED", "1"], "no input: name images"),
        (["--model", "x", "--classes", "0.png"], "expected the name of a class"),
        (["0.png"], "--model --config-file is required"),
        (["--model", "x", "--config-file", "x", "0.png"], "not allowed with"),
        (["--model", "x", "--min-score", "2", "0.png"], "'2' is not a number from 0 to 1"),
    ):
        with pytest.raises(SystemExit) as stop:
            predict.parse_args(arguments)
        assert stop.value.code == 2 and message in capsys.readouterr().err


@pytest.mark.slow
def test_a_name_and_a_picture_are_enough(
    base: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = ["--model", str(base / "run")]
    assert predict.main([*model, "0.png"]) == 0
    drawn = photos / "predictions" / "run" / "0.png"
    assert f"pictures: {drawn}\n" in capsys.readouterr().out
    before = drawn.read_bytes()
    # Another picture of the same name, drawn in another way: the folder is made anew.
    picture(7).save(photos / "0.png")
    assert predict.main([*model, "0.png", "1.png", "--alpha", "0.9"]) == 0
    assert "2 predicted, 0 were there already" in (out := capsys.readouterr().out)
    assert f"pictures: {drawn.parent}\n" in out and drawn.read_bytes() != before


@pytest.mark.slow
def test_lists_have_the_segments_of_the_one_call(
    base: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--model", str(base / "run"), "0.png", "1.png", "--no-pictures", *THRESHOLD]
    assert predict.main([*arguments, "--json", "lists/a.json", "--csv", "-"]) == 0
    printed = capsys.readouterr()
    assert "segments: " in printed.err and "2 predicted" in printed.err
    table = rows(printed.out)
    assert tuple(table[0]) == CSV_COLUMNS
    images = json.loads(Path("lists/a.json").read_text())
    key = "MODEL.PANOPTIC_FPN.COMBINE.INSTANCES_CONFIDENCE_THRESH"
    expected = list(load(base / "run", opts=[key, 0.01])(["0.png", "1.png"]))
    assert [image["file_name"] for image in images] == ["0.png", "1.png"]
    assert [image["segments"] for image in images] == [result.to_dicts() for result in expected]
    assert len(table) == sum(len(result) for result in expected) > 2
    for row, segment in zip(table, [s for result in expected for s in result], strict=True):
        assert [row[name] for name in ("x0", "y0", "x1", "y1")] == [str(v) for v in segment.box]
        assert row["score"] == ("" if segment.score is None else str(segment.score))
        assert (row["name"], row["area"]) == (segment.name, str(segment.area))


@pytest.mark.slow
def test_classes_and_the_least_score_choose_the_segments_of_lists_and_pictures(
    base: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--model", str(base / "run"), "0.png", *THRESHOLD, "--csv", "-"]
    assert predict.main([*arguments, "--save-panoptic"]) == 0
    everything = rows(capsys.readouterr().out)
    scores = sorted(float(row["score"]) for row in everything if row["score"])
    middle = str(scores[len(scores) // 2])
    whole = Image.open("predictions/run/0.png").tobytes()
    chosen = ["--min-score", middle, "--classes", "disc"]
    assert predict.main([*arguments, "--save-panoptic", *chosen]) == 0
    expected = [r for r in everything if r["name"] == "disc" and float(r["score"]) >= float(middle)]
    assert rows(capsys.readouterr().out) == expected and 0 < len(expected) < len(scores)
    assert Image.open("predictions/run/0.png").tobytes() != whole
    # COCO's files have all segments, from which PQ is computed.
    content = json.loads(Path("predictions/run/panoptic.json").read_text())
    assert len(content["annotations"][0]["segments_info"]) == len(everything)


@pytest.mark.slow
def test_lists_go_on_in_a_named_folder(
    base: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--model", str(base / "run"), "--output", "out", "--csv", "-"]
    assert predict.main([*arguments, "0.png"]) == 0
    first = rows(capsys.readouterr().out)
    assert predict.main([*arguments, "0.png", "1.png"]) == 0
    printed = capsys.readouterr()
    assert "1 predicted, 1 were there already" in printed.err
    assert rows(printed.out)[: len(first)] == first
    assert {row["file_name"] for row in rows(printed.out)} == {"0.png", "1.png"}
    assert predict.main([*arguments, "0.png", "--min-score", "0.9"]) == 2
    assert "--min-score was not given, is 0.9" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--json", "-", "--csv", "-"], "would mix on stdout"),
        (["--no-pictures"], "add --save-panoptic, --json FILE or --csv FILE"),
        (["--no-pictures", "--csv", "a.csv", "--boxes"], "--boxes was given"),
        (["--csv", "a.csv", "--model", "no_such_model"], "unknown model 'no_such_model'"),
    ],
)
def test_options_that_do_not_fit_are_one_error(
    photos: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    assert predict.main(["--model", "x", "0.png", *words]) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith("error: ") and message in printed.err and not printed.out
