"""docs/model_zoo.md: its examples are read and run, its tables have every entry and every key."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from panoptic_ext.commands.zoo import parse_args
from panoptic_ext.config.yaml_reader import read_file
from panoptic_ext.model_zoo import catalog, configs, licences
from panoptic_ext.model_zoo import entry as entry_module
from tests.docs.pages import DOCS, shell_lines

PAGE = DOCS / "model_zoo.md"
TEXT = PAGE.read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", TEXT, re.DOTALL | re.MULTILINE)


def test_the_yaml_of_an_entry_is_valid_and_complete(tmp_path: Path) -> None:
    (text,) = (block for block in blocks("yaml") if block.startswith("name:"))
    (tmp_path / "entry.yaml").write_text(text)
    entry = entry_module.read_entry(str(tmp_path / "entry.yaml"))
    assert entry.name == "my_street" and [c.id for c in entry.classes] == [0, 26]
    keys = re.findall(r"^(\w+):", text, re.MULTILINE)
    assert sorted([*keys, "convert"]) == sorted(entry_module._KEYS)
    assert all(f"`convert: {conversion}`" in TEXT for conversion in entry_module.CONVERSIONS)
    for kind in entry_module.WEIGHTS:
        assert f"`{kind}` (" in TEXT


def test_the_config_to_fine_tune_names_an_entry(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(blocks("yaml")[0])
    values = {setting.key: setting.value for setting in read_file(str(tmp_path / "mine.yaml"))}
    entry = catalog.find(values["MODEL.WEIGHTS"].removeprefix(configs.SCHEME))
    base = re.search(r"_BASE_: (\S+)", blocks("yaml")[0])
    assert base is not None and entry.config == base[1]


@pytest.mark.parametrize("line", shell_lines(PAGE))
def test_commands_have_these_options(line: str) -> None:
    words = shlex.split(line)
    if words[:2] == ["panoptic-ext", "zoo"]:
        assert parse_args(words[2:]).action in words
    else:
        assert line == f"export {catalog.ENVIRONMENT}=my_street"


def test_the_table_has_every_family(clean_catalogs: None) -> None:
    table = TEXT[TEXT.index("| entries |") : TEXT.index("A config needs neither")]
    families = {name.split("_")[0].split("/")[0] for name in catalog.names()}
    assert all(family in table for family in families), families


def test_lines_of_python_that_need_no_weights(clean_catalogs: None) -> None:
    first = blocks("python")[0].splitlines()
    values: dict = {}
    for line in first[: next(i for i, text in enumerate(first) if "get_checkpoint" in text)]:
        exec(line, values)
    assert values["cfg"].MODEL.SEM_SEG_HEAD.NUM_CLASSES == 133
    second = blocks("python")[1]
    exec(second[: second.index("predictor =")], values)
    assert values["cfg"].MODEL.DEVICE == "cpu"


def test_the_place_of_the_note_about_a_licence() -> None:
    path = licences.notice_file(catalog.find("mask2former_R50_coco"))
    assert path.endswith("panoptic_ext/licences_said/mask2former_R50_coco.txt")
    assert "panoptic_ext/licences_said/NAME.txt" in TEXT
