"""Draw docs/predictions.svg: image, ground truth and prediction of a trained run.

    python docs/make_figures.py [--run output/demo] [--images 3]

The pictures of the README are made by this, from the run of `make demo`; none is drawn by hand.
"""

from __future__ import annotations

import argparse
import io
import sys
from pathlib import Path

import cv2
import matplotlib
import numpy as np

matplotlib.use("Agg")
from matplotlib import pyplot as plt

from panoptic_ext.data import get_records
from panoptic_ext.engine.predictor import Predictor, load_run_cfg
from panoptic_ext.errors import PanopticExtError
from panoptic_ext.visualization import draw_panoptic, ground_truth_segments

COLUMNS = ("image", "ground truth", "prediction")


def panels(predictor: Predictor, record: dict) -> list[np.ndarray]:
    """The three pictures of one record, RGB."""
    image = cv2.imread(record["file_name"])
    rgb = np.ascontiguousarray(image[:, :, ::-1])
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
    plt.rcParams["svg.hashsalt"] = "panoptic_ext"  # equal input, equal file
    figure, axes = plt.subplots(num, 3, figsize=(9, 2.5 * num), squeeze=False)
    for row, pictures in zip(axes, rows, strict=True):
        for axis, picture, title in zip(row, pictures, COLUMNS, strict=True):
            axis.imshow(picture, interpolation="nearest")
            axis.set_axis_off()
            if row is axes[0]:
                axis.set_title(title, fontsize=11)
    figure.tight_layout(pad=0.4)
    stream = io.StringIO()
    figure.savefig(stream, format="svg", dpi=100, metadata={"Date": None})
    path.write_text(stream.getvalue(), encoding="utf-8")
    sys.stdout.write(f"{path}: {path.stat().st_size / 1024:.0f} KiB\n")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--run", default="output/demo", help="output folder of a run")
    parser.add_argument("--images", type=int, default=3)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "predictions.svg")
    args = parser.parse_args()
    try:
        draw(args.run, args.images, args.output)
    except PanopticExtError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
