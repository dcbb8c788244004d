"""A flipped byte within a tensor is found before the weights are used."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest
import torch
from torch import serialization

from panoptic_ext.engine.checkpoint.archive_checksums import check_checksums
from panoptic_ext.engine.checkpoint.checkpointer import Checkpointer
from panoptic_ext.errors import CheckpointError
from tests.tiny.training import PanopticExtTestTiny


def flip(path: Path, member: str) -> None:
    """Invert the middle byte of a member's content."""
    with zipfile.ZipFile(path) as archive:
        info = next(i for i in archive.infolist() if i.filename.endswith(member))
    content = bytearray(path.read_bytes())
    lengths = [
        int.from_bytes(content[info.header_offset + at : info.header_offset + at + 2], "little")
        for at in (26, 28)  # of the name and of the extra field
    ]
    content[info.header_offset + 30 + sum(lengths) + info.file_size // 2] ^= 0xFF
    path.write_bytes(content)


@pytest.mark.parametrize("member", ["data/0", "data.pkl", "version"])
@pytest.mark.parametrize("strict", [True, False])
def test_a_flipped_byte_is_found_wherever_weights_load(
    tmp_path: Path, member: str, strict: bool
) -> None:
    model = PanopticExtTestTiny()
    path = tmp_path / "weights.pth"
    torch.save({"model": model.state_dict()}, path)
    Checkpointer(model).load(str(path), strict=strict)
    flip(path, member)
    with pytest.raises(
        CheckpointError, match=rf"weights.pth is damaged: 1 of the \d+ members.*{member}'"
    ):
        Checkpointer(model).load(str(path), strict=strict)


def test_resume_passes_over_a_flipped_byte(tmp_path: Path) -> None:
    model = PanopticExtTestTiny()
    checkpointer = Checkpointer(model, str(tmp_path))
    for i in (1, 2):
        checkpointer.save(f"model_000000{i}", iteration=i)
    flip(tmp_path / "model_0000002.pth", "data/0")
    assert checkpointer.resume()["iteration"] == 1


def test_a_damaged_header_is_found(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    torch.save({"a": torch.zeros(9)}, path)
    content = bytearray(path.read_bytes())
    content[0] ^= 0xFF  # of the first member's own header; torch reads by the directory alone
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"1 of the \d+ members"):
        check_checksums(str(path))


def test_files_without_checksums_are_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = PanopticExtTestTiny()
    old, without = tmp_path / "old.pth", tmp_path / "without.pth"
    torch.save(model.state_dict(), old, _use_new_zipfile_serialization=False)
    if hasattr(serialization, "set_crc32_options"):  # torch 2.6
        options = serialization.get_crc32_options()
        serialization.set_crc32_options(False)
        try:
            torch.save(model.state_dict(), without)
        finally:
            serialization.set_crc32_options(options)
    for path in filter(Path.exists, (old, without)):
        caplog.clear()
        with caplog.at_level("INFO", "panoptic_ext"):
            Checkpointer(model).load(str(path), strict=True)
        assert f"{path} " in caplog.text and "checksums" in caplog.text
