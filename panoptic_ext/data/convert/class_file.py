"""Read a list of classes from a JSON, YAML or text file."""

from __future__ import annotations

import json
import re
from collections import Counter
from typing import Any

import yaml

from panoptic_ext.config.plain_yaml import load_plain_yaml
from panoptic_ext.data.coco.json_file import is_int
from panoptic_ext.data.convert.labels import SourceClass
from panoptic_ext.errors import NOT_JSON, DatasetError, quoted
from panoptic_ext.regular_files import CONFIG_FILE, PANOPTIC_JSON, check_regular_file

__all__ = ["KINDS", "class_from_entry", "read_class_file"]

KINDS = {"thing": True, "things": True, "stuff": False}
"""Words for the two kinds of classes, in any file."""

_HOW = (
    "expected a COCO panoptic JSON, JSON or YAML list of {name, isthing, id, color}, of which only "
    "name is needed, or a text file with one class a line: name, thing or stuff, id, #rrggbb"
)
_COLOR = re.compile(r"#[0-9a-fA-F]{6}")


def read_class_file(path: str) -> tuple[SourceClass, ...]:
    """The classes of a file, in its order.

    Args:
        path: a JSON (.json), among them a COCO panoptic one; YAML (.yaml, .yml); else text with
            one class a line, whose columns `name, thing, 7, #ff0000` may end after any of them.

    Raises:
        DatasetError: it is none of these, or lists a name or an id twice.
    """
    kind = PANOPTIC_JSON if path.endswith(".json") else CONFIG_FILE
    check_regular_file(path, kind, error=DatasetError)
    try:
        with open(path, encoding="utf-8-sig") as file:
            text = file.read()
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(f"list of classes {path} cannot be read ({error}); {_HOW}") from error
    if path.endswith((".json", ".yaml", ".yml")):
        classes = _from_content(_parsed(text, path), path)
    else:
        classes = [_from_line(line, path) for line in text.splitlines() if _is_class(line)]
    if not classes:
        raise DatasetError(f"list of classes {path} has no class; {_HOW}")
    values = [("name", c.name) for c in classes]
    values += [("id", str(c.id)) for c in classes if c.id is not None]
    for (what, value), count in Counter(values).items():
        if count > 1:
            raise DatasetError(f"list of classes {path} has the {what} {value} {count} times")
    return tuple(classes)


def _parsed(text: str, path: str) -> Any:
    try:
        if path.endswith(".json"):
            return json.loads(text)
        return load_plain_yaml(text)
    except (*NOT_JSON, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise DatasetError(f"list of classes {path} cannot be read ({reason}); {_HOW}") from error


def _from_content(content: Any, path: str) -> list[SourceClass]:
    """The classes of a list, of an object with `categories`, or of {name: thing or stuff}."""
    if isinstance(content, dict) and isinstance(content.get("categories"), list):
        content = content["categories"]
    if isinstance(content, dict):
        content = [
            {"name": name, **(value if isinstance(value, dict) else {"isthing": value})}
            for name, value in content.items()
        ]
    if not isinstance(content, list):
        raise DatasetError(f"list of classes {path} holds {quoted(content, 60)}; {_HOW}")
    return [class_from_entry(entry, path) for entry in content]


def class_from_entry(entry: Any, where: str) -> SourceClass:
    """The class of a name, or of an object with a name and possibly isthing, id and color.

    Raises:
        DatasetError: it is something else.
    """
    if isinstance(entry, (str, int)) and not isinstance(entry, bool):
        return SourceClass(str(entry))
    name = entry.get("name") if isinstance(entry, dict) else None
    if not isinstance(name, (str, int, float)) or isinstance(name, bool) or name == "":
        raise DatasetError(f"{where}: class {quoted(entry, 80)} has no name; {_HOW}")
    number, color = entry.get("id"), entry.get("color")
    if number is not None and (not is_int(number) or number < 0):
        raise DatasetError(
            f"{where}: class {quoted(name)} has the id {quoted(number)}, expected a whole number "
            "of 0 or more"
        )
    return SourceClass(str(name), number, _kind(entry.get("isthing"), name, where), _color(color))


def _kind(value: Any, name: object, where: str) -> bool | None:
    if value is None:
        return None
    if isinstance(value, str) and value.lower() in KINDS:
        return KINDS[value.lower()]
    if value in (0, 1):
        return bool(value)
    raise DatasetError(
        f"{where}: class {quoted(name)} has isthing {quoted(value)}, expected 1 (thing) or 0"
    )


def _color(value: Any) -> tuple[int, int, int] | None:
    """A colour of three numbers or of #rrggbb; None for anything else, which gets one later."""
    if isinstance(value, str) and _COLOR.fullmatch(value):
        return int(value[1:3], 16), int(value[3:5], 16), int(value[5:7], 16)
    is_color = isinstance(value, (list, tuple)) and len(value) == 3
    if is_color and all(is_int(part) and 0 <= part <= 255 for part in value):
        return value[0], value[1], value[2]
    return None


def _is_class(line: str) -> bool:
    text = line.strip()
    return bool(text) and not text.startswith("#")


def _from_line(line: str, path: str) -> SourceClass:
    name, *columns = (part.strip() for part in line.split(","))
    entry: dict[str, Any] = {"name": name}
    for column in columns:
        if column.lower() in KINDS:
            entry["isthing"] = KINDS[column.lower()]
        elif column.isdecimal():
            entry["id"] = int(column)
        elif _COLOR.fullmatch(column):
            entry["color"] = column
        elif column:
            raise DatasetError(
                f"list of classes {path}: {quoted(column)} in the line {quoted(line)} is neither "
                "thing nor stuff, an id or a colour; a line is: name, thing or stuff, id, #rrggbb"
            )
    return class_from_entry(entry, path)
