"""The YAML file of an entry is read strictly: each mistake has its line and its way out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from panoptic_ext.errors import ConfigError
from panoptic_ext.model_zoo.entry import Weights, read_entry

GOOD: dict[str, Any] = {
    "name": "my/model-1.0",
    "task": "panoptic",
    "data_set": "street_val",
    "classes": [{"name": "road", "isthing": False}, {"name": "car", "isthing": True, "id": 7}],
    "config": "config.yaml",
    "weights": {"address": "https://example.org/a.pth"},
    "sha256": "A" * 64,
    "size": 12,
    "licence": "MIT",
    "commercial_use": True,
    "source": "https://example.org",
    "figures": {"PQ": 50},
    "input": {"format": "RGB", "min_size": 800},
    "convert": "separated_ids",
    "notes": "none",
}


def write(folder: Path, **changes: Any) -> str:
    """A file with these changes; a value of None leaves the key out."""
    content = {key: value for key, value in (GOOD | changes).items() if value is not None}
    path = folder / "entry.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return str(path)


def test_a_complete_entry(tmp_path: Path) -> None:
    entry = read_entry(write(tmp_path))
    assert entry.name == "my/model-1.0" and entry.folder == str(tmp_path)
    assert (
        entry.weights
        == Weights("address", "https://example.org/a.pth")
        == ("address", entry.address)
    )
    assert entry.sha256 == "a" * 64 and entry.figures == {"PQ": 50.0}
    assert [(c.id, c.name, c.isthing) for c in entry.classes] == [
        (0, "road", False),
        (7, "car", True),
    ]
    assert entry.classes[0].color != entry.classes[1].color


def test_what_may_be_left_out(tmp_path: Path) -> None:
    optional = dict.fromkeys(("classes", "sha256", "size", "figures", "input", "convert", "notes"))
    entry = read_entry(write(tmp_path, **optional, weights={"file": "a.pth"}))
    assert (entry.sha256, entry.size, entry.address, dict(entry.input)) == ("", None, "", {})
    backbone = dict.fromkeys((*optional, "data_set", "config"))
    assert read_entry(write(tmp_path, task="backbone", **backbone)).config == ""


@pytest.mark.parametrize("key", ["name", "task", "weights", "licence", "commercial_use", "source"])
def test_a_missing_key(key: str, tmp_path: Path) -> None:
    path = write(tmp_path, **{key: None})
    with pytest.raises(ConfigError, match=rf"^{path}: a zoo entry needs .*missing: {key}$"):
        read_entry(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "a b"}, r":1: name is 'a b', expected letters"),
        ({"name": "../x"}, r":1: name is '../x', expected letters"),
        ({"task": "detection"}, r":2: task is 'detection', expected one of panoptic, instance"),
        ({"data_set": None}, r"data_set is missing, which an entry of the task panoptic needs"),
        ({"config": ["a"]}, r"config is \['a'\], expected a text"),
        ({"licence": 3}, r"licence is 3, expected a text; write it in quotes"),
        ({"commercial_use": "no way"}, r"commercial_use is 'no way', expected true or false"),
        ({"sha256": "abc"}, r"sha256 is 'abc', expected 64 hexadecimal digits"),
        ({"size": 0}, r"size is 0, expected the bytes of the file"),
        ({"size": True}, r"size is True, expected the bytes of the file"),
        ({"figures": [50]}, r"figures is \[50\], expected metrics and their values"),
        ({"figures": {"PQ": "50 %"}}, r"figures.PQ is '50 %', expected a number"),
        ({"input": {"format": "GRB"}}, r"input.format is 'GRB', expected as in {format: RGB"),
        ({"input": {"colour": "RGB"}}, r"input is {'colour': 'RGB'}, expected {format: RGB"),
        ({"weights": "a.pt"}, r"weights is 'a.pt', expected one of these keys and its value: a"),
        ({"weights": {"file": "a", "hub": "b"}}, r"weights is .*, expected one of these keys"),
        ({"weights": {"url": "a"}}, r"weights is .*, expected one of these keys"),
        ({"weights": {"address": "a.pth"}}, r"weights.address is 'a.pth', expected an address"),
        ({"weights": {"file": ""}}, r"weights.file is '', expected a text"),
        ({"classes": []}, r"classes is \[\], expected a list"),
        ({"classes": ["road"]}, r"class 0 of classes is 'road', expected name \(text\)"),
        ({"classes": [{"name": "a"}]}, r"class 0 of classes is .*, expected name \(text\)"),
        ({"classes": [{"name": "a", "isthing": 1}]}, r"class 0 of classes is .* isthing \(true"),
        ({"classes": [{"name": "a", "isthing": True, "color": [1, 2, 300]}]}, r"0 to 255\)"),
        ({"classes": [{"name": "a", "isthing": True, "colour": 1}]}, r"class 0 of classes"),
        (
            {"classes": [{"name": n, "isthing": True, "id": 3} for n in "ab"]},
            r"two classes of classes have the same id; ids found: \[3, 3\]",
        ),
        ({"convert": "ids"}, r":23: convert is 'ids', expected one of separated_ids"),
        ({"weights": {"package": "a"}}, r"convert is for weights of an address or a file, but"),
        ({"licens": "MIT"}, r":25: unknown key of a zoo entry 'licens'; did you mean 'licence'\?"),
    ],
)  # fmt: skip
def test_a_wrong_value(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = write(tmp_path, **changes)
    with pytest.raises(ConfigError, match=message) as caught:
        read_entry(path)
    assert str(caught.value).startswith(path)


def test_a_key_given_twice_and_files_that_are_no_entry(tmp_path: Path) -> None:
    path = tmp_path / "entry.yaml"
    for text, message in (
        ("name: a\nname: b\n", "entry.yaml:2: name is given twice in one block"),
        ("- a\n", "zoo entry .* holds a list, expected keys"),
        ("name: !!python/object:os.system x\n", "it was refused and not run"),
        ("", "a zoo entry needs the keys"),
    ):
        path.write_text(text)
        with pytest.raises(ConfigError, match=message):
            read_entry(str(path))
    with pytest.raises(ConfigError, match=r"zoo entry .*none.yaml does not exist"):
        read_entry(str(tmp_path / "none.yaml"))
