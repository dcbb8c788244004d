"""Reading weight files without running what is in them.

`.pkl` files (Detectron2's and Caffe2's model zoo) are Python pickles, which can run any code when
read: here an unpickler that builds only arrays, tensors and plain values. Torch files are read with
`weights_only=True`. Either refusal can be lifted with MODEL.ALLOW_PICKLE.
"""

from __future__ import annotations

import hashlib
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

_PLAIN = {
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
    """Look at a file before reading it, to say what it is where it is no checkpoint.

    Raises:
        CheckpointError: no regular file with content, HTML page, Git LFS pointer, archive that is
            truncated or unpacks to far more than its size.
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

    Eight digits and more may be a hash as well; only those that are a date of this century, with or
    without a time of day, are taken for one, and the file's hash is logged.

    Raises:
        CheckpointError: the name ends in `-<8 or more hex digits>.<ext>` and the file differs.
    """
    suffix = re.search(r"-([0-9a-f]{8,64})\.\w+$", url)
    if suffix is None:
        return
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        for block in iter(lambda: stream.read(1 << 20), b""):
            digest.update(block)
    if digest.hexdigest().startswith(suffix[1]):
        return
    if _is_date(suffix[1]):
        logger.warning(  # INFO is not shown by panoptic-ext predict
            "%s ends in a date, not in a hash: not checked; its sha256 is %s",
            url,
            digest.hexdigest(),
        )
        return
    no_hash = (
        " If these digits are no hash, fetch the file by hand and give its path as MODEL.WEIGHTS"
        if suffix[1].isdigit()
        else ""
    )
    raise CheckpointError(
        f"{url} was fetched to {path}, but its sha256 begins with {digest.hexdigest()[:8]}, "
        f"expected {suffix[1]}: a wrong or damaged file. Delete {path} and fetch it again.{no_hash}"
    )


def _is_date(digits: str) -> bool:
    """Whether it is 20YYMMDD, or that with HH, HHMM or HHMMSS behind it."""
    formats = {8: "%Y%m%d", 10: "%Y%m%d%H", 12: "%Y%m%d%H%M", 14: "%Y%m%d%H%M%S"}
    if not digits.isdigit() or not digits.startswith("20") or len(digits) not in formats:
        return False
    try:
        datetime.strptime(digits, formats[len(digits)])
    except ValueError:
        return False
    return True


def load_torch(path: str, *, allow_pickle: bool = False) -> Any:
    """Read a file written by `torch.save`; tensors come on the CPU.

    Raises:
        CheckpointError: not a torch file, damaged (checksums are compared), or more than tensors
            and plain values in it.
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
    except Exception as error:  # damaged, it can raise anything, as safetensors' own class
        raise CheckpointError(_unreadable(path, error)) from error


def load_pickle(path: str, *, allow_pickle: bool = False) -> Any:
    """Read a `.pkl` weight file: arrays, tensors and plain values only, unless allowed.

    Raises:
        CheckpointError: no pickle, damaged, or something else in it.
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
    def __init__(self, stream: BinaryIO, path: str) -> None:
        super().__init__(stream, encoding="latin1")
        self._path = path

    def find_class(self, module: str, name: str) -> Any:
        module = {"__builtin__": "builtins", "copy_reg": "copyreg"}.get(module, module)
        if (module, name) == ("torch.storage", "_load_from_bytes"):
            return _storage_from_bytes
        if module == "builtins" and name in _OF_CONTENT:
            return _OF_CONTENT[name]
        if (module, name) == ("copyreg", "_reconstructor") or name in _PLAIN.get(module, ()):
            return super().find_class(module, name)
        raise CheckpointError(
            f"checkpoint {self._path} holds more than arrays, tensors and plain values (found "
            f"{module}.{name}). {_ALLOW_HINT}"
        )


def _of_content(kind: type) -> Callable[..., Any]:
    """What makes a `kind` in a pickle: of given content only, for a length given in a few bytes
    would fill the memory with zeros."""

    def make(*args: Any) -> Any:
        if args and isinstance(args[0], int):
            raise CheckpointError(
                f"a checkpoint asks for {kind.__name__} of {readable_size(args[0])} without their "
                "content, which no weights do; do not use this file"
            )
        return kind(*args)

    return make


_OF_CONTENT = {kind.__name__: _of_content(kind) for kind in (bytes, bytearray)}


def _storage_from_bytes(data: bytes) -> Any:
    return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)


def _is_torch_file(path: str) -> bool:
    if zipfile.is_zipfile(path):
        return True
    with open(path, "rb") as stream:
        return b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19" in stream.read(64)


def _unreadable(path: str, error: Exception) -> str:
    reason = str(error).strip().split("\n")[0][:200] or type(error).__name__
    return (
        f"checkpoint {path} ({os.path.getsize(path)} bytes) cannot be read: {reason}. "
        "Expected a file of torch.save (.pth) or a model zoo pickle (.pkl); it is damaged or of "
        "another format: fetch or copy it again"
    )
