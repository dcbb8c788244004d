"""YAML as plain data: no tag runs code; nesting, aliases and numbers have bounds.

A text of a few hundred bytes can mean a billion values (aliases of aliases), exhaust Python's stack
(nested brackets) or raise whatever a constructor raises (`!!bool maybe`). Here each of these is a
`yaml.YAMLError` with the line, raised before the values are built.
"""

from __future__ import annotations

import re
from typing import IO, Any

import yaml

from panoptic_ext.errors import quoted

__all__ = ["PlainLoader", "load_plain_yaml"]

MAX_DEPTH = 64  # blocks and lists inside each other; configs have six
MAX_VALUES = 100_000  # with every alias counted as what it stands for; configs have 500
MAX_NUMBER = 400  # characters; a float64 needs 309 digits at most
MAX_INTEGER = 2**63  # what numpy, torch and JSON readers can hold

# What the constructors of PyYAML raise for a scalar that is not of its tag.
_SCALAR_ERRORS = (ValueError, TypeError, KeyError, AttributeError, OverflowError)


def load_plain_yaml(text: str | IO[str]) -> Any:
    """Read the one document in `text`, None if there is none.

    Raises:
        yaml.YAMLError: invalid or refused; `problem_mark` has the line.
    """
    loader = PlainLoader(text)
    try:
        return loader.get_single_data()
    finally:
        loader.dispose()


class PlainLoader(yaml.SafeLoader):
    """`yaml.SafeLoader` with bounds; every error that it raises is a `yaml.YAMLError`."""

    def __init__(self, stream: Any) -> None:
        super().__init__(stream)
        self._depth = 0
        self._values = 0
        self._size_of: dict[int, int] = {}  # id of a finished node -> values in it

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        start = self.peek_event().start_mark
        if self._depth >= MAX_DEPTH:
            raise _refused(f"values are nested more than {MAX_DEPTH} deep", start)
        is_alias = self.check_event(yaml.AliasEvent)
        before = self._values
        self._depth += 1
        node = super().compose_node(parent, index)
        self._depth -= 1
        # PyYAML shares the node between an alias and its anchor. Converting the document to plain
        # values may visit it once for each alias, so that its values count every time.
        if is_alias:
            if id(node) not in self._size_of:
                raise _refused("an alias stands inside what it is an alias of", start)
            self._values += self._size_of[id(node)]
        else:
            self._values += 1
            self._size_of[id(node)] = self._values - before
        if self._values > MAX_VALUES:
            raise _refused(f"it holds more than {MAX_VALUES} values, aliases included", start)
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        if not isinstance(node, yaml.ScalarNode):
            return super().construct_object(node, deep=deep)
        kind = node.tag.rpartition(":")[2]
        is_number = kind in ("int", "float")
        if is_number and len(node.value) > MAX_NUMBER:
            text = f"a number of {len(node.value)} characters, expected {MAX_NUMBER} at most"
            raise _refused(text, node.start_mark)
        try:
            value = super().construct_object(node, deep=deep)
        except _SCALAR_ERRORS as error:
            raise _refused(f"{quoted(node.value)} is no {kind}", node.start_mark) from error
        if kind == "int" and abs(value) >= MAX_INTEGER:
            text = f"the integer {quoted(node.value)} does not fit in 64 bits"
            raise _refused(text, node.start_mark)
        return value


# Published Mask2Former files of crops write the sizes of the shortest edge as this expression.
_SIZES = re.compile(
    r"\[\s*int\(x \* 0\.1 \* (\d{1,5})\) for x in range\((\d{1,3}), ?(\d{1,3})\)\s*\]"
)


def _sizes_of_expression(loader: PlainLoader, node: yaml.Node) -> list[int]:
    """Compute the one Python expression that is accepted, from its text and without running it."""
    items = node.value if isinstance(node, yaml.SequenceNode) else []
    match = _SIZES.fullmatch(str(items[0].value)) if len(items) == 1 else None
    if match is None:
        return loader.construct_undefined(node)  # type: ignore[no-any-return]
    size, first, end = map(int, match.groups())
    return [int(x * 0.1 * size) for x in range(first, end)]


PlainLoader.add_constructor("tag:yaml.org,2002:python/object/apply:eval", _sizes_of_expression)


def _refused(problem: str, mark: yaml.Mark) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=mark)
