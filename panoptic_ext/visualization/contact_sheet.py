"""A sheet of images beside their truth and prediction, worst and best by PQ.

Pictures are (H, W, 3) uint8 RGB arrays; segment ids are (H, W) integers with 0 for void.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from .draw import draw_panoptic, readable_scale

__all__ = ["SheetRow", "contact_sheet", "ground_truth_segments", "save_picture"]

logger = logging.getLogger(__name__)

_GAP = 8  # pixels between cells
_CAPTION = 22  # pixels, height of a line of text
_COLUMNS = ("image", "truth", "prediction")


@dataclass(frozen=True)
class SheetRow:
    """One image of a contact sheet.

    Attributes:
        image: (H, W, 3) uint8 RGB.
        truth, prediction: ((H, W) ids, segments_info) as `draw_panoptic` takes them; None leaves
            the cell grey.
        caption: a line above the row.
        heading: a larger line above the caption where a group of rows begins, or "".
    """

    image: np.ndarray
    truth: tuple[Any, Sequence[dict[str, Any]] | None] | None
    prediction: tuple[Any, Sequence[dict[str, Any]] | None] | None
    caption: str = ""
    heading: str = ""


def contact_sheet(
    rows: Sequence[SheetRow],
    metadata: Any,
    path: str,
    *,
    title: str = "",
    cell_width: int = 480,
) -> str:
    """Write the sheet: a row per image with the columns image, truth and prediction.

    Args:
        rows: drawn from top to bottom; images may be of different sizes.
        metadata: as `draw_panoptic`.
        path: of the picture, .png or .jpg; its folder is made. Written aside, then renamed.
        title: the first line.
        cell_width: the most pixels that a picture gets in width and in height.

    Returns:
        `path`.
    """
    blocks = [_text_block(title, _sheet_width(cell_width), size=18)] if title else []
    for number, row in enumerate(rows):
        blocks.extend(_row_blocks(row, metadata, cell_width, with_names=number == 0))
    if not rows:
        blocks.append(_text_block("no image to show", _sheet_width(cell_width)))
    save_picture(path, _stack(blocks))
    return path


def ground_truth_segments(record: dict[str, Any]) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """The ground truth of a record of the data set, as `draw_panoptic` takes it.

    Args:
        record: as DatasetCatalog gives it, with pan_seg_file_name and segments_info.

    Returns:
        (H, W) int32 ids and copies of the segments.
    """
    from panoptic_ext.data import read_id_map

    ids = read_id_map(record["pan_seg_file_name"], record.get("encoding", "rgb"))
    return ids, [dict(segment) for segment in record["segments_info"]]


def save_picture(path: str, picture: np.ndarray) -> None:
    """Write an RGB picture aside and rename it, so that no half-written file is ever seen.

    Args:
        path: ending in .png, .jpg or .jpeg; its folder is made.
        picture: (H, W, 3) uint8 RGB.
    """
    folder, name = os.path.split(os.path.abspath(path))
    os.makedirs(folder, exist_ok=True)
    aside = os.path.join(folder, f".{os.getpid()}.{name}")
    options = {"quality": 92} if name.lower().endswith((".jpg", ".jpeg")) else {}
    try:
        Image.fromarray(picture).save(aside, **options)
        os.replace(aside, path)
    finally:
        if os.path.exists(aside):
            os.remove(aside)


def _row_blocks(
    row: SheetRow, metadata: Any, cell_width: int, *, with_names: bool
) -> list[np.ndarray]:
    width = _sheet_width(cell_width)
    blocks = []
    if row.heading:
        blocks.append(_text_block(row.heading, width, size=18))
    if with_names:
        blocks.append(_text_block("", width, columns=_COLUMNS, cell_width=cell_width))
    if row.caption:
        blocks.append(_text_block(row.caption, width))
    pictures: list[np.ndarray | None] = [row.image]
    for segments in (row.truth, row.prediction):
        pictures.append(None if segments is None else _drawn(row.image, segments, metadata))
    blocks.append(_cells(pictures, row.image.shape, cell_width))
    return blocks


def _drawn(image: np.ndarray, segments: tuple[Any, Any], metadata: Any) -> np.ndarray:
    return draw_panoptic(image, *segments, metadata, scale=readable_scale(*image.shape[:2]))


def _cells(
    pictures: Sequence[np.ndarray | None], shape: tuple[int, ...], cell_width: int
) -> np.ndarray:
    """The pictures beside each other, each fitted into cell_width x cell_width."""
    factor = cell_width / max(shape[0], shape[1])
    height = max(1, round(shape[0] * factor))
    width = max(1, round(shape[1] * factor))
    canvas = Image.new("RGB", (_sheet_width(cell_width), height + _GAP), "white")
    for column, picture in enumerate(pictures):
        place = (_GAP + column * (cell_width + _GAP), 0)
        if picture is None:
            canvas.paste((200, 200, 200), (*place, place[0] + width, height))
            continue
        fitted = Image.fromarray(np.ascontiguousarray(picture))
        canvas.paste(fitted.resize((width, height), Image.Resampling.LANCZOS), place)
    return np.asarray(canvas)


def _text_block(
    text: str,
    width: int,
    *,
    size: int = 14,
    columns: Sequence[str] = (),
    cell_width: int = 0,
) -> np.ndarray:
    """A white strip with one line of text, or with one word above each column."""
    canvas = Image.new("RGB", (width, _CAPTION + (size - 14)), "white")
    draw = ImageDraw.Draw(canvas)
    draw.text((_GAP, 3), _shortened(text, width - 2 * _GAP, size), fill="black", font=_font(size))
    for column, name in enumerate(columns):
        draw.text((_GAP + column * (cell_width + _GAP), 3), name, fill=(90, 90, 90), font=_font(14))
    return np.asarray(canvas)


def _shortened(text: str, width: int, size: int) -> str:
    """`text`, its middle left out where it is wider than `width` pixels."""
    if _font(size).getlength(text) <= width:
        return text
    keep = len(text) - 1
    while keep > 2 and _font(size).getlength(text[:keep]) > width - size:
        keep -= 1
    head = keep // 3
    return f"{text[:head]}…{text[len(text) - (keep - head) :]}"


@lru_cache(maxsize=4)
def _font(size: int) -> ImageFont.FreeTypeFont:
    folder = os.path.join(matplotlib.get_data_path(), "fonts", "ttf")
    return ImageFont.truetype(os.path.join(folder, "DejaVuSans.ttf"), size)


def _sheet_width(cell_width: int) -> int:
    return _GAP + len(_COLUMNS) * (cell_width + _GAP)


def _stack(blocks: Sequence[np.ndarray]) -> np.ndarray:
    width = max(block.shape[1] for block in blocks)
    padded = [
        np.pad(b, ((0, 0), (0, width - b.shape[1]), (0, 0)), constant_values=255) for b in blocks
    ]
    return np.concatenate(padded)
