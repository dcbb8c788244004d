"""Figures of the code of several trees: sizes, documentation, long functions, duplicates.

    python benchmarks/code_figures.py TREE [TREE ...] [--list]

A tree is a checkout, of which panoptic_ext/ and tests/ are counted. All lines of a file count. The
comment share counts lines with a comment, alone or after code; comments alone on their line are
counted separately too. The lines of a function run from `def` to its end, without its docstring and
with the functions inside it. Duplicates are those of the command `duplicates`, if it is on PATH.
--list names the files, functions and pairs that are counted.
"""

from __future__ import annotations

import argparse
import ast
import io
import math
import re
import shutil
import subprocess
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

MAX_FILE, MAX_ARGUMENTS = 400, 8
Function = ast.FunctionDef | ast.AsyncFunctionDef
_DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


@dataclass
class FunctionFigures:
    """One function or method.

    Attributes:
        place: file:line and name.
        lines: without its docstring.
        arguments: all but self and cls, with *args and **kwargs.
    """

    place: str
    lines: int
    arguments: int


@dataclass
class FolderFigures:
    """The Python files below a folder.

    Attributes:
        files: path -> lines.
        docstring: lines of docstrings.
        comment: lines with a comment.
        comment_alone: lines with nothing but a comment.
        functions: of all files.
    """

    files: dict[str, int] = field(default_factory=dict)
    docstring: int = 0
    comment: int = 0
    comment_alone: int = 0
    functions: list[FunctionFigures] = field(default_factory=list)

    @property
    def lines(self) -> int:
        return sum(self.files.values())

    def share(self, lines: int) -> str:
        """Lines as a share of all."""
        return f"{100 * lines / max(self.lines, 1):.1f} %"


def read_folder(tree: Path, name: str) -> FolderFigures:
    """The figures of a folder of a tree."""
    figures = FolderFigures()
    for path in sorted((tree / name).rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        place = path.relative_to(tree).as_posix()
        figures.files[place] = len(text.splitlines())
        comments = comment_lines(text)
        figures.comment += len(comments)
        figures.comment_alone += sum(comments.values())
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, _DOCUMENTED):
                figures.docstring += docstring_lines(node)
            if isinstance(node, Function):
                figures.functions.append(function_figures(node, place))
    return figures


def comment_lines(text: str) -> dict[int, bool]:
    """Line with a comment -> whether nothing else is on it."""
    is_alone = {}
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            line, column = token.start
            is_alone[line] = not token.line[:column].strip()
    return is_alone


def docstring_lines(node: ast.AST) -> int:
    """Lines of the docstring of a module, class or function."""
    body = getattr(node, "body", [])
    if not body or ast.get_docstring(node, clean=False) is None:
        return 0
    return body[0].end_lineno - body[0].lineno + 1


def function_figures(node: Function, place: str) -> FunctionFigures:
    """Figures of a function; decorators do not count."""
    signature = node.args
    names = [a.arg for a in (*signature.posonlyargs, *signature.args, *signature.kwonlyargs)]
    names += [a.arg for a in (signature.vararg, signature.kwarg) if a is not None]
    arguments = [name for name in names if name not in ("self", "cls")]
    lines = node.end_lineno - node.lineno + 1 - docstring_lines(node)
    return FunctionFigures(f"{place}:{node.lineno} {node.name}", lines, len(arguments))


def duplicate_pairs(tree: Path) -> list[str] | None:
    """The rows of `duplicates` for panoptic_ext; None if the command is missing."""
    command = shutil.which("duplicates")
    if command is None:
        return None
    options = ["--repo", str(tree / "panoptic_ext"), "--most", "200", "--seconds", "120"]
    done = subprocess.run([command, *options], capture_output=True, text=True, check=True)
    return [line for line in done.stdout.splitlines() if re.match(r"D\d+ ", line)]


@dataclass
class TreeFigures:
    """A tree: package, tests and duplicates."""

    name: str
    package: FolderFigures
    tests: FolderFigures
    duplicates: list[str] | None

    @classmethod
    def read(cls, tree: Path) -> TreeFigures:
        return cls(
            tree.resolve().name,
            read_folder(tree, "panoptic_ext"),
            read_folder(tree, "tests"),
            duplicate_pairs(tree),
        )

    def long_files(self) -> list[str]:
        """Files over MAX_FILE lines."""
        return [f"{place}: {n}" for place, n in self.package.files.items() if n > MAX_FILE]

    def wide_functions(self) -> list[str]:
        """Functions with over MAX_ARGUMENTS arguments, most first."""
        wide = [f for f in self.package.functions if f.arguments > MAX_ARGUMENTS]
        wide.sort(key=lambda f: -f.arguments)
        return [f"{f.place}: {f.arguments} arguments" for f in wide]

    def long_functions(self, number: int = 10) -> list[str]:
        """The longest functions."""
        longest = sorted(self.package.functions, key=lambda f: -f.lines)[:number]
        return [f"{f.place}: {f.lines} lines" for f in longest]

    def rows(self) -> Iterator[tuple[str, str]]:
        """Name and value of each figure."""
        package, tests = self.package, self.tests
        lengths = sorted(f.lines for f in package.functions) or [0]
        yield "panoptic_ext: files", f"{len(package.files):,}"
        yield "lines", f"{package.lines:,}"
        yield "docstring share", package.share(package.docstring)
        yield "comment share", package.share(package.comment)
        yield "comments alone on their line", package.share(package.comment_alone)
        yield "functions", f"{len(package.functions):,}"
        yield "lines of a function: mean", f"{sum(lengths) / len(lengths):.1f}"
        yield "90 %", str(lengths[math.ceil(0.9 * len(lengths)) - 1])
        yield "maximum", str(lengths[-1])
        yield f"files over {MAX_FILE} lines", str(len(self.long_files()))
        yield f"functions over {MAX_ARGUMENTS} arguments", str(len(self.wide_functions()))
        pairs = self.duplicates
        yield "duplicate pairs", "-" if pairs is None else str(len(pairs))
        test_functions = [f for f in tests.functions if f.place.split()[-1].startswith("test_")]
        yield "tests: files", f"{len(tests.files):,}"
        yield "lines of tests", f"{tests.lines:,}"
        yield "test functions", f"{len(test_functions):,}"


def print_table(trees: list[TreeFigures]) -> None:
    """A Markdown table with a column for each tree."""
    print(f"| | {' | '.join(tree.name for tree in trees)} |\n|---|{'---:|' * len(trees)}")
    for values in zip(*(tree.rows() for tree in trees), strict=True):
        print(f"| {values[0][0]} | {' | '.join(value for _, value in values)} |")


def print_lists(tree: TreeFigures) -> None:
    """What the figures of a tree count."""
    for title, lines in (
        (f"files over {MAX_FILE} lines", tree.long_files()),
        (f"functions over {MAX_ARGUMENTS} arguments", tree.wide_functions()),
        ("longest functions", tree.long_functions()),
        ("duplicate pairs", tree.duplicates or []),
    ):
        print(f"\n{tree.name}: {title}")
        for line in lines:
            print(f"- {line}")


def main() -> None:
    """Print Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("trees", nargs="+", type=Path, metavar="TREE")
    parser.add_argument("--list", action="store_true", help="name what is counted")
    args = parser.parse_args()
    trees = [TreeFigures.read(tree) for tree in args.trees]
    print_table(trees)
    if args.list:
        for tree in trees:
            print_lists(tree)


if __name__ == "__main__":
    main()
