"""docs/config_keys.py: the page of config keys has every key, its default and its meaning."""

from __future__ import annotations

import pytest
import yaml
from detectron2.config import CfgNode, get_cfg

from docs import config_keys
from panoptic_ext.config import add_panoptic_ext_config

BLOCKS = {"DATASETS.PANOPTIC", "DATASETS.INSTANCES"}  # of keys that the user names


def leaves(node: CfgNode, prefix: str = "") -> dict[str, object]:
    """Value of every key that is not a block, by its whole name."""
    values: dict[str, object] = {}
    for name, value in node.items():
        if isinstance(value, CfgNode):
            values.update(leaves(value, f"{prefix}{name}."))
        else:
            values[prefix + name] = value
    return values


@pytest.fixture(scope="module")
def keys() -> list[config_keys.Key]:
    return [key for section in config_keys.sections() for key in section.keys]


def test_every_key_is_on_the_page_with_its_default(keys: list[config_keys.Key]) -> None:
    cfg = get_cfg()
    before = leaves(cfg)
    add_panoptic_ext_config(cfg)
    added = {name: value for name, value in leaves(cfg).items() if name not in before}
    written = {key.name: key.default for key in keys if key.default is not None}
    assert set(written) == set(added) and len(added) > 100
    for name, default in written.items():
        value = None if default == "None" else yaml.safe_load(str(default))
        assert value == added[name], name


def test_every_key_has_a_meaning_that_is_a_sentence(keys: list[config_keys.Key]) -> None:
    for key in keys:
        assert key.meaning[:1].isupper() or key.meaning.startswith(('"', "lsj", "hadamard")), key
        assert key.name in BLOCKS or key.meaning.endswith("."), key


def test_meaning_is_the_comment_above_and_the_one_at_the_end() -> None:
    source = (
        "LIMIT = 3  # of no key\n"
        "def add_keys(cfg):\n"
        "    # Of another line.\n"
        "\n"
        "    # First line,\n"
        "    #   an item\n"
        "    cfg.A.B = LIMIT  # and the end.\n"
        "    cfg.A.C = CN()\n"
        "def read(cfg):\n"
        "    cfg.A.D = 4\n"
    )
    assert config_keys.read_keys(source) == [
        config_keys.Key("A.B", "3", "First line,\n  an item\nand the end."),
        config_keys.Key("A.C", None, ""),
    ]
