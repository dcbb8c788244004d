"""Addresses `timm://NAME` and `timm://NAME.TAG` in Detectron2's PathManager."""

from __future__ import annotations

import importlib
from typing import IO, Any

from iopath.common.file_io import PathHandler

__all__ = ["TimmHandler"]


class TimmHandler(PathHandler):
    """Resolve `timm://NAME` to a local file of timm's pretrained weights; see `timm_weights`."""

    PREFIX = "timm://"

    def _get_supported_prefixes(self) -> list[str]:
        return [self.PREFIX]

    def _get_local_path(self, path: str, force: bool = False, **kwargs: Any) -> str:
        # Imported at the first use, because it imports the training code.
        module = importlib.import_module("panoptic_ext.model_zoo.timm_weights")
        return module.timm_weights(path.removeprefix(self.PREFIX))

    def _open(self, path: str, mode: str = "r", buffering: int = -1, **kwargs: Any) -> IO[Any]:
        return open(self._get_local_path(path), mode, buffering)
