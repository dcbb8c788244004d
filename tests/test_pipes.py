"""No reader waits for a named pipe at the path of a file."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from torch import nn

from panoptic_ext.combine.images import ImageEntry, ImageList
from panoptic_ext.combine.inputs import InstanceResults, SemanticFolder, SemanticResults
from panoptic_ext.config.yaml_reader import read_file
from panoptic_ext.data import PanopticSource, check_panoptic
from panoptic_ext.data.coco.json_file import read_json
from panoptic_ext.data.coco.label_png import read_id_map, read_png_size, read_runs
from panoptic_ext.data.datasets.metadata_file import load_metadata
from panoptic_ext.data.image_files import read_image
from panoptic_ext.engine.checkpoint.checkpointer import Checkpointer
from panoptic_ext.engine.checkpoint.read_weights import load_pickle, load_torch
from panoptic_ext.engine.writers import trim_metrics
from panoptic_ext.errors import PanopticExtError
from panoptic_ext.evaluation.compare_files import evaluate_files
from panoptic_ext.evaluation.instance_evaluation import PanopticInstanceEvaluator
from panoptic_ext.prediction.predictor import load_run_cfg
from panoptic_ext.prediction.results_folder import ResultsFolder
from panoptic_ext.prediction.video import VideoReader
from panoptic_ext.visualization.learning_curves import read_curve
from tests.tiny.panoptic_dataset import TinyDataset

IMAGES = ImageList("data", [ImageEntry(1, "x.jpg", "x.png", (2, 2))], [])
_WORDS = "is a pipe, which may never end, expected a regular file; "


def _within(seconds: float, pipe: Path, work: Callable[[], Any]) -> Any:
    """What `work` returns or raises; a failure, and no endless wait, where it opens the pipe."""
    outcome: list[Any] = []

    def run() -> None:
        try:
            outcome.append(work())
        except BaseException as error:
            outcome.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        os.close(os.open(pipe, os.O_RDWR | os.O_NONBLOCK))  # an end of the file for the reader
        pytest.fail("the reader waits for the pipe")
    return outcome[0]


def _run_with_config(folder: str) -> Any:
    Path(folder, "config.yaml").write_text("VERSION: 2\n")
    return load_run_cfg(folder)


def _log_of_predictions(folder: str) -> Any:
    maps = {"thing_dataset_id_to_contiguous_id": {}, "stuff_dataset_id_to_contiguous_id": {7: 0}}
    return ResultsFolder(folder, SimpleNamespace(**maps))


def _base(folder: str) -> Any:
    Path(folder, "leaf.yaml").write_text("_BASE_: x\n")
    return read_file(os.path.join(folder, "leaf.yaml"))


def _model() -> nn.Module:
    return nn.Linear(1, 1)


OF_FILE: dict[str, Callable[[str], Any]] = {
    "panoptic JSON": read_json,
    "images to combine": ImageList.of_json,
    "evaluated JSON": lambda path: evaluate_files(path, None, path, None),
    "image": lambda path: read_image(path, "RGB"),
    "label map": read_id_map,
    "header of a label map": read_png_size,
    "evaluated label map": read_runs,
    "semantic results": lambda path: SemanticResults(path, IMAGES),
    "instance results": lambda path: InstanceResults(path, IMAGES),
    "config": read_file,
    "metadata": load_metadata,
    "torch file": load_torch,
    "pickle": load_pickle,
    "weights": lambda path: Checkpointer(_model()).load(path),
    "metrics to go on with": lambda path: trim_metrics(path, 1),
    "video": VideoReader,
}
IN_FOLDER: dict[str, tuple[str, Callable[[str], Any]]] = {
    "semantic map": ("x.png", lambda f: SemanticFolder(f, IMAGES).labels(IMAGES.images[0])),
    "config of a run": ("config.yaml", load_run_cfg),
    "metadata of a run": ("metadata.json", _run_with_config),
    "_BASE_": ("x", _base),
    "checkpoint": ("model_final.pth", lambda folder: Checkpointer(_model(), folder).resume()),
    "metrics to draw": ("metrics.json", lambda folder: read_curve(folder, "a")),
    "log of predictions": ("panoptic_progress.jsonl", _log_of_predictions),
}
READERS = {
    **{name: ("x", lambda f, read=read: read(f + "/x")) for name, read in OF_FILE.items()},
    **IN_FOLDER,
}


@pytest.mark.parametrize("reader", READERS)
def test_a_pipe_is_refused_by_every_reader(reader: str, tmp_path: Path) -> None:
    name, read = READERS[reader]
    os.mkfifo(tmp_path / name)

    outcome = _within(10, tmp_path / name, lambda: read(str(tmp_path)))

    assert isinstance(outcome, PanopticExtError), outcome
    assert _WORDS in str(outcome)
    assert len(str(outcome)) < 400 + 2 * len(str(tmp_path))


def test_a_check_of_the_data_set_lists_each_pipe(tmp_path: Path) -> None:
    tiny = TinyDataset(tmp_path)
    source = PanopticSource(str(tiny.json), str(tiny.images), str(tiny.pngs))
    pipes = [tiny.images / "1.png", tiny.pngs / "2.png"]
    for pipe in pipes:
        pipe.unlink()
        os.mkfifo(pipe)

    problems = _within(10, pipes[0], lambda: check_panoptic(source, workers=0))

    assert sorted(p.kind for p in problems) == ["bad-label-map", "damaged-image"]
    assert all(_WORDS in str(problem) for problem in problems)


def test_a_tag_that_is_a_pipe_is_passed_over(tmp_path: Path) -> None:
    Checkpointer(_model(), str(tmp_path)).save("model_final")
    tag = tmp_path / "last_checkpoint"
    tag.unlink()
    os.mkfifo(tag)

    found = _within(10, tag, Checkpointer(_model(), str(tmp_path)).get_checkpoint_file)

    assert found == str(tmp_path / "model_final.pth")


def test_a_checkpoint_that_is_a_link_to_nothing_is_passed_over(tmp_path: Path) -> None:
    Checkpointer(_model(), str(tmp_path)).save("model_0000004", iteration=4)
    (tmp_path / "last_checkpoint").unlink()
    (tmp_path / "model_0000009.pth").symlink_to(tmp_path / "gone.pth")

    assert Checkpointer(_model(), str(tmp_path)).resume()["iteration"] == 4


def test_a_truth_of_an_earlier_evaluation_that_is_a_pipe_is_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x")

    assert not _within(
        10,
        tmp_path / "x",
        lambda: PanopticInstanceEvaluator._is_written(str(tmp_path / "x"), []),
    )
