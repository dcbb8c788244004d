"""Every key that panoptic_ext adds to a config is read somewhere; Detectron2's stay as they are.

Reads are looked for in the syntax trees of the package, outside the files where keys are born: see
`Reads` for what is followed. Writing a key, naming it in a message or comparing it with a least
value does not count.
"""

from __future__ import annotations

import ast
import inspect
from collections import Counter, defaultdict
from collections.abc import Iterator

import pytest
from detectron2.config import CfgNode, get_cfg

from panoptic_ext import add_panoptic_ext_config
from panoptic_ext.modeling.backbone.swin import SwinTransformer
from tests import ROOT

PACKAGE = ROOT / "panoptic_ext"
Names = tuple[str, ...]
ROOT = "cfg"


class Reads(ast.NodeVisitor):
    """Chains of config names that a module reads.

    A name that stands for a part of the config is followed: `keys = cfg.MODEL.SWIN`, and an
    argument `f(cfg.INPUT)` into a function of the same module. So is a key that is put together,
    `keys[f"{prefix}_NAME"]`, or comes from a loop over names. `.items()` of a block reads it whole.

    Attributes:
        whole: chains from the root of the config on, without "cfg".
        ends: names behind something unknown, as in `solver.BASE_LR` of an argument.
        blocks: chains from the root whose `.items()` are read.
    """

    def __init__(self, source: str) -> None:
        self.whole: set[Names] = set()
        self.ends: set[Names] = set()
        self.blocks: set[Names] = set()
        self._chains: dict[str, Names] = {}
        self._texts: dict[str, list[str]] = {}
        self._arguments: dict[tuple[str, int], set[Names]] = defaultdict(set)
        tree = ast.parse(source)
        for _ in range(3):  # arguments of arguments of arguments
            self.ends.clear()
            self.visit(tree)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        outside = self._chains, self._texts
        self._chains, self._texts = {}, {}
        for i, argument in enumerate(node.args.args):
            given = self._arguments.get((node.name, i), set())
            if len(given) == 1:
                (self._chains[argument.arg],) = given
        self.generic_visit(node)
        self._chains, self._texts = outside

    def visit_For(self, node: ast.For) -> None:
        texts = [n.value for n in ast.walk(node.iter) if isinstance(n, ast.Constant)]
        for target in ast.walk(node.target):
            if isinstance(target, ast.Name):
                self._texts[target.id] = [text for text in texts if _is_key(text)]
        self.generic_visit(node)

    def visit_Assign(self, node: ast.Assign) -> None:
        for target in node.targets:
            together = isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple)
            targets = target.elts if together else [target]
            values = node.value.elts if together else [node.value]
            for name, value in zip(targets, values, strict=False):
                if isinstance(name, ast.Name):
                    self._texts[name.id] = self._keys(value)
                    chains = self._resolve(value)
                    self._chains[name.id] = chains[0] if len(chains) == 1 else ("?",)
        self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        if isinstance(node.func, ast.Name):
            for i, argument in enumerate(node.args):
                chains = [c for c in self._resolve(argument) if c[0] == ROOT]
                self._arguments[node.func.id, i].update(chains)
        if isinstance(node.func, ast.Attribute):
            for chain in self._resolve(node.func.value):
                if node.func.attr == "items" and len(chain) > 2 and chain[0] == ROOT:
                    self.blocks.add(chain[1:])
                if node.func.attr == "get" and node.args:
                    for key in self._keys(node.args[0]):
                        self._add((*chain, key))
        self.generic_visit(node)

    def visit_Attribute(self, node: ast.Attribute | ast.Subscript) -> None:
        if isinstance(node.ctx, ast.Load):
            for chain in self._resolve(node):
                self._add(chain)
        self.generic_visit(node)

    visit_Subscript = visit_Attribute

    def _add(self, chain: Names) -> None:
        if len(chain) > 1:
            (self.whole if chain[0] == ROOT else self.ends).add(chain[1:])

    def _resolve(self, node: ast.expr) -> list[Names]:
        """Chains that an expression may stand for: ("cfg", "MODEL", ...) or ("?", "NAME")."""
        if isinstance(node, ast.Name):
            return [self._chains.get(node.id, (ROOT,) if node.id == ROOT else ("?",))]
        if isinstance(node, ast.Attribute):
            if node.attr == ROOT:  # self.cfg
                return [(ROOT,)]
            above = self._resolve(node.value)
            if _is_key(node.attr):
                return [(*chain, node.attr) for chain in above]
            return [above[0]] if node.attr == "clone" else [("?",)]
        if isinstance(node, ast.Subscript):
            keys = self._keys(node.slice)
            return [(*chain, key) for chain in self._resolve(node.value) for key in keys]
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            return self._resolve(node.func) if node.func.attr == "clone" else [("?",)]
        return [("?",)]

    def _keys(self, node: ast.expr) -> list[str]:
        """Config names that an expression may be."""
        if isinstance(node, ast.Constant):
            return [node.value] if _is_key(node.value) else []
        if isinstance(node, ast.Name):
            return self._texts.get(node.id, [])
        if isinstance(node, ast.JoinedStr):
            texts = [""]
            for part in node.values:
                value = part.value if isinstance(part, ast.FormattedValue) else part
                texts = [text + more for text in texts for more in self._keys(value)]
            return texts
        return []


def _is_key(name: object) -> bool:
    return isinstance(name, str) and name.isupper() and name.replace("_", "a").isalnum()


def leaves(node: CfgNode, above: Names = ()) -> Iterator[tuple[Names, object]]:
    """Path and value of every key; a block without keys counts as a key."""
    for name, value in node.items():
        if isinstance(value, CfgNode) and value:
            yield from leaves(value, (*above, name))
        else:
            yield (*above, name), value


def all_keys() -> tuple[dict[Names, object], dict[Names, object]]:
    """Key -> default: of Detectron2, and with those of panoptic_ext."""
    cfg = get_cfg()
    before = dict(leaves(cfg))
    add_panoptic_ext_config(cfg)
    return before, dict(leaves(cfg))


def dead_keys(sources: list[str]) -> list[str]:
    """Added keys that no source reads.

    A key is read by its whole chain, within a block, or by an end that fits no other key.
    """
    before, after = all_keys()
    reads = [Reads(source) for source in sources]
    whole = set().union(*(r.whole for r in reads))
    blocks = set().union(*(r.blocks for r in reads))
    fitting = Counter(key[i:] for key in after for i in range(len(key)))
    ends = {end for r in reads for end in r.ends if fitting[end] == 1}
    return [
        ".".join(key)
        for key in after.keys() - before.keys()
        if key not in whole
        and not any(key[: len(block)] == block for block in blocks)
        and not any(key[i:] in ends for i in range(len(key)))
    ]


def package_sources() -> list[str]:
    paths = sorted(p for p in PACKAGE.rglob("*.py") if not p.name.startswith("config"))
    return [path.read_text(encoding="utf-8") for path in paths]


def test_every_key_is_read() -> None:
    assert dead_keys(package_sources()) == []


# What is read as a block is checked by the function that takes it.
def test_every_key_of_swin_is_an_argument() -> None:
    cfg = get_cfg()
    add_panoptic_ext_config(cfg)
    parameters = inspect.signature(SwinTransformer).parameters
    assert {name.lower() for name in cfg.MODEL.SWIN} <= set(parameters)
    assert not any(p.kind == p.VAR_KEYWORD for p in parameters.values())


KEY = "MODEL.MASK_FORMER.TEST.SEMANTIC_ON"


@pytest.mark.parametrize(
    "source",
    [
        "cfg.MODEL.MASK_FORMER.TEST.SEMANTIC_ON = True",
        "check('MODEL.MASK_FORMER.TEST.SEMANTIC_ON', 'SEMANTIC_ON')",
        "SEMANTIC_ON = 1\nprint(SEMANTIC_ON)",
        "cfg.MODEL.SEMANTIC_ON",
        "cfg.MODEL.MASK_FORMER.TEST",
        "keys = cfg.MODEL\nkeys.SEMANTIC_ON",
        "cfg.MODEL.items()",
    ],
)
def test_what_does_not_read_a_key(source: str) -> None:
    assert KEY in dead_keys([source])


@pytest.mark.parametrize(
    "source",
    [
        "f(self.cfg.MODEL.MASK_FORMER.TEST.SEMANTIC_ON)",
        "keys = cfg.MODEL.MASK_FORMER\nf(a=keys.TEST.SEMANTIC_ON)",
        "def f(test):\n    return test.SEMANTIC_ON",
        "cfg.MODEL['MASK_FORMER'].TEST.get('SEMANTIC_ON', 1)",
        "x = 'SEMANTIC'\ny = cfg.MODEL.MASK_FORMER.TEST[f'{x}_ON']",
        "for k in ('SEMANTIC_ON', 'B'):\n    x = cfg.MODEL.MASK_FORMER.TEST[k]",
        "dict(cfg.MODEL.MASK_FORMER.TEST.items())",
    ],
)  # fmt: skip
def test_what_reads_a_key(source: str) -> None:
    assert KEY not in dead_keys([source])


def test_an_end_that_fits_several_keys_reads_none() -> None:
    source = "def f(keys):\n    return keys.NAME, keys.IMAGE_SIZE\n"
    assert "MODEL.TIMM.NAME" in dead_keys([source])
    assert "MODEL.TIMM.NAME" not in dead_keys([source + "f(cfg.MODEL.TIMM)"])


def test_a_dead_key_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    sources, add = package_sources(), add_panoptic_ext_config

    def with_dead_keys(cfg: CfgNode) -> None:
        add(cfg)
        cfg.MODEL.MASK_FORMER.NEVER_READ = 1
        cfg.MODEL.SWIN_TWO = CfgNode({"NAME": "", "NUM_HEADS": 3})

    monkeypatch.setitem(globals(), "add_panoptic_ext_config", with_dead_keys)
    dead = ["MODEL.MASK_FORMER.NEVER_READ", "MODEL.SWIN_TWO.NAME", "MODEL.SWIN_TWO.NUM_HEADS"]
    assert sorted(dead_keys(sources)) == dead


def test_the_keys_of_detectron2_keep_their_defaults() -> None:
    before, after = all_keys()
    assert {key: after.get(key) for key in before} == before
    assert {key: type(after[key]) for key in before} == {k: type(v) for k, v in before.items()}
    assert len(after) > len(before) + 60
