"""Reading label PNGs: what is damaged gives an error, never a crash or other ids."""

from __future__ import annotations

import random
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from panoptic_ext.data import id_to_rgb, write_id_map
from panoptic_ext.data.coco.label_png import (
    decode_png,
    encode_png,
    read_id_map,
    read_runs,
)
from panoptic_ext.data.coco.runs import runs_from_ids
from panoptic_ext.errors import DatasetError, EvaluationError
from tests.tiny.programs import run_function


def random_map() -> np.ndarray:
    """(48, 64) int64 with ragged borders and ids up to 2^24 - 1."""
    rng = np.random.default_rng(0)
    ids = np.repeat(np.repeat(rng.integers(0, 2**24, (6, 8)), 8, 0), 8, 1)
    ids[rng.random(ids.shape) < 0.1] = 2**24 - 1
    return ids


def split(content: bytes) -> list[tuple[bytes, bytes]]:
    """(kind, data) of the chunks of a PNG."""
    at, chunks = 8, []
    while at < len(content):
        length = int.from_bytes(content[at : at + 4], "big")
        chunks.append((content[at + 4 : at + 8], content[at + 8 : at + 8 + length]))
        at += 12 + length
    return chunks


def join(chunks: list[tuple[bytes, bytes]]) -> bytes:
    """A PNG of these chunks, with the right checksums."""
    parts = [
        len(d).to_bytes(4, "big") + k + d + zlib.crc32(k + d).to_bytes(4, "big") for k, d in chunks
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def damaged(content: bytes, seed: int) -> bytes:
    """Zeros or a flipped bit anywhere; or in the pixel data, with the checksum repaired."""
    rng = random.Random(seed)
    repair = seed % 4 > 1
    chunks = split(content)
    at = next(i for i, (kind, _) in enumerate(chunks) if kind == b"IDAT")
    data = bytearray(chunks[at][1] if repair else content)
    first = rng.randrange(len(data))
    if seed % 2:
        data[first] ^= 1 << rng.randrange(8)
    else:
        data[first : first + 40] = bytes(len(data[first : first + 40]))
    if not repair:
        return bytes(data)
    chunks[at] = (b"IDAT", bytes(data))
    return join(chunks)


def read_all(*paths: str) -> None:
    """Print the sum of each file's ids, or that reading it is an error."""
    for path in paths:
        try:
            print(int(read_runs(path).ids.sum()))
        except EvaluationError as error:
            assert path in str(error), error
            print("error")


def test_damaged_files_never_crash(tmp_path: Path) -> None:
    content = encode_png(runs_from_ids(random_map()))
    paths = []
    for seed in range(160):
        paths.append(tmp_path / f"{seed}.png")
        paths[-1].write_bytes(damaged(content, seed))
    result = run_function(read_all, *map(str, paths))
    assert result.returncode == 0, result.stderr
    found = result.stdout.split()
    assert len(found) == len(paths)
    right = str(int(runs_from_ids(random_map()).ids.sum()))
    # With wrong checksums (two of four) no other ids come out; files where zeros met zeros pass.
    plain = [value for seed, value in enumerate(found) if seed % 4 < 2]
    assert set(plain) <= {"error", right} and plain.count("error") > 70


def test_wrong_checksum_is_named(tmp_path: Path) -> None:
    content = bytearray(encode_png(runs_from_ids(random_map())))
    content[content.index(b"IDAT") + 100] ^= 1
    (tmp_path / "x.png").write_bytes(content)
    with pytest.raises(EvaluationError, match=r"x.png is damaged \(wrong checksum of b'IDAT' at"):
        read_runs(str(tmp_path / "x.png"))
    grey = random_map() % 1000
    write_id_map(tmp_path / "grey.png", grey, "divisor")
    content = bytearray((tmp_path / "grey.png").read_bytes())
    assert (read_runs(str(tmp_path / "grey.png"), "divisor").dense() == grey).all()
    content[content.index(b"IDAT") + 100] ^= 1
    (tmp_path / "grey.png").write_bytes(content)
    with pytest.raises(EvaluationError, match=r"grey.png is damaged"):
        read_runs(str(tmp_path / "grey.png"), "divisor")


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_orientation_and_gamma_do_not_change_ids(tmp_path: Path, mode: str) -> None:
    image = Image.fromarray(id_to_rgb(random_map())).convert(mode)
    info, exif = PngInfo(), Image.Exif()
    info.add(b"gAMA", (10000).to_bytes(4, "big"))
    exif[0x0112] = 6  # turned by 90 degrees
    image.save(tmp_path / "x.png", pnginfo=info, exif=exif)
    assert (read_runs(str(tmp_path / "x.png")).dense() == random_map()).all()


def test_a_header_of_an_absurd_size(tmp_path: Path) -> None:
    chunks = split(encode_png(runs_from_ids(random_map())))
    chunks[0] = (b"IHDR", (2**30).to_bytes(4, "big") * 2 + chunks[0][1][8:])
    (tmp_path / "x.png").write_bytes(join(chunks))
    with pytest.raises(EvaluationError, match=r"x.png has \d+ million pixels, expected at most"):
        read_runs(str(tmp_path / "x.png"))


@pytest.mark.parametrize(("encoding", "top"), [("rgb", 2**24), ("divisor", 2**16)])
def test_files_round_trip(tmp_path: Path, encoding: str, top: int) -> None:
    ids = np.random.default_rng(0).integers(0, top, (13, 17))
    write_id_map(tmp_path / "a.png", ids, encoding)
    found = read_id_map(tmp_path / "a.png", encoding)
    assert found.dtype == np.int32
    assert np.array_equal(found, ids)


def test_divisor_ids_beyond_16_bits_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="16-bit PNG"):
        write_id_map(tmp_path / "a.png", np.full((2, 2), 2**16), "divisor")


def test_unknown_encoding_names_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="did you mean 'divisor'"):
        read_id_map(tmp_path / "a.png", "divisors")


def test_bytes_round_trip() -> None:
    runs = runs_from_ids(random_map())
    assert encode_png(runs) == encode_png(random_map())
    found = decode_png(encode_png(runs))
    assert found.dtype == np.int32 and (found == random_map()).all()
