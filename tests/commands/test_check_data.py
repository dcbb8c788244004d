"""The commands data check and data visualize."""

from __future__ import annotations

import re
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from panoptic_ext.commands import check_data, visualize_data
from panoptic_ext.data import register_instances, register_panoptic
from panoptic_ext.many_files import ManyFiles
from tests.tiny.instance_dataset import HEIGHT, WIDTH, TinyInstances
from tests.tiny.panoptic_dataset import CATEGORIES, TinyDataset

pytestmark = pytest.mark.usefixtures("clean_catalogs")

COMMANDS = {"check_data": check_data, "visualize_data": visualize_data}


@pytest.fixture
def tiny(tmp_path: Path) -> TinyDataset:
    return TinyDataset(tmp_path / "tiny")


def config_file(tiny: TinyDataset) -> str:
    path = tiny.root / "config.yaml"
    path.write_text(
        f"""\
DATASETS:
  PANOPTIC:
    tiny_train: {{JSON: {tiny.json}, IMAGE_ROOT: {tiny.images}, PNG_ROOT: {tiny.pngs}}}
  TRAIN: ("tiny_train",)
  TEST: ("tiny_train",)
INPUT:
  MIN_SIZE_TRAIN: (48,)
"""
    )
    return str(path)


def test_check_of_good_data(tiny: TinyDataset, capsys: pytest.CaptureFixture[str]) -> None:
    assert check_data.main(["--config-file", config_file(tiny)]) == 0
    assert "tiny_train: good, 2 images, 2 things + 1 stuff, 5 segments" in capsys.readouterr().out


def test_check_of_files_that_are_not_registered(
    tiny: TinyDataset, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny.segment["area"] = 3
    tiny.save()
    json, images, pngs = tiny.paths()
    arguments = ["--json", json, "--image-root", images, "--png-root", pngs]
    assert check_data.main(arguments) == 1
    assert "1 problem: 1 wrong-area" in capsys.readouterr().out
    assert check_data.main([*arguments, "--no-pixels"]) == 0
    assert check_data.main(arguments[:2]) == 2
    assert "belong together" in capsys.readouterr().err


def test_check_prints_at_most_show_problems_and_counts_all(
    tiny: TinyDataset, capsys: pytest.CaptureFixture[str]
) -> None:
    for entry in tiny.info["annotations"][1]["segments_info"]:
        entry["category_id"] = 99
    tiny.save()
    assert check_data.main(["--config-file", config_file(tiny), "--show", "1"]) == 1
    out = capsys.readouterr().out
    assert out.count("[unknown-category]") == 1
    assert "... and 2 more" in out


def test_check_compares_the_categories_of_train_and_test(
    tiny: TinyDataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = TinyDataset(tmp_path / "other")
    other.info["categories"] = CATEGORIES[::-1]
    other.save()
    register_panoptic("other", *other.paths())
    arguments = ["--config-file", config_file(tiny), "DATASETS.TEST", "('other',)"]
    assert check_data.main(arguments) == 2
    assert "do not have the same categories" in capsys.readouterr().err


def test_check_of_an_unknown_data_set_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert check_data.main(["--datasets", "shapes_panoptic_trein"]) == 2
    assert "did you mean 'shapes_panoptic_train'" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["check_data", "visualize_data"])
def test_config_values_after_datasets(tiny: TinyDataset, tmp_path: Path, name: str) -> None:
    register_panoptic("COCO.VAL", *tiny.paths())
    more = ["--output", str(tmp_path / "out")] if name == "visualize_data" else []
    arguments = [*more, "--datasets", "COCO.VAL", "INPUT.MIN_SIZE_TRAIN", "(24,)", "SEED", "3"]
    assert COMMANDS[name].main(arguments) == 0


@pytest.mark.parametrize("source", ["raw", "mapper"])
def test_an_image_that_is_missing_is_named(
    tiny: TinyDataset, tmp_path: Path, source: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in (1, 2):
        (tiny.images / f"{number}.png").unlink()
        (tiny.images / f"{number}.png").symlink_to(tiny.root / "nowhere.png")
    arguments = ["--config-file", config_file(tiny), "--source", source]
    assert visualize_data.main([*arguments, "--output", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert re.search(r"failed: .*1\.png: .*image is a link to a file that does not exist", error)
    assert "cannot write" not in error


@pytest.mark.parametrize("source", ["raw", "mapper"])
def test_images_after_one_that_cannot_be_drawn_are_drawn(
    tiny: TinyDataset, tmp_path: Path, source: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tiny.images / "1.png").write_bytes(b"no picture")
    arguments = ["--config-file", config_file(tiny), "--source", source]
    assert visualize_data.main([*arguments, "--output", str(tmp_path / "out")]) == 2
    printed = capsys.readouterr()
    assert "tiny_train: 1 images done, 1 failed" in printed.out
    assert f"failed: {tiny.images / '1.png'}: " in printed.err
    assert [p.name for p in (tmp_path / "out").rglob("*.jpg")] == ["000001_2.jpg"]


@pytest.mark.parametrize("name", ["check_data", "visualize_data"])
def test_a_signal_ends_after_the_current_image(
    tiny: TinyDataset,
    tmp_path: Path,
    name: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The problems found so far are printed."""
    tiny.segment["area"] = 3
    tiny.save()
    module, results = COMMANDS[name], ManyFiles.results

    def interrupted(self: ManyFiles, items: list, work: Callable) -> Iterator:
        for result in results(self, items, work):
            yield result
            if self.done == 1:
                signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(ManyFiles, "results", interrupted)
    more = ["--workers", "1"] if name == "check_data" else ["--output", str(tmp_path / "out")]
    assert module.main(["--config-file", config_file(tiny), *more]) == 130
    printed = capsys.readouterr()
    assert printed.err.splitlines()[-1].startswith("stopped")
    wanted = "wrong-area" if name == "check_data" else "1 images done, 0 failed, 1 left"
    assert wanted in printed.out


def test_an_output_that_cannot_be_written(
    tiny: TinyDataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    output = str(tmp_path / "file" / "out")
    arguments = ["--config-file", config_file(tiny), "--output", output]
    assert visualize_data.main(arguments) == 2
    assert f"error: cannot write to {output}" in capsys.readouterr().err


@pytest.mark.parametrize("source", ["raw", "mapper"])
def test_pictures(tiny: TinyDataset, tmp_path: Path, source: str) -> None:
    arguments = ["--config-file", config_file(tiny), "--source", source, "--num", "1"]
    arguments += ["--output", str(tmp_path / "out")]
    assert visualize_data.main(arguments) == 0
    (picture,) = (tmp_path / "out" / "tiny_train").iterdir()
    first = np.asarray(Image.open(picture))
    assert first.std() > 0
    assert visualize_data.main(arguments) == 0
    assert np.array_equal(np.asarray(Image.open(picture)), first)


@pytest.mark.parametrize("source", ["raw", "mapper"])
def test_pictures_of_an_instance_data_set(
    tmp_path: Path, source: str, capsys: pytest.CaptureFixture[str], clean_catalogs: None
) -> None:
    data = TinyInstances(tmp_path / "tiny")
    for image in data.images.iterdir():
        Image.new("RGB", (WIDTH, HEIGHT)).save(image)
    register_instances("tiny_alone", data.json, data.images)
    arguments = ["--datasets", "tiny_alone", "--source", source, "--output", str(tmp_path / "out")]
    size = ["INPUT.MIN_SIZE_TRAIN", "(48,)"]
    assert visualize_data.main([*arguments, *size]) == 0
    pictures = sorted((tmp_path / "out" / "tiny_alone").iterdir())
    assert len(pictures) == 2
    first = [np.asarray(Image.open(picture)) for picture in pictures]
    assert all((picture > 50).any() for picture in first)  # of black images
    for options in (["--alpha", "0.3"], ["--boxes"], ["--no-labels"], ["--classes", "cup"]):
        assert visualize_data.main([*arguments, *options, *size]) == 0
        again = np.asarray(Image.open(pictures[0]))
        assert again.shape == first[0].shape and (again != first[0]).any(), options
    assert visualize_data.main([*arguments, "--legend", *size]) == 0
    assert np.asarray(Image.open(pictures[0])).shape[0] > first[0].shape[0]
    capsys.readouterr()
    assert visualize_data.main([*arguments, "--classes", "cpu"]) == 2
    assert "mean 'cup'" in capsys.readouterr().err


def test_segments_without_a_label_are_counted_at_the_end(
    tiny: TinyDataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--config-file", config_file(tiny), "--source", "raw"]
    arguments += ["--output", str(tmp_path / "out"), "--font-size", "400"]
    assert visualize_data.main(arguments) == 0
    printed = capsys.readouterr().out
    assert re.search(
        r"tiny_train: \d of 5 segments in the pictures have no label: too small; --l", printed
    )
    assert visualize_data.main([*arguments, "--no-labels"]) == 0
    assert "no label" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "option"),
    [("visualize_data", "--seed"), ("visualize_data", "--num"), ("check_data", "--show")],
)
def test_numbers_below_zero_are_refused(
    name: str, option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        COMMANDS[name].main([option, "-1"])
    assert stopped.value.code == 2
    assert option in capsys.readouterr().err


def test_pictures_without_a_data_set_are_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert visualize_data.main([]) == 2
    assert "no data set to draw" in capsys.readouterr().err


def test_a_data_set_that_is_not_registered_needs_a_config(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name in ("check_data", "visualize_data"):
        assert COMMANDS[name].main(["--datasets", "street_train"]) == 2
        assert "Give the --config-file that describes it under" in capsys.readouterr().err


def test_label_divisor_of_files_that_are_not_registered(
    tiny: TinyDataset, capsys: pytest.CaptureFixture[str]
) -> None:
    for ids, path in zip(tiny.maps, sorted(tiny.pngs.iterdir()), strict=True):
        Image.fromarray(np.where(ids == 0, 0, 7 * 10).astype(np.uint8)).save(path)
    for annotation in tiny.info["annotations"]:
        del annotation["segments_info"]
    json, images, pngs = tiny.save().paths()
    arguments = ["--json", json, "--image-root", images, "--png-root", pngs]
    arguments += ["--encoding", "divisor"]
    assert check_data.main([*arguments, "--label-divisor", "10"]) == 0
    assert "good, 2 images" in capsys.readouterr().out
    assert check_data.main(arguments) == 2
    assert "category 70 (divisor 1000), which is not among" in capsys.readouterr().err
    assert check_data.main([*arguments, "--label-divisor", "0"]) == 2
