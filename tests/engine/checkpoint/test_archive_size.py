"""Archives that decompress to far more than their size are refused before that happens."""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from panoptic_ext.engine.checkpoint import archive_size
from panoptic_ext.engine.checkpoint.archive_size import check_archive_size
from panoptic_ext.engine.checkpoint.read_weights import load_pickle, load_torch
from panoptic_ext.errors import CheckpointError


def _packed_again(path: Path, target: Path, *, zeros: int = 0) -> None:
    """Copy a torch file with its members compressed, its storages replaced by so many zeros."""
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            content = bytes(zeros) if zeros and "/data/" in name else old.read(name)
            new.writestr(name, content)


def test_a_storage_that_inflates_a_thousandfold_is_refused_with_the_sizes(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(10)}, tmp_path / "a.pth")
    _packed_again(tmp_path / "a.pth", tmp_path / "bomb.pth", zeros=100_000_000)
    assert (tmp_path / "bomb.pth").stat().st_size < 200_000

    with pytest.raises(CheckpointError, match=r"has \d+\.\d kB, but .* unpacks to 100\.0 MB") as e:
        load_torch(str(tmp_path / "bomb.pth"))
    assert len(str(e.value)) < 500 + len(str(tmp_path))


def test_members_that_share_their_bytes_are_counted_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archive_size, "_ALWAYS_ACCEPTED", 1000)
    path = tmp_path / "overlapping.pth"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("m/data/0", bytes(1000))
        (member,) = archive.filelist
        archive.filelist += [member] * 99

    with pytest.raises(CheckpointError, match=r"unpacks to 100\.0 kB"):
        check_archive_size(str(path))


def test_npz_is_looked_at_in_the_same_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive_size, "_ALWAYS_ACCEPTED", 1000)
    np.savez_compressed(tmp_path / "bomb.npz", a=np.zeros(10**6))

    with pytest.raises(CheckpointError, match=r"unpacks to 8\.0 MB"):
        load_torch(str(tmp_path / "bomb.npz"))


def test_weights_packed_again_are_still_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archive_size, "_ALWAYS_ACCEPTED", 0)
    weights = {"a": torch.randn(10_000), "b": torch.zeros(5_000)}
    torch.save(weights, tmp_path / "a.pth")
    _packed_again(tmp_path / "a.pth", tmp_path / "packed.pth")

    for name in ("a.pth", "packed.pth"):
        loaded = load_torch(str(tmp_path / name))
        assert all(torch.equal(loaded[k], v) for k, v in weights.items())


def test_a_damaged_directory_is_an_error(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(10)}, tmp_path / "a.pth")
    content = bytearray((tmp_path / "a.pth").read_bytes())
    content[content.index(b"PK\x01\x02")] = 0
    (tmp_path / "damaged.pth").write_bytes(content)

    with pytest.raises(CheckpointError, match="directory of its archive cannot be read"):
        check_archive_size(str(tmp_path / "damaged.pth"))


class _Length:
    """Pickles as a call of bytes or bytearray with a length in place of content."""

    def __init__(self, kind: type) -> None:
        self.kind = kind

    def __reduce__(self) -> tuple:
        return self.kind, (3 * 10**9,)


@pytest.mark.parametrize("kind", [bytes, bytearray])
def test_a_pickle_that_asks_for_memory_by_a_length_is_refused(kind: type, tmp_path: Path) -> None:
    path = tmp_path / "x.pkl"
    path.write_bytes(pickle.dumps({"model": _Length(kind)}, 2))

    with pytest.raises(CheckpointError, match=rf"asks for {kind.__name__} of 3\.0 GB without"):
        load_pickle(str(path))


def test_bytes_with_their_content_are_read(tmp_path: Path) -> None:
    content = {"a": b"12", "b": bytearray(b"34"), "c": np.arange(3)}
    for protocol in range(2, 6):
        (tmp_path / "x.pkl").write_bytes(pickle.dumps(content, protocol))
        loaded = load_pickle(str(tmp_path / "x.pkl"))
        assert (loaded["a"], loaded["b"], loaded["c"].tolist()) == (b"12", b"34", [0, 1, 2])


def test_a_safetensors_file_with_a_wrong_header_is_one_error(tmp_path: Path) -> None:
    header = b'{"a":{"dtype":"F32","shape":[1000000000000],"data_offsets":[0,4]}}'
    path = tmp_path / "x.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + b"0000")

    with pytest.raises(CheckpointError, match=r"x\.safetensors .*cannot be read"):
        load_torch(str(path))
