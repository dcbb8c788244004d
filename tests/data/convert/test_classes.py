"""Which classes are things, and files of classes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from panoptic_ext.data.convert.class_file import read_class_file
from panoptic_ext.data.convert.classes import ClassChoice, ClassTable, decide_classes
from panoptic_ext.data.convert.labels import SourceClass
from panoptic_ext.errors import DatasetError

FOUND = [SourceClass("car", 3, True), SourceClass("road", 7), SourceClass("old sky")]


def kinds(table: ClassTable) -> dict[str, bool]:
    return {c.name: c.isthing for c in table.categories}


def test_the_user_decides_then_the_format_then_an_answer() -> None:
    everything = {"car": True, "road": False, "old sky": False}
    assert kinds(decide_classes(FOUND, ClassChoice(things=("car",)))) == everything
    assert kinds(decide_classes(FOUND, ClassChoice(stuff=("road", "old sky")))) == everything
    assert set(kinds(decide_classes(FOUND, ClassChoice(stuff=("all",)))).values()) == {False}
    asked: list[str] = []

    def ask(names):
        asked.extend(names)
        return ["road"]

    assert kinds(decide_classes(FOUND, ClassChoice(), ask=ask)) == {**everything, "road": True}
    assert asked == ["road", "old sky"]


def test_without_an_answer_the_error_lists_the_classes_and_a_command() -> None:
    with pytest.raises(
        DatasetError, match=r"which stuff\? 2 found: road, old sky; .*--things road"
    ):
        decide_classes(FOUND, ClassChoice())


@pytest.mark.parametrize(
    ("choice", "words"),
    [
        (ClassChoice(things=("caar",)), "unknown class in --things 'caar'; did you mean 'car'"),
        (ClassChoice(things=("car",), stuff=("car",)), "both name 'car'"),
        (
            ClassChoice(things=(), left_out=frozenset({"car", "road", "old sky"})),
            "no class is left",
        ),
        (
            ClassChoice(listed=(SourceClass("car", 1, True),), file="c.txt"),
            r"c.txt does not list: road, old sky; add them, or give --leave-out 'road,old sky'",
        ),
    ],
)
def test_choices_that_do_not_fit(choice: ClassChoice, words: str) -> None:
    with pytest.raises(DatasetError, match=words):
        decide_classes(FOUND, choice)


def test_ids_stay_where_all_classes_have_their_own() -> None:
    table = decide_classes(FOUND[:2], ClassChoice(things=("car",)))
    assert [c.id for c in table.categories] == [3, 7]
    table = decide_classes(FOUND, ClassChoice(things=("car",)))
    assert [c.id for c in table.categories] == [1, 2, 3]
    assert len({c.color for c in table.categories}) == 3


def test_a_list_keeps_its_order_and_classes_that_do_not_occur() -> None:
    listed = tuple(SourceClass(name, None, True) for name in ("bus", "old sky", "road", "car"))
    table = decide_classes(FOUND, ClassChoice(listed=listed, void=frozenset({"road"})))
    assert [c.name for c in table.categories] == ["bus", "old sky", "car"]


ENTRIES = [{"id": 1, "name": "car", "isthing": 1, "color": [1, 2, 3]}, {"name": "sky"}]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.json", json.dumps(ENTRIES)),
        ("a.json", json.dumps({"images": [], "categories": ENTRIES})),
        ("a.yaml", "- {id: 1, name: car, isthing: thing, color: '#010203'}\n- sky\n"),
        ("a.txt", "# comment\ncar, thing, 1, #010203\n\nsky\n"),
    ],
)
def test_files_of_classes(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    expected = (SourceClass("car", 1, True, (1, 2, 3)), SourceClass("sky"))
    assert read_class_file(str(tmp_path / name)) == expected


def test_a_mapping_of_names_to_kinds(tmp_path: Path) -> None:
    (tmp_path / "a.yml").write_text("car: thing\nsky: stuff\n")
    classes = read_class_file(str(tmp_path / "a.yml"))
    assert [(c.name, c.isthing) for c in classes] == [("car", True), ("sky", False)]


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("a.txt", "", "has no class|empty"),
        ("a.txt", "car, banana\n", "'banana' in the line"),
        ("a.txt", "car\ncar\n", "has the name car 2 times"),
        ("a.txt", "car, 3\nbus, 3\n", "has the id 3 2 times"),
        ("a.json", "{", "cannot be read"),
        ("a.json", "7", "holds 7"),
        ("a.yaml", "- {id: 3}\n", "has no name"),
        ("a.yaml", "- {name: car, isthing: maybe}\n", "isthing 'maybe'"),
        ("a.yaml", "- {name: car, id: -3}\n", "has the id -3"),
        ("a.yaml", "- !!python/object:os.system {}\n", "cannot be read"),
        ("a.yaml", "- " * 20_000 + "car", "cannot be read"),
        ("a.json", "[" * 100_000, "cannot be read"),
    ],
)
def test_bad_files_of_classes(tmp_path: Path, name: str, text: str, words: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(DatasetError, match=words):
        read_class_file(str(tmp_path / name))
