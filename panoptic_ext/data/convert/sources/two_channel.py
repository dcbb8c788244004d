"""Read PNGs of two channels: the class, and the instance within the class."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from panoptic_ext.data.convert.images import ImageHeader
from panoptic_ext.data.convert.labels import Labels, MapSegment, SourceClass, SourceImage
from panoptic_ext.data.convert.source import class_of_number, map_of_values
from panoptic_ext.data.convert.sources.id_pngs import first_mode
from panoptic_ext.data.convert.sources.label_folder import LabelFolderSource
from panoptic_ext.errors import DatasetError, UnreadableFileError
from panoptic_ext.regular_files import LABEL_MAP, READ_ERRORS, check_regular_file

__all__ = ["TwoChannelPngs"]

_CLASS = 1 << 16  # id of a segment = class * _CLASS + instance


class TwoChannelPngs(LabelFolderSource):
    """R or grey is the class, G + 256 B or alpha the instance; instance 0 is all of the class."""

    name = "two-channel"
    description = "RGB or grey-alpha PNGs: class in the first channel, instance in the second"
    example = "labels --image-root images --from two-channel --classes classes.txt"
    options = ("void_values",)

    @classmethod
    def recognises(cls, path: str) -> bool:
        return first_mode(path) == "LA"

    def classes_of(self, image: SourceImage) -> Sequence[SourceClass]:
        numbers = np.unique(self._read(image, None)[0]).tolist()
        void, names = self.inputs.void_values, self.inputs.names
        return [class_of_number(number, names) for number in numbers if number not in void]

    def labels(self, image: SourceImage, header: ImageHeader) -> Labels:
        classes, instances = self._read(image, header)
        # Shifted by one, because class 0 need not be void.
        ids = (classes + 1) * _CLASS + instances
        return Labels((ids.shape[0], ids.shape[1]), under=map_of_values(ids, self._meaning))

    def _meaning(self, value: int) -> MapSegment | None:
        number, instance = value // _CLASS - 1, value % _CLASS
        if number in self.inputs.void_values:
            return None
        return MapSegment(class_of_number(number, self.inputs.names).name, instance > 0)

    def _read(
        self, image: SourceImage, header: ImageHeader | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """(H, W) int32 classes and instances; with a header, the size is checked first."""
        path = self._folder.path(image)
        check_regular_file(path, LABEL_MAP)
        try:
            with Image.open(path) as picture:
                if picture.mode not in ("RGB", "RGBA", "LA") or picture.format != "PNG":
                    raise DatasetError(
                        f"label map {path} is a {picture.format} file of mode {picture.mode}, "
                        "expected a PNG of RGB or of grey and alpha: class and instance"
                    )
                if header is not None:
                    size = self._folder.size(image, header)
                    size.check(path, picture.height, picture.width)
                channels = np.asarray(picture).astype(np.int32)
        except DatasetError:
            raise
        except READ_ERRORS as error:
            raise UnreadableFileError(f"label map {path} cannot be read ({error})") from error
        if channels.shape[2] == 2:
            return channels[..., 0], channels[..., 1]
        return channels[..., 0], channels[..., 1] + 256 * channels[..., 2]
