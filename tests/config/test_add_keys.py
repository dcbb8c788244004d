"""Keys of a third party's part reach every config that the package reads."""

from __future__ import annotations

from pathlib import Path

import pytest
from detectron2.config import CfgNode

from panoptic_ext.config import add_keys, keys
from panoptic_ext.engine.run_config import load_cfg
from panoptic_ext.errors import ConfigError


def test_a_key_of_a_third_party_is_read_from_files_and_command_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keys, "_key_functions", [])
    with pytest.raises(ConfigError, match=r"MY_GAIN"):
        load_cfg("", ["MODEL.MY_GAIN", "2.0"], use_data=False)

    @add_keys
    def add_my_keys(cfg: CfgNode) -> None:
        cfg.MODEL.MY_GAIN = 1.0

    add_keys(add_my_keys)  # a module that is imported again adds nothing twice
    assert keys._key_functions == [add_my_keys]
    (tmp_path / "a.yaml").write_text("MODEL: {MY_GAIN: 3.0}\n")
    for file, opts, gain in (
        ("", [], 1.0),
        (str(tmp_path / "a.yaml"), [], 3.0),
        (str(tmp_path / "a.yaml"), ["MODEL.MY_GAIN", "2.0"], 2.0),
    ):
        assert gain == load_cfg(file, opts, use_data=False).MODEL.MY_GAIN
