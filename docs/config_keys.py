"""The page of config keys, read from the source of panoptic_ext/config without importing it.

    python docs/config_keys.py      # prints the page

A key is an assignment `cfg.A.B = value`; its meaning is the comment directly above it or at the end
of its line. A block is an assignment of `CN()`; the comment above it introduces the block.
"""

from __future__ import annotations

import ast
import html
import io
import json
import re
import sys
import tokenize
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "panoptic_ext" / "config"
ADDS = re.compile(r"_?add_\w+$")

INTRODUCTION = """# Config keys

Every key that panoptic_ext adds to a Detectron2 config, with its default. Detectron2's own keys
keep their meaning; its documentation lists them. A key is set in a YAML file or at the end of a
command line: `SOLVER.OPTIMIZER ADAMW`. A misspelled name is refused, and the nearest one
that exists is named.

This page is written from the comments in `panoptic_ext/config/` whenever the site is built.
"""


@dataclass(frozen=True)
class Key:
    """One assignment to a config."""

    name: str
    """In full, such as "MODEL.TIMM.NAME"."""
    default: str | None
    """As in YAML; None for a block of keys."""
    meaning: str
    """The comment's lines; "" where there is none."""


@dataclass(frozen=True)
class Section:
    """The keys of one file."""

    title: str
    keys: list[Key]


def comments(source: str) -> dict[int, tuple[str, bool]]:
    """Line number -> (text, whether it stands alone on its line) of every comment."""
    found = {}
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            alone = token.line[: token.start[1]].strip() == ""
            text = token.string.removeprefix("#").removeprefix(" ").rstrip()
            found[token.start[0]] = (text, alone)
    return found


def meaning(node: ast.stmt, texts: dict[int, tuple[str, bool]]) -> str:
    """The comment lines directly above a statement, then the one at its end."""
    above = []
    line = node.lineno - 1
    while line in texts and texts[line][1]:
        above.append(texts[line][0])
        line -= 1
    lines = above[::-1]
    for number in range(node.lineno, (node.end_lineno or node.lineno) + 1):
        if number in texts:
            lines.append(texts[number][0])
    return "\n".join(lines)


def key_name(target: ast.expr) -> str:
    """ "A.B" of the expression `cfg.A.B`; "" for anything else."""
    parts = []
    while isinstance(target, ast.Attribute):
        parts.append(target.attr)
        target = target.value
    is_key = isinstance(target, ast.Name) and target.id == "cfg" and parts
    return ".".join(reversed(parts)) if is_key else ""


def constants(tree: ast.Module) -> dict[str, ast.expr]:
    """Values of the module's constants, by name."""
    named = {}
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            named[node.targets[0].id] = node.value
    return named


def yaml_value(node: ast.expr, named: dict[str, ast.expr]) -> str:
    """A default as one writes it in YAML or on a command line."""
    if isinstance(node, ast.Name):
        node = named[node.id]
    value = ast.literal_eval(node)
    return json.dumps(value) if isinstance(value, (str, list)) else repr(value)


def read_keys(source: str) -> list[Key]:
    """The keys that the functions "add_..." and "_add_..." of a file add, in its order."""
    texts, tree = comments(source), ast.parse(source)
    named = constants(tree)
    adding = [n for n in tree.body if isinstance(n, ast.FunctionDef) and ADDS.match(n.name)]
    nodes = [node for function in adding for node in ast.walk(function)]
    keys = []
    for node in sorted((n for n in nodes if isinstance(n, ast.Assign)), key=lambda n: n.lineno):
        name = key_name(node.targets[0])
        if name:
            is_block = isinstance(node.value, ast.Call)
            default = None if is_block else yaml_value(node.value, named)
            keys.append(Key(name, default, meaning(node, texts)))
    return keys


def sections() -> list[Section]:
    """Every file of panoptic_ext/config that has keys, `keys.py` first."""
    found = []
    for path in sorted(FOLDER.glob("*.py"), key=lambda path: (path.stem != "keys", path.stem)):
        source = path.read_text(encoding="utf-8")
        keys = read_keys(source)
        if keys:
            docstring = ast.get_docstring(ast.parse(source)) or ""
            found.append(Section(title(path.stem, docstring), keys))
    return found


def title(stem: str, docstring: str) -> str:
    """The heading of a file's keys: what its docstring says that they are of."""
    if stem == "keys":
        return "Data, input, solver and evaluation"
    words = re.split(r"[(:,.]", docstring)[0].strip().removeprefix("Config keys of ")
    return words[:1].upper() + words[1:] or stem


def page() -> str:
    """The whole page, in Markdown."""
    lines = [INTRODUCTION]
    for section in sections():
        lines += [f"## {section.title}", ""]
        for key in section.keys:
            lines += _entry(key)
    return "\n".join(lines)


def _entry(key: Key) -> list[str]:
    if key.default is None:
        return [f"### {key.name}", "", *_paragraphs(key.meaning), ""]
    words = ["    " + line if line else "" for line in _paragraphs(key.meaning)]
    name = f'<span id="{key.name}"></span>`{key.name}`'
    return [f"{name} : `{key.default}`", "", ":" + "\n".join(words)[1:], ""]


def _paragraphs(comment: str) -> list[str]:
    """A comment in Markdown: indented lines are a list."""
    lines: list[str] = []
    for line in comment.split("\n"):
        escaped = html.escape(line.strip(), quote=False)
        if not line.startswith("  "):
            lines.append(escaped)
        elif lines and not lines[-1].startswith("- "):
            lines += ["", _item(escaped)]
        else:
            lines.append(_item(escaped))
    return lines


def _item(line: str) -> str:
    """ "NAME  meaning" as an item of a list."""
    name, *words = re.split(r"  +", line, maxsplit=1)
    return f"- <code>{name}</code>: {words[0]}" if words else f"- {line}"


if __name__ == "__main__":
    sys.stdout.write(page())
