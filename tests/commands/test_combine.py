"""The command combine: from files of two models to files that can be evaluated."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
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
from tests import ROOT
from tests.evaluation.test_other_evaluators import instances, labels_of, scores
from tests.tiny import predictions as toy
from tests.tiny.combine_case import CAR_ID, PERSON_ID, ROAD_ID, Case, rle
from tests.tiny.panoptic_dataset import CATEGORIES, CROWD
from tests.tiny.programs import run_script

TOOLS = ROOT / "tools"


@pytest.mark.slow
def test_combining_the_truth_as_two_predictions_gives_pq_100(case: Case) -> None:
    combined = run_script(str(TOOLS / "combine_predictions.py"), *case.save())
    assert combined.returncode == 0, combined.stderr
    assert f"2 images, 3 things + 2 stuff: {case.result} and" in combined.stdout
    assert "2/2" in combined.stderr  # progress
    truth = ["--gt", str(case.data.json), "--gt-root", str(case.data.pngs)]
    evaluated = run_script(str(TOOLS / "evaluate_panoptic.py"), *truth, "--pred", str(case.result))
    assert evaluated.returncode == 0, evaluated.stderr
    total = next(line for line in evaluated.stdout.splitlines() if "**All**" in line)
    assert [f.strip() for f in total.split("|")[2:5]] == ["100.000"] * 3, total

    case.instances[0]["segmentation"]["counts"] = "5"
    failed = run_script(str(TOOLS / "combine_predictions.py"), *case.save())
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
def test_semantic_predictions_as_label_pngs(case: Case, convert, name, options) -> None:
    assert combine.main([*case.save_labels(convert, name), *options]) == 0
    assert case.quality()["pq"] == 1.0


def test_palette_pngs_are_read_and_other_files_are_ignored(case: Case, capsys) -> None:
    arguments = case.save_labels()
    for path in case.folder.iterdir():
        image = Image.open(path).convert("L")
        image.putpalette(list(range(256)) * 3)
        image.save(path)
    Image.new("RGB", (3, 3)).save(case.folder / "legend.png")
    assert combine.main(arguments) == 0
    assert case.quality()["pq"] == 1.0
    assert "1 PNGs belong to no image and were not read: 'legend.png'" in capsys.readouterr().out


def test_the_data_set_by_its_registered_name_or_a_config(case: Case) -> None:
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


def test_the_things_label_of_detectron2_is_void(case: Case) -> None:
    for row in case.semantic:
        row["category_id"] = 0 if row["category_id"] != ROAD_ID else ROAD_ID
    assert combine.main(case.save()) == 0
    assert case.quality()["pq"] == 1.0


def test_files_of_our_evaluators_are_combined(tmp_path: Path) -> None:
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


def test_overlap_threshold_decides_which_instances_stay(case: Case) -> None:
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


def test_images_without_predictions_are_reported(case: Case, capsys) -> None:
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


def test_predictions_without_any_instance(case: Case) -> None:
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
