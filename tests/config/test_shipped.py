"""The configs that come with the package are found by name, from any folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from panoptic_ext.config import shipped
from panoptic_ext.config.shipped import find_config, shipped_configs
from panoptic_ext.config.yaml_reader import read_file
from panoptic_ext.engine.run_config import load_cfg
from panoptic_ext.errors import ConfigError
from tests import ROOT

NAME = "shapes/panoptic_fpn/panoptic_fpn_R18_shapes.yaml"


@pytest.mark.parametrize("prefix", ["", "configs/", "./configs/"])
def test_by_its_name_from_any_folder(
    prefix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert Path(find_config(prefix + NAME)) == ROOT / "configs" / NAME
    assert load_cfg(prefix + NAME).MODEL.META_ARCHITECTURE == "UnifiedPanopticFPN"


def test_the_users_own_file_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    own = tmp_path / NAME
    own.parent.mkdir(parents=True)
    own.write_text("SEED: 7\n")
    assert find_config(NAME) == NAME and load_cfg(NAME).SEED == 7
    assert find_config(str(own)) == str(own)


def test_a_wheel_has_them_within_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shipped, "_PACKAGE", str(tmp_path / "panoptic_ext"))
    assert Path(shipped_configs()).resolve() == tmp_path / "configs"
    (tmp_path / "panoptic_ext" / "configs" / "common").mkdir(parents=True)
    (tmp_path / "panoptic_ext" / "configs" / "common" / "a.yaml").touch()
    assert Path(shipped_configs()) == tmp_path / "panoptic_ext" / "configs"
    assert find_config("common/a.yaml") == str(Path(shipped_configs()) / "common" / "a.yaml")


def test_the_error_lists_where_it_looked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError) as error:
        load_cfg("coco/mask2former/none.yaml")
    places = (tmp_path, ROOT / "configs")
    for place in places:
        assert str(place / "coco" / "mask2former" / "none.yaml") in str(error.value)


def test_a_base_is_found_beside_its_file_and_else_among_the_shipped_files(tmp_path: Path) -> None:
    """As a user writes it who has a wheel, or whose YAML file lies outside the checkout."""
    name = "common/panoptic_fpn/Base-PanopticFPN-Small.yaml"
    leaf = tmp_path / "street.yaml"
    for base in (f"configs/{name}", name):
        leaf.write_text(f"_BASE_: {base}\n")
        assert {s.key for s in read_file(str(leaf))} == {s.key for s in read_file(name)}
    (tmp_path / "common" / "panoptic_fpn").mkdir(parents=True)
    (tmp_path / name).write_text("SEED: 7\n")
    assert [s.value for s in read_file(str(leaf))] == [7]
