"""EfficientPS by train_net.py, then each fusion on the same weights, as a user would."""

from __future__ import annotations

import json

import pytest
from PIL import Image

from panoptic_ext.commands import compare_fusions
from panoptic_ext.prediction.compare_fusions import fusion_table
from tests.tiny.model_inputs import NARROW_RESNET
from tests.tiny.programs import run_script

TINY = [
    *(str(item) for pair in NARROW_RESNET.items() for item in pair),
    *("MODEL.TWO_WAY_FPN.OUT_CHANNELS", "32"),
    *("MODEL.SEM_SEG_HEAD.CONVS_DIM", "16", "MODEL.SEM_SEG_HEAD.DPC_DIM", "16"),
    *("MODEL.ROI_BOX_HEAD.FC_DIM", "16", "MODEL.ROI_MASK_HEAD.CONV_DIM", "32"),
    *("DATASETS.SHAPES.NUM_TRAIN", "4", "DATASETS.SHAPES.NUM_VAL", "3"),
    *("SOLVER.MAX_ITER", "2", "SOLVER.IMS_PER_BATCH", "2", "DATALOADER.NUM_WORKERS", "0"),
    *("TEST.EVAL_PERIOD", "0", "TEST.CONTACT_SHEET", "0", "MODEL.DEVICE", "cpu", "SEED", "1"),
    # Two iterations teach nothing: everything is shown, so that fusions differ.
    *("MODEL.PANOPTIC_FUSION.SCORE_THRESHOLD", "0.0", "MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.0"),
    *("MODEL.PANOPTIC_FUSION.UPSNET.SCORE_THRESHOLD", "0.0"),
    *("MODEL.PANOPTIC_FUSION.STUFF_AREA_THRESHOLD", "0", "TEST.WRITE_PREDICTIONS", "True"),
]

pytestmark = pytest.mark.slow


def run(cache, *command):
    done = run_script(*command, env={"PANOPTIC_EXT_CACHE": str(cache)})
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def trained(tmp_path_factory, cache):
    """OUTPUT_DIR of a run with the learned fusion."""
    folder = tmp_path_factory.mktemp("run") / "efficientps"
    config = "configs/shapes/efficientps/efficientps_R18_shapes.yaml"
    fusion = ["MODEL.PANOPTIC_FUSION.NAME", "spatial_ranking", "OUTPUT_DIR", str(folder)]
    run(cache, "train_net.py", "--config-file", config, *TINY, *fusion)
    return folder


@pytest.fixture(scope="module")
def compared(trained, cache, tmp_path_factory):
    """The output of comparing the run with itself, and the sheet that was drawn."""
    sheet = tmp_path_factory.mktemp("sheet") / "sheet.png"
    command = ["tools/compare_fusions.py", "--runs", str(trained), str(trained)]
    return run(cache, *command, "--sheet", str(sheet), "--images", "2"), sheet


def table_of(printed):
    """Name -> cells of each row of the table."""
    rows = [line.split("|") for line in printed.splitlines() if line.startswith("| ")]
    return {row[1].strip(): [cell.strip() for cell in row[2:-1]] for row in rows}


def test_every_fusion_on_the_same_weights(compared):
    printed, sheet = compared
    names = ["fusion", "hadamard", "heuristic", "upsnet", "spatial_ranking"]
    assert list(table_of(printed)) == names
    assert str(sheet) in printed
    width, height = Image.open(sheet).size
    assert width > 6 * 300 and height > 2 * 100


def evaluate(trained, cache, folder, fusion):
    """Quality and segments by train_net.py --eval-only with another fusion."""
    run(
        cache, "train_net.py", "--eval-only", "--config-file", str(trained / "config.yaml"),
        "MODEL.WEIGHTS", str(trained / "model_final.pth"), "OUTPUT_DIR", str(folder),
        "MODEL.PANOPTIC_FUSION.NAME", fusion,
    )  # fmt: skip
    results = folder / "inference" / "shapes_panoptic_val"
    quality = json.loads((results / "results.json").read_text())["panoptic_seg"]
    predicted = json.loads((results / "panoptic_predictions.json").read_text())
    return quality, [entry["segments_info"] for entry in predicted["annotations"]]


def test_eval_only_with_another_fusion_gives_the_numbers_of_the_table(
    trained, compared, cache, tmp_path
):
    """The two fusions give different segments."""
    found = {
        name: evaluate(trained, cache, tmp_path / name, name) for name in ("hadamard", "upsnet")
    }
    assert found["hadamard"][1] != found["upsnet"][1]
    assert sum(len(segments) for segments in found["hadamard"][1]) > 0
    table = table_of(compared[0])
    for name, (quality, _) in found.items():
        values = [quality[key] for key in ("PQ", "PQ_th", "PQ_st", "SQ", "RQ")]
        assert table[name] == [f"{v:.2f} ({v:.1f} to {v:.1f})" for v in values]


def test_an_unknown_fusion_is_an_error(trained, capsys):
    assert compare_fusions.main(["--runs", str(trained), "--fusions", "hadamar"]) == 2
    error = capsys.readouterr().err
    assert "hadamard" in error and "Traceback" not in error


def test_the_table_of_several_seeds_has_means_and_ranges():
    one = dict.fromkeys(("PQ", "PQ_th", "PQ_st", "SQ", "RQ"), 10.0)
    other = dict.fromkeys(one, 14.0)
    table = fusion_table([{"a": one, "b": one}, {"a": other}])
    assert table.splitlines()[2:] == ["| a |" + " 12.00 (10.0 to 14.0) |" * 5]
