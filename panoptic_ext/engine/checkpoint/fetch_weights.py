"""Fetch weights by an address: http(s), `detectron2://`, or whatever has a handler of its own."""

from __future__ import annotations

from detectron2.checkpoint.catalog import ModelCatalog, ModelCatalogHandler
from detectron2.utils.file_io import Detectron2Handler
from iopath.common.file_io import HTTPURLHandler, PathHandler, PathManager

from panoptic_ext.download import cache_path, fetch, forget_record
from panoptic_ext.engine.checkpoint.read_weights import check_hash
from panoptic_ext.errors import CheckpointError, PanopticExtError

__all__ = ["fetch_weights", "handler_of"]


def fetch_weights(address: str, path_manager: PathManager) -> str:
    """The local file of an address; http(s) files are downloaded into Detectron2's cache.

    Args:
        address: an address with a scheme.
        path_manager: holds the handlers of other schemes, and of single hosts.

    Returns:
        The path of the file.

    Raises:
        DownloadError: a file of http(s) cannot be downloaded.
        CheckpointError: the hash in its name is not the file's, or another handler failed.
        PanopticExtError: as raised by a handler of this package or of one built on it.
    """
    url = _url(address, path_manager)
    if not url:
        return _by_handler(address, path_manager)
    path = fetch(url, cache_path(url))
    try:
        check_hash(path, url)
    except CheckpointError:
        forget_record(path)  # the right file, which comes next, has another hash
        raise
    return path


def handler_of(address: str, path_manager: PathManager) -> PathHandler | None:
    """The handler of an address; None if it has none."""
    # iopath has no public way to ask for the handler of an address. Longest prefixes come first.
    handlers = path_manager._path_handlers.items()
    return next((found for prefix, found in handlers if address.startswith(prefix)), None)


def _url(address: str, path_manager: PathManager) -> str:
    """The http(s) address of a file that Detectron2 would download as well, or ""."""
    handler = type(handler_of(address, path_manager))
    if handler is Detectron2Handler:
        name = address.removeprefix(handler.PREFIX)
        return _url(handler.S3_DETECTRON2_PREFIX + name, path_manager)
    if handler is ModelCatalogHandler:
        try:
            return _url(ModelCatalog.get(address.removeprefix(handler.PREFIX)), path_manager)
        except (KeyError, RuntimeError):
            return ""  # the handler raises it again
    # Not a subclass: a handler for the addresses of one host may log in there.
    is_plain = handler in (type(None), HTTPURLHandler)
    return address if is_plain and address.startswith(("http://", "https://")) else ""


def _by_handler(address: str, path_manager: PathManager) -> str:
    try:
        return path_manager.get_local_path(address)
    except PanopticExtError:
        raise
    except Exception as error:  # every handler of iopath has its own errors
        raise CheckpointError(
            f"weights {address} cannot be fetched: {error}. Check the address and the network, "
            "or fetch the file by hand and give its path as MODEL.WEIGHTS"
        ) from error
