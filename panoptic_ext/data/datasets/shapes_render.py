"""Draw one image of the shapes data set with its id map; no file is read or written.

Arrays have the image's height H and width W; colours are RGB. Objects have random colours and
fills, so that only the outline identifies their class. Regions have random colours, so that only
the texture identifies theirs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from panoptic_ext.data.coco.categories import Category

__all__ = ["CATEGORIES", "VERSION", "render"]

VERSION = 2  # raise when the same parameters give other pixels

CATEGORIES = (
    Category(1, "circle", True, (220, 20, 60)),
    Category(2, "square", True, (0, 130, 180)),
    Category(4, "triangle", True, (250, 170, 30)),
    Category(7, "star", True, (165, 42, 200)),
    Category(21, "stripes", False, (70, 130, 70)),
    Category(22, "checks", False, (128, 64, 128)),
    Category(25, "grain", False, (150, 120, 90)),
)
_THINGS = [c for c in CATEGORIES if c.isthing]
_STUFF = [c for c in CATEGORIES if not c.isthing]
_OVERSAMPLING = 4
_CROWD_SHARE = 0.1  # share of images that get a crowd
# Share of an object's pixels that must stay visible. An object that would hide more is not placed.
_LEAST_VISIBLE = 0.45


@dataclass
class _Object:
    category: Category
    mask: np.ndarray  # (H, W) bool, visible pixels
    size: int  # pixels before anything hid it
    iscrowd: int = 0


def render(
    height: int, width: int, max_objects: int, seed: Sequence[int]
) -> tuple[np.ndarray, np.ndarray, list[dict[str, Any]]]:
    """Draw one image.

    Args:
        height, width: in pixels.
        max_objects: upper limit of single shapes; a crowd is drawn in addition.
        seed: numbers that determine every pixel.

    Returns:
        (H, W, 3) uint8 RGB image; (H, W) int32 id map, 0 = void; one dict with id, dataset
        category_id and iscrowd for each segment of the map.
    """
    rng = np.random.default_rng(list(seed))
    regions = _regions(rng, height, width)
    image = np.zeros((height, width, 3), np.float32)
    for index, category in enumerate(_STUFF):
        texture = _texture(rng, category.name, height, width)
        image = np.where((regions == index)[..., None], texture, image)
    void = _borders(regions)
    objects: list[_Object] = []
    if rng.random() < _CROWD_SHARE:
        _place_crowd(rng, image, void, objects)
    for _ in range(rng.integers(min(2, max_objects), max_objects + 1)):
        _place_object(rng, image, void, objects)
    ids, segments = _label(rng, regions, void, objects)
    noise = rng.normal(0.0, 4.0, image.shape)
    return np.clip(image + noise, 0, 255).astype(np.uint8), ids, segments


def _regions(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Return the (H, W) index into _STUFF."""
    fields = []
    for _ in _STUFF:
        coarse = rng.normal(0.0, 1.0, (3, 4)).astype(np.float32)
        fine = rng.normal(0.0, 0.08, (8, 10)).astype(np.float32)
        field = sum(
            np.asarray(Image.fromarray(grid).resize((width, height), Image.Resampling.BICUBIC))
            for grid in (coarse, fine)
        )
        fields.append(field + rng.normal(0.0, 0.3))
    # The largest of smooth random fields decides, which makes the borders irregular.
    return np.argmax(fields, axis=0)


def _borders(regions: np.ndarray) -> np.ndarray:
    """Return the (H, W) bool mask of the pixels on both sides of a border of regions."""
    border = np.zeros(regions.shape, bool)
    across = regions[:, 1:] != regions[:, :-1]
    down = regions[1:] != regions[:-1]
    border[:, 1:] |= across
    border[:, :-1] |= across
    border[1:] |= down
    border[:-1] |= down
    return border


def _texture(rng: np.random.Generator, name: str, height: int, width: int) -> np.ndarray:
    """Return an (H, W, 3) float32 texture of two random colours that differ in brightness."""
    y, x = np.mgrid[:height, :width].astype(np.float32)
    angle = rng.uniform(0, np.pi)
    u, v = np.cos(angle) * x + np.sin(angle) * y, np.cos(angle) * y - np.sin(angle) * x
    period = rng.uniform(7.0, 10.0)
    if name == "stripes":
        weight = 0.5 + 0.5 * np.sin(2 * np.pi * u / period)
    elif name == "checks":
        weight = ((u // (0.6 * period)) + (v // (0.6 * period))) % 2
    else:
        weight = rng.random((height, width)).astype(np.float32)
    base = rng.uniform(70, 170, 3)
    step = rng.uniform(35, 60) * rng.choice([-1, 1]) + rng.uniform(-12, 12, 3)
    return (base + step * (weight[..., None] - 0.5)).astype(np.float32)


def _polygon(rng: np.random.Generator, name: str, radius: float) -> np.ndarray:
    """Return the (P, 2) corners x, y of an outline around the origin."""
    turn = rng.uniform(0, 2 * np.pi)
    if name == "circle":
        angles, radii = np.linspace(0, 2 * np.pi, 40, endpoint=False), np.full(40, 0.92)
    elif name == "square":
        angles, radii = np.arange(4) * np.pi / 2, np.full(4, 1.15)
    elif name == "triangle":
        angles, radii = np.arange(3) * 2 * np.pi / 3, np.full(3, 1.25)
    else:
        angles, radii = np.arange(10) * np.pi / 5, np.tile([1.3, 0.55], 5)
    points = np.stack([np.cos(angles + turn), np.sin(angles + turn)], axis=1)
    return points * radii[:, None] * radius


def _coverage(points: np.ndarray, height: int, width: int) -> np.ndarray:
    """Return the (H, W) float32 share of each pixel, 0 to 1, that the polygon covers."""
    limit = np.array([width, height])
    low = np.clip(np.floor(points.min(axis=0)).astype(int) - 1, 0, limit)
    high = np.clip(np.ceil(points.max(axis=0)).astype(int) + 1, 0, limit)
    out = np.zeros((height, width), np.float32)
    if (high > low).all():
        s = _OVERSAMPLING
        canvas = Image.new("L", tuple((high - low) * s))
        ImageDraw.Draw(canvas).polygon([tuple(p) for p in (points - low) * s], fill=255)
        part = np.asarray(canvas.reduce(s), np.float32) / 255.0
        out[low[1] : high[1], low[0] : high[0]] = part
    return out


def _place_object(
    rng: np.random.Generator, image: np.ndarray, void: np.ndarray, objects: list[_Object]
) -> None:
    height, width = void.shape
    category = _THINGS[rng.integers(len(_THINGS))]
    side = min(height, width)
    radius = max(8.0, side * rng.uniform(0.075, 0.17))
    for _ in range(8):
        center = rng.uniform([0, 0], [width, height])
        alpha = _coverage(_polygon(rng, category.name, radius) + center, height, width)
        mask = alpha >= 0.5
        # A shape that is mostly outside the image is drawn elsewhere.
        inside = mask.sum() >= 1.2 * radius**2
        if inside and _leaves_others_visible(mask, objects):
            _paint(rng, image, alpha, category.name)
            _cover(mask, void, objects)
            objects.append(_Object(category, mask, int(mask.sum())))
            return


def _place_crowd(
    rng: np.random.Generator, image: np.ndarray, void: np.ndarray, objects: list[_Object]
) -> None:
    """Draw several small shapes of one class, close together, which share one crowd segment."""
    height, width = void.shape
    category = _THINGS[rng.integers(len(_THINGS))]
    radius = max(6.0, 0.05 * min(height, width))
    center = rng.uniform([4 * radius, 3 * radius], [width - 4 * radius, height - 3 * radius])
    union = np.zeros((height, width), bool)
    for _ in range(rng.integers(5, 9)):
        place = center + rng.normal(0.0, 1.6 * radius, 2)
        alpha = _coverage(_polygon(rng, category.name, radius) + place, height, width)
        _paint(rng, image, alpha, category.name)
        union |= alpha >= 0.5
    if union.any():
        _cover(union, void, objects)
        objects.append(_Object(category, union, int(union.sum()), iscrowd=1))


def _leaves_others_visible(mask: np.ndarray, objects: list[_Object]) -> bool:
    grown = _grow(mask)
    return all((o.mask & ~grown).sum() >= _LEAST_VISIBLE * o.size for o in objects)


def _cover(mask: np.ndarray, void: np.ndarray, objects: list[_Object]) -> None:
    """Put an object in front, with a void line of one pixel around it."""
    grown = _grow(mask)
    for other in objects:
        other.mask &= ~grown
    void |= grown
    void &= ~mask


def _grow(mask: np.ndarray) -> np.ndarray:
    image = Image.fromarray(mask.astype(np.uint8))
    return np.asarray(image.filter(ImageFilter.MaxFilter(3))).astype(bool)


def _paint(rng: np.random.Generator, image: np.ndarray, alpha: np.ndarray, name: str) -> None:
    """Blend a random colour, plain or shaded, into `image` in place; a dark rim marks the edge."""
    height, width = alpha.shape
    color = rng.uniform(20, 255, 3)
    color[rng.integers(3)] = rng.choice([rng.uniform(0, 40), rng.uniform(215, 255)])
    fill = np.broadcast_to(color, (height, width, 3))
    if rng.random() < 0.5:
        ramp = np.linspace(0.7, 1.2, width)[None, :, None]
        fill = fill * (ramp if rng.random() < 0.5 else ramp[:, ::-1])
    core = np.asarray(Image.fromarray(alpha).filter(ImageFilter.MinFilter(3)))
    fill = fill * (0.35 + 0.65 * core[..., None])
    image += alpha[..., None] * (fill - image)


def _label(
    rng: np.random.Generator, regions: np.ndarray, void: np.ndarray, objects: list[_Object]
) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """Return the (H, W) int32 id map and its segments."""
    free = ~void
    for o in objects:
        free &= ~o.mask
    parts = [(category, (regions == index) & free, 0) for index, category in enumerate(_STUFF)]
    parts += [(o.category, o.mask, o.iscrowd) for o in objects]
    ids = np.zeros(regions.shape, np.int32)
    segments = []
    # Ids are random and large, as in real data sets, so that code which assumes small or ascending
    # ids fails on this data set.
    segment_ids = rng.choice(2**24 - 1, size=len(parts), replace=False, shuffle=False) + 1
    for (category, mask, iscrowd), i in zip(parts, segment_ids.tolist(), strict=True):
        if mask.any():
            ids[mask] = i
            segments.append({"id": i, "category_id": category.id, "iscrowd": iscrowd})
    return ids, segments
