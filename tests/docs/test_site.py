"""The sources of the site: navigation, links and what make docs installs."""

from __future__ import annotations

import ast
import re

import pytest
import yaml
from detectron2.config import CfgNode, get_cfg

from panoptic_ext.config import add_panoptic_ext_config
from tests import ROOT
from tests.docs.pages import DOCS

PAGES = sorted(DOCS.rglob("*.md"))
WRITTEN = {"configs.md", "api/index.md"}  # by docs/hooks.py while the site is built


def test_the_navigation_has_every_page() -> None:
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    named = set(re.findall(r"[\w/-]+\.md", yaml.safe_dump(yaml.safe_load(text)["nav"])))
    assert named == {page.relative_to(DOCS).as_posix() for page in PAGES} | WRITTEN


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_of_a_page_lead_somewhere(page) -> None:
    text = page.read_text(encoding="utf-8")
    for link in re.findall(r"\]\(((?!http)[^)#\s]+)[^)]*\)", text):
        is_written = link in WRITTEN or re.fullmatch(r"api/panoptic_ext[\w.]*\.md", link)
        assert is_written or (page.parent / link).exists(), link
    for path in re.findall(r'--8<-- "([^"]+)"', text):
        assert (ROOT / path).is_file(), path


def test_every_room_says_what_it_holds() -> None:
    """The table of the API reference is made of these docstrings."""
    for path in (ROOT / "panoptic_ext").rglob("__init__.py"):
        assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))), path


def test_nothing_is_fetched_from_elsewhere() -> None:
    settings = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    assert settings["theme"]["font"] is False
    assert not {"extra_javascript", "repo_url"} & set(settings)
    assert "offline" not in settings["plugins"]  # it loads a script from a server
    style = (DOCS / "stylesheets" / "site.css").read_text(encoding="utf-8")
    assert "http" not in style and "@import" not in style


@pytest.fixture(scope="module")
def config_names() -> set[str]:
    """Every key and every block of keys."""
    cfg = get_cfg()
    add_panoptic_ext_config(cfg)
    names, pending = set(), [("", cfg)]
    while pending:
        prefix, node = pending.pop()
        for name, value in node.items():
            names.add(prefix + name)
            if isinstance(value, CfgNode):
                pending.append((f"{prefix}{name}.", value))
    return names


TEXTS = [*PAGES, *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "datasets/README.md"))]


@pytest.mark.parametrize("page", TEXTS, ids=lambda page: str(page.relative_to(ROOT)))
def test_config_keys_that_a_page_names_exist(page, config_names: set[str]) -> None:
    text = page.read_text(encoding="utf-8")
    blocks = "MODEL|INPUT|SOLVER|TEST|DATASETS|DATALOADER"
    found = set(re.findall(rf"\b(?:{blocks})(?:\.[A-Z][A-Z0-9_]+)+", text))
    assert found <= config_names, found - config_names
