"""Entries of one's own and of other packages: added, found, refused, left out with a warning."""

from __future__ import annotations

import importlib.metadata
import logging
import os
import re
import shutil
import sys
from pathlib import Path

import pytest

from panoptic_ext import model_zoo
from panoptic_ext.errors import ConfigError
from panoptic_ext.model_zoo import catalog
from panoptic_ext.model_zoo.entry import ZooEntry
from tests.model_zoo.test_entry import write

NAME = "my/model-1.0"


def test_patterns_and_tasks() -> None:
    everything = model_zoo.list()
    assert everything == sorted(everything) and "mask2former_R50_coco" in everything
    assert model_zoo.list("MASK2former_swin_t*_coco") == ["mask2former_swin_tiny_coco"]
    assert model_zoo.list("swin_tiny_c*") == [] and len(model_zoo.list("swin_tiny_c")) > 4
    instances = model_zoo.list("ade20k", task="instance")
    assert instances == [
        "mask2former_instance_R50_ade20k",
        "mask2former_instance_swin_large_IN21k_ade20k",
    ]


def test_an_unknown_name_suggests_the_nearest() -> None:
    with pytest.raises(
        ConfigError,
        match=r"unknown model 'mask2former_r50_coc'; did you mean 'mask2former_R50_coco'\?",
    ):
        model_zoo.info("mask2former_r50_coc")
    assert model_zoo.info("mask2former_R50_coco.yaml").name == "mask2former_R50_coco"


def test_one_call_adds_a_file_or_a_folder(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    (folder / "below").mkdir(parents=True)
    path = write(folder / "below")
    (folder / "config.yaml").write_text("_BASE_: other.yaml\nMODEL:\n  WEIGHTS: ''\n")
    assert model_zoo.add(path) == [NAME] == model_zoo.add(folder) == model_zoo.add(str(folder))
    assert model_zoo.info(NAME).path == path and NAME in model_zoo.list()


def test_a_name_that_is_taken_is_refused_and_nothing_is_added(tmp_path: Path) -> None:
    before = model_zoo.list()
    write(tmp_path, name="new_one")
    os.rename(tmp_path / "entry.yaml", tmp_path / "a.yaml")
    path = write(tmp_path, name="mask2former_R50_coco")
    with pytest.raises(
        ConfigError, match=r"entry.yaml: the name 'mask2former_R50_coco' is taken by .*entries"
    ):
        model_zoo.add(tmp_path)
    assert model_zoo.list() == before
    os.remove(path)
    assert model_zoo.add(tmp_path) == ["new_one"]


def test_a_place_that_does_not_exist() -> None:
    with pytest.raises(ConfigError, match="nowhere does not exist; expected the YAML file"):
        model_zoo.add("nowhere")


def test_the_environment_variable_counts_whenever_it_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    for folder in (first, second):
        folder.mkdir()
        write(folder, name=folder.name)
    monkeypatch.setenv(catalog.ENVIRONMENT, f"{first}{os.pathsep}{second / 'entry.yaml'}")
    assert {"first", "second"} <= set(model_zoo.list())
    monkeypatch.setenv(catalog.ENVIRONMENT, str(first))
    assert "first" in model_zoo.list() and "second" not in model_zoo.list()
    model_zoo.add(second)
    monkeypatch.setenv(catalog.ENVIRONMENT, "")
    assert "second" in model_zoo.list() and "first" not in model_zoo.list()
    monkeypatch.setenv(catalog.ENVIRONMENT, str(tmp_path / "none"))
    with pytest.raises(ConfigError, match=r"none, named by \$PANOPTIC_EXT_ZOO, does not exist"):
        model_zoo.list()


# Entry points of another distribution, installed as pip leaves it

PACKAGE = {
    "a folder": ("street_zoo:FOLDER", "import os\nFOLDER = os.path.dirname(__file__)\n"),
    "a package": ("street_zoo", ""),
    "a file": (
        "street_zoo:FILE",
        "import pathlib\nFILE = pathlib.Path(__file__).with_name('entry.yaml')\n",
    ),
    "a function": (
        "street_zoo:entries",
        "import os\ndef entries():\n    return [os.path.dirname(__file__)]\n",
    ),
}


def install(folder: Path, value: str, code: str, **changes: str) -> None:
    """A package street_zoo with an entry, and the metadata of a distribution street-zoo."""
    package, info = folder / "street_zoo", folder / "street_zoo-1.0.dist-info"
    shutil.rmtree(package, ignore_errors=True)
    for made in (package, info):
        made.mkdir(parents=True, exist_ok=True)
    (package / "__init__.py").write_text(code)
    write(package, **changes)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: street-zoo\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[{catalog.ENTRY_POINTS}]\nstreet = {value}\n")


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of installed packages; the catalogue is read anew."""
    folder = tmp_path / "site"
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setattr(catalog, "_catalog", catalog._Catalog())
    monkeypatch.delitem(sys.modules, "street_zoo", raising=False)
    return folder


@pytest.mark.parametrize("kind", PACKAGE)
def test_an_entry_point_adds_entries(kind: str, site: Path) -> None:
    install(site, *PACKAGE[kind])
    assert importlib.metadata.version("street-zoo") == "1.0"
    assert model_zoo.info(NAME).path == str(site / "street_zoo" / "entry.yaml")
    assert "mask2former_R50_coco" in model_zoo.list()


@pytest.mark.parametrize(
    ("value", "code", "changes", "reason"),
    [
        ("street_zoo:FOLDER", "raise RuntimeError('broken')", {}, "RuntimeError: broken"),
        ("street_zoo:NONE", "", {}, "AttributeError"),
        ("street_zoo", "", {"task": "detection"}, "ConfigError: .*task is 'detection'"),
        ("street_zoo", "", {"name": "mask2former_R50_coco"}, "is taken by"),
        ("street_zoo:PATH", "PATH = 7", {}, "TypeError"),
    ],
)
def test_an_entry_point_that_fails_costs_one_warning(
    value: str, code: str, changes: dict, reason: str, site: Path, caplog: pytest.LogCaptureFixture
) -> None:
    install(site, value, code, **changes)
    with caplog.at_level(logging.WARNING, logger="panoptic_ext"):
        names = model_zoo.list()
        model_zoo.list()
    assert NAME not in names and "mask2former_R50_coco" in names
    (record,) = [r for r in caplog.records if "street-zoo" in r.getMessage()]
    text = record.getMessage()
    assert text.startswith("The entries that street-zoo adds to the model zoo (entry point street")
    assert re.search(reason, text), text


def test_an_entry_of_a_run_is_found(tiny_entry: ZooEntry) -> None:
    assert model_zoo.add(tiny_entry.folder) == ["tiny_street"]
    assert model_zoo.info("tiny_street") == tiny_entry
