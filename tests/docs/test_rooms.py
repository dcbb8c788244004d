"""docs/rooms.py: the pictures of the architecture page are those of the imports."""

from __future__ import annotations

import pytest

from docs import rooms


def test_pictures_are_up_to_date() -> None:
    for path, text in rooms.pictures().items():
        assert path.read_text(encoding="utf-8") == text, f"run python docs/rooms.py ({path.name})"


def test_every_room_has_its_words() -> None:
    assert set(rooms.read_graph(rooms.top_room)) == set(rooms.WORDS)
    assert set(rooms.read_graph(rooms.modeling_room)) == set(rooms.MODELING_WORDS)


def test_arrows_that_follow_from_others_are_left_out() -> None:
    graph = {"a": {"b", "c"}, "b": {"c"}, "c": set()}
    assert rooms.reduced(graph) == {"a": {"b"}, "b": {"c"}, "c": set()}


def test_a_circle_of_rooms_is_refused() -> None:
    with pytest.raises(ValueError, match="rooms import each other: a -> b -> a"):
        rooms.svg({"a": {"b"}, "b": {"a"}}, {})
