"""Write the small reference vectors of the published Mask2Former as text, beside this file.

    python tests/reference/make_vectors.py ../shared/data/mask2former_reference

The sources' checksums are checked, and the same sources give the same arrays; the compressed text
is the same byte for byte where zlib is the same.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
NAMES = ("matching_and_losses", "panoptic_inference")
SHA256 = {
    "matching_and_losses.json": "bcd2455fbd9636812063a185515daf741bc29412435287806b243b5de82b9e20",
    "matching_and_losses.npz": "876d486d5a3117c29520bf3b642bb0ade92bfb5eb052072f15b8e4b7ae97f864",
    "panoptic_inference.json": "50856ee48c0aee28ef8439907a98bd64ea2b6d195b8a6c94526c163eaaa31cf7",
    "panoptic_inference.npz": "c61f9216d57c03ef34e5d51362dc2b221716590cca5aaf514f3ebe20baf1b57b",
}
LINE = 120  # characters of base64 in a line


def encode(array: np.ndarray) -> dict[str, Any]:
    """An array as dtype, shape and lines of text."""
    little = np.ascontiguousarray(array.astype(array.dtype.newbyteorder("<"), copy=False))
    text = base64.b64encode(zlib.compress(little.tobytes(), 9)).decode()
    lines = [text[start : start + LINE] for start in range(0, len(text), LINE)]
    return {"dtype": array.dtype.name, "shape": list(array.shape), "zlib": lines}


def decode(entry: dict[str, Any]) -> np.ndarray:
    """The inverse of `encode`: a writable array in the machine's byte order."""
    content = zlib.decompress(base64.b64decode("".join(entry["zlib"])))
    dtype = np.dtype(entry["dtype"])
    return np.frombuffer(content, dtype.newbyteorder("<")).astype(dtype).reshape(entry["shape"])


def read_source(path: Path) -> bytes:
    """A source file's content; SystemExit where it is another than was recorded."""
    content = path.read_bytes()
    found = hashlib.sha256(content).hexdigest()
    if found != SHA256[path.name]:
        raise SystemExit(f"{path}: sha256 is {found}, expected {SHA256[path.name]}")
    return content


def text_of(source: Path, name: str) -> str:
    """The content of `<name>.json`, from the two files of that name in the folder `source`."""
    cases = json.loads(read_source(source / f"{name}.json"))
    read_source(source / f"{name}.npz")
    with np.load(source / f"{name}.npz") as arrays:
        entries = {key: encode(arrays[key]) for key in sorted(arrays.files)}
    rows = ",\n".join(json.dumps(case) for case in cases)
    return f'{{"cases": [\n{rows}\n],\n"arrays": {json.dumps(entries, indent=0)}}}\n'


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path, help="the folder mask2former_reference")
    source = parser.parse_args().source
    for name in NAMES:
        path = HERE / f"{name}.json"
        path.write_text(text_of(source, name), encoding="utf-8", newline="\n")
        print(f"{path}: {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
