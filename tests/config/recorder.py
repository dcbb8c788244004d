"""A config that records which of its keys are read."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from detectron2.config import CfgNode


class RecordingNode(CfgNode):
    """A copy of a config, frozen or not as that is; copies of it note reads in the same set.

    Attribute access, `node[name]` and `get` read a key; `items()` reads the keys that it gives.
    Printing, dumping, copying, comparing and setting read none, nor does `**node`. Reading a block
    does not read its keys. Merging reads what it replaces: it is done before.

    Args:
        node: to copy.
        reads: gets the full name of each key that is read.
        above: full name of the node with a trailing dot, "" for the root.
    """

    def __init__(self, node: CfgNode, reads: set[str], above: str = "") -> None:
        super().__init__()
        self.__dict__["_reads"] = reads
        self.__dict__["_above"] = above
        for name, value in node.items():
            if isinstance(value, CfgNode):
                value = RecordingNode(value, reads, f"{above}{name}.")
            super().__setitem__(name, value)
        self.__dict__[CfgNode.IMMUTABLE] = node.is_frozen()
        self.__dict__[CfgNode.NEW_ALLOWED] = node.is_new_allowed()

    def __getattr__(self, name: str) -> Any:
        if name not in self:
            raise AttributeError(name)
        return self[name]

    def __getitem__(self, name: str) -> Any:
        self._reads.add(self._above + name)
        return super().__getitem__(name)

    def get(self, name: str, default: Any = None) -> Any:
        return self[name] if name in self else default  # noqa: SIM401

    def items(self) -> Any:
        self._reads.update(self._above + name for name in self)
        return super().items()

    def __deepcopy__(self, memo: dict[int, Any]) -> RecordingNode:
        return RecordingNode(plain(self), self._reads, self._above)

    def __str__(self) -> str:
        return str(plain(self))


def plain(node: CfgNode) -> CfgNode:
    """The same config as a common CfgNode; nothing is read."""
    copy = CfgNode(new_allowed=node.is_new_allowed())
    for name, value in dict.items(node):
        dict.__setitem__(copy, name, plain(value) if isinstance(value, CfgNode) else value)
    if node.is_frozen():
        copy.freeze()
    return copy


def leaves(node: CfgNode, above: str = "") -> Iterator[tuple[str, Any]]:
    """Full name and value of every key; a block without keys counts as a key."""
    for name, value in dict.items(node):
        if isinstance(value, CfgNode) and value:
            yield from leaves(value, f"{above}{name}.")
        else:
            yield above + name, value
