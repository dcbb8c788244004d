"""One entry of the model zoo, and the strict reading of its YAML file."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from panoptic_ext.config.yaml_reader import read_mapping
from panoptic_ext.data.coco.categories import Category, spare_colors
from panoptic_ext.errors import ConfigError, quoted, unknown

__all__ = [
    "CONVERSIONS",
    "TASKS",
    "WEIGHTS",
    "Weights",
    "ZooEntry",
    "check_name",
    "hub_model",
    "read_entry",
]

TASKS = ("panoptic", "instance", "semantic", "backbone")
"""What a model gives; a backbone gives features, and its weights begin a training."""

WEIGHTS = {
    "address": "the https address of one file",
    "file": "a path, relative to the YAML file",
    "hub": "a name on Hugging Face's hub, or a folder of save_pretrained beside the YAML file",
    "package": "a Python package that holds the file",
}
"""The kinds of weights, and what the value of each is."""


CONVERSIONS = ("separated_ids",)
"""What is done with a file of weights; separated_ids: Detectron2's Panoptic FPN, to our ids."""


class Weights(NamedTuple):
    """Where the weights of an entry come from: one of the kinds of `WEIGHTS`, and its value."""

    kind: str
    value: str


@dataclass(frozen=True)
class ZooEntry:
    """A model of the zoo.

    Attributes:
        name: such as "mask2former_R50_coco".
        task: one of `TASKS`.
        weights: where they come from.
        licence: of the weights, as its publisher names it.
        commercial_use: whether the licence allows it.
        source: page on which the weights are published.
        data_set: name of the data set that it was trained on; "" for a backbone.
        classes: its categories; empty for a built-in data set, whose classes are known.
        config: a YAML file, relative to the entry's file or one of the shipped ones; "" for a
            backbone.
        sha256: of the file of weights; "" if it is not known.
        size: bytes of that file; None if it is not known.
        figures: metric -> its value as published; of PQ, AP and mIoU in percent.
        input: what the model expects, e.g. {"format": "RGB", "min_size": 800, "max_size": 1333}:
            order of channels, and pixels of the shortest and longest edge.
        convert: one of `CONVERSIONS`, or "" for weights that are loaded as they are.
        notes: anything else.
        path: the YAML file.
    """

    name: str
    task: str
    weights: Weights
    licence: str
    commercial_use: bool
    source: str
    data_set: str = ""
    classes: tuple[Category, ...] = ()
    config: str = ""
    sha256: str = ""
    size: int | None = None
    figures: Mapping[str, float] = field(default_factory=dict)
    input: Mapping[str, Any] = field(default_factory=dict)
    convert: str = ""
    notes: str = ""
    path: str = ""

    @property
    def address(self) -> str:
        """Address of the file of weights; "" if they are no such file."""
        return self.weights.value if self.weights.kind == "address" else ""

    @property
    def folder(self) -> str:
        """Folder of the YAML file, to which its paths are relative."""
        return os.path.dirname(self.path)


class _Where(NamedTuple):
    """A value of the file: the file, its lines by key, and the key."""

    path: str
    lines: Mapping[str, str]
    key: str

    def error(self, text: str) -> ConfigError:
        return ConfigError(f"{self.lines.get(self.key, self.path)}: {text}")

    def below(self, name: str) -> _Where:
        return self._replace(key=f"{self.key}.{name}")

    def wrong(self, value: Any, expected: str) -> ConfigError:
        return self.error(f"{self.key} is {quoted(value)}, expected {expected}")


Read = Callable[[_Where, Any], Any]


def read_entry(path: str) -> ZooEntry:
    """Read and check the YAML file of one entry.

    Args:
        path: the file.

    Raises:
        ConfigError: the file cannot be read; a key is unknown, missing or has a wrong value. The
            message gives the file and, if there is one, the line.
    """
    path = os.path.abspath(path)
    content, lines = read_mapping(path, what="zoo entry")
    for key in content:
        if key not in _KEYS:
            where = _Where(path, lines, str(key))
            raise where.error(unknown("key of a zoo entry", key, _KEYS))
    missing = [key for key in _REQUIRED if key not in content]
    if missing:
        raise ConfigError(
            f"{path}: a zoo entry needs the keys {', '.join(_REQUIRED)}; missing: "
            f"{', '.join(missing)}"
        )
    values = {key: _KEYS[key](_Where(path, lines, key), value) for key, value in content.items()}
    entry = ZooEntry(**values, path=path)
    _check_together(entry, lines)
    return entry


def hub_model(entry: ZooEntry) -> str:
    """Name of an entry's model on the hub; path of its folder, if there is one beside the entry."""
    folder = os.path.join(entry.folder, os.path.expanduser(entry.weights.value))
    return folder if os.path.isdir(folder) else entry.weights.value


def check_name(name: str) -> None:
    """Raise ConfigError if an entry cannot have this name."""
    if not _NAME.fullmatch(name):
        raise ConfigError(f"the name {quoted(name)} cannot be used; expected {_NAME_RULE}")


def _check_together(entry: ZooEntry, lines: Mapping[str, str]) -> None:
    """Check the keys that depend on each other."""
    if entry.convert and entry.weights.kind not in ("address", "file"):
        raise _Where(entry.path, lines, "convert").error(
            f"convert is for weights of an address or a file, but they are a {entry.weights.kind}"
        )
    if entry.task == "backbone":
        return
    for key in ("config", "data_set"):
        if not getattr(entry, key):
            raise _Where(entry.path, lines, key).error(
                f"{key} is missing, which an entry of the task {entry.task} needs: a model is built"
                " from a config and has the classes of a data set"
            )


def _text(where: _Where, value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise where.wrong(value, "a text; write it in quotes if it looks like something else")
    return value.strip()


def _name(where: _Where, value: Any) -> str:
    if not isinstance(value, str) or not _NAME.fullmatch(value):
        raise where.wrong(value, _NAME_RULE)
    return value


def _task(where: _Where, value: Any) -> str:
    if value not in TASKS:
        raise where.wrong(value, f"one of {', '.join(TASKS)}")
    return value


def _weights(where: _Where, value: Any) -> Weights:
    kinds = "; ".join(f"{kind}: {meaning}" for kind, meaning in WEIGHTS.items())
    if not isinstance(value, dict) or len(value) != 1 or next(iter(value)) not in WEIGHTS:
        raise where.wrong(value, f"one of these keys and its value: {kinds}")
    kind, content = next(iter(value.items()))
    text = _text(where.below(kind), content)
    if kind == "address" and not text.startswith(("https://", "http://")):
        raise where.below(kind).wrong(text, "an address that begins with https://")
    return Weights(kind, text)


def _convert(where: _Where, value: Any) -> str:
    if value not in CONVERSIONS:
        raise where.wrong(value, f"one of {', '.join(CONVERSIONS)}")
    return value


def _switch(where: _Where, value: Any) -> bool:
    if not isinstance(value, bool):
        raise where.wrong(value, "true or false")
    return value


def _sha256(where: _Where, value: Any) -> str:
    if not isinstance(value, str) or not re.fullmatch("[0-9a-f]{64}", value.lower()):
        raise where.wrong(value, "64 hexadecimal digits, as `sha256sum FILE` prints them")
    return value.lower()


def _size(where: _Where, value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise where.wrong(value, "the bytes of the file, a whole number of 1 or more")
    return value


def _figures(where: _Where, value: Any) -> dict[str, float]:
    if not isinstance(value, dict):
        raise where.wrong(value, "metrics and their values, such as {PQ: 51.9}")
    for name, number in value.items():
        if not isinstance(number, (int, float)) or isinstance(number, bool):
            raise where.below(str(name)).wrong(number, "a number")
    return {str(name): float(number) for name, number in value.items()}


_INPUT: dict[str, Callable[[Any], bool]] = {
    "format": lambda value: value in ("RGB", "BGR"),
    **dict.fromkeys(("min_size", "max_size"), lambda value: type(value) is int and value > 0),
}


def _input(where: _Where, value: Any) -> dict[str, Any]:
    expected = "{format: RGB or BGR, min_size: PIXELS, max_size: PIXELS}, or some of these keys"
    if not isinstance(value, dict) or not set(value) <= set(_INPUT):
        raise where.wrong(value, expected)
    for name, item in value.items():
        if not _INPUT[name](item):
            raise where.below(name).wrong(item, f"as in {expected}")
    return dict(value)


def _classes(where: _Where, value: Any) -> tuple[Category, ...]:
    if not isinstance(value, list) or not value:
        raise where.wrong(value, "a list with {name: TEXT, isthing: true or false} for each class")
    colors = spare_colors(len(value))
    categories = tuple(
        _class(where, number, row, color)
        for number, (row, color) in enumerate(zip(value, colors, strict=True))
    )
    ids = [category.id for category in categories]
    if len(set(ids)) != len(ids):
        raise where.error(f"two classes of {where.key} have the same id; ids found: {quoted(ids)}")
    return categories


def _class(where: _Where, number: int, row: Any, spare: tuple[int, int, int]) -> Category:
    """One class: its id is `number` and its colour `spare` if it has no others."""
    complete = {"id": number, "color": list(spare), **(row if isinstance(row, dict) else {})}
    color = complete["color"]
    is_good = (
        set(complete) == {"id", "name", "isthing", "color"}
        and type(complete["id"]) is int
        and isinstance(complete["name"], str)
        and isinstance(complete["isthing"], bool)
        and isinstance(color, list)
        and len(color) == 3
        and all(type(part) is int and 0 <= part <= 255 for part in color)
    )
    if not is_good:
        raise where.error(
            f"class {number} of {where.key} is {quoted(row)}, expected name (text), isthing (true "
            "or false), and if wished id (whole number) and color ([R, G, B], 0 to 255)"
        )
    red, green, blue = color
    return Category(complete["id"], complete["name"], complete["isthing"], (red, green, blue))


_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)*")
_NAME_RULE = "letters, digits and _ . - only, parts separated by /, such as my_model_coco"
_KEYS: dict[str, Read] = {
    "name": _name,
    "task": _task,
    "data_set": _text,
    "classes": _classes,
    "config": _text,
    "weights": _weights,
    "sha256": _sha256,
    "size": _size,
    "licence": _text,
    "commercial_use": _switch,
    "source": _text,
    "figures": _figures,
    "input": _input,
    "convert": _convert,
    "notes": _text,
}
_REQUIRED = ("name", "task", "weights", "licence", "commercial_use", "source")
