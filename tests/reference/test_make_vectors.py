"""The vectors in the repository hold what their sources hold, and a changed source is refused."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest

from tests import ROOT
from tests.mask2former_reference import FOLDER, needs_reference, vectors
from tests.reference import make_vectors
from tests.reference.make_vectors import HERE, NAMES, decode, encode


@needs_reference
@pytest.mark.parametrize("name", NAMES)
def test_the_files_hold_every_array_and_case_of_the_source_bit_for_bit(name):
    assert vectors(name)["cases"] == json.loads((FOLDER / f"{name}.json").read_text())
    with np.load(FOLDER / f"{name}.npz") as source:
        assert sorted(vectors(name)["arrays"]) == sorted(source.files)
        for key in source.files:
            found = decode(vectors(name)["arrays"][key])
            assert (found.dtype, found.shape) == (source[key].dtype, source[key].shape), key
            assert found.tobytes() == source[key].tobytes(), key


@needs_reference
def test_the_script_writes_the_same_again(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(make_vectors, "HERE", tmp_path)
    monkeypatch.setattr(sys, "argv", ["make_vectors.py", str(FOLDER)])
    make_vectors.main()
    for name in NAMES:
        again, kept = (json.loads((f / f"{name}.json").read_text()) for f in (tmp_path, HERE))
        assert again["cases"] == kept["cases"] and again["arrays"].keys() == kept["arrays"].keys()
        for key, entry in kept["arrays"].items():  # other zlibs compress to other bytes
            assert np.array_equal(decode(again["arrays"][key]), decode(entry)), key


@pytest.mark.parametrize(
    "array", [np.arange(6, dtype=np.int64).reshape(2, 3), np.zeros((0, 3), np.float32)]
)
def test_decode_is_the_inverse_of_encode(array):
    found = decode(json.loads(json.dumps(encode(array))))
    assert found.dtype == array.dtype and np.array_equal(found, array) and found.flags.writeable


def test_another_source_is_refused(tmp_path):
    (tmp_path / "matching_and_losses.json").write_text("[]")
    with pytest.raises(SystemExit, match=r"sha256 is 4f53cda.*, expected bcd2455"):
        make_vectors.text_of(tmp_path, "matching_and_losses")


def test_the_vectors_are_text_in_short_lines():
    for name in NAMES:
        text = (ROOT / "tests/reference" / f"{name}.json").read_text(encoding="ascii")
        assert max(map(len, text.splitlines())) < 1000
