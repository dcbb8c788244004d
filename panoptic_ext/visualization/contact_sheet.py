"""A sheet of images beside their truth and prediction, worst and best by PQ.

Pictures are (H, W, 3) uint8 RGB arrays; segment ids are (H, W) integers with 0 for void.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageDraw

from panoptic_ext.atomic import write_atomic
from panoptic_ext.data.coco.label_png import read_id_map
from panoptic_ext.data.image_files import read_image
from panoptic_ext.visualization.draw import Drawing, draw_segments
from panoptic_ext.visualization.instance_masks import annotated_segments
from panoptic_ext.visualization.labels import font
from panoptic_ext.visualization.legend import class_numbers, legend

if TYPE_CHECKING:
    from panoptic_ext.evaluation import KeptPrediction, PanopticEvaluator

__all__ = ["SheetRow", "contact_sheet", "ground_truth_segments", "pq_contact_sheet", "save_picture"]

_GAP = 8  # pixels between cells
_LINE_HEIGHT = 22  # pixels, of a line of text in the font size 14
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
        others: further predictions, each a column of its own.
    """

    image: np.ndarray
    truth: tuple[Any, Sequence[dict[str, Any]] | None] | None
    prediction: tuple[Any, Sequence[dict[str, Any]] | None] | None
    caption: str = ""
    heading: str = ""
    others: Sequence[tuple[Any, Sequence[dict[str, Any]] | None] | None] = ()


def contact_sheet(
    rows: Sequence[SheetRow],
    metadata: Any,
    path: str,
    *,
    title: str = "",
    cell_width: int = 480,
    columns: Sequence[str] = _COLUMNS,
) -> str:
    """Write the sheet: a row per image with the columns image, truth, prediction and others.

    The legend below the title lists the classes that the sheet shows, with their colours and
    numbers. A segment without room for its class's name gets the number. Segments without room for
    the number are counted below their picture.

    Args:
        rows: drawn from top to bottom; images may be of different sizes.
        metadata: as `draw_panoptic`.
        path: of the picture, .png or .jpg; its folder is made. See `save_picture`.
        title: the first line.
        cell_width: the most pixels that a picture gets in width and in height.
        columns: their names, one for each picture of a row.

    Returns:
        `path`.
    """
    width = _sheet_width(cell_width, len(columns))
    blocks = [_text_block(title, width, size=18)] if title else []
    below_title = len(blocks)
    shown: set[str] = set()
    for number, row in enumerate(rows):
        drawings = _drawings(row, metadata, cell_width)
        shown.update(*(drawing.classes for drawing in drawings if drawing))
        names = columns if number == 0 else ()
        blocks.extend(_row_blocks(row, drawings, cell_width, names))
    if shown:
        blocks[below_title:below_title] = legend(metadata, shown, width)
    if not rows:
        blocks.append(_text_block("no image to show", width))
    save_picture(path, _stack(blocks))
    return path


def pq_contact_sheet(evaluator: PanopticEvaluator, dataset_name: str, path: str, num: int) -> str:
    """The images of the worst and of the best PQ after an evaluation, in one sheet.

    Args:
        evaluator: a PanopticEvaluator made with keep_predictions, after `evaluate()`, on the main
            process.
        dataset_name: that was evaluated.
        path: of the picture, as `contact_sheet`.
        num: of worst and of best images, at most.

    Returns:
        `path`.
    """
    worst, best = list(evaluator.worst)[:num], list(evaluator.best)[:num]
    numbers = {entry["image_id"]: entry for entry in evaluator.per_image}
    wanted = {kept.image_id for kept in (*worst, *best)}
    rows = []
    for group, kind in ((worst, "worst"), (best, "best")):
        for place, kept in enumerate(group):
            heading = "" if place else f"{kind} by PQ"
            truth = evaluator.truth.contiguous_segments(evaluator.truth.find(kept.image_id))
            rows.append(_kept_row(kept, truth, numbers[kept.image_id], heading))
    title = f"{dataset_name}: {len(wanted)} of {len(numbers)} images"
    return contact_sheet(rows, evaluator.truth.metadata, path, title=title)


def _kept_row(
    kept: KeptPrediction,
    truth: tuple[np.ndarray, list[dict[str, Any]]],
    numbers: dict[str, Any],
    heading: str,
) -> SheetRow:
    caption = (
        f"{os.path.basename(kept.file_name)}   PQ {numbers['pq']:.1f}   TP {numbers['tp']}  "
        f"FP {numbers['fp']}  FN {numbers['fn']}"
    )
    image = read_image(kept.file_name, "RGB")
    prediction = (kept.ids(), kept.segments_info)
    return SheetRow(image, truth, prediction, caption, heading)


def ground_truth_segments(record: dict[str, Any]) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """The ground truth of a record of the data set, as `draw_panoptic` takes it.

    Args:
        record: as DatasetCatalog gives it, with pan_seg_file_name and segments_info, or of
            instances alone, with annotations.

    Returns:
        (H, W) int32 ids and copies of the segments.
    """
    if "pan_seg_file_name" not in record:
        return annotated_segments(record)
    ids = read_id_map(record["pan_seg_file_name"], record.get("pan_seg_encoding", "rgb"))
    return ids, [dict(segment) for segment in record["segments_info"]]


def save_picture(path: str, picture: np.ndarray) -> None:
    """Write an RGB picture to a temporary file and rename it: it appears whole or not at all.

    Args:
        path: ending in .png, .jpg or .jpeg; its folder is made.
        picture: (H, W, 3) uint8 RGB.
    """
    os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
    is_jpeg = path.lower().endswith((".jpg", ".jpeg"))
    options: dict[str, Any] = {"format": "JPEG", "quality": 92} if is_jpeg else {"format": "PNG"}
    image = Image.fromarray(picture)
    write_atomic(path, lambda stream: image.save(stream, **options), durable=False)


def _drawings(row: SheetRow, metadata: Any, cell_width: int) -> list[Drawing | None]:
    """Truth, prediction and others over the image, at the size of a cell."""
    drawings: list[Drawing | None] = []
    for segments in (row.truth, row.prediction, *row.others):
        if segments is None:
            drawings.append(None)
            continue
        image, ids = _shrunk(row.image, np.asarray(segments[0]), cell_width)
        scale = cell_width / max(image.shape[:2])
        keys = class_numbers(metadata)
        drawings.append(draw_segments(image, ids, segments[1], metadata, scale=scale, keys=keys))
    return drawings


def _shrunk(image: np.ndarray, ids: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray]:
    """Shrink image and ids to at most `most` pixels in width and height."""
    factor = most / max(image.shape[:2])
    if factor >= 1 or ids.shape != image.shape[:2]:  # draw_segments refuses other sizes
        return image, ids
    height, width = (max(1, round(n * factor)) for n in image.shape[:2])
    small = Image.fromarray(image).resize((width, height), Image.Resampling.LANCZOS)
    # Ids must not be interpolated: each pixel takes the id at its centre.
    rows = ((np.arange(height) + 0.5) * image.shape[0] / height).astype(int)
    columns = ((np.arange(width) + 0.5) * image.shape[1] / width).astype(int)
    return np.asarray(small), ids[rows[:, None], columns]


def _row_blocks(
    row: SheetRow, drawings: Sequence[Drawing | None], cell_width: int, names: Sequence[str]
) -> list[np.ndarray]:
    width = _sheet_width(cell_width, 1 + len(drawings))
    blocks = []
    if row.heading:
        blocks.append(_text_block(row.heading, width, size=18))
    if names:
        blocks.append(_text_block("", width, columns=names, cell_width=cell_width))
    if row.caption:
        blocks.append(_text_block(row.caption, width))
    pictures = [row.image, *(drawing.picture if drawing else None for drawing in drawings)]
    blocks.append(_cells(pictures, row.image.shape, cell_width))
    counts = ["", *(_without_label(drawing) for drawing in drawings)]
    if any(counts):
        blocks.append(_text_block("", width, columns=counts, cell_width=cell_width))
    return blocks


def _without_label(drawing: Drawing | None) -> str:
    return drawing.unlabelled_line if drawing else ""


def _cells(
    pictures: Sequence[np.ndarray | None], shape: tuple[int, ...], cell_width: int
) -> np.ndarray:
    """The pictures beside each other, each fitted into cell_width x cell_width."""
    factor = cell_width / max(shape[0], shape[1])
    height = max(1, round(shape[0] * factor))
    width = max(1, round(shape[1] * factor))
    size = (_sheet_width(cell_width, len(pictures)), height + _GAP)
    canvas = Image.new("RGB", size, "white")
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
    canvas = Image.new("RGB", (width, _LINE_HEIGHT + (size - 14)), "white")
    draw = ImageDraw.Draw(canvas)
    draw.text((_GAP, 3), _shortened(text, width - 2 * _GAP, size), fill="black", font=font(size))
    for column, name in enumerate(columns):
        draw.text((_GAP + column * (cell_width + _GAP), 3), name, fill=(90, 90, 90), font=font(14))
    return np.asarray(canvas)


def _shortened(text: str, width: int, size: int) -> str:
    """Replace the middle of a text by "…" where it is wider than `width` pixels."""
    if font(size).getlength(text) <= width:
        return text
    keep = len(text) - 1
    while keep > 2 and font(size).getlength(text[:keep]) > width - size:
        keep -= 1
    head = keep // 3
    return f"{text[:head]}…{text[len(text) - (keep - head) :]}"


def _sheet_width(cell_width: int, columns: int) -> int:
    return _GAP + columns * (cell_width + _GAP)


def _stack(blocks: Sequence[np.ndarray]) -> np.ndarray:
    width = max(block.shape[1] for block in blocks)
    padded = [
        np.pad(b, ((0, 0), (0, width - b.shape[1]), (0, 0)), constant_values=255) for b in blocks
    ]
    return np.concatenate(padded)
