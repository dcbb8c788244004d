"""Inputs of predict and their names, image ids, and the results that a run leaves."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from detectron2.structures import Instances

from panoptic_ext.data import read_id_map
from panoptic_ext.data.coco.runs import find_runs
from panoptic_ext.data.coco.writer import measured_segments
from panoptic_ext.errors import ConfigError, PanopticExtError
from panoptic_ext.prediction.image_ids import choose_image_ids, ids_of_files
from panoptic_ext.prediction.inputs import SETTINGS_FILE, find_inputs, search_inputs
from panoptic_ext.prediction.outputs import panoptic_result, segments_to_draw
from panoptic_ext.prediction.results_folder import ResultsFolder, coco_segments

METADATA = SimpleNamespace(
    thing_classes=["disc", "grass"],
    stuff_classes=["disc", "grass"],
    stuff_colors=[[1, 2, 3], [4, 5, 6]],
    isthing=(True, False),
    thing_dataset_id_to_contiguous_id={30: 0},
    stuff_dataset_id_to_contiguous_id={7: 1},
    label_divisor=1000,
)


@pytest.fixture
def tree(tmp_path):
    for name in ("x/a.jpg", "x/b/a.jpg", "x/.hidden.jpg", "x/notes.txt", "y/a.jpg", "y/clip.avi"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path


def _names(inputs):
    return [item.name for item in inputs if not item.problem]


def test_inputs_of_a_folder_of_a_file_and_of_several(tree):
    assert _names(find_inputs([str(tree / "x")])) == ["a.jpg", "b/a.jpg"]
    assert _names(find_inputs([str(tree / "x" / "notes.txt")])) == ["notes.txt"]
    several = find_inputs([str(tree / "x"), str(tree / "y"), str(tree / "x" / "a.jpg")])
    assert _names(several) == ["x/a.jpg", "x/b/a.jpg", "y/a.jpg", "y/clip.avi"]
    assert [item.is_video for item in several] == [False, False, False, True]
    assert several[-1].picture_name == "y/clip.avi.mp4"


def test_inputs_of_globs(tree):
    assert _names(find_inputs([str(tree / "*" / "a.jpg")])) == ["x/a.jpg", "y/a.jpg"]
    assert _names(find_inputs([str(tree / "**" / "*.jpg")])) == ["x/a.jpg", "x/b/a.jpg", "y/a.jpg"]
    assert _names(find_inputs([str(tree / "*")])) == _names(find_inputs([str(tree)]))


def test_patterns_without_a_file_have_a_problem(tree):
    (tree / "empty").mkdir()
    found = find_inputs([str(tree / n) for n in ("gone.jpg", "*.png", "empty", "x")])
    problems = [item.problem for item in found if item.problem]
    assert problems == [
        "no such file or folder",
        "nothing matches",
        "no image or video in this folder",
    ]
    assert len(_names(found)) == 2


def test_dangling_links_and_pipes_are_inputs_so_that_they_are_reported(tree):
    (tree / "y" / "gone.jpg").symlink_to(tree / "nowhere.jpg")
    os.mkfifo(tree / "y" / "pipe.jpg")
    found = find_inputs([str(tree / "y")])
    assert _names(found) == ["a.jpg", "clip.avi", "gone.jpg", "pipe.jpg"]
    (pipe,) = find_inputs([str(tree / "y" / "pipe.jpg")])
    assert pipe.problem.startswith("is a pipe, which may never end, expected a regular file")


@pytest.mark.parametrize(
    ("names", "known", "earlier", "expected"),
    [
        (["a.jpg", "b/a.jpg"], {}, {}, ["a", "b/a"]),
        (["a.jpg", "a.png", "b.png"], {}, {}, ["a.jpg", "a.png", "b"]),
        (["a.jpg", "a.png", "a.jpg.bmp"], {}, {}, ["a.jpg", "a.png", "a.jpg.bmp"]),
        (["a.jpg", "17.png"], {"a.jpg": 17}, {}, [17, "17.png"]),
        (["a.jpg", "b.jpg"], {"a.jpg": 17, "b.jpg": "17"}, {}, ["a.jpg", "b.jpg"]),
        (["a.png"], {}, {"a.jpg": "a"}, ["a.png"]),
        (["a.jpg", "a.png"], {}, {"a.jpg": "a"}, ["a", "a.png"]),
    ],
)
def test_image_ids_are_distinct(names, known, earlier, expected):
    assert list(choose_image_ids(names, known, earlier).values()) == expected


def _instances():
    instances = Instances((2, 3))
    instances.scores = torch.tensor([0.9, 0.2, 0.6, 0.55])
    instances.pred_classes = torch.tensor([1, 1, 0, 0])
    masks = torch.zeros(4, 2, 3, dtype=torch.bool)
    masks[0, 0], masks[1], masks[2, :, 0], masks[3, 0] = True, True, True, True
    instances.pred_masks = masks
    return instances


def test_instances_or_classes_are_drawn_without_a_panoptic_result():
    ids, segments = segments_to_draw({"instances": _instances(), "sem_seg": torch.zeros(2, 2, 3)})
    assert ids.tolist() == [[1, 1, 1], [3, 0, 0]]
    assert [(s["id"], s["category_id"]) for s in segments] == [(3, 0), (1, 1)]
    ids, segments = segments_to_draw({"sem_seg": torch.eye(3)[:, None]})
    assert ids.tolist() == [[1, 2, 3]]
    assert segments[2] == {"id": 3, "category_id": 2}
    with pytest.raises(ConfigError, match=r"no panoptic result, only sem_seg; .*PANOPTIC_ON"):
        panoptic_result({"sem_seg": ids})
    with pytest.raises(ConfigError, match=r"gives \['proposals'\]; expected"):
        segments_to_draw({"proposals": []})


def test_the_output_folder_is_no_input(tree):
    assert _names(find_inputs([str(tree)], exclude=str(tree / "x"))) == ["y/a.jpg", "y/clip.avi"]
    globbed = find_inputs([str(tree / "**" / "*.jpg")], exclude=str(tree / "x"))
    assert _names(globbed) == ["a.jpg"]


def _results_in(folder, *names):
    for name in (SETTINGS_FILE, *names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def test_results_of_earlier_runs_are_no_inputs(tree):
    """In the folder of another run, and through a glob."""
    _results_in(tree / "x" / "out", "a.jpg", "panoptic/a.jpg.png")
    _results_in(tree / "x" / "other", "a.jpg")
    search = search_inputs([str(tree / "x")], exclude=str(tree / "x" / "out"))
    assert _names(search.inputs) == ["a.jpg", "b/a.jpg"]
    folders = [str(tree / "x" / name) for name in ("other", "out")]
    assert search.left_out["results of this tool"] == folders
    for pattern in ("x*", "x/**/*.jpg", "x/*/*.jpg"):
        globbed = find_inputs([str(tree / pattern)], exclude=str(tree / "out"))
        paths = {os.path.relpath(item.path, tree) for item in globbed}
        assert paths <= {"x/a.jpg", "x/b/a.jpg"} and "x/b/a.jpg" in paths
    named = find_inputs([str(tree / "x" / "other")], exclude=str(tree / "out"))
    assert _names(named) == ["a.jpg"]  # as asked for


def test_a_folder_that_is_output_and_input_at_once(tree):
    (tree / "y" / "sub").mkdir()
    for name in ("b.tif", "sub/c.tif", "d.tif.png"):
        (tree / "y" / name).touch()
    _results_in(tree / "y", "b.tif.png", "sub/c.tif.png", "clip.avi.mp4", "panoptic/b.tif.png")
    search = search_inputs([str(tree / "y")], exclude=str(tree / "y"))
    assert _names(search.inputs) == ["a.jpg", "b.tif", "clip.avi", "d.tif.png", "sub/c.tif"]
    left_out = {str(tree / "y" / n) for n in ("b.tif.png", "clip.avi.mp4", "panoptic")}
    left_out.add(str(tree / "y" / "sub" / "c.tif.png"))
    assert set(search.left_out["results of this tool"]) == left_out


def test_links_to_files_are_inputs_and_other_files_are_counted(tree):
    """Links to files are predicted like files; linked folders are not entered."""
    (tree / "x" / "link.jpg").symlink_to("a.jpg")
    (tree / "x" / "folder").symlink_to(tree / "y")
    search = search_inputs([str(tree / "x"), str(tree / "x" / "link.jpg")])
    assert _names(search.inputs) == ["a.jpg", "link.jpg", "b/a.jpg"]
    assert search.left_out_lines() == [
        f"1 left out, linked folders (name them as --input): {tree}/x/folder",
        f"1 left out, neither image nor video by their suffix: {tree}/x/notes.txt",
    ]


def test_a_file_gets_the_known_id_and_a_link_to_it_does_not(tree):
    (tree / "a_link.jpg").symlink_to(tree / "x" / "a.jpg")
    paths = {"a_link.jpg": str(tree / "a_link.jpg"), "x.jpg": str(tree / "x" / "a.jpg")}
    known = {str(tree / "x" / "a.jpg"): 17, "elsewhere.jpg": 18}
    assert ids_of_files(paths, known) == {"x.jpg": 17}
    assert ids_of_files({"a_link.jpg": paths["a_link.jpg"]}, known) == {"a_link.jpg": 17}


def test_inputs_whose_pictures_would_have_one_name_have_a_problem(tree):
    (tree / "y" / "b.tif").touch()
    (tree / "y" / "b.tif.png").touch()
    found = {item.name: item.problem for item in find_inputs([str(tree / "y")])}
    assert "b.tif.png" in found["b.tif"] and found["b.tif.png"] and not found["a.jpg"]


def test_segments_are_converted_to_coco():
    ids = torch.zeros(4, 6, dtype=torch.int32)
    ids[1:3, 1:5] = 9
    ids[3, 5] = 9
    ids[0] = 4
    segments = [
        {"id": 4, "category_id": 1},
        {"id": 9, "category_id": 0, "score": 0.25},
        {"id": 5, "category_id": 0},  # without a pixel
    ]
    found, table = coco_segments(ids, segments, [30, 7])
    table = measured_segments(find_runs(found), table)
    assert table == [
        {"id": 1, "category_id": 7, "area": 6, "bbox": [0, 0, 6, 1], "iscrowd": 0},
        {
            "id": 2,
            "category_id": 30,
            "area": 9,
            "bbox": [1, 1, 5, 3],
            "iscrowd": 0,
            "score": 0.25,
        },
    ]
    assert (found == np.select([ids == 4, ids == 9], [1, 2])).all() and found.dtype == np.int32
    without, table = coco_segments(np.array([[-1, 1000], [1001, 3]]), None, [30, 7])
    assert without.tolist() == [[0, 2], [3, 1]]
    assert [s["category_id"] for s in table] == [30, 7, 7]
    assert coco_segments(np.zeros((2, 2), int), [], [30])[1] == []


def test_results_continue_after_a_kill(tmp_path):
    results = ResultsFolder(str(tmp_path), METADATA)
    ids, segments = np.full((2, 3), 5), [{"id": 5, "category_id": 1}]
    results.add("a/ü.jpg", ids, segments, image_id=3, file_name="a/ü.jpg")
    results.commit("a/ü.jpg")
    results.commit("video")
    log = tmp_path / "panoptic_progress.jsonl"
    log.write_bytes(log.read_bytes() + b'{"key": "b.jpg", "ima')
    again = ResultsFolder(str(tmp_path), METADATA)
    assert again.has("a/ü.jpg") and again.has("video") and not again.has("b.jpg")
    again.add("b.jpg", ids, segments, image_id="b", file_name="b.jpg")
    again.commit("b.jpg")
    content = json.loads(Path(again.write_json()).read_text(encoding="utf-8"))
    assert [image["id"] for image in content["images"]] == [3, "b"]
    assert content["categories"][0] == {"id": 30, "name": "disc", "isthing": 1, "color": [1, 2, 3]}
    png = tmp_path / "panoptic" / content["annotations"][0]["file_name"]
    assert (read_id_map(png) == 1).all()
    png.unlink()
    assert not ResultsFolder(str(tmp_path), METADATA).has("a/ü.jpg")
    assert not ResultsFolder(str(tmp_path), METADATA, fresh=True).has("video")


def test_discarded_results_leave_nothing_but_what_an_earlier_run_has_logged(tmp_path):
    ids, segments = np.full((2, 3), 5), [{"id": 5, "category_id": 1}]

    def add(results, key):
        results.add(key, ids, segments, image_id=key, file_name=key)

    results = ResultsFolder(str(tmp_path), METADATA)
    add(results, "a.jpg")
    results.commit("a.jpg")
    again = ResultsFolder(str(tmp_path), METADATA)
    for key in ("a.jpg", "clip.mp4/000000", "clip.mp4/000001"):
        add(again, key)
    again.discard()
    assert [path.name for path in (tmp_path / "panoptic").rglob("*.png")] == ["a.jpg.png"]
    assert not again.has("clip.mp4/000000")
    assert (
        again.image_ids()
        == ResultsFolder(str(tmp_path), METADATA).image_ids()
        == {"a.jpg": "a.jpg"}
    )


@pytest.mark.parametrize("line", ["[" * 100_000, "{", "[1]", "{}"], ids=range(4))
def test_a_damaged_line_of_the_progress_log_is_named(tmp_path, line):
    """Each of these lines once ended in a traceback."""
    log = tmp_path / "panoptic_progress.jsonl"
    log.write_text(f'{{"key": "a.jpg"}}\n{line}\n')
    with pytest.raises(PanopticExtError, match=r"progress\.jsonl:2 is not a line .*remove this"):
        ResultsFolder(str(tmp_path), METADATA)


def test_names_stay_readable_in_the_json(tmp_path):
    results = ResultsFolder(str(tmp_path), METADATA)
    results.add("caf\u00e9", np.zeros((2, 2), np.int32), [], image_id=1, file_name="caf\u00e9.jpg")
    results.commit("caf\u00e9")
    assert '"file_name": "caf\u00e9.jpg"' in Path(results.write_json()).read_text("utf-8")
