"""The command predict from end to end, with a tiny model of random weights."""

from __future__ import annotations

import json
import re
import shutil

import cv2
import numpy as np
import pytest
import torch
from detectron2.modeling import META_ARCH_REGISTRY
from PIL import Image
from torch import nn

from panoptic_ext.commands import evaluate, predict
from panoptic_ext.data import read_id_map
from panoptic_ext.engine import load_cfg
from panoptic_ext.errors import ConfigError
from panoptic_ext.prediction.predictor import Predictor, load_run_cfg
from tests import ROOT
from tests.tiny.finished_run import CATEGORIES, NAME, picture
from tests.tiny.programs import run_script

pytestmark = pytest.mark.slow


def _odd_files(folder):
    """Images of many kinds, broken ones, and a video."""
    folder.mkdir()
    picture().convert("RGBA").save(folder / "rgba.png")
    picture().convert("CMYK").save(folder / "cmyk.jpg")
    picture().convert("L").save(folder / "grey.png")
    Image.fromarray(np.asarray(picture().convert("L")).astype(np.uint16)).save(folder / "16.png")
    picture().save(folder / "other.tif")
    exif = Image.Exif()
    exif[274] = 6  # turned by 90 degrees
    picture().save(folder / "turned.jpg", exif=exif)
    whole = (folder / "turned.jpg").read_bytes()
    (folder / "truncated.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "page.png").write_text("<html>")
    (folder / "empty.jpg").touch()
    (folder / "link.jpg").symlink_to(folder / "nowhere.jpg")
    picture(5).save(folder / "grey.bmp")
    (folder / "notes.txt").write_text("left alone")
    writer = cv2.VideoWriter(
        str(folder / "clip.avi"), cv2.VideoWriter.fourcc(*"MJPG"), 10.0, (64, 48)
    )
    for number in range(3):
        writer.write(np.asarray(picture(number))[:, :, ::-1].copy())
    writer.release()


def _run(*arguments):
    return run_script(str(ROOT / "tools" / "predict.py"), *map(str, arguments))


BROKEN = ("truncated.jpg", "page.png", "empty.jpg", "link.jpg", "16.png", "missing.png")


@pytest.fixture(scope="module")
def full_run(base):
    """Everything at once: folders, a glob, broken files, a video; then the same again."""
    _odd_files(base / "data" / "odd")
    arguments = ["--config-file", base / "run", "--output", base / "out", "--save-panoptic"]
    arguments += ["--confidence-threshold", "0.05", "--input", base / "data" / "images" / "*"]
    arguments += [base / "data" / "odd", base / "data" / "missing.png"]
    first = _run(*arguments)
    stamps = {
        p: p.stat().st_mtime_ns for p in (base / "out").rglob("*.*") if "panoptic." not in p.name
    }
    # The second time without the data set's JSON: metadata.json in the run's folder is enough.
    second = _run(*arguments, f"DATASETS.PANOPTIC.{NAME}.JSON", base / "gone.json")
    return first, second, stamps


def test_bad_files_are_named_and_the_rest_is_predicted(base, full_run):
    first, _, _ = full_run
    assert first.returncode == 1 and "Traceback" not in first.stderr, first.stderr
    assert "9 predicted, 0 were there already, 6 failed" in first.stdout
    for name in BROKEN:
        assert any(
            line.startswith("failed:") and name in line for line in first.stderr.splitlines()
        )
    assert "is empty (0 bytes)" in first.stderr and "no such file" in first.stderr
    assert "a link to a file that does not exist" in first.stderr
    assert "convert to 8 bit" in first.stderr and "cannot write" not in first.stderr
    assert str(base / "out" / "panoptic.json") in first.stdout
    for name in ("rgba.png", "cmyk.jpg", "grey.png", "grey.bmp.png", "other.tif.png"):
        assert Image.open(base / "out" / "odd" / name).size == (512, 384)
    assert Image.open(base / "out" / "odd" / "turned.jpg").size == (384, 512)
    left = {p.name for p in (base / "out" / "odd").iterdir()}
    assert left.isdisjoint(BROKEN) and not [n for n in left if n.startswith(".")]


def test_equal_names_in_different_folders(base, full_run):
    pictures = [Image.open(base / "out" / "images" / f / "same.jpg") for f in "ab"]
    assert (np.asarray(pictures[0]) != np.asarray(pictures[1])).any()


def test_video_in_video_out(base, full_run):
    capture = cv2.VideoCapture(str(base / "out" / "odd" / "clip.avi.mp4"))
    frames = []
    while True:
        read, frame = capture.read()
        if not read:
            break
        frames.append(frame)
    assert len(frames) == 3 and frames[0].shape == (384, 512, 3)
    assert capture.get(cv2.CAP_PROP_FPS) == pytest.approx(10)


def test_coco_panoptic_results(base, full_run):
    content = json.loads((base / "out" / "panoptic.json").read_text())
    assert [{**c, "color": list(c["color"])} for c in content["categories"]] == CATEGORIES
    by_file = {image["file_name"]: image for image in content["images"]}
    assert by_file["images/a/same.jpg"]["id"] == 17  # the data set's id
    assert by_file["odd/rgba.png"]["id"] == "odd/rgba"
    assert by_file["odd/grey.png"]["id"] == "odd/grey.png"  # there is a grey.bmp as well
    assert len({str(image["id"]) for image in content["images"]}) == len(content["images"])
    assert len(content["annotations"]) == len(by_file) == 2 + 6 + 3  # 3 frames of the video
    for annotation in content["annotations"]:
        ids = read_id_map(base / "out" / "panoptic" / annotation["file_name"])
        segments = annotation["segments_info"]
        assert set(np.unique(ids)) - {0} == {segment["id"] for segment in segments}
        for segment in segments:
            rows, columns = np.nonzero(ids == segment["id"])
            x, y, width, height = segment["bbox"]
            assert segment["area"] == len(rows) and segment["category_id"] in (7, 40, 90)
            assert (x, y) == (columns.min(), rows.min())
            assert (x + width, y + height) == (columns.max() + 1, rows.max() + 1)


def test_a_second_run_skips_finished_inputs(base, full_run):
    _, second, stamps = full_run
    assert second.returncode == 1, second.stderr
    assert "0 predicted, 9 were there already, 6 failed" in second.stdout
    assert stamps and all(path.stat().st_mtime_ns == stamp for path, stamp in stamps.items())


def test_the_command_evaluate_reads_the_results(base, tmp_path):
    run, images = str(base / "run"), str(base / "data" / "images")
    arguments = ["--config-file", run, "--input", images, "--output", str(tmp_path / "out")]
    assert predict.main([*arguments, "--save-panoptic", "--no-pictures"]) == 0
    assert not list((tmp_path / "out").rglob("*.jpg"))
    data, out = base / "data", tmp_path / "out"
    paths = ["--gt", data / "val.json", "--gt-root", data / "labels"]
    paths += ["--pred", out / "panoptic.json", "--pred-root", out / "panoptic"]
    assert evaluate.main([str(word) for word in (*paths, "--output", tmp_path / "pq.json")]) == 0
    assert "PQ" in json.loads((tmp_path / "pq.json").read_text())


def test_batches_give_the_same_results_and_options_reach_the_pictures(base, tmp_path):
    photos, broken = tmp_path / "photos", tmp_path / "photos" / "2.png"
    photos.mkdir()
    for number in range(4):
        picture(number).save(photos / f"{number}.png")
    broken.write_bytes(b"")
    arguments = ["--config-file", str(base / "run"), "--input", str(photos), "--save-panoptic"]
    arguments += ["--confidence-threshold", "0.01"]
    some = ["--classes", "sky", "INPUT.FORMAT", "BGR"]
    contents, pictures = [], []
    for name, options in {
        "alone": [],
        "batch": ["--batch-size", "3"],
        "drawn": ["--boxes", "--alpha", "0", "--no-labels", "--legend", *some],
    }.items():
        folder = tmp_path / name
        assert predict.main([*arguments, "--output", str(folder), *options]) == 1
        contents.append(json.loads((folder / "panoptic.json").read_text())["annotations"])
        pictures.append([np.asarray(Image.open(folder / f"{i}.png")) for i in (0, 1, 3)])
    assert len(contents[0]) == 3
    for alone, batched in zip(*contents[:2], strict=True):
        assert alone["file_name"] == batched["file_name"]
        pairs = list(zip(alone["segments_info"], batched["segments_info"], strict=True))
        assert pairs and all(a["category_id"] == b["category_id"] for a, b in pairs)
        assert sum(abs(a["area"] - b["area"]) for a, b in pairs) <= 8  # by rounding, at ties
    plain, drawn = pictures[0], pictures[2]
    assert any((a != b[: len(a)]).any() for a, b in zip(plain, drawn, strict=True))
    assert any(len(b) > len(a) for a, b in zip(plain, drawn, strict=True))  # a legend below
    assert predict.main([*arguments, "--output", str(tmp_path / "alone"), "--boxes"]) == 2


@pytest.mark.parametrize(
    ("architecture", "key"),
    [
        ("EfficientPS", "MODEL.PANOPTIC_FUSION.SCORE_THRESHOLD"),
        ("UnifiedPanopticFPN", "MODEL.PANOPTIC_FPN.COMBINE.INSTANCES_CONFIDENCE_THRESH"),
        ("PanopticExtMaskFormer", "MODEL.MASK_FORMER.TEST.OBJECT_MASK_THRESHOLD"),
        ("SemanticSegmentor", None),
    ],
)
def test_confidence_threshold_sets_the_key_of_the_model(architecture, key):
    cfg = load_cfg("")
    cfg.defrost()
    cfg.MODEL.META_ARCHITECTURE = architecture
    if key is None:
        with pytest.raises(ConfigError, match=r"SemanticSegmentor names no.*; give"):
            predict._set_threshold(cfg, 0.25)
        return
    predict._set_threshold(cfg, 0.25)
    node = cfg
    for part in key.split("."):
        node = node[part]
    assert node == 0.25


def test_confidence_threshold_sets_the_key_of_another_packages_model():
    META_ARCH_REGISTRY._do_register("MaskFormer", type("MaskFormer", (nn.Module,), {}))
    key = "MODEL.MASK_FORMER.TEST.OBJECT_MASK_THRESHOLD"
    try:
        test_confidence_threshold_sets_the_key_of_the_model("MaskFormer", key)
    finally:
        del META_ARCH_REGISTRY._obj_map["MaskFormer"]


def test_a_run_is_found_from_any_folder(base, tmp_path, monkeypatch):
    """Also after it was moved from the OUTPUT_DIR of its config."""
    text = (base / "run" / "config.yaml").read_text()
    moved = tmp_path / "moved"
    shutil.copytree(base / "run", moved)
    (moved / "config.yaml").write_text(re.sub("OUTPUT_DIR: .*", "OUTPUT_DIR: output/street", text))
    monkeypatch.chdir(tmp_path)
    for path in ("moved", "moved/config.yaml", str(moved)):
        cfg = load_run_cfg(path)
        assert str(moved) == cfg.OUTPUT_DIR
        assert Predictor(cfg).weights == str(moved / "model_final.pth")
    assert load_run_cfg("moved", ["OUTPUT_DIR", "other"]).OUTPUT_DIR == "other"
    (moved / "model_final.pth").unlink()
    with pytest.raises(ConfigError, match=r"moved' has no checkpoint .* weights=FILE in Python"):
        Predictor(load_run_cfg("moved"))


def test_predictor_takes_bgr_and_its_output_has_the_size_of_the_image(base):
    predictor = Predictor(load_run_cfg(str(base / "run")))
    assert predictor.weights.endswith("model_final.pth") and not predictor.model.training
    image = np.asarray(picture(3, 50, 70))[:, :, ::-1]
    before = image.copy()
    panoptic_seg, segments = predictor(image)["panoptic_seg"]
    assert tuple(panoptic_seg.shape) == (50, 70) and isinstance(segments, list)
    assert (image == before).all()
    batch = [{"image": torch.zeros(3, 64, 64), "height": 8, "width": 9}]
    with torch.no_grad():
        assert tuple(predictor.model(batch)[0]["panoptic_seg"][0].shape) == (8, 9)
