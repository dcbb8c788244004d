"""Draw docs/predictions.svg: image, ground truth and prediction of a trained run.

    python docs/make_figures.py [--run output/demo/mask2former] [--images 3]
    python docs/make_figures.py --picture sheet.png --title "..." --output docs/fusions.svg

The pictures of the README are made by this, from the run of `make demo`; none is drawn by hand. The
second form turns a picture of one of the tools into SVG, so that no binary file is committed.
"""

from __future__ import annotations

import argparse
import base64
import html
import io
import sys
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from panoptic_ext.data import get_records
from panoptic_ext.data.image_files import read_image
from panoptic_ext.errors import PanopticExtError
from panoptic_ext.prediction.predictor import Predictor, load_run_cfg
from panoptic_ext.visualization import draw_panoptic, ground_truth_segments

COLUMNS = ("image", "ground truth", "prediction")
WIDTH = 900  # pixels of the figure


def panels(predictor: Predictor, record: dict) -> list[np.ndarray]:
    """The three pictures of one record, RGB."""
    rgb = read_image(record["file_name"], "RGB")
    image = np.ascontiguousarray(rgb[:, :, ::-1])
    truth = ground_truth_segments(record)
    found = predictor(image)["panoptic_seg"]
    drawn = [draw_panoptic(rgb, *result, predictor.metadata) for result in (truth, found)]
    height, width = drawn[0].shape[:2]
    return [cv2.resize(rgb, (width, height), interpolation=cv2.INTER_NEAREST), *drawn]


def draw(run: str, num: int, path: Path) -> None:
    cfg = load_run_cfg(run, ["MODEL.DEVICE", "cpu"])
    predictor = Predictor(cfg)
    records = get_records(cfg.DATASETS.TEST[0])
    step = max(1, len(records) // num)
    rows = [panels(predictor, record) for record in records[::step][:num]]
    grid = np.concatenate([np.concatenate(row, axis=1) for row in rows])
    write_svg(grid, path, COLUMNS)


def write_svg(picture: np.ndarray, path: Path, titles: Sequence[str], width: int = WIDTH) -> None:
    """An RGB picture as JPEG in an SVG file, above it `titles`, spread over its width."""
    top = 26 if titles else 0
    height = width * picture.shape[0] // picture.shape[1]
    stream = io.BytesIO()
    Image.fromarray(picture).resize((width, height)).save(stream, "JPEG", quality=82)
    texts = "".join(
        f'<text x="{width * (2 * i + 1) // (2 * len(titles))}" y="18" text-anchor="middle">'
        f"{html.escape(title)}</text>"
        for i, title in enumerate(titles)
    )
    data = base64.encodebytes(stream.getvalue()).decode()
    path.write_text(
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height + top}" '
        f'font-family="sans-serif" font-size="15">\n{texts}\n'
        f'<image y="{top}" width="{width}" height="{height}" '
        f'href="data:image/jpeg;base64,{data}"/>\n'
        "</svg>\n",
        encoding="utf-8",
    )
    sys.stdout.write(f"{path}: {path.stat().st_size / 1024:.0f} KiB\n")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--run", default="output/demo/mask2former", help="output folder of a run")
    parser.add_argument("--images", type=int, default=3)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "predictions.svg")
    parser.add_argument("--picture", help="turn this picture into SVG instead")
    parser.add_argument("--title", default="", help="of --picture")
    parser.add_argument("--width", type=int, default=1400, help="of --picture, pixels")
    args = parser.parse_args()
    try:
        if args.picture:
            picture = np.asarray(Image.open(args.picture).convert("RGB"))
            write_svg(picture, args.output, [args.title], args.width)
            return 0
        draw(args.run, args.images, args.output)
    except PanopticExtError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
