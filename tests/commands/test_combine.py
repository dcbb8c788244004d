"""The command combine: from files of two models to files that can be evaluated."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pycocotools.mask as mask_util
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from panoptic_ext.commands import combine
from panoptic_ext.data import register_panoptic
from panoptic_ext.evaluation import (
    PanopticInstanceEvaluator,
    PanopticSemSegEvaluator,
    evaluate_files,
)
from tests import PATIENCE, ROOT
from tests.evaluation.test_other_evaluators import instances, labels_of, scores
from tests.tiny import predictions as toy
from tests.tiny.panoptic_dataset import CATEGORIES, CROWD, HEIGHT, WIDTH, TinyDataset

TOOLS = ROOT / "tools"
ROAD_ID, CAR_ID, PERSON_ID = (c["id"] for c in CATEGORIES)


def rle(mask: np.ndarray) -> dict:
    found = mask_util.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {**found, "counts": found["counts"].decode()}


class Case:
    """A tiny data set, and predictions made of its own truth."""

    def __init__(self, root: Path):
        self.data = TinyDataset(root / "data")
        for entry in self.data.info["annotations"][1]["segments_info"]:
            entry["iscrowd"] = 0
        self.data.save()
        self.root = root
        self.instances: list[dict] = []
        self.semantic: list[dict] = []
        self.label_maps: list[np.ndarray] = []
        self.folder = root / "labels"
        for number, ids in enumerate(self.data.maps, start=1):
            labels = np.zeros((HEIGHT, WIDTH), np.uint8)
            for s in self.data.info["annotations"][number - 1]["segments_info"]:
                mask, category = ids == s["id"], s["category_id"]
                labels[mask] = category
                row = {"category_id": category, "segmentation": rle(mask)}
                self.semantic.append({"file_name": f"/elsewhere/{number}.jpg", **row})
                if category != ROAD_ID:
                    self.instances.append({"image_id": number, "score": 0.9, "bbox": [], **row})
            self.label_maps.append(labels)

    def save(self) -> list[str]:
        """Write the predictions; the arguments that name them, semantic ones as JSON."""
        paths = []
        for name, content in (("instances", self.instances), ("semantic", self.semantic)):
            path = self.root / f"{name}.json"
            path.write_text(json.dumps(content))
            paths += [f"--{name}", str(path)]
        output = ["--output", str(self.root / "out"), "--stuff-area-threshold", "1"]
        return ["--json", str(self.data.json), *paths, *output, "--threads", "1"]

    def save_labels(self, convert=lambda labels: labels, name: str = "{}.png") -> list[str]:
        """As `save`, semantic ones as PNGs."""
        for number, labels in enumerate(self.label_maps, start=1):
            path = self.folder / name.format(number)
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(convert(labels)).save(path)
        return [*self.save(), "--semantic", str(self.folder)]

    @property
    def result(self) -> Path:
        return self.root / "out" / "panoptic_predictions.json"

    def quality(self) -> dict[str, float]:
        truth = str(self.data.json), str(self.data.pngs)
        return evaluate_files(*truth, str(self.result), None, num_threads=0).summary["All"]


@pytest.fixture
def case(tmp_path: Path) -> Case:
    return Case(tmp_path)


def run(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-W", "ignore", *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=PATIENCE,
    )


@pytest.mark.slow
def test_as_processes_from_truth_to_100(case: Case) -> None:
    combined = run(str(TOOLS / "combine_predictions.py"), *case.save())
    assert combined.returncode == 0, combined.stderr
    assert f"2 images, 3 things + 2 stuff: {case.result} and" in combined.stdout
    assert "2/2" in combined.stderr  # progress
    truth = ["--gt", str(case.data.json), "--gt-root", str(case.data.pngs)]
    evaluated = run(str(TOOLS / "evaluate_panoptic.py"), *truth, "--pred", str(case.result))
    assert evaluated.returncode == 0, evaluated.stderr
    total = next(line for line in evaluated.stdout.splitlines() if "**All**" in line)
    assert [f.strip() for f in total.split("|")[2:5]] == ["100.000"] * 3, total

    case.instances[0]["segmentation"]["counts"] = "5"
    failed = run(str(TOOLS / "combine_predictions.py"), *case.save())
    assert failed.returncode == 2 and "Traceback" not in failed.stderr
    assert failed.stderr.splitlines()[-1].startswith("error: ")
    assert not case.result.exists()


def to_contiguous(labels: np.ndarray) -> np.ndarray:
    out = np.full(labels.shape, 255, np.uint8)
    for i, category in enumerate(CATEGORIES):
        out[labels == category["id"]] = i
    return out


@pytest.mark.parametrize(
    ("convert", "name", "options"),
    [
        (lambda x: x, "{}.png", []),
        (lambda x: x.astype(np.uint16), "{}.png", []),
        (lambda x: np.where(x == 0, 254, x).astype(np.uint8), "{}.png", ["--ignore-label", "254"]),
        (to_contiguous, "val/{}.PNG", ["--semantic-ids", "contiguous"]),
    ],
    ids=["8 bit", "16 bit", "own void", "contiguous, in a sub-folder"],
)
def test_label_pngs(case: Case, convert, name, options) -> None:
    assert combine.main([*case.save_labels(convert, name), *options]) == 0
    assert case.quality()["pq"] == 1.0


def test_palette_pngs_and_files_of_others(case: Case, capsys) -> None:
    arguments = case.save_labels()
    for path in case.folder.iterdir():
        image = Image.open(path).convert("L")
        image.putpalette(list(range(256)) * 3)
        image.save(path)
    Image.new("RGB", (3, 3)).save(case.folder / "legend.png")
    assert combine.main(arguments) == 0
    assert case.quality()["pq"] == 1.0
    assert "1 PNGs belong to no image and were not read: 'legend.png'" in capsys.readouterr().out


def test_registered_data_sets_and_configs(case: Case) -> None:
    arguments = case.save()[2:]
    register_panoptic("combine_tiny", *case.data.paths())
    try:
        assert combine.main(["--dataset", "combine_tiny", *arguments]) == 0
        assert case.quality()["pq"] == 1.0
        written = json.loads(case.result.read_text())
        assert written["categories"] == CATEGORIES
        assert written["images"] == case.data.info["images"]
        config = case.root / "config.yaml"
        config.write_text("DATASETS: {TEST: ['combine_tiny']}\n")
        assert combine.main(["--config-file", str(config), *arguments]) == 0
    finally:
        DatasetCatalog.remove("combine_tiny")
        MetadataCatalog.remove("combine_tiny")


def test_detectron2s_things_label_is_void(case: Case) -> None:
    for row in case.semantic:
        row["category_id"] = 0 if row["category_id"] != ROAD_ID else ROAD_ID
    assert combine.main(case.save()) == 0
    assert case.quality()["pq"] == 1.0


def test_what_our_evaluators_write(tmp_path: Path) -> None:
    name = toy.register(tmp_path, "combine_toy")
    try:
        given = {i: {**instances(i), **scores(labels_of(i))} for i in toy.NAMES}
        out = str(tmp_path / "inference")
        toy.run(PanopticInstanceEvaluator(name, out), name, given)
        toy.run(PanopticSemSegEvaluator(name, out, write_predictions=True), name, given)
        files = ["--instances", f"{out}/coco_instances_results.json"]
        files += ["--semantic", f"{out}/sem_seg_predictions.json"]
        options = ["--stuff-area-threshold", "1", "--output", out]
        assert combine.main(["--dataset", name, *files, *options]) == 0
        truth = MetadataCatalog.get(name)
        result = f"{out}/panoptic_predictions.json"
        found = evaluate_files(truth.panoptic_json, truth.panoptic_root, result, None)
    finally:
        toy.unregister(name)
    things = found.summary["Things"]
    assert things["pq"] == 1.0 and things["n"] == 2


def test_degraded_predictions(case: Case) -> None:
    """A missed car, one under the threshold, a duplicate and a small stuff."""
    car = case.instances[0]
    case.instances = [
        {**car, "image_id": 2, "score": 0.4},
        {**case.instances[2], "score": 0.9},
        {**case.instances[2], "score": 0.8},
    ]
    assert combine.main([*case.save(), "--stuff-area-threshold", "1000"]) == 0
    found = json.loads(case.result.read_text())["annotations"]
    assert found[0]["segments_info"] == []
    assert [(s["category_id"], s["area"], s["bbox"]) for s in found[1]["segments_info"]] == [
        (PERSON_ID, 100, [20, 10, 10, 10])
    ]
    assert combine.main([*case.save(), "--score-threshold", "0.4"]) == 0
    found = json.loads(case.result.read_text())["annotations"]
    assert [s["category_id"] for s in found[1]["segments_info"]] == [PERSON_ID, CAR_ID, ROAD_ID]


def test_an_overlap_is_decided_by_the_option(case: Case) -> None:
    person = case.data.maps[1] == CROWD
    half = person.copy()
    half[:, 30:] = True  # 48 more columns' pixels of the 148 are free
    case.instances.append(
        {"image_id": 2, "category_id": CAR_ID, "score": 0.6, "segmentation": rle(half)}
    )
    for threshold, things in (("0.5", 2), ("0.7", 3)):
        assert combine.main([*case.save(), "--overlap-threshold", threshold]) == 0
        found = json.loads(case.result.read_text())["annotations"][1]["segments_info"]
        assert sum(s["category_id"] != ROAD_ID for s in found) == things


def test_images_without_predictions(case: Case, capsys) -> None:
    case.instances = [row for row in case.instances if row["image_id"] == 2]
    case.semantic = [row for row in case.semantic if "/2.jpg" in row["file_name"]]
    assert combine.main(case.save()) == 2
    err = capsys.readouterr().err
    assert "1 of 2 images of" in err and "no semantic prediction: image ids 1;" in err
    assert combine.main([*case.save(), "--allow-missing"]) == 0
    out = capsys.readouterr().out
    assert "1 images have no instance prediction: 1\n" in out
    assert "1 images have no semantic prediction: 1\n" in out
    assert "1 images have neither and are void all over: 1\n" in out
    found = json.loads(case.result.read_text())["annotations"]
    assert found[0]["segments_info"] == [] and len(found[1]["segments_info"]) == 3


def test_no_instances_at_all(case: Case) -> None:
    case.instances = []
    assert combine.main(case.save()) == 0
    found = json.loads(case.result.read_text())["annotations"]
    assert [[s["category_id"] for s in row["segments_info"]] for row in found] == [[ROAD_ID]] * 2


class TestNames:
    def test_a_json_without_annotations(self, case: Case) -> None:
        arguments = case.save()
        del case.data.info["annotations"]
        test_set = case.root / "test_set.json"
        test_set.write_text(json.dumps(case.data.info))
        assert combine.main([*arguments, "--json", str(test_set)]) == 0
        assert case.quality()["pq"] == 1.0

    def test_files_of_equal_base_names(self, case: Case, capsys) -> None:
        for entry, city in zip(case.data.info["images"], ("north", "south"), strict=True):
            entry["file_name"] = f"{city}/1.png"
        case.data.save()
        for row in case.semantic:
            city = "north" if "/1." in row["file_name"] else "south"
            row["file_name"] = f"/data/{city}/1.jpg"
        assert combine.main(case.save()) == 0
        assert case.quality()["pq"] == 1.0
        case.semantic[0]["file_name"] = "/data/1.jpg"
        assert combine.main(case.save()) == 2
        assert "1.jpg could belong to 2 images" in capsys.readouterr().err

    def test_string_ids_and_the_numbers_of_our_evaluator(self, case: Case, capsys) -> None:
        def rename(names):
            for number, name in enumerate(names):
                case.data.info["images"][number]["id"] = name
                case.data.info["annotations"][number]["image_id"] = name
            case.data.save()

        rename(["b_2", "a_1"])
        assert combine.main(case.save()) == 0  # 1 and 2 are positions
        assert case.quality()["pq"] == 1.0
        rename(["1", "2"])
        assert combine.main(case.save()) == 0
        assert case.quality()["pq"] == 1.0
        rename(["2", "1"])
        assert combine.main(case.save()) == 2
        assert "write the ids as strings" in capsys.readouterr().err
        for row in case.instances:
            row["image_id"] = str(3 - row["image_id"])
        assert combine.main(case.save()) == 0
        assert case.quality()["pq"] == 1.0


def set_first(rows: str, **values):
    return lambda case: getattr(case, rows)[0].update(values)


SMALL = rle(np.ones((HEIGHT, WIDTH - 1)))
ERRORS = [
    (set_first("instances", image_id=9), r"predictions for 1 image ids that .* does not have: 9;"),
    (set_first("instances", image_id=None), "entry 0: image_id None"),
    (set_first("instances", category_id=ROAD_ID), r"not ids of things .*: 3, 11; 7 are stuff"),
    (set_first("instances", category_id=4), "category_id 4 are not ids of things"),
    (set_first("instances", category_id=True), "entry 0: category_id True"),
    (set_first("instances", score=float("nan")), "entry 0: score nan; expected a finite"),
    (set_first("instances", score="0.9"), "score '0.9'"),
    (set_first("instances", segmentation=SMALL), r"a mask of size \[24, 31\]; expected \[24, 32\]"),
    (set_first("instances", segmentation=[[1, 2, 3]]), "the segmentation is polygons"),
    (lambda case: case.instances[0].pop("segmentation"), "a model without masks"),
    (lambda case: case.instances.insert(0, 5), "entry 0 has 5; expected objects with image_id"),
    (set_first("semantic", file_name="9.jpg"), "'9.jpg' is no image of"),
    (set_first("semantic", file_name="x/1.jpg"), "is image 1 a second time"),
    (set_first("semantic", category_id=4), "labels 4 are no dataset ids"),
    (set_first("semantic", segmentation=None), "category 7 of image 1: the segmentation is None"),
    (lambda case: case.semantic[0].pop("category_id"), "expected objects with file_name"),
]


@pytest.mark.parametrize(("change", "message"), ERRORS)
def test_bad_predictions(case: Case, capsys, change, message) -> None:
    change(case)
    assert combine.main(case.save()) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ")
    assert re.search(message, error), error


def test_every_image_that_fails_is_named(case: Case, capsys) -> None:
    arguments = case.save_labels()
    for name in ("1.png", "2.png"):
        (case.folder / name).write_bytes(b"no picture")
    assert combine.main(arguments) == 2
    error = capsys.readouterr().err
    assert "error: 2 of 2 images cannot be combined:\n  image 1: " in error
    assert "\n  image 2: " in error and "2.png is not an image" in error
    assert not (case.root / "out" / "panoptic_predictions.json").exists()


def test_results_are_not_written_over_inputs(case: Case, capsys) -> None:
    arguments = case.save_labels()
    assert combine.main([*arguments, "--output", str(case.folder)]) == 2
    assert f"over the input {case.folder}; choose another folder" in capsys.readouterr().err
    truth = case.data.json.rename(case.root / "panoptic_predictions.json")
    same = [*arguments, "--json", str(truth), "--output", str(case.root)]
    assert combine.main(same) == 2 and truth.is_file()


def test_bad_label_pngs(case: Case, capsys) -> None:
    def fails(message: str, *options: str) -> None:
        assert combine.main([*arguments, *options]) == 2
        assert message in capsys.readouterr().err

    case.label_maps[0][0, 0] = 42
    arguments = case.save_labels()
    fails("labels 42 are no dataset ids")
    fails("read them as dataset ids (--semantic-ids)", "--semantic-ids", "contiguous")
    case.label_maps[0][0, 0] = 0
    arguments = case.save_labels()
    (case.folder / "sub").mkdir()
    Image.fromarray(case.label_maps[0]).save(case.folder / "sub" / "1.png")
    fails("has two PNGs of image 1")
    (case.folder / "sub" / "1.png").unlink()
    Image.new("L", (3, 5)).save(case.folder / "1.png")
    fails("is 5 x 3 (height x width), image 1 is 24 x 32")
    Image.new("RGB", (WIDTH, HEIGHT)).save(case.folder / "1.png")
    fails("is a RGB PNG, expected a grey one of 8 or 16 bits or a palette, one class id a pixel")
    (case.folder / "1.png").write_bytes(b"no picture")
    fails("1.png is not an image")
    (case.folder / "1.png").rename(case.folder / "other.png")
    fails("1 of 2 images")
    (case.folder / "2.png").unlink()
    fails("has no PNG named like an image")


def test_bad_files_and_options(case: Case, capsys) -> None:
    arguments = case.save()

    def fails(message: str, *options: str) -> None:
        assert combine.main([*arguments, *options]) == 2
        assert message in capsys.readouterr().err

    fails("instance results", "--instances", "nowhere.json")
    broken = case.root / "broken.json"
    broken.write_text("[{")
    fails("is not valid JSON", "--semantic", str(broken))
    broken.write_text("[]")
    for nothing in (str(broken), "nowhere.json"):
        fails("evaluate again with TEST.WRITE_PREDICTIONS True", "--semantic", nothing)
    fails("hold a dict; expected a list of predictions", "--instances", str(case.data.json))
    fails("--json names the data set alone", "--dataset", "coco_panoptic_val")
    (case.root / "out").write_text("a file in the way")
    fails("cannot write to")
    fails("panoptic JSON nowhere.json does not exist", "--json", "nowhere.json")
    with pytest.raises(SystemExit):
        combine.main([*arguments, "--score-threshold", "2"])
    without = arguments[2:]
    assert combine.main(without) == 2
    assert "expected one data set, found none" in capsys.readouterr().err


def test_bad_lists_of_images(case: Case, capsys) -> None:
    arguments = case.save()
    info = case.data.info

    def fails(message: str, **changes: object) -> None:
        case.data.json.write_text(json.dumps({**info, **changes}))
        assert combine.main(arguments) == 2
        assert message in capsys.readouterr().err

    first, second = info["images"]
    fails("has no images", images=[])
    fails("two images have the same id", images=[first, {**second, "id": 1}])
    fails("in images; expected an id", images=[{**first, "height": 0}, second])
    fails("in images; expected an id", images=[{**first, "file_name": "../x.png"}, second])
    fails("images that are not in its images: 2", images=[first])
    png = {**info["annotations"][1], "file_name": "1.png"}
    fails("two images have the same label PNG", annotations=[info["annotations"][0], png])
    fails("expected a panoptic one", annotations=[{"image_id": 1, "segmentation": []}])
