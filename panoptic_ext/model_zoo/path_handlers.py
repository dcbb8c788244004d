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
        """The classes that the entry's weights were trained on; None for those of a backbone."""
        from panoptic_ext.model_zoo.configs import classes_of

        entry = model_zoo.info(path.removeprefix(self.PREFIX))
        if not entry.data_set:
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
