"""Which Detectron2 a run had: where it was imported from and its distribution."""

from __future__ import annotations

import json
from pathlib import Path

import detectron2
import pytest
from detectron2 import config

from panoptic_ext._detectron2 import detectron2_build, detectron2_version


def make_distribution(site: Path, version: str, *, editable: Path | None = None) -> None:
    """The metadata that pip leaves in `site`, of an editable install where a folder is given."""
    info = site / f"detectron2-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: detectron2\nVersion: {version}\n")
    if editable is not None:
        source = {"url": editable.as_uri(), "dir_info": {"editable": True}}
        (info / "direct_url.json").write_text(json.dumps(source))


def build_imported_from(
    folder: Path, path: list[Path], monkeypatch: pytest.MonkeyPatch
) -> str | None:
    """The distribution found for a package in `folder` where sys.path is `path`."""
    monkeypatch.setattr(detectron2, "__path__", [str(folder)])
    monkeypatch.setattr("sys.path", [str(p) for p in path])
    build = detectron2_build()
    assert build["imported_from"] == str(folder.resolve())
    return build["distribution"]


def test_the_distribution_is_the_one_that_the_folder_belongs_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site, checkout, other = tmp_path / "site", tmp_path / "my clone", tmp_path / "other"
    make_distribution(site, "0.6+mine")
    make_distribution(other, "0.6", editable=checkout)
    path = [site, other]
    for folder, expected in (
        (site, "detectron2 0.6+mine"),
        (checkout, "detectron2 0.6"),  # an editable install
        (tmp_path / "loose", None),  # PYTHONPATH
    ):
        (folder / "detectron2").mkdir(parents=True, exist_ok=True)
        found = build_imported_from(folder / "detectron2", path, monkeypatch)
        assert found == expected


def test_v06_and_main_are_distinguished(monkeypatch: pytest.MonkeyPatch) -> None:
    for keys, version in (({}, "0.6"), ({"FLOAT32_PRECISION": ""}, "0.6 (main)")):
        monkeypatch.setattr(config, "get_cfg", lambda keys=keys: keys)
        assert detectron2_version() == version
