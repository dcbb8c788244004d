"""Addresses of the model zoo in Detectron2's PathManager, so that MODEL.WEIGHTS takes them.

`zoo://NAME` is the file of weights of an entry, which is downloaded at its first use; `timm://NAME`
are timm's own pretrained weights.
"""

from __future__ import annotations

from typing import IO, Any

from detectron2.utils.file_io import PathManager
from iopath.common.file_io import PathHandler

from panoptic_ext import model_zoo
from panoptic_ext.model_zoo.timm_handler import TimmHandler
from panoptic_ext.modeling.meta_arch.classes import DatasetClasses

__all__ = ["ZooHandler", "register_path_handlers"]


class ZooHandler(PathHandler):
    """Resolve `zoo://NAME` to the local file of an entry's weights."""

    PREFIX = "zoo://"

    def _get_supported_prefixes(self) -> list[str]:
        return [self.PREFIX]

    def _get_local_path(self, path: str, force: bool = False, **kwargs: Any) -> str:
        return model_zoo.get_checkpoint(path.removeprefix(self.PREFIX))

    def classes_of(self, path: str) -> DatasetClasses | None:
        """The classes that weights were trained on, if they are those of an entry.

        Args:
            path: `zoo://NAME`, or an entry's published address.

        Returns:
            None for other weights, and for those of a backbone.
        """
        from panoptic_ext.model_zoo.configs import classes_of

        if path.startswith(self.PREFIX):
            names = [path.removeprefix(self.PREFIX)]
        else:
            names = model_zoo.list() if path.startswith(("https://", "http://")) else []
            names = [name for name in names if model_zoo.info(name).address == path]
        entries = [model_zoo.info(name) for name in names]
        entry = next((entry for entry in entries if entry.data_set), None)
        if entry is None:
            return None
        classes = classes_of(entry)
        names, isthing = classes.thing_classes, classes.isthing
        return DatasetClasses(entry.data_set, tuple(map(bool, isthing)), tuple(names))

    def _open(self, path: str, mode: str = "r", buffering: int = -1, **kwargs: Any) -> IO[Any]:
        return open(self._get_local_path(path), mode, buffering)

    def _exists(self, path: str, **kwargs: Any) -> bool:
        return path.removeprefix(self.PREFIX) in model_zoo.list()

    def _isfile(self, path: str, **kwargs: Any) -> bool:
        return self._exists(path)


def register_path_handlers() -> None:
    """Register the handlers in Detectron2's PathManager; a second call changes nothing."""
    for handler in (ZooHandler(), TimmHandler()):
        PathManager.register_handler(handler, allow_override=True)
