"""What mkdocstrings has to know of this project's docstrings beyond Google's style.

- One entry may describe several arguments: "height, width: of the image, pixels."
- The docstring of a constructor may begin with its arguments: "Args:" or "Args (all by keyword):"
  in the first line. Python then takes the indentation off what follows, which is put back.
"""

from __future__ import annotations

import re
from typing import Any

from griffe import Extension, Object

_ENTRY = re.compile(r"^( +)(\w+(?:, \w+)+):(.*)$")
_SECTION = re.compile(r"^(Returns|Raises|Yields|Attributes):")


def indented(text: str) -> str:
    """A docstring that begins with "Args", as if that stood below a first line."""
    first, *lines = text.split("\n")
    if not re.match(r"^Args( \(.*\))?:$", first):
        return text
    if any(line and not line.startswith(" ") for line in lines[:2]):
        end = next((i for i, line in enumerate(lines) if _SECTION.match(line)), len(lines))
        while lines and not lines[0].strip():
            lines, end = lines[1:], end - 1
        lines[:end] = [f"    {line}" if line.strip() else line for line in lines[:end]]
    return "\n".join(["Args:", *lines])


def separated(text: str) -> str:
    """A docstring in which every argument has an entry of its own, of the same words."""
    lines: list[str] = []
    pending = text.split("\n")
    while pending:
        line = pending.pop(0)
        entry = _ENTRY.match(line)
        if entry is None:
            lines.append(line)
            continue
        indent, names, words = entry.groups()
        more = []
        while pending and pending[0].startswith(indent + " "):
            more.append(pending.pop(0))
        for name in names.split(", "):
            lines += [f"{indent}{name}:{words}", *more]
    return "\n".join(lines)


class Docstrings(Extension):
    """An extension of griffe, which reads the sources for mkdocstrings."""

    def on_instance(self, *, obj: Object, **kwargs: Any) -> None:
        """Rewrite the docstring of a module, class, function or attribute."""
        if obj.docstring is not None:
            obj.docstring.value = separated(indented(obj.docstring.value))
