"""PANOPTIC_EXT_SHARED names the folder of all data beside the repository."""

from __future__ import annotations

import runpy
import sys

import pytest

from tests import ROOT
from tests.shared_data import shared_data_folder


@pytest.mark.parametrize("given", [None, ""])
def test_by_default_the_folder_is_beside_the_repository(monkeypatch, given):
    monkeypatch.delenv("PANOPTIC_EXT_SHARED", raising=False)
    if given is not None:
        monkeypatch.setenv("PANOPTIC_EXT_SHARED", given)
    assert shared_data_folder() == ROOT.parent / "shared" / "data"


@pytest.mark.parametrize("there", [False, True])
def test_the_reference_of_mask2former_follows_the_variable(monkeypatch, tmp_path, there):
    folder = tmp_path / "mask2former_reference"
    if there:
        folder.mkdir()
    monkeypatch.setenv("PANOPTIC_EXT_SHARED", str(tmp_path))
    monkeypatch.delitem(sys.modules, "tests.mask2former_reference", raising=False)
    module = runpy.run_module("tests.mask2former_reference")
    assert module["FOLDER"] == folder
    mark = module["needs_reference"].mark
    assert mark.args == (not there,) and str(folder) in mark.kwargs["reason"]
