"""Convert config values: text that is a Python literal, and values to the type of their key."""

from __future__ import annotations

from ast import literal_eval
from collections.abc import Sequence
from typing import Any, NamedTuple

from panoptic_ext.config.plain_yaml import MAX_INTEGER
from panoptic_ext.errors import ConfigError, quoted

__all__ = ["Setting", "coerce", "decode"]

MAX_LITERAL = 10_000  # characters; Python's parser may exhaust the stack on much longer ones
# Lists of names whose default is empty, so that the default does not show the type of the items.
_NAMES = (
    "DATASETS.TRAIN",
    "DATASETS.TEST",
    "MODEL.FPN.IN_FEATURES",
    "MODEL.FREEZE",
    "INPUT.COPY_PASTE.CLASSES",
    "MODEL.WEIGHTS_CLASSES.ALIASES",
)
# Keys whose default is None and whose other values are not numbers.
_OPTIONAL_SWITCHES = ("INPUT.KEEP_EMPTY_SEGMENTS", "MODEL.CHANNELS_LAST")
# Keys that hold a word or a list. YAML reads the word off as False.
_WORD_OR_LIST = ("MODEL.EOMT.ANNEALING",)
# Keys that hold an integer, None or this word.
_NUMBER_OR_WORD = {"MODEL.BACKBONE.FREEZE": "all"}
_OPTIONAL_NAMES = ("INPUT.PANOPTIC_TARGETS", "MODEL.TRANSFORMERS.STUFF_CLASSES")


class Setting(NamedTuple):
    """One value given by the user."""

    key: str  # full name, as SOLVER.BASE_LR
    value: Any  # as YAML or the command line gave it
    source: str  # "file:line" or COMMAND_LINE, for messages
    file: str = ""  # "" for the command line
    in_base: bool = False  # in a file that a `_BASE_` names


def decode(value: Any) -> Any:
    """Values as Detectron2 reads them: text that is a Python literal becomes that literal."""
    if not isinstance(value, str) or len(value) > MAX_LITERAL:
        return value
    try:
        literal = literal_eval(value)
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
        # No literal; or one that Python's parser cannot build: it is nested too deeply, has an
        # integer that is too long, or a dict's key that has no hash (`{[]: 1}`).
        return value
    return literal if _is_bounded(literal) else value


def _is_bounded(literal: Any) -> bool:
    """Whether the integers in a literal fit in 64 bits, as those of YAML must."""
    if isinstance(literal, (list, tuple, set)):
        return all(map(_is_bounded, literal))
    if isinstance(literal, dict):
        return all(map(_is_bounded, [*literal, *literal.values()]))
    return not isinstance(literal, int) or abs(literal) < MAX_INTEGER


def coerce(value: Any, default: Any, setting: Setting) -> Any:
    """Convert `value` to the type of its key.

    Args:
        value: decoded.
        default: the current value of the key; if it is None, see `_optional`.
        setting: where the value comes from, for messages.

    Raises:
        ConfigError: it is of another type, or an item of a list is.
    """
    if setting.key in _WORD_OR_LIST and isinstance(value, (str, list, tuple, bool)):
        return "off" if value is False else value
    if setting.key in _NUMBER_OR_WORD:
        return _number_or_word(value, _NUMBER_OR_WORD[setting.key], setting)
    if isinstance(default, (tuple, list)) and isinstance(value, (tuple, list)):
        _check_items(value, default, setting)
        return type(default)(value)
    if type(value) is type(default):
        return value
    if default is None:
        return _optional(value, setting)
    if value is None:
        empty = {"str": "''", "tuple": "[]", "list": "[]"}.get(type(default).__name__)
        hint = f"; for none write {empty}" if empty else ""
        raise ConfigError(
            f"{setting.source}: {setting.key} has no value (None), expected one of type "
            f"{type(default).__name__}{_example(default)}{hint}"
        )
    if isinstance(default, float) and type(value) is int:
        return float(value)
    if isinstance(default, str) and isinstance(setting.value, str):
        return setting.value  # a name that looks like a number
    example = _example(default)
    if isinstance(default, (tuple, list)):
        example += f"; for a single entry write [{quoted(value)}]"
    raise ConfigError(
        f"{setting.source}: {setting.key} must be of type {type(default).__name__}{example}, "
        f"found {quoted(value)} ({type(value).__name__})"
    )


def _check_items(values: Sequence[Any], default: Sequence[Any], setting: Setting) -> None:
    """A list of numbers takes numbers alone, a list of names takes names alone."""
    kinds = {"a text"} if setting.key in _NAMES else {_kind(item) for item in default}
    expected = kinds.pop() if len(kinds) == 1 else ""
    if not expected:
        return
    for item in values:
        if _kind(item) != expected:
            raise ConfigError(
                f"{setting.source}: {setting.key} holds {quoted(item)}, expected {expected} for "
                f"each of its items{_example(default)}"
            )


def _kind(item: Any) -> str:
    if isinstance(item, bool):
        return "True or False"
    if isinstance(item, (int, float)):
        return "a number"
    return "a text" if isinstance(item, str) else ""


def _number_or_word(value: Any, word: str, setting: Setting) -> int | str | None:
    if value is None or value == word or (type(value) is int and value >= 0):
        return value
    raise ConfigError(
        f"{setting.source}: {setting.key} must be an integer from 0 on, None or '{word}', "
        f"found {quoted(value)}"
    )


def _optional(value: Any, setting: Setting) -> float | bool | list[str] | None:
    """A value of a key whose default is None."""
    if setting.key in _OPTIONAL_NAMES:
        expected = "a list of names"
        fits = isinstance(value, (list, tuple)) and all(isinstance(x, str) for x in value)
    elif setting.key in _OPTIONAL_SWITCHES:
        expected, fits = "True, False", isinstance(value, bool)
    else:
        expected = "a number"
        fits = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not fits and value is not None:
        raise ConfigError(
            f"{setting.source}: {setting.key} must be {expected} or None, found {quoted(value)} "
            f"({type(value).__name__})"
        )
    if isinstance(value, tuple):
        return list(value)
    return float(value) if type(value) is int else value


def _example(default: Any) -> str:
    return f" such as {quoted(default)}" if default not in ("", (), []) else ""
