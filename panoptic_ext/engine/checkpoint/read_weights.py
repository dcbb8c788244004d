"""Read weight files without running code that they may contain.

`.pkl` files (Detectron2's and Caffe2's model zoo) are Python pickles, which can run any code when
they are read. The unpickler of this module builds only arrays, tensors and plain values. Torch
files are read with `weights_only=True`. MODEL.ALLOW_PICKLE lifts both restrictions.
"""

from __future__ import annotations

import io
import logging
import os
import pickle
import re
import zipfile
from collections.abc import Callable
from datetime import datetime
from typing import Any, BinaryIO

import torch

from panoptic_ext.download import sha256_of
from panoptic_ext.engine.checkpoint.archive_checksums import check_checksums
from panoptic_ext.engine.checkpoint.archive_size import check_archive_size
from panoptic_ext.errors import CheckpointError
from panoptic_ext.regular_files import CHECKPOINT, check_regular_file, readable_size

__all__ = ["check_file", "check_hash", "load_pickle", "load_torch"]

logger = logging.getLogger(__name__)

_ALLOW_HINT = (
    "Reading it could run any code, so it was not read. If you trust its author, add "
    "MODEL.ALLOW_PICKLE True"
)

# Module -> names that a pickle may use. numpy 2 renamed numpy.core to numpy._core; there are files
# of both versions.
_PLAIN_NAMES = {
    "builtins": {
        "bool", "bytearray", "bytes", "complex", "dict", "float", "frozenset", "int", "list",
        "object", "range", "set", "slice", "str", "tuple",
    },
    "collections": {"OrderedDict"},
    "_codecs": {"encode"},
    "numpy": {"dtype", "ndarray"},
    "numpy.core.multiarray": {"_reconstruct", "scalar"},
    "numpy._core.multiarray": {"_reconstruct", "scalar"},
    "numpy.core.numeric": {"_frombuffer"},
    "numpy._core.numeric": {"_frombuffer"},
    "torch": {"Size", "float16", "float32", "float64", "bfloat16", "int64", "int32", "uint8"},
    "torch._utils": {"_rebuild_parameter", "_rebuild_tensor_v2"},
}  # fmt: skip


def check_file(path: str) -> None:
    """Refuse a file that is no checkpoint, before it is read, with an error that says what it is.

    Raises:
        CheckpointError: it is no regular file with content, an HTML page, a Git LFS pointer, or an
            archive that is truncated or decompresses to far more than its size.
    """
    size = check_regular_file(path, CHECKPOINT, error=CheckpointError)
    with open(path, "rb") as stream:
        head = stream.read(512)
    text = head.lstrip().lower()
    if text.startswith((b"<!doctype", b"<html", b"<?xml")):
        raise CheckpointError(
            f"checkpoint {path} is an HTML page ({size} bytes), not weights: a download that ended "
            "at a log-in or error page. Delete it and fetch the file itself"
        )
    if text.startswith(b"version https://git-lfs"):
        raise CheckpointError(f"checkpoint {path} is a Git LFS pointer; run `git lfs pull` there")
    if head.startswith(b"PK") and not zipfile.is_zipfile(path):
        raise CheckpointError(
            f"checkpoint {path} is truncated ({size} bytes, the end of the archive is missing); "
            "fetch or copy it again"
        )
    check_archive_size(path)


def check_hash(path: str, url: str) -> None:
    """Compare a downloaded file with the sha256 prefix in its name (torchvision's convention).

    Raises:
        CheckpointError: the name ends in `-<8 or more hex digits>.<ext>`, these are not the hash's,
            and they are no date.
    """
    suffix = re.search(r"-([0-9a-f]{8,64})\.\w+$", url)
    if suffix is None:
        return
    digest = sha256_of(path)
    if digest.startswith(suffix[1]):
        return
    # Digits alone may be a hash or a date. Those that differ from the hash and are a date of this
    # century are taken for a date, and the warning gives the hash to compare by hand.
    if _is_date(suffix[1]):
        logger.warning(  # INFO is not shown by panoptic-ext predict
            "%s ends in a date, not in a hash: not checked; its sha256 is %s",
            url,
            digest,
        )
        return
    no_hash = (
        " If these digits are no hash, fetch the file by hand and give its path as MODEL.WEIGHTS"
        if suffix[1].isdigit()
        else ""
    )
    raise CheckpointError(
        f"{url} was fetched to {path}, but its sha256 begins with {digest[:8]}, "
        f"expected {suffix[1]}: a wrong or damaged file. Delete {path} and fetch it again.{no_hash}"
    )


def _is_date(digits: str) -> bool:
    """Whether it is 20YYMMDD, optionally followed by HH, HHMM or HHMMSS."""
    formats = {8: "%Y%m%d", 10: "%Y%m%d%H", 12: "%Y%m%d%H%M", 14: "%Y%m%d%H%M%S"}
    if not digits.isdigit() or not digits.startswith("20") or len(digits) not in formats:
        return False
    try:
        datetime.strptime(digits, formats[len(digits)])
    except ValueError:
        return False
    return True


def load_torch(path: str, *, allow_pickle: bool = False) -> Any:
    """Read a file written by `torch.save`; its tensors are loaded to the CPU.

    Raises:
        CheckpointError: the file is no torch file, is damaged (checksums are compared), or holds
            more than tensors and plain values.
    """
    check_file(path)
    check_checksums(path)
    try:
        return torch.load(path, map_location="cpu", weights_only=not allow_pickle)
    except pickle.UnpicklingError as error:
        refused = re.search(r"GLOBAL ([\w.]+)|Unsupported global: (?:GLOBAL )?([\w.]+)", str(error))
        if refused is None and "weights_only" not in str(error):
            raise CheckpointError(_unreadable(path, error)) from error
        if refused is None and not _is_torch_file(path):
            raise CheckpointError(_unreadable(path, error)) from error
        name = next((g for g in refused.groups() if g), "?") if refused else "?"
        raise CheckpointError(
            f"checkpoint {path} holds more than tensors and plain values (found {name}). "
            f"{_ALLOW_HINT}"
        ) from error
    except MemoryError as error:
        raise CheckpointError(f"checkpoint {path} does not fit into memory") from error
    except Exception as error:  # a damaged file can raise anything, e.g. safetensors' own class
        raise CheckpointError(_unreadable(path, error)) from error


def load_pickle(path: str, *, allow_pickle: bool = False) -> Any:
    """Read a `.pkl` weight file: arrays, tensors and plain values only, unless allowed.

    Raises:
        CheckpointError: the file is no pickle, is damaged, or holds anything else.
    """
    check_file(path)
    check_checksums(path)
    with open(path, "rb") as stream:
        try:
            if allow_pickle:
                return pickle.load(stream, encoding="latin1")
            return _PlainUnpickler(stream, path).load()
        except CheckpointError:
            raise
        except Exception as error:  # a damaged pickle can raise anything
            raise CheckpointError(_unreadable(path, error)) from error


class _PlainUnpickler(pickle.Unpickler):
    """An unpickler that builds arrays, tensors and plain values only."""

    def __init__(self, stream: BinaryIO, path: str) -> None:
        super().__init__(stream, encoding="latin1")
        self._path = path

    def find_class(self, module: str, name: str) -> Any:
        module = {"__builtin__": "builtins", "copy_reg": "copyreg"}.get(module, module)
        # torch's own `_load_from_bytes` unpickles anything.
        if (module, name) == ("torch.storage", "_load_from_bytes"):
            return _storage_from_bytes
        if module == "builtins" and name in _BYTES_OF_CONTENT:
            return _BYTES_OF_CONTENT[name]
        if (module, name) == ("copyreg", "_reconstructor") or name in _PLAIN_NAMES.get(module, ()):
            return super().find_class(module, name)
        raise CheckpointError(
            f"checkpoint {self._path} holds more than arrays, tensors and plain values (found "
            f"{module}.{name}). {_ALLOW_HINT}"
        )


def _only_of_content(kind: type) -> Callable[..., Any]:
    """A constructor of `kind`, bytes or bytearray, that takes content and refuses a length."""

    # A length costs a pickle a few bytes, and `bytes(length)` would fill the memory with zeros.
    def make(*args: Any) -> Any:
        if args and isinstance(args[0], int):
            raise CheckpointError(
                f"a checkpoint asks for {kind.__name__} of {readable_size(args[0])} without their "
                "content, which no weights do; do not use this file"
            )
        return kind(*args)

    return make


_BYTES_OF_CONTENT = {kind.__name__: _only_of_content(kind) for kind in (bytes, bytearray)}


def _storage_from_bytes(data: bytes) -> Any:
    return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)


def _is_torch_file(path: str) -> bool:
    if zipfile.is_zipfile(path):
        return True
    with open(path, "rb") as stream:
        # The magic number of torch's format before 1.6, which is no zip archive.
        return b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19" in stream.read(64)


def _unreadable(path: str, error: Exception) -> str:
    reason = str(error).strip().split("\n")[0][:200] or type(error).__name__
    return (
        f"checkpoint {path} ({os.path.getsize(path)} bytes) cannot be read: {reason}. "
        "Expected a file of torch.save (.pth) or a model zoo pickle (.pkl); it is damaged or of "
        "another format: fetch or copy it again"
    )
