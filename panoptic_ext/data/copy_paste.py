"""Copy-paste augmentation (Ghiasi et al., CVPR 2021) for panoptic data.

Shapes: H x W is the image that things are pasted into, h x w the other image, N and M their numbers
of segments. Local ids are 0 (void) and 1..N; id i belongs to entry i - 1 of a table.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageFilter

from panoptic_ext.data.donors import Donors, classes_of_things
from panoptic_ext.data.read_record import Labels
from panoptic_ext.errors import ConfigError, check_known

__all__ = ["CopyPaste", "Scene", "paste"]

_DRAWS = ("image", "class")


class Scene(NamedTuple):
    """An augmented image with its labels.

    Attributes:
        image: (H, W, 3) uint8.
        labels: its segments; `labels.ids` is (H, W).
    """

    image: np.ndarray
    labels: Labels


@dataclass(frozen=True)
class CopyPaste:
    """Paste things of a random other image. It draws from numpy's global generator.

    Attributes:
        probability: chance that an image gets things of another.
        max_things: largest number of things; 0: all that the other image shows.
        min_visible: a thing of which a smaller share of its pixels stays visible becomes void.
        blur: standard deviation of the blurred edges, pixels; 0: sharp edges.
    """

    probability: float = 1.0
    max_things: int = 0
    min_visible: float = 0.0
    blur: float = 0.0

    @classmethod
    def from_keys(cls, keys: Any) -> CopyPaste | None:
        """From the keys of cfg.INPUT.COPY_PASTE; None if PROBABILITY is 0.

        Raises:
            ConfigError: a value cannot be used; names the key.
        """
        name = "INPUT.COPY_PASTE"
        for key in ("PROBABILITY", "MIN_VISIBLE"):
            if not 0 <= keys[key] <= 1:
                raise ConfigError(f"{name}.{key} is {keys[key]}, expected 0 to 1")
        if keys.MAX_THINGS < 0:
            raise ConfigError(f"{name}.MAX_THINGS is {keys.MAX_THINGS}, expected a number, or 0")
        if not 0 <= keys.BLUR < np.inf:
            raise ConfigError(f"{name}.BLUR is {keys.BLUR}, expected pixels, 0 or more")
        check_known(f"{name}.DRAW_BY", keys.DRAW_BY, _DRAWS)
        if keys.PROBABILITY == 0:
            return None
        return cls(keys.PROBABILITY, keys.MAX_THINGS, keys.MIN_VISIBLE, keys.BLUR)

    def __call__(
        self,
        scene: Scene,
        donors: Donors,
        read: Callable[[dict[str, Any], Collection[int]], Scene | None],
    ) -> Scene:
        """Draw a donor and paste some of its things.

        Args:
            scene: to paste into; it is not changed.
            donors: images to draw from.
            read: record and classes -> that image, augmented on its own; None: it is left out.
        """
        drawn = donors.draw() if np.random.uniform() < self.probability else None
        other = None if drawn is None else read(drawn.record, drawn.classes)
        if drawn is None or other is None:
            return scene
        # Images of one size, such as those of large-scale jitter, lie on each other, as in the
        # paper. The smaller one of two lies anywhere in the larger one.
        y, x = (
            np.random.randint(min(0, mine - its), max(0, mine - its) + 1)
            for mine, its in zip(scene.image.shape[:2], other.image.shape[:2], strict=True)
        )
        shown = _overlap(scene.labels.ids, other.labels.ids, (y, x))[1]
        visible = np.bincount(shown.reshape(-1), minlength=len(other.labels.segments) + 1)[1:]
        classes = np.array(classes_of_things(other.labels.segments, drawn.classes), np.int64)
        things = np.flatnonzero((classes >= 0) & (visible > 0)) + 1
        if len(things) == 0:
            return scene
        most = min(len(things), self.max_things or len(things))
        chosen = np.random.choice(things, np.random.randint(1, most + 1), replace=False)
        return paste(scene, other, chosen, (y, x), min_visible=self.min_visible, blur=self.blur)


def paste(
    scene: Scene,
    other: Scene,
    chosen: np.ndarray,
    corner: tuple[int, int],
    *,
    min_visible: float = 0.0,
    blur: float = 0.0,
) -> Scene:
    """Paste segments of another image over this one.

    Pasted segments get the local ids N + 1, N + 2, ... in the order of `chosen`. What they cover
    loses its pixels: a segment without any left is no longer present, a thing (no crowd) of which
    too little is left becomes void.

    Args:
        scene, other: not changed.
        chosen: (P,) local ids of `other`.
        corner: y and x of the other image's first pixel in this one; they may be negative.
        min_visible: share of its pixels that a covered thing must keep, 0 to 1.
        blur: standard deviation of blurred edges, pixels: the images are mixed by the mask of what
            is pasted under a Gaussian filter. Ids have sharp edges in any case. 0: sharp edges.
    """
    labels, count = scene.labels, len(scene.labels.segments)
    ids = labels.ids.astype(np.int32)  # a copy; more ids than the map's own type may hold
    window, shown = _overlap(ids, other.labels.ids, corner)
    new_ids = np.zeros(len(other.labels.segments) + 1, np.int32)
    new_ids[chosen] = np.arange(count + 1, count + 1 + len(chosen))
    pasted = new_ids[shown]
    before = np.bincount(ids.reshape(-1), minlength=count + 1)[: count + 1]
    np.copyto(window, pasted, where=pasted > 0)
    areas = np.bincount(ids.reshape(-1), minlength=count + 1 + len(chosen))
    left = areas[: count + 1]
    is_thing = np.array([-1, *classes_of_things(labels.segments)]) >= 0
    too_little = is_thing & (left < before) & (left < min_visible * before)
    ids[np.concatenate([too_little, np.zeros(len(chosen), bool)])[ids]] = 0
    covered = (before > 0) & ((left == 0) | too_little)
    return Scene(
        _mixed(scene.image, other.image, ids, count, corner, blur),
        Labels(
            ids,
            labels.segments + [other.labels.segments[i - 1] for i in chosen],
            np.concatenate([labels.present & ~covered[1:], areas[count + 1 :] > 0]),
        ),
    )


def _overlap(
    larger: np.ndarray, other: np.ndarray, corner: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Views of the pixels that two arrays share, the other's first pixel being at `corner`."""
    parts = []
    for first, mine, its in zip(corner, larger.shape, other.shape, strict=False):
        start, stop = max(first, 0), min(first + its, mine)
        parts.append((slice(start, stop), slice(start - first, stop - first)))
    (rows, other_rows), (columns, other_columns) = parts
    return larger[rows, columns], other[other_rows, other_columns]


def _mixed(
    image: np.ndarray,
    other: np.ndarray,
    ids: np.ndarray,
    count: int,
    corner: tuple[int, int],
    blur: float,
) -> np.ndarray:
    """The image with pixels of the other where ids are above `count`."""
    image = image.copy()
    mask = np.where(ids > count, np.uint8(255), np.uint8(0))
    if blur > 0:
        mask = np.asarray(Image.fromarray(mask).filter(ImageFilter.GaussianBlur(blur)))
    window, pixels = _overlap(image, other, corner)
    share = _overlap(mask, other, corner)[0][..., None]
    if blur == 0:
        np.copyto(window, pixels, where=share > 0)
    else:
        weight = share.astype(np.uint16)
        window[:] = (pixels * weight + window * (255 - weight) + 127) // 255
    return image
