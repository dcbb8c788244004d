"""A folder of label PNGs and the images that have their names."""

from __future__ import annotations

import os
from collections.abc import Sequence

from panoptic_ext.data.coco.label_png import ExpectedSize, read_png_size
from panoptic_ext.data.convert.image_search import ImageSearch, files_below
from panoptic_ext.data.convert.images import ImageHeader
from panoptic_ext.data.convert.labels import SourceImage
from panoptic_ext.data.convert.source import Source, SourceInputs
from panoptic_ext.errors import DatasetError, listed

__all__ = ["LabelFolder", "LabelFolderSource"]


class LabelFolder:
    """Label PNGs, in sub-folders or not, each with the relative path of its image but .png.

    Attributes:
        images: those that have a label PNG.
        unannotated: names of those that have none.
    """

    def __init__(self, root: str, image_root: str | None) -> None:
        """
        Args:
            root: folder of the PNGs.
            image_root: folder of the images; None: the folder "images" beside or in it.

        Raises:
            DatasetError: a folder is missing, or no PNG has an image.
        """
        if not os.path.isdir(root):
            raise DatasetError(f"{root} is a file, expected a folder of label PNGs")
        names = files_below(root, (".png",))
        search = ImageSearch(image_root or _images_near(root))
        found = {name: search.of_stem(os.path.splitext(name)[0]) for name in names}
        missing = [name for name, image in found.items() if image is None]
        if missing:
            raise DatasetError(
                f"{len(missing)} of {len(names)} label PNGs in {root} have no image of their name "
                f"in {search.root}: {listed(missing, 3)}; name the folder of the images "
                "(--image-root), or remove these PNGs"
            )
        if not names:
            raise DatasetError(f"{root} has no PNG, expected one for each image")
        self._root = root
        self.images: Sequence[SourceImage] = [
            SourceImage(image, search.path(image), labels=name)
            for name, image in found.items()
            if image is not None
        ]
        annotated = {image.name for image in self.images}
        self.unannotated: Sequence[str] = [n for n in search.names if n not in annotated]

    def path(self, image: SourceImage) -> str:
        """The path of an image's PNG."""
        return os.path.join(self._root, *str(image.labels).split("/"))

    def size(self, image: SourceImage, header: ImageHeader) -> ExpectedSize:
        """The size that an image's PNG must have: the image's, turned by its tag or not."""
        stored = read_png_size(self.path(image)) == header.stored
        return ExpectedSize(*(header.stored if stored else header.upright), "its image is")


class LabelFolderSource(Source):
    """A format of label PNGs alone, each with the name of its image."""

    def __init__(self, inputs: SourceInputs) -> None:
        super().__init__(inputs)
        self._folder = LabelFolder(inputs.path, inputs.image_root)

    def images(self) -> Sequence[SourceImage]:
        return self._folder.images

    def unannotated(self) -> Sequence[str]:
        return self._folder.unannotated


def _images_near(root: str) -> str:
    parent = os.path.dirname(os.path.abspath(root))
    place = os.path.join(parent, "images")
    if not os.path.isdir(place):
        raise DatasetError(f"name the folder of the images of {root} (--image-root)")
    return place
