"""The tutorials of docs/tutorials run as they stand, but for the model and the picture."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from docs.notebooks import TUTORIALS, code_and_shown, pages
from panoptic_ext import model_zoo
from tests.docs.notebook_runs import pictures, printed, run_page
from tests.tiny.street import stand_ins

pytestmark = pytest.mark.slow

# What holds after the last cell, in the names that the cells have assigned.
CHECKS = {
    "segment_image": """
from pathlib import Path

import numpy as np

assert result.counts() == cars.counts() == {"car": 2}
assert {s.name for s in result} == {"car", "road", "tree-merged", "sky-other-merged"}
assert [s.area for s in result] == [int(mask.sum()) for mask in result.masks()]
assert all(segment.score > 0.5 for segment in cars)
for name in ("panoptic", "semantic", "instance", "cars", "car_1", "car_2"):
    assert Path(f"{name}.png").is_file(), name
for number, car in enumerate(cars, start=1):
    alpha = np.asarray(Image.open(f"car_{number}.png"))[:, :, 3]
    assert (alpha > 0).sum() == car.area
""",
    "detr_panoptic": """
kept = sorted(names[label] for label in labels[keep].tolist())
assert kept == ["car", "car", "road", "sky-other-merged", "tree-merged"]
assert sorted(segment.name for segment in result) == kept
assert all(segment.score > 0.85 for segment in result)
assert np.array_equal(ids, result.panoptic_seg.numpy())
assert [s.area for s in result] == [int((ids == s.id).sum()) for s in result]
texts = {text.get_text().split(" ")[0] for text in drawn.ax.texts}
assert texts == {"car", "road", "sky", "tree"}, texts
for converted in (segments_info, from_pipeline):
    known = [metadata.stuff_classes, metadata.thing_classes]
    found_names = sorted(known[s["isthing"]][s["category_id"]] for s in converted)
    assert found_names == ["car", "car", "road", "sky", "tree"], found_names
""",
}


@pytest.fixture(scope="module")
def values(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, str]]:
    """What the first cell of each page assigns."""
    transformers = pytest.importorskip(
        "transformers", minversion="5.0", reason="transformers (the hf extra) is not installed"
    )
    if not transformers.utils.is_torch_available():
        pytest.skip("this transformers needs a newer torch")
    return stand_ins(tmp_path_factory.mktemp("stand_ins"))


def test_every_page_is_checked() -> None:
    assert {page.stem for page in pages()} == set(CHECKS)


@pytest.mark.parametrize("name", sorted(CHECKS))
def test_models_that_a_page_names_are_in_the_zoo(name: str) -> None:
    text = (TUTORIALS / f"{name}.md").read_text(encoding="utf-8")
    found = set(re.findall(r"\b[a-z0-9]+_\w+_(?:coco|cityscapes|ade20k)\b", text))
    assert found and found <= set(model_zoo.list()), found - set(model_zoo.list())


@pytest.mark.parametrize("name", sorted(CHECKS))
def test_a_tutorial_runs_and_shows_what_its_page_shows(
    name: str, values: dict[str, dict[str, str]], tmp_path: Path
) -> None:
    page = TUTORIALS / f"{name}.md"
    executed = run_page(page, values[name], tmp_path, checks=CHECKS[name])
    cells = [cell for cell in executed.cells if cell.cell_type == "code"]
    for cell, (code, shown) in zip(cells, code_and_shown(page), strict=True):
        for text in re.findall(r"^```text\n(.*?)^```", shown, re.DOTALL | re.MULTILINE):
            assert without_numbers(printed(cell)) == without_numbers(text), code
        assert len(pictures(cell)) >= len(re.findall(r"\.svg\)", shown)), code


def without_numbers(text: str) -> list[str]:
    """The lines in an order of their own: scores depend on the machine, and so does their order."""
    return sorted(re.sub(r"[\d.,\s]+", " ", line) for line in text.splitlines())
