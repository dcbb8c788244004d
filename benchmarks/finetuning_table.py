"""Table, curves and sheets of what benchmarks/finetuning.py has trained."""

from __future__ import annotations

import shutil
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from finetuning_jobs import Job, Result, Results

from panoptic_ext.visualization.learning_curves import Curve, draw_curves

__all__ = ["LABELS", "curves_of", "report", "table"]

LABELS = {
    "panoptic_fpn": "Panoptic FPN",
    "efficientps": "EfficientPS",
    "mask2former": "Mask2Former",
    "detectron2": "Detectron2's PanopticFPN",
    "transformers": "transformers' Mask2Former",
}
COLUMNS = ("PQ", "PQ_th", "PQ_st")
SHEET = "contact_sheet.png"
PAGE = Path(__file__).resolve().parents[1] / "docs/results.md"
BEGIN, END = "<!-- finetuning: begin -->", "<!-- finetuning: end -->"

Finished = Sequence[tuple[Job, Result]]


def label(job: Job) -> str:
    """The name of a job's side in tables; a setting that was asked for follows in brackets."""
    side, _, setting = job.side.partition(":")
    return LABELS[side] + (f" ({setting})" if setting else "")


def table(finished: Finished) -> str:
    """Markdown: a row for each side, data set and kind of weights; means, least and largest."""
    groups: dict[tuple[str, str, str], list[Result]] = {}
    for job, result in finished:
        groups.setdefault((job.data, job.weights, label(job)), []).append(result)
    lines = [
        "| data set | weights | model | seeds | s a step | iterations | minutes | PQ | things "
        "| stuff |",
        "|---|---|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for (data, weights, name), results in sorted(groups.items()):
        first = results[0]
        cells = [data, weights, name, str(len(results)), f"{first.seconds:.2f}"]
        cells += [str(first.iterations), f"{first.minutes:.1f}"]
        cells += [_mean_and_spread([r.quality[key] for r in results]) for key in COLUMNS]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _mean_and_spread(values: Sequence[float]) -> str:
    mean = f"{statistics.mean(values):.1f}"
    return f"{mean} ({min(values):.1f} to {max(values):.1f})" if len(values) > 1 else mean


def curves_of(finished: Finished) -> list[Curve]:
    """PQ over iterations and over core-minutes of a quiet machine."""
    curves = []
    for job, result in finished:
        iterations, values = map(list, zip(*result.curve, strict=True))
        minutes = [number * result.seconds / 60 for number in iterations]
        name = label(job) + ("" if job.pretrained else ", random weights")
        curves.append(Curve(name, iterations, minutes, values))
    return curves


def report(jobs: Sequence[Job], root: Path, records: Path, *, docs: bool = False) -> None:
    """Print the table; write it, a picture of curves per data set, and a sheet per side.

    Args:
        jobs: those of them that are finished are reported.
        root: the output folder; the report lies in its folder `report`.
        records: the folder of the results.
        docs: write table and curves into docs/ too.
    """
    results = Results(records)
    read = [(job, results.get(job)) for job in jobs]
    finished = [(job, result) for job, result in read if result is not None]
    folder = root / "report"
    folder.mkdir(parents=True, exist_ok=True)
    text = table(finished)
    (folder / "table.md").write_text(text + "\n", encoding="utf-8")
    print(text)
    pictures = _draw_curves(finished, folder)
    _copy_sheets(finished, root, folder)
    if docs:
        for path in pictures:
            shutil.copyfile(path, PAGE.parent / path.name)
        links = [f"[![PQ while fine-tuning]({path.name})]({path.name})" for path in pictures]
        _write_into_page("\n\n".join([text, *links]))


def _draw_curves(finished: Finished, folder: Path) -> list[Path]:
    paths = []
    for data in {job.data: None for job, _ in finished}:
        chosen = [(job, result) for job, result in finished if job.data == data]
        paths.append(folder / f"curves_finetuning_{data}.svg")
        draw_curves(curves_of(chosen), paths[-1], title=f"{data}, fine-tuned")
        print(f"curves: {paths[-1]}")
    return paths


def _copy_sheets(finished: Finished, root: Path, folder: Path) -> None:
    """The contact sheet of the first seed of each side."""
    sides: set[str] = set()
    for job, _ in finished:
        sheet = next((root / job.name).rglob(SHEET), None)
        if job.speed_key not in sides and sheet is not None:
            sides.add(job.speed_key)
            target = folder / f"sheet_{job.speed_key.replace('/', '_').replace(':', '_')}.png"
            shutil.copyfile(sheet, target)
            print(f"sheet: {target}")


def _write_into_page(text: str) -> None:
    """Replace what the page has between the two marks."""
    page = PAGE.read_text(encoding="utf-8")
    head, rest = page.split(BEGIN)
    _, tail = rest.split(END)
    PAGE.write_text(f"{head}{BEGIN}\n\n{text}\n\n{END}{tail}", encoding="utf-8")
    print(f"written into {PAGE}")
