"""A scope within which one JSON is parsed once."""

from __future__ import annotations

from pathlib import Path

from panoptic_ext.data.datasets.parsed import parsed_content, parsed_once


def test_nothing_is_kept_outside_of_the_scope_and_one_json_within(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("a.json", "b.json")]
    for path in paths:
        path.write_text("{}")
    a, b = map(str, paths)
    assert parsed_content(a) is not parsed_content(a)
    with parsed_once():
        first = parsed_content(a)
        with parsed_once():
            assert parsed_content(a) is first
        assert parsed_content(a) is first
        parsed_content(b)
        assert parsed_content(a) is not first
    assert parsed_content(a) is not parsed_content(a)
